"""What the simulated card says beside what `benchmarks.gpu` measured: peaks, and the largest micro-batch under each budget.

The card is made of the measured one's total bytes and compute capability; its context is the catalogue's for that
capability, since nothing measured may help the prediction. Every budget that was searched is searched again, and every
size that ran is predicted, with what the process could have as the limit. Needs no GPU, but the models' libraries, and a torch
of the measured release to be fair: environment.json has both. Not yet run on a GPU's results.

results/prediction_<card>/  answers.csv, peaks.csv, command.txt, environment.json

    python -m benchmarks.gpu_prediction --measured results/gpu_<card> --output FOLDER [--jobs N] [--seconds 600]
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, cast

from benchmarks.csv_rows import to_csv
from benchmarks.gpu_parts import PARTS, Probe, Search
from benchmarks.gpu_results import json_bytes, read_json
from profiler.errors import MicrobatchError
from profiler.events import unobserved
from profiler.files import replace_file
from profiler.finder import find_largest
from profiler.opening import open_prober
from profiler.options import Options
from profiler.outcomes import Fits
from profiler.simulation.cards import SIMULATED
from profiler.targets import TargetOptions

# What a row may take that was begun before the time was over.
ROW_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A search on the GPU. peaks: of each size that ran, in order: allocated and reserved bytes."""

    part: str
    target: str
    precision: str
    budget: str
    capacity_bytes: int
    largest_fit: int
    smallest_misfit: int | None
    peaks: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A budget's largest micro-batch, measured and predicted.

    error: (predicted - measured) / measured, None where there is no prediction or nothing fitted. note: why none.
    """

    part: str
    workload: str
    precision: str
    budget: str
    capacity_bytes: int
    largest_fit: int
    smallest_misfit: int | None
    predicted_largest_fit: int | None
    error: float | None
    seconds: float
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """A size that ran, measured and predicted; None where it is predicted to be out of memory."""

    part: str
    workload: str
    precision: str
    budget: str
    micro_batch_size: int
    allocated_bytes: int
    predicted_allocated_bytes: int | None
    reserved_bytes: int
    predicted_reserved_bytes: int | None


def main() -> None:
    """Predict all that was measured, as long as there is time; a line for each, and tables after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measured", type=Path, required=True, help="the folder that benchmarks.gpu wrote")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1) // 3))
    parser.add_argument("--seconds", type=float, default=600.0)
    arguments = parser.parse_args()
    card = read_json(arguments.measured / "environment.json")
    searches = measured_in(arguments.measured)
    if not searches or "total_bytes" not in card:
        sys.exit(
            f"Nothing was predicted, for {arguments.measured} holds no search: run python -m benchmarks.gpu first."
        )
    write_origin(arguments.output, card)
    device = f"{SIMULATED}{card['total_bytes']}@{card['compute_capability']}"
    last_start = time.time() + arguments.seconds - ROW_SECONDS
    answers: list[Answer] = []
    peaks: list[Peak] = []
    # Started anew, since a process that has imported torch is not to be forked.
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(predicted, each, device, last_start) for each in searches]):
            answer, its_peaks = done.result()
            answers.append(answer)
            peaks += its_peaks
            print(words(answer), flush=True)
            write_csv(arguments.output / "answers.csv", Answer, answers)
            write_csv(arguments.output / "peaks.csv", Peak, peaks)
    errors = [abs(answer.error) for answer in answers if answer.error is not None]
    made = sum(answer.predicted_largest_fit is not None for answer in answers)
    print(f"{made} of {len(searches)} answers predicted; the largest error is {max(errors, default=0):.1%}")
    sys.exit(0 if made == len(searches) else 1)


def measured_in(folder: Path) -> list[Measured]:
    """Every search of the summary that a part of `benchmarks.gpu` still names, and whose document is there."""
    targets = {part.name: part for part in PARTS if isinstance(part, Probe | Search)}
    path = folder / "summary.csv"
    rows = list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []
    found = []
    for row in rows:
        part = targets.get(row["part"])
        name = row["part"] if isinstance(part, Probe) else f"{row['part']}_{row['budget']}"
        document = read_json(folder / f"{name}.json")
        if part is not None and document:
            found.append(measured_of(row, part.target, document))
    return found


def measured_of(row: Mapping[str, str], target: str, document: Mapping[str, Any]) -> Measured:
    """A row of the summary, with the document behind it."""
    return Measured(
        part=row["part"],
        target=target,
        precision=row["precision"],
        budget=row["budget"],
        capacity_bytes=int(row["capacity_bytes"]),
        largest_fit=int(row["largest_fit"]),
        smallest_misfit=int(row["smallest_misfit"]) if row["smallest_misfit"] else None,
        peaks=tuple(
            (trial["micro_batch_size"], trial["peak_allocated_bytes"], trial["peak_reserved_bytes"])
            for trial in document["trials"]
            if trial["outcome"] == "fits" and trial["peak_allocated_bytes"] is not None
        ),
    )


def predicted(
    search: Measured, device: str, last_start: float, isolation: Literal["process", "none"] = "process"
) -> tuple[Answer, list[Peak]]:
    """The same search on the simulated card, and the sizes that ran; without them where it fails or there is no time."""
    start = time.monotonic()
    if time.time() > last_start:
        return answer_of(search, None, 0.0, "left out: no time was left"), []
    options = Options(
        device=device,
        memory_limit=search.capacity_bytes,
        isolation=isolation,
        target_options=TargetOptions(precision=cast(Any, search.precision)),
    )
    try:
        with open_prober(search.target, options, unobserved) as (prober, _):
            largest = find_largest(prober).largest_fit
            outcomes = {size: prober.try_size(size, "it was measured").outcome for size, _, _ in search.peaks}
    except MicrobatchError as error:
        return answer_of(search, None, time.monotonic() - start, str(error).splitlines()[0]), []
    peaks = []
    for size, allocated_bytes, reserved_bytes in search.peaks:
        outcome = outcomes[size]
        fits = outcome if isinstance(outcome, Fits) else None
        peaks.append(
            Peak(
                part=search.part,
                workload=search.target,
                precision=search.precision,
                budget=search.budget,
                micro_batch_size=size,
                allocated_bytes=allocated_bytes,
                predicted_allocated_bytes=None if fits is None else fits.peak_allocated_bytes,
                reserved_bytes=reserved_bytes,
                predicted_reserved_bytes=None if fits is None else fits.peak_reserved_bytes,
            )
        )
    return answer_of(search, largest, time.monotonic() - start, ""), peaks


def answer_of(search: Measured, largest: int | None, seconds: float, note: str) -> Answer:
    """The row of a search; `largest` is what was predicted."""
    if largest is None or (search.largest_fit == 0 < largest):
        error = None
    else:
        error = round(largest / search.largest_fit - 1, 4) if search.largest_fit else 0.0
    return Answer(
        part=search.part,
        workload=search.target,
        precision=search.precision,
        budget=search.budget,
        capacity_bytes=search.capacity_bytes,
        largest_fit=search.largest_fit,
        smallest_misfit=search.smallest_misfit,
        predicted_largest_fit=largest,
        error=error,
        seconds=round(seconds, 1),
        note=note,
    )


def words(answer: Answer) -> str:
    """An answer in a line."""
    what = f"{answer.workload} in {answer.budget}: largest {answer.largest_fit}"
    if answer.predicted_largest_fit is None:
        return f"{what}, not predicted: {answer.note}"
    if answer.error is None:
        return f"{what}, predicted {answer.predicted_largest_fit}"
    return f"{what}, predicted {answer.predicted_largest_fit} ({answer.error:+.1%}); {answer.seconds:.0f} s"


def write_origin(folder: Path, card: Mapping[str, Any]) -> None:
    """The command, what was measured on, and what predicts."""
    folder.mkdir(parents=True, exist_ok=True)
    here = {"torch": version("torch"), "python": platform.python_version(), "system": platform.system()}
    measured = {name: value for name, value in card.items() if name != "parts"}
    replace_file(folder / "environment.json", json_bytes({"measured": measured, "predicted": here}))
    command = shlex.join(["python", "-m", "benchmarks.gpu_prediction", *sys.argv[1:]])
    replace_file(folder / "command.txt", f"{command}\n".encode())


def write_csv(path: Path, kind: type[Answer | Peak], rows: Sequence[Answer] | Sequence[Peak]) -> None:
    """The rows so far, by part and budget, whichever came first."""
    ordered: Iterable[Answer | Peak] = sorted(rows, key=lambda row: (row.part, row.budget))
    path.write_text(to_csv(kind, ordered))


if __name__ == "__main__":
    main()
