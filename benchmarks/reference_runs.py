"""The committed reference runs on the CPU: the three examples, as a user types them.

results/<workload>_cpu/    a probe's folder, output.txt: what it printed, and check.txt: what the check of it printed
results/text-gpt_soak_cpu/ the same of a plan that was run for 200 optimizer steps, without a check
results/three_ways_cpu/    what examples/three_ways.py printed

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
    "digits-resnet": ("--effective-batch", "256", "--train", "--eval"),
    "text-gpt": ("--effective-batch", "256", "--worst-case"),
}
# Its first samples are short, and what runs later is longer: what a soak is for.
SOAK = ("--effective-batch", "64", "--soak", "200", "--no-compare", "--no-check")


def main() -> None:
    """Run each, one after the other, since they are timed; end with the first status that is not 0."""
    for target, options in RUNS.items():
        folder = f"results/{target}_cpu"
        _probe(target, options, folder)
        _run("cli.py", "check", target, "--device", "cpu", to="check.txt", folder=folder)
    _probe("text-gpt", SOAK, "results/text-gpt_soak_cpu")
    _run("examples/three_ways.py", to="output.txt", folder="results/three_ways_cpu")


def _probe(target: str, options: tuple[str, ...], folder: str) -> None:
    arguments = ("probe", target, *options, "--device", "cpu", "--output", folder, "--force")
    _run("cli.py", *arguments, to="output.txt", folder=folder)


def _run(script: str, *arguments: str, to: str, folder: str) -> None:
    """What the script prints goes into a file of the folder; a check that finds a difference has done its work."""
    ended = subprocess.run([sys.executable, script, *arguments], check=False, stdout=subprocess.PIPE, text=True)
    if ended.returncode not in (0, NOT_EQUAL):
        sys.exit(ended.returncode)
    Path(folder).mkdir(exist_ok=True)
    Path(folder, to).write_text(ended.stdout)


if __name__ == "__main__":
    main()
