"""How far the simulated card is from real ones: training runs that others measured, predicted without a GPU.

The runs are in benchmarks/prediction_data/: three cards, networks for images and language models. Each is simulated step by
step on the card of its name. What was measured holds, beside what torch's allocator reserves, what the driver loads after the
context: a constant for each card, the median over the models that it is fitted on (`FIT_MODELS`), and all other models check.
Where the measured run ran out of memory only the decision counts. The published estimators are scored on the same runs.

    python -m benchmarks.prediction [--only fit|check] [--model NAME ...] [--both-modes] [--output FOLDER]

Writes results/prediction/: rows.csv, summary.csv, environment.json, command.txt, prediction.png. With --only or --model,
nothing is written but to --output, and the constants are those of the runs at hand.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from benchmarks.prediction_loop import BETWEEN, FIRST, simulate
from benchmarks.prediction_rows import (
    CHECK,
    FIT,
    Row,
    Run,
    Score,
    Simulated,
    constants,
    row_of,
    runs_of,
    scores,
    summary_csv,
    to_csv,
)
from profiler.files import replace_file
from profiler.units import MIB, format_bytes

DATA = Path(__file__).parent / "prediction_data" / "xmem.csv"
FOLDER = Path(__file__).parents[1] / "results" / "prediction"


def main() -> None:
    """Predict every run, print a line for each, write tables and figure."""
    arguments = parsed()
    runs = [
        run
        for run in runs_of(DATA.read_text())
        if arguments.only in (None, run.part) and (not arguments.model or run.model in arguments.model)
    ]
    simulated: list[Simulated] = []
    other: list[int | None] = []
    for run in runs:
        simulated.append(simulate(run, mode_of(run)))
        both = arguments.both_modes and run.zero_grad_mode is None
        other.append(simulate(run, BETWEEN).reserved_bytes if both else None)
        gc.collect()
        say(run, simulated[-1])
    by_card = constants(runs, simulated)
    rows = [
        row_of(run, result, by_card[run.gpu], mode=mode_of(run), other_reserved_bytes=reserved)
        for run, result, reserved in zip(runs, simulated, other, strict=True)
    ]
    for gpu, constant_bytes in by_card.items():
        print(f"{gpu}: {format_bytes(constant_bytes)} beside what torch reserves")
    for part in (FIT, CHECK):
        chosen = [index for index, row in enumerate(rows) if row.part == part]
        for found in scores([rows[index] for index in chosen], [runs[index] for index in chosen]):
            print(f"{part}: {words(found)}")
    narrowed = bool(arguments.only or arguments.model)
    if arguments.output or not narrowed:
        write(rows, runs, arguments.output or FOLDER)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=(FIT, CHECK))
    parser.add_argument("--model", nargs="+", metavar="NAME")
    parser.add_argument("--both-modes", action="store_true", help="runs of unknown zero_grad mode with mode 1 too")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def mode_of(run: Run) -> int:
    """Where its gradients were set to None; where that is not recorded, first of all.

    For distilgpt2, on which constants are fitted, that gives the measured peaks to within a few MiB, and mode 1 does not.
    """
    return FIRST if run.zero_grad_mode is None else run.zero_grad_mode


def say(run: Run, result: Simulated) -> None:
    """The run in a line, as soon as it is known."""
    measured = "out of memory" if run.real_oom else f"{run.ground_bytes / MIB:,.0f} MiB"
    predicted = "out of memory" if result.within_bytes is None else f"{result.peak_bytes / MIB:,.0f} MiB"
    off = "" if run.real_oom else f", {(result.peak_bytes - run.ground_bytes) / run.ground_bytes:+.1%}"
    print(
        f"{run.part}: {run.model} {run.optimizer} {run.batch_size}, mode {run.zero_grad_mode}, {run.gpu}: reserved {predicted}, "
        f"measured {measured}{off}; {result.seconds:.1f} s",
        flush=True,
    )


def words(found: Score) -> str:
    """A score in a line."""
    if found.median_error is None or found.high_error is None:
        errors = "no peaks"
    else:
        errors = f"median error {found.median_error:.2%}, 90th percentile {found.high_error:.2%} of {found.peaks}"
    return f"{found.estimator}: {errors}; {found.wrong} of {found.judged} decisions wrong"


def write(rows: Sequence[Row], runs: Sequence[Run], folder: Path) -> None:
    """Tables, figure, environment and command."""
    from benchmarks.prediction_figure import figure

    folder.mkdir(parents=True, exist_ok=True)
    environment = {
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "system": f"{platform.system()} {platform.release()}",
    }
    command = shlex.join(["python", "-m", "benchmarks.prediction", *sys.argv[1:]])
    replace_file(folder / "rows.csv", to_csv(rows).encode())
    replace_file(folder / "summary.csv", summary_csv(rows, runs).encode())
    replace_file(folder / "environment.json", (json.dumps(environment, indent=2) + "\n").encode())
    replace_file(folder / "command.txt", f"{command}\n".encode())
    replace_file(folder / "prediction.png", figure(rows))


if __name__ == "__main__":
    main()
