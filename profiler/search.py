"""Which micro-batch size to try next; pure, standard library only, no device in sight.

Peak memory is a maximum of lines in the micro-batch size: at each moment of the step the live bytes are a + b n. So it is
convex, and the line through the last two sizes that fitted, carried to the limit, never undershoots the answer (rounding
aside). The search trusts that line as far as the line before it agrees, and lets only trials decide: it ends when a size
ran and the next one did not, or when the ceiling ran.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from math import ceil, floor, sqrt

from profiler.curve import Line
from profiler.errors import UsageError

# How much larger than the largest fit a size may be while the lines disagree: an overshoot then costs one failed trial
# and a bracket of this ratio, not a batch that takes minutes to make.
GROWTH = 4
# Where the slopes of two lines put the crossing within this share of each other, they describe one line.
AGREEMENT = 0.05
# A peak is off its line by up to this share of the capacity: rounding to blocks, and what libraries keep for a shape.
NOISE = 1 / 512
# Near the limit a line tells the peak of a size no closer than this share of the capacity: every tensor is rounded up to
# a page or a block by itself.
GRAIN = 1 / 2**14
# No jump goes further than this, however well the lines agree: a curve can be flat for long and bend late.
MAX_JUMP = 16
# A failed size this close to the line's crossing means a line that is slightly off; further away, a curve that bends.
NEAR = 1.05
# Sizes of a line are at least this ratio apart.
APART = 0.98


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A size to try, and why, in words for the progress display and the records."""

    micro_batch_size: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What a size came to. `peak_bytes` is None where it says nothing about the line (it failed, or fitted by retrying)."""

    fits: bool
    peak_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """`largest_fit` ran (0: nothing did); `smallest_misfit` failed, None where the ceiling ran."""

    largest_fit: int
    smallest_misfit: int | None

    @property
    def limited_by(self) -> str:
        """ "memory" or "ceiling"."""
        return "ceiling" if self.smallest_misfit is None else "memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Guess:
    """Where the curve crosses the limit, in sizes: at most `size`, short of it by perhaps `doubt`; told by the `grain`."""

    size: float
    doubt: float
    grain: float


def _guess(points: list[tuple[int, int]], capacity_bytes: int) -> _Guess | None:
    """The crossing by the last line, doubted by how much the slope changed from the line before it."""
    points = _apart(points)
    if len(points) < 2:
        return None
    last = Line.through(points[-2], points[-1])
    size = last.crossing(capacity_bytes)
    if size is None:
        return None
    grain = max(1.0, GRAIN * capacity_bytes / last.bytes_per_sample)
    if len(points) < 3:
        return _Guess(size=size, doubt=size, grain=grain)
    before = Line.through(points[-3], points[-2])
    span_before, span = points[-2][0] - points[-3][0], points[-1][0] - points[-2][0]
    steeper = last.bytes_per_sample - before.bytes_per_sample
    if steeper > 0:  # a bend, as far as it is more than noise over the earlier span
        steeper = max(0.0, steeper - NOISE * capacity_bytes / span_before)
    else:  # no convex curve does that: the earlier line was off, by more the shorter its span
        steeper *= min(1.0, span_before / span)
    reach = max(size - points[-1][0], 0.0)
    return _Guess(size=size, doubt=reach * abs(steeper) / last.bytes_per_sample, grain=grain)


def _apart(points: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The last three of the sorted `points` that lie apart: sizes next to each other give a slope of mere rounding."""
    kept: list[tuple[int, int]] = []
    for point in reversed(points):
        if not kept or point[0] <= APART * kept[0][0]:
            kept.insert(0, point)
    return kept[-3:]


def largest_fit(
    capacity_bytes: int, *, ceiling: int | None = None, multiple_of: int = 1, start: int = 1
) -> Generator[Request, Observation, SearchResult]:
    """Find the largest size that fits: yields what to try, is sent what it came to, returns the result.

    capacity_bytes: only chooses what to try. ceiling: no size above it is tried; it is itself tried before it is the
    answer. multiple_of: only multiples of it are tried, and the result's misfit is the next multiple. start: the first
    size, brought to a multiple. No size is requested twice. Works in units of `multiple_of` throughout.
    """
    if capacity_bytes < 1 or multiple_of < 1 or start < 1 or (ceiling is not None and ceiling < multiple_of):
        raise UsageError(
            f"cannot search: capacity {capacity_bytes} bytes, multiple of {multiple_of}, start {start}, ceiling {ceiling}; "
            "all must be positive, and the ceiling at least the multiple."
        )
    top = None if ceiling is None else ceiling // multiple_of
    low, high, failed = 0, None if top is None else top + 1, False
    points: list[tuple[int, int]] = []
    size = max(1, ceil(start / multiple_of))
    move = _Move(size=size if top is None else min(size, top), why="the smallest size")
    creeps = 0
    while True:
        seen = yield Request(micro_batch_size=int(move.size) * multiple_of, why=move.why)
        bracket = low, high if failed else None
        if seen.fits:
            low = int(move.size)
            points += [(low, seen.peak_bytes)] if seen.peak_bytes is not None else []
        else:
            high, failed = int(move.size), True
        if high is not None and high - low == 1:
            return SearchResult(largest_fit=low * multiple_of, smallest_misfit=high * multiple_of if failed else None)
        crept = int(move.at_end and _crept(bracket, (low, high if failed else None)))
        creeps = max(creeps, 0) + crept if seen.fits else min(creeps, 0) - crept
        guess = _guess(sorted(points), capacity_bytes)
        move = _narrow(low, high, guess, creeps) if failed and high is not None else _ascend(low, guess, creeps)
        inside = max(floor(move.size), low + 1)
        move = replace(move, size=inside if high is None else min(inside, high - 1))


def _crept(before: tuple[int, int | None], after: tuple[int, int | None]) -> bool:
    """Whether a trial brought the bracket (largest fit, smallest misfit or None) little nearer to its end."""
    if before[1] is None or after[1] is None:
        return before[1] is None and after[1] is None and before[0] >= APART * after[0]
    return after[1] - after[0] > (before[1] - before[0]) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Move:
    """The next size, not yet brought inside the bracket. at_end: whether it lies where a line ends, not short of it."""

    size: float
    why: str
    at_end: bool = False


def _ascend(low: int, guess: _Guess | None, creeps: int) -> _Move:
    """Nothing failed yet: along the line as far as it is trusted."""
    if guess is None:
        why = "memory hardly grows yet: a larger step" if low > 1 else "a second point for the line"
        return _Move(size=low * GROWTH, why=why)
    if guess.doubt > max(1.0, AGREEMENT * guess.size):
        return _Move(size=min(low * GROWTH, (low + guess.size) / 2), why="the line is still bending")
    return _Move(
        size=min(max(floor(guess.size), low + _stride(creeps, guess)), low * MAX_JUMP),
        why=f"the line reaches the capacity near {guess.size:.0f}" + (f": above {low}" if guess.size < low + 1 else ""),
        at_end=True,
    )


def _narrow(low: int, high: int, guess: _Guess | None, creeps: int) -> _Move:
    """A size failed: along the line where it points inside the bracket, else away from the end that disproved it."""
    if guess is None or guess.size > NEAR * high or high - low <= 2 * guess.grain:
        # Far apart, the sizes' ratio is unknown rather than their difference, so the middle is the geometric one.
        middle = sqrt(low * high) if high > 2 * low > 0 else (low + high) / 2
        return _Move(size=middle, why=f"between {low}, which fits, and {high}, which does not")
    half = (high - low) / 2
    least, most = low + min(_stride(creeps, guess), half), high - min(_stride(-creeps, guess), half)
    if guess.size >= high:
        # Its doubt off the disproved end, since a good line is seldom off by more.
        size, why = high - max(1.0, guess.doubt), f"the line's {guess.size:.0f} is disproved: below {high}"
    elif guess.size < low + 1:
        size, why = least, f"fits beyond the line's {guess.size:.0f}: above {low}"
    else:
        size, why = _target(low, guess), f"the line reaches the capacity near {guess.size:.0f}"
    return _Move(size=min(max(size, least), most), why=why, at_end=size >= floor(guess.size) or guess.size >= high)


def _stride(creeps: int, guess: _Guess) -> float:
    """How far the next size lies from the end that `creeps` trials in a row crept along: the grain at first, then further.

    A line can stay just ahead of every fit (memory in steps), and a curve can be flat up to the limit.
    """
    return float(floor(guess.grain) * 4 ** max(0, creeps - 1))


def _target(low: int, guess: _Guess) -> float:
    """Where to go along the line: to its crossing, or short of it by its doubt where the doubt is known and not small."""
    if guess.doubt <= AGREEMENT * guess.size or guess.doubt >= guess.size:
        return guess.size
    return max(guess.size - guess.doubt, (low + guess.size) / 2)
