"""The committed reference runs on the CPU: the three examples, as a user types them.

results/<workload>_cpu/  a probe's folder, output.txt: what it printed, and check.txt: what the check of it printed
results/three_ways_cpu/  what examples/three_ways.py printed

    python -m benchmarks.reference_runs
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from profiler.commands import NOT_EQUAL

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
        folder = f"results/{target}_cpu"
        _run(
            "cli.py",
            "probe",
            target,
            *options,
            "--device",
            "cpu",
            "--output",
            folder,
            "--force",
            to="output.txt",
            folder=folder,
        )
        _run("cli.py", "check", target, "--device", "cpu", to="check.txt", folder=folder)
    _run("examples/three_ways.py", to="output.txt", folder="results/three_ways_cpu")


def _run(script: str, *arguments: str, to: str, folder: str) -> None:
    """What the script prints goes into a file of the folder; a check that finds a difference has done its work."""
    ended = subprocess.run([sys.executable, script, *arguments], check=False, stdout=subprocess.PIPE, text=True)
    if ended.returncode not in (0, NOT_EQUAL):
        sys.exit(ended.returncode)
    Path(folder).mkdir(exist_ok=True)
    Path(folder, to).write_text(ended.stdout)


if __name__ == "__main__":
    main()
