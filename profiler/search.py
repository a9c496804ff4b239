"""Which micro-batch size to try next; pure, standard library only, no device in sight.

Peak memory is a maximum of lines in the micro-batch size: at each moment of the step the live bytes are a + b n. So it is
convex, and the line through the last two sizes that fitted, carried to the limit, never undershoots the answer (rounding
aside). The search trusts that line as far as the line before it agrees, and lets only trials decide: it ends when a size
ran and the next one did not, or when the ceiling ran.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil, floor, inf, log2, sqrt

from profiler.curve import Line
from profiler.errors import UsageError

# How much larger than the largest fit a size may be while the lines disagree: an overshoot then costs one failed trial
# and a bracket of this ratio, not a batch that takes minutes to make.
GROWTH = 4
# The same where memory hardly grows yet, so that the line crosses the capacity this many times further away: a model is large,
# and a sample small.
FLAT_GROWTH = 8
FLAT = 64
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
# A line that was carried beyond this many times its last size, and disproved, is taken to be off by this share.
FAR = 1.25
OFF = 1 / 64
# Carried beyond this many times, it is taken to have a bend behind it.
VERY_FAR = 1.5
# Sizes are padded to this power of two or a larger one; steps of smaller ones are found as fast by halves.
ROUND = 16
# Two curvatures of one parabola differ by no more than this factor.
PARABOLA = 2.0
# Steps along an end that was crept along grow by this factor; a bracket is halved once so many trials in a row crept.
STRIDES = 8
PATIENCE = 2
# A fit at which memory grew by less than this share of what the line said is one of those.
AS_SAID = 0.5
# Two sizes make a line where they are this ratio apart, or at least this part of the way that the line is carried on.
APART = 0.98
LEVER = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A size to try, and why, in words for the progress display and the records."""

    micro_batch_size: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What a size came to. `peak_bytes` is None where it says nothing about the line (it failed, or fitted by retrying).

    at_most: where it failed and the failure named the largest size there can be, that size.
    """

    fits: bool
    peak_bytes: int | None = None
    at_most: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """`largest_fit` ran (0: nothing did); `smallest_misfit` failed, None where the ceiling ran."""

    largest_fit: int
    smallest_misfit: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Guess:
    """Where the curve crosses the limit, in sizes: at most `size`, short of it by perhaps `doubt`; told by the `grain`."""

    bytes_per_sample: float
    size: float
    doubt: float
    grain: float


def _guess(points: list[tuple[int, int]], capacity_bytes: int) -> _Guess | None:
    """The crossing by the last line that rises, doubted by how much the slope changed from the line before it."""
    told = _telling(points, capacity_bytes)
    points = told[-3:]
    if len(points) < 2:
        return None
    last = Line.through(points[-2], points[-1])
    size = last.crossing(capacity_bytes)
    assert size is not None, "a line that rises crosses every height"
    grain = max(1.0, GRAIN * capacity_bytes / last.bytes_per_sample)
    if len(points) < 3:
        return _Guess(bytes_per_sample=last.bytes_per_sample, size=size, doubt=size, grain=grain)
    before = Line.through(points[-3], points[-2])
    span_before, span = points[-2][0] - points[-3][0], points[-1][0] - points[-2][0]
    steeper = last.bytes_per_sample - before.bytes_per_sample
    if steeper > 0:  # a bend, as far as it is more than noise over the earlier span
        steeper = max(0.0, steeper - NOISE * capacity_bytes / span_before)
    else:  # no convex curve does that: the earlier line was off, by more the shorter its span
        steeper *= min(1.0, span_before / span)
    reach = max(size - points[-1][0], 0.0)
    doubt = reach * abs(steeper) / last.bytes_per_sample
    return _Guess(bytes_per_sample=last.bytes_per_sample, size=size - _bend(told, size), doubt=doubt, grain=grain)


def _bend(points: list[tuple[int, int]], size: float) -> float:
    """By how much a parabola through the last three `points` crosses below `size`, the line's crossing; 0 without a fourth
    point that lies on it too: a single bend is no parabola.

    One step of Newton's method on divided differences.
    """
    if len(points) < 4:
        return 0.0
    slopes = [Line.through(*pair).bytes_per_sample for pair in pairwise(points)]
    earlier, curvature = (
        (slopes[place + 1] - slopes[place]) / (points[place + 2][0] - points[place][0]) for place in (0, 1)
    )
    if not 0 < curvature / PARABOLA < earlier < PARABOLA * curvature:
        return 0.0
    (before, _), (last, _) = points[-2:]
    over = curvature * (size - last) * (size - before)
    return over / (slopes[-1] + curvature * (2 * size - before - last))


def _telling(points: list[tuple[int, int]], capacity_bytes: int) -> list[tuple[int, int]]:
    """The last four of the sorted `points` whose lines tell a slope: those on a plateau, or too close together, do not.

    Rounding moves a line's crossing by as many times itself as the crossing is further away than the two points are apart.
    """
    kept = points[-1:]
    for point in reversed(points[:-1]):
        first = kept[0]
        reach = kept[1][0] - first[0] if len(kept) > 1 else _reach(point, first, capacity_bytes)
        if point[1] < first[1] and (first[0] - point[0] >= reach / LEVER or point[0] <= APART * first[0]):
            kept.insert(0, point)
        if len(kept) == 4:
            break
    return kept


def _reach(point: tuple[int, int], last: tuple[int, int], capacity_bytes: int) -> float:
    """How far beyond `last` the line through both crosses the capacity, in samples."""
    crossing = Line.through(point, last).crossing(capacity_bytes)
    return inf if crossing is None else crossing - last[0]


def largest_fit(
    capacity_bytes: int, *, ceiling: int | None = None, multiple_of: int = 1, smallest: int = 1, start: int = 1
) -> Generator[Request, Observation, SearchResult]:
    """Find the largest size that fits: yields what to try, is sent what it came to, returns the result.

    capacity_bytes: only chooses what to try. ceiling: no size above it is tried; it is itself tried before it is the
    answer. multiple_of: only multiples of it are tried, and the result's misfit is the next multiple. smallest: none below
    it is tried; the result is 0 where it fails. start: the first size. Both are brought to a multiple. No size is requested
    twice. Works in units of `multiple_of` throughout.
    """
    least = ceil(smallest / multiple_of) if multiple_of > 0 else 0
    if min(capacity_bytes, least, start) < 1 or (ceiling is not None and ceiling < least * multiple_of):
        raise UsageError(
            f"cannot search: capacity {capacity_bytes} bytes, multiple of {multiple_of}, from {smallest} on, start {start}, "
            f"ceiling {ceiling}; all must be positive, and the ceiling at least the smallest size."
        )
    top = None if ceiling is None else ceiling // multiple_of
    low, high, failed = least - 1, None if top is None else top + 1, False
    edge: int | None = None
    points: list[tuple[int, int]] = []
    size = max(least, ceil(start / multiple_of))
    move = _Move(size=size if top is None else min(size, top), why="the smallest size")
    creeps, guess = 0, None
    while True:
        seen = yield Request(micro_batch_size=int(move.size) * multiple_of, why=move.why)
        before = _width(low, high) if failed and high is not None else None
        said = False
        if seen.fits:
            low = int(move.size)
            points += [(low, seen.peak_bytes)] if seen.peak_bytes is not None else []
            said = guess is None or _as_said(low, points, guess)
        else:
            high, failed = int(move.size), True
            edge = edge if seen.at_most is None else seen.at_most // multiple_of
        if high is not None and high - low == 1:
            found = low * multiple_of if low >= least else 0
            return SearchResult(largest_fit=found, smallest_misfit=high * multiple_of if failed else None)
        narrowed = high is not None and failed and (before is None or _width(low, high) <= before / 2)
        creeps = 0 if said or narrowed else creeps + 1
        guess = _guess(sorted(points), capacity_bytes)
        move = _narrow(low, high, guess, creeps) if failed and high is not None else _ascend(low, guess, creeps)
        if edge is not None and high is not None and low <= edge < high:
            move = _Move(size=edge if low < edge else edge + 1, why=f"there is no more than {edge * multiple_of}")
        inside = max(floor(move.size), low + 1)
        move = replace(move, size=inside if high is None else min(inside, high - 1))


def _as_said(low: int, points: list[tuple[int, int]], guess: _Guess) -> bool:
    """Whether memory grew from the last fit but one to `low` by at least half of what the line said.

    Where the peak of `low` is not known: whether the line ends there.
    """
    (size, peak_bytes), (larger, more_bytes) = points[-2:]
    if larger != low:
        return low == floor(guess.size)
    return more_bytes - peak_bytes >= AS_SAID * guess.bytes_per_sample * (larger - size)


def _width(low: int, high: int) -> float:
    """How wide a bracket is, by its ratio where it is wider than 2, as its middle is."""
    return log2(high / low) if high > 2 * low > 0 else (high - low) / max(low, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Move:
    """The next size, not yet brought inside the bracket."""

    size: float
    why: str


def _ascend(low: int, guess: _Guess | None, creeps: int) -> _Move:
    """Nothing failed yet: along the line as far as it is trusted."""
    if guess is None:
        why = "memory hardly grows yet: a larger step" if low > 1 else "a second point for the line"
        return _Move(size=max(low, 1) * GROWTH, why=why)
    if low >= GROWTH**2 and guess.size > FLAT * low and guess.doubt > AGREEMENT * guess.size:
        return _Move(size=low * FLAT_GROWTH, why="memory hardly grows yet: a larger step")
    if guess.doubt > max(1.0, AGREEMENT * guess.size):
        size = max((low + guess.size) / 2, low + _stride(creeps, guess))
        return _Move(size=min(low * GROWTH, size), why="the line is still bending")
    return _Move(
        size=min(max(floor(guess.size), low + _stride(creeps, guess)), low * MAX_JUMP),
        why=f"the line reaches the capacity near {guess.size:.0f}" + (f": above {low}" if guess.size < low + 1 else ""),
    )


def _narrow(low: int, high: int, guess: _Guess | None, creeps: int) -> _Move:
    """A size failed: along the line where it points inside the bracket, else away from the end that disproved it.

    Where that crept, the bracket is halved: a line can stay just beside every trial, where memory bends or grows in steps.
    """
    # A line that led to the misfit itself is off by a bend, which halves the way to it rather than the sizes' ratio.
    is_disproved = guess is not None and NEAR * high >= guess.size >= high > NEAR * low
    middle = sqrt(low * high) if high > 2 * low > 0 and not is_disproved else (low + high) / 2
    patience = 1 if is_disproved else PATIENCE
    if guess is not None and creeps and low > 0 and high <= NEAR * low:
        # Memory that grows in steps does so where a size is padded: beyond a multiple of a power of two.
        edge, power = _roundest(low, high)
        if power >= ROUND:
            return _Move(size=edge if edge > low else edge + 1, why=f"memory may grow in steps, and {edge} is round")
    if guess is None or guess.size > NEAR * high or creeps >= patience or high - low <= 2 * guess.grain:
        return _Move(size=middle, why=f"between {low}, which fits, and {high}, which does not")
    stride = min(_stride(creeps, guess), (high - low) / 2)
    if guess.size >= high:
        # Its doubt off the disproved end, since a good line is seldom off by more; one that was drawn far is off by some, and
        # one that was drawn very far has missed a bend.
        off = max(guess.doubt, 1.0 if high <= FAR * low else OFF * high if high <= VERY_FAR * low else high)
        size, why = max(high - off, middle), f"the line's {guess.size:.0f} is disproved: below {high}"
    elif guess.size < low + 1:
        size, why = low + stride, f"fits beyond the line's {guess.size:.0f}: above {low}"
    else:
        size, why = _target(low, guess), f"the line reaches the capacity near {guess.size:.0f}"
    return _Move(size=min(max(size, low + stride), high - stride), why=why)


def _roundest(low: int, high: int) -> tuple[int, int]:
    """The multiple of the largest power of two from `low` to below `high`, and that power."""
    power = 1
    while -(-low // (2 * power)) * 2 * power < high:
        power *= 2
    return -(-low // power) * power, power


def _stride(creeps: int, guess: _Guess) -> float:
    """How far the next size lies from the end that `creeps` trials in a row crept along: the grain at first, then further.

    A line can stay just ahead of every fit (memory in steps), and a curve can be flat up to the limit.
    """
    return float(floor(guess.grain) * STRIDES**creeps)


def _target(low: int, guess: _Guess) -> float:
    """Where to go along the line: to its crossing, or short of it by its doubt where the doubt is known and not small."""
    if guess.doubt <= AGREEMENT * guess.size or guess.doubt >= guess.size:
        return guess.size
    return max(guess.size - guess.doubt, (low + guess.size) / 2)
