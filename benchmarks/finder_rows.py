"""Rows of the finders' table, and what they say together; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks import csv_rows

OURS, BISECTION = "microbatch", "bisection"
# Lightning's bisection as it is by default, and one that ends where memory does, as ours.
RIVAL, UNBOUNDED_RIVAL = "lightning-binsearch", "lightning-unbounded"
ANSWERED, CRASHED, ENDLESS, MISSING = "answered", "crashed", "no end", "not installed"
MOST_WORDS = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One finder on one workload; None is what is unknown, or does not exist.

    outcome: "answered", "crashed", "no end" within the time limit, or "not installed"; `words` has the details.
    truth_low, truth_high: the largest size that fitted every time, and the largest that fitted at all.
    exact: whether the answer lies in that band. fits: whether our trial at the answer ran.
    answer_over_truth: 1 for every exact answer, else the answer over the band's nearer end.
    seconds: of ours the search in open workers, of others their call. whole_seconds: of ours with the start of its fork
    server, of others the same. process_seconds: from the start of the process, its imports included. steps: forward passes begun. tried: sizes in order, "!" where it failed.
    unused_bytes: the capacity less the peak at the answer, None also where it runs out of memory.
    """

    workload: str
    finder: str
    outcome: str
    answer: int | None = None
    truth_low: int
    truth_high: int
    exact: bool = False
    answer_over_truth: float | None = None
    fits: bool | None = None
    seconds: float | None = None
    whole_seconds: float | None = None
    process_seconds: float | None = None
    least_seconds: float
    seconds_over_least: float | None = None
    whole_over_least: float | None = None
    steps: int | None = None
    out_of_memory: int | None = None
    unused_bytes: int | None = None
    capacity_bytes: int
    tried: str = ""
    words: str = ""


def row_of(finder: str, result: Mapping[str, Any], truth: Mapping[str, Any]) -> Row:
    """The row of a finder whose process said `result`, not yet knowing what the answer leaves unused."""
    least = median(truth["pair_seconds"])
    low, high, answer = truth["low"], truth["high"], result.get("answer")
    exact = answer is not None and low <= answer <= high
    seconds, whole = result.get("seconds"), result.get("whole_seconds")
    if "not_installed" in result:
        outcome, words = MISSING, f"{result['not_installed']} is not installed"
    elif "no_end" in result:
        outcome, words, seconds, whole = ENDLESS, f"no end within {result['no_end']:g} s", *(2 * [result["no_end"]])
    elif result.get("crashed") or answer is None:
        outcome, words = CRASHED, result.get("crashed") or "it gave no answer"
    else:
        outcome, words = ANSWERED, ""
    return Row(
        workload=truth["workload"],
        finder=finder,
        outcome=outcome,
        answer=answer,
        truth_low=low,
        truth_high=high,
        exact=exact,
        answer_over_truth=_ratio(answer, low, high),
        seconds=seconds,
        whole_seconds=whole,
        process_seconds=result.get("process_seconds"),
        least_seconds=least,
        seconds_over_least=None if seconds is None else seconds / least,
        whole_over_least=None if whole is None else whole / least,
        steps=result.get("steps"),
        out_of_memory=result.get("out_of_memory"),
        capacity_bytes=truth["capacity_bytes"],
        tried=result.get("tried", ""),
        words=words,
    )


def _ratio(answer: int | None, low: int, high: int) -> float | None:
    if answer is None or not low:
        return None
    return answer / low if answer < low else answer / high if answer > high else 1.0


def first_line(text: str) -> str:
    """The first line of an error's text, not too long for a table."""
    lines = text.strip().splitlines()
    return lines[0][:MOST_WORDS] if lines else "no words"


def to_csv(rows: Sequence[Row]) -> str:
    """The table; None is an empty cell."""
    return csv_rows.to_csv(Row, rows)


def from_csv(table: str) -> list[Row]:
    """The rows of such a table."""
    return csv_rows.from_csv(Row, table)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One finder on all workloads; medians and worst cases are over the workloads where it answered, None without any.

    too_large: answers that run out of memory. worst_ratio: the answer over truth that is furthest from 1. crashed counts what did not
    end in time too.
    """

    finder: str
    workloads: int
    exact: int
    too_large: int
    crashed: int
    median_ratio: float | None
    worst_ratio: float | None
    median_over_least: float | None
    worst_over_least: float | None
    median_whole_over_least: float | None
    most_out_of_memory: int | None


def summaries(rows: Sequence[Row]) -> list[Summary]:
    """In the table's order; a finder that is not installed has none."""
    ran = [row for row in rows if row.outcome != MISSING]
    return [_summary(name, [row for row in ran if row.finder == name]) for name in dict.fromkeys(r.finder for r in ran)]


def _summary(finder: str, rows: Sequence[Row]) -> Summary:
    answered = [row for row in rows if row.outcome == ANSWERED]
    ratios = [row.answer_over_truth for row in answered if row.answer_over_truth is not None]
    over = [row.seconds_over_least for row in answered if row.seconds_over_least is not None]
    whole = [row.whole_over_least for row in answered if row.whole_over_least is not None]
    events = [row.out_of_memory for row in rows if row.out_of_memory is not None]
    return Summary(
        finder=finder,
        workloads=len(rows),
        exact=sum(row.exact for row in rows),
        too_large=sum(row.fits is False for row in answered),
        crashed=len(rows) - len(answered),
        median_ratio=median(ratios) if ratios else None,
        worst_ratio=max(ratios, key=lambda ratio: max(ratio, 1 / max(ratio, 1e-9))) if ratios else None,
        median_over_least=median(over) if over else None,
        worst_over_least=max(over, default=None),
        median_whole_over_least=median(whole) if whole else None,
        most_out_of_memory=max(events, default=None),
    )


def times_faster(rows: Sequence[Row], rival: str, *, from_start: bool = False) -> list[float]:
    """The whole call of ours against the rival's, on each workload where that gave an answer or found no end.

    from_start: both from the start of their processes. Where the rival found no end in time, its time limit is the least
    that it takes.
    """
    seconds = {
        (row.workload, row.finder): row.process_seconds if from_start and row.outcome == ANSWERED else row.whole_seconds
        for row in rows
        if row.outcome in (ANSWERED, ENDLESS)
    }
    ratios = []
    for workload in dict.fromkeys(row.workload for row in rows):
        mine, theirs = seconds.get((workload, OURS)), seconds.get((workload, rival))
        if mine is not None and theirs is not None:
            ratios.append(theirs / mine)
    return ratios


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What the search is held to, what it came to, and whether that is enough."""

    text: str
    measured: str
    reached: bool


def goals(rows: Sequence[Row]) -> list[Goal]:
    """The goals, as ratios within this run; none without rows of ours."""
    found = next((summary for summary in summaries(rows) if summary.finder == OURS), None)
    if found is None:
        return []
    over, worst, events = found.median_over_least, found.worst_over_least, found.most_out_of_memory
    faster = times_faster(rows, UNBOUNDED_RIVAL)
    return [
        Goal(
            text="the exact maximum on every workload",
            measured=f"{found.exact} of {found.workloads}",
            reached=found.exact == found.workloads,
        ),
        Goal(
            text="seconds at most 2.5 times the least possible in the median, 4 in the worst",
            measured=f"{number(over)} and {number(worst)}",
            reached=over is not None and worst is not None and over <= 2.5 and worst <= 4,
        ),
        Goal(
            text="at least 4 times faster than Lightning's bisection in the median, whole call against its call",
            measured=_faster_in_words(rows) or "it gave no answer",
            reached=bool(faster) and median(faster) >= 4,
        ),
        Goal(
            text="at most 3 out-of-memory events a search",
            measured=f"{events}",
            reached=events is not None and events <= 3,
        ),
    ]


def _faster_in_words(rows: Sequence[Row]) -> str:
    """Against Lightning without its largest size, which the goal is about, from nothing, and against it as it is."""
    said = [
        f"{number(median(found))} {what}"
        for found, what in (
            (times_faster(rows, UNBOUNDED_RIVAL), "where it goes on to the end of memory"),
            (times_faster(rows, UNBOUNDED_RIVAL, from_start=True), "of that from the start of both processes"),
            (times_faster(rows, RIVAL), "where it stops at 8,192 without running it, its default"),
        )
        if found
    ]
    return ", ".join(said)


def number(value: float | None) -> str:
    """Two digits or so; a dash for what is unknown."""
    return (
        "-" if value is None else f"{value:.0f}" if value >= 20 else f"{value:.1f}" if value >= 1.95 else f"{value:.2f}"
    )
