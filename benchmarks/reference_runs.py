"""The committed reference runs on the CPU: the three examples, as a user types them.

results/<workload>_cpu/  a probe's folder, and output.txt: what it printed

    python -m benchmarks.reference_runs
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# Effective batches that need accumulation under the default budget of 512 MiB. The text's first samples are short ones,
# by which small sizes would look fast: with the longest first, every size has the same.
RUNS = {
    "digits-cnn": ("--effective-batch", "8192"),
    "digits-resnet": ("--effective-batch", "256"),
    "text-gpt": ("--effective-batch", "256", "--worst-case"),
}


def main() -> None:
    """Run each, one after the other, since they are timed; end with the first status that is not 0."""
    for target, options in RUNS.items():
        arguments = ["probe", target, *options, "--device", "cpu", "--output", f"results/{target}_cpu", "--force"]
        ended = subprocess.run([sys.executable, "cli.py", *arguments], check=False, stdout=subprocess.PIPE, text=True)
        if ended.returncode:
            sys.exit(ended.returncode)
        Path("results", f"{target}_cpu", "output.txt").write_text(ended.stdout)


if __name__ == "__main__":
    main()
