"""Which losses decompose into those of parts of a batch, and how: every loss of torch.nn, and some that people write.

Each is checked with a small network and 16 samples as `microbatch check` would, without loss_items; then again with the
weights that the check advises. How each decomposes is also written by hand in `benchmarks.loss_entries`, and a test compares
the two. Writes results/losses_cpu/: table.csv, README.md, environment.json.

    python -m benchmarks.losses
"""

from __future__ import annotations

import csv
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import isnan, nan
from pathlib import Path
from typing import Any

import torch

from benchmarks.csv_rows import to_csv
from benchmarks.loss_entries import ENTRIES, SAMPLES, Count, Divided, Entry
from benchmarks.threads import one_thread
from profiler.checking.check import equivalence_of
from profiler.devices import open_device
from profiler.equivalence import Decomposition, Equivalence
from profiler.placing import Placement
from profiler.steps import Phase, Training
from profiler.workload import Workload

FOLDER = Path(__file__).parents[1] / "results" / "losses_cpu"
COMMAND = "python -m benchmarks.losses"
# What fp64 leaves of a difference of gradients, and more; and fp32, where weights are summed in it.
EXACT, NEARLY = 1e-10, 2.0**-20


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What the check found. Differences are of gradients, relative to the whole batch's, the largest of all ways.

    nan: the loss of a part by itself is no number. None: no weights are right.
    """

    loss: str
    reduction: str
    variant: str
    decomposes: str
    averaged_over: str
    difference_by_samples: float
    difference_by_right_weights: float | None
    what_to_do: str


def main() -> None:
    """Check every loss, print and write the table."""
    rows = []
    for entry in ENTRIES:
        rows.append(row_of(entry))
        print(f"{entry.name}: {rows[-1].decomposes} {rows[-1].averaged_over}", flush=True)
    environment = dict(open_device("cpu").facts().environment)
    FOLDER.mkdir(parents=True, exist_ok=True)
    write_table(rows, FOLDER / "table.csv")
    (FOLDER / "environment.json").write_text(json.dumps(environment, indent=2) + "\n")
    (FOLDER / "README.md").write_text(readme(rows, environment["torch"]))


def row_of(entry: Entry) -> Row:
    """The loss checked without loss_items, and with the right weights."""
    found = checked(entry.workload)
    return Row(
        loss=entry.loss,
        reduction=entry.reduction,
        variant=entry.variant,
        decomposes=str(found.decomposes),
        averaged_over=found.items or "",
        difference_by_samples=largest_difference(found),
        difference_by_right_weights=_difference_by_right_weights(entry, found),
        what_to_do=found.advice,
    )


def checked(workload: Workload) -> Equivalence:
    """The check's answer for the workload, in this process."""
    with warnings.catch_warnings(), one_thread():
        warnings.filterwarnings("ignore", "reduction: 'mean' divides the total loss")  # KLDivLoss
        return equivalence_of(
            Training.start(workload, Placement(torch.device("cpu")), Phase()), SAMPLES, thorough=False
        )


def largest_difference(found: Equivalence) -> float:
    """Of all ways, to three digits; nan where one of them gives no number."""
    differences = [nan if way.gradient_difference is None else way.gradient_difference for way in found.ways]
    return nan if any(map(isnan, differences)) else float(f"{max(differences):.2e}")


def _difference_by_right_weights(entry: Entry, found: Equivalence) -> float | None:
    match found.decomposes:
        case Decomposition.NO:
            return None
        case Decomposition.SAMPLES:
            return largest_difference(found)
        case Decomposition.SUM:
            divided = replace(entry.workload, loss=Divided(loss=entry.workload.loss))
            return largest_difference(checked(divided))
    loss_items: Any = advised(entry, found.advice) or entry.right
    return largest_difference(checked(replace(entry.workload, loss_items=loss_items)))


def advised(entry: Entry, advice: str) -> Count | None:
    """The loss_items that the advice spells out; None where it gives no expression."""
    code = code_in(advice)
    return eval(code, {"class_weights": entry.class_weights}) if code else None  # the check's own words


def code_in(advice: str) -> str:
    """The function that the advice tells to pass as loss_items, "" where it has none."""
    found = re.search(r"loss_items=(lambda batch: .+?), so that", advice)
    return found[1] if found else ""


# ---- to files


def write_table(rows: Sequence[Row], path: Path) -> None:
    """The rows as CSV."""
    path.write_text(to_csv(Row, rows))


def read_table(path: Path) -> list[Row]:
    """The rows of a CSV that `write_table` wrote."""
    with path.open(newline="") as file:
        return [_row(line) for line in csv.DictReader(file)]


def _row(line: dict[str, str]) -> Row:
    by_samples, by_right = line.pop("difference_by_samples"), line.pop("difference_by_right_weights")
    return Row(
        **line,
        difference_by_samples=float(by_samples),
        difference_by_right_weights=float(by_right) if by_right else None,
    )


def readme(rows: Sequence[Row], torch_version: str) -> str:
    """The table to read: a row a loss, and below it what to do, each advice once."""
    advice = list(dict.fromkeys(row.what_to_do for row in rows if not code_in(row.what_to_do)))
    lines = [
        "# Which losses decompose, and how",
        "",
        f"Each loss trained a small network on {SAMPLES} samples, and the check compared the gradients of accumulated "
        f"micro-batches, of unequal sizes and of one sample each, with the whole batch's, in fp64 with torch {torch_version} "
        f"on the CPU. `{COMMAND}` made this table, and table.csv with the check's full words.",
        "",
        "*By samples* and *by the right weights* are the largest difference of the gradients, relative to the whole "
        'batch\'s, when micro-batches are weighted by their share of the samples, and as the last column says. "nan": a '
        "micro-batch has nothing to average over, and its loss is 0 / 0. What is weighted by samples where it averages over "
        "items, or where no weights are right, trains another loss. Weights that are fractions were summed in fp32, and a mean "
        "that is guarded by 1e-8 is not quite one: their differences are above fp64's rounding, and below fp32's. A batch shows what is in it: a loss that leaves targets "
        "out is averaged over samples for as long as each leaves out as many.",
        "",
        "| loss | reduction | variant | decomposes | averaged over | by samples | by the right weights | what to do |",
        "|---|---|---|---|---|---|---|---|",
        *(_line(row, advice) for row in rows),
        "",
        "What to do:",
        "",
        *(f"{number}. {text}" for number, text in enumerate(advice, start=1)),
        *_disagreements(rows),
    ]
    return "\n".join(lines) + "\n"


def _disagreements(rows: Sequence[Row]) -> Iterator[str]:
    """Where the check and what is written by hand differ, below a heading; nothing where they agree."""
    wrong = [text for entry, row in zip(ENTRIES, rows, strict=True) if (text := _disagreement(entry, row))]
    if wrong:
        yield from ("", "Where the check does not say what torch's documentation does, or its advice is not exact:", "")
        yield from wrong


def _disagreement(entry: Entry, row: Row) -> str:
    difference = row.difference_by_right_weights
    if row.decomposes != entry.expected:
        return f"- {entry.name}: {entry.expected}, not {row.decomposes}."
    if difference is not None and difference >= NEARLY:
        return f"- {entry.name}: with the advised weights the gradient is off by {difference:.1e}."
    return ""


def _line(row: Row, advice: Sequence[str]) -> str:
    code = code_in(row.what_to_do)
    right = row.difference_by_right_weights
    cells = (
        row.loss,
        row.reduction,
        row.variant,
        row.decomposes,
        _marked(row.averaged_over),
        f"{row.difference_by_samples:.1e}",
        "" if right is None else f"{right:.1e}",
        f"`loss_items={code}`" if code else str(advice.index(row.what_to_do) + 1),
    )
    return f"| {' | '.join(cells)} |"


def _marked(averaged_over: str) -> str:
    """The expression of `batch` in it as code; words as they are."""
    expression, where, words = averaged_over.partition(", with ")
    return f"`{expression}`{where}{words}" if "batch" in expression else averaged_over


if __name__ == "__main__":
    main()
