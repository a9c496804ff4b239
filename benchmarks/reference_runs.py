"""The committed reference runs on the CPU: the three examples, as a user types them.

results/<workload>_cpu/    a probe's folder, output.txt: what it printed, and check.txt: what the check of it printed
results/digits-resnet_eval_cpu/ the same of the largest batch for evaluation
results/text-gpt_soak_cpu/ the same of a plan that was run for 200 optimizer steps, without a check
results/three_ways_cpu/    what examples/three_ways.py printed

    python -m benchmarks.reference_runs
"""

from __future__ import annotations

import json
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
# Its first samples are short, and what runs later is longer: what a soak is for.
SOAK = ("--effective-batch", "16", "--soak", "200", "--no-compare", "--no-check")


def main() -> None:
    """Run each, one after the other, since they are timed; end with the first status that is not 0."""
    for target, options in RUNS.items():
        folder = f"results/{target}_cpu"
        run_probe(target, options, folder)
        _run("cli.py", "check", target, "--device", "cpu", to="check.txt", folder=folder)
    run_probe("digits-resnet", ("--eval",), "results/digits-resnet_eval_cpu")
    run_probe("text-gpt", SOAK, "results/text-gpt_soak_cpu")
    _run("examples/three_ways.py", to="output.txt", folder="results/three_ways_cpu")


def run_probe(target: str, options: tuple[str, ...], folder: str, *, device: str = "cpu") -> None:
    """The folder of that command, with what it printed in output.txt; end with its status where it fails."""
    arguments = ("probe", target, *options, "--device", device, "--output", folder, "--force")
    _run("cli.py", *arguments, to="output.txt", folder=folder)
    _forget_directory(Path(folder, "records.jsonl"))


def _forget_directory(records: Path) -> None:
    """Where the command was typed is a path of one machine, and says nothing to others."""
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    records.write_text(
        "".join(f"{json.dumps({**line, 'directory': None} if 'directory' in line else line)}\n" for line in lines)
    )


def _run(script: str, *arguments: str, to: str, folder: str) -> None:
    """What the script prints goes into a file of the folder; a check that finds a difference has done its work."""
    ended = subprocess.run([sys.executable, script, *arguments], check=False, stdout=subprocess.PIPE, text=True)
    if ended.returncode not in (0, NOT_EQUAL):
        sys.exit(ended.returncode)
    Path(folder).mkdir(exist_ok=True)
    Path(folder, to).write_text(ended.stdout)


if __name__ == "__main__":
    main()
