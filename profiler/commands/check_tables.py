"""What a check found as tables and sentences: from an `Equivalence` to rows and lines."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from itertools import groupby

from profiler.commands.tables import Table
from profiler.equivalence import Equivalence, Way
from profiler.outcomes import Strategy

WAYS = {
    Strategy.WHOLE_BATCH: "whole batch",
    Strategy.SUMMED_LOSS: "summed loss, one backward",
    Strategy.ACCUMULATION: "a backward each",
}
COLUMNS = ("way", "split", "loss", "parameter sum", "gradient\ndiffers by", "equal\nup to", "equal")


def check_tables(equivalence: Equivalence, workload: str, device: str) -> tuple[Table, ...]:
    """A table a precision, a row a way: its loss, its gradient's relative distance from the whole batch's, and the bound.

    Ways that could not be run have dashes; `check_lines` says why.
    """
    return tuple(
        Table(
            title=f"{workload} on {device}: {equivalence.batch_size} samples in {precision}",
            columns=COLUMNS,
            rows=tuple(_row(way) for way in equivalence.ways if way.precision == precision),
        )
        for precision in dict.fromkeys(way.precision for way in equivalence.ways)
    )


def check_lines(equivalence: Equivalence) -> Iterable[str]:
    """The verdict, its reasons, what to do; then why ways have no numbers or are not equal, and what else to know."""
    yield f"Accumulation and the whole batch are {equivalence.verdict}."
    yield from (f"  {reason}" for reason in equivalence.reasons)
    if equivalence.advice:
        yield f"what to do: {equivalence.advice}"
    # What is true of every way is the verdict already.
    told = [way for way in equivalence.ways if way.why and way.why not in equivalence.verdict]
    for precision, why in dict.fromkeys((way.precision, way.why) for way in told):
        splits = dict.fromkeys(_split(way.split) for way in told if (way.precision, way.why) == (precision, why))
        yield f"{', '.join(splits)} in {precision}: {why}"
    for note in equivalence.notes:
        yield f"note: {note}"


def verdict_line(equivalence: Equivalence, target: str) -> str:
    """What a probe says of the check, in one line, and where the rest is."""
    advice = f" What to do: {equivalence.advice}" if equivalence.advice and not equivalence.equal else ""
    return (
        f"Checked with {equivalence.batch_size} samples: accumulation and the whole batch are {equivalence.verdict}."
        f"{advice} `microbatch check {shlex.quote(target)}` has the details."
    )


def _row(way: Way) -> tuple[str, ...]:
    return (
        WAYS[way.strategy],
        _split(way.split),
        _number(way.loss),
        _number(way.parameter_sum),
        _distance(way.gradient_difference),
        _distance(way.bound),
        _answer(way),
    )


def _split(sizes: Sequence[int]) -> str:
    """Parts in their order, as 3 × 5 + 1."""
    groups = [(size, len(list(group))) for size, group in groupby(sizes)]
    return " + ".join(f"{count} × {size}" if count > 1 else str(size) for size, count in groups)


def _answer(way: Way) -> str:
    """Whether the way is equal; a dash for the whole batch, which is what is compared with, and what did not run."""
    if way.strategy is Strategy.WHOLE_BATCH or way.gradient_difference is None:
        return "-"
    return "yes" if way.equal else "no"


def _number(value: float | None) -> str:
    """Ten digits, zeros at the end too, so that equal ones are seen to be equal."""
    return "-" if value is None else f"{value:#.10g}"


def _distance(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1e}" if value else "0"
