"""The committed reference runs on the CPU: the three examples, as a user types them.

results/<workload>_cpu/  a probe's folder, and output.txt: what it printed

    python -m benchmarks.reference_runs
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# An effective batch that needs some accumulation under the default budget of 512 MiB.
RUNS = {"digits-cnn": 8192, "digits-resnet": 256, "text-gpt": 256}


def main() -> None:
    """Run each, one after the other, since they are timed; end with the first status that is not 0."""
    for target, effective_batch in RUNS.items():
        arguments = ["probe", target, "--effective-batch", str(effective_batch), "--device", "cpu"]
        arguments += ["--output", f"results/{target}_cpu", "--force"]
        ended = subprocess.run([sys.executable, "cli.py", *arguments], check=False, stdout=subprocess.PIPE, text=True)
        if ended.returncode:
            sys.exit(ended.returncode)
        Path("results", f"{target}_cpu", "output.txt").write_text(ended.stdout)


if __name__ == "__main__":
    main()
