from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from math import log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.errors import UsageError
from profiler.search import Observation, Request, SearchResult, largest_fit
from profiler.units import MIB

Curve = Callable[[int], float]
CAPACITY = 512 * MIB
MOST_TRIALS = 10_000


def search(
    curve: Curve,
    options: Mapping[str, int] = {},
    *,
    capacity: int = CAPACITY,
    retried: Callable[[int], bool] = lambda size: False,
    most: int | None = None,
) -> tuple[list[Request], SearchResult]:
    """What was asked, and the answer, on a device where a micro-batch of n takes curve(n) bytes.

    most: no larger size can be run, which a size that is refused says.
    """
    asking = largest_fit(capacity, **options)
    asked = [next(asking)]
    while len(asked) <= MOST_TRIALS:
        size = asked[-1].micro_batch_size
        needed = int(curve(size))
        refused = most is not None and size > most
        fits = needed <= capacity and not refused
        says_nothing = not fits or retried(size)
        try:
            asked.append(
                asking.send(
                    Observation(
                        fits=fits,
                        peak_bytes=None if says_nothing else needed,
                        at_most=most if refused else None,
                    )
                )
            )
        except StopIteration as end:
            return asked, end.value
    raise AssertionError(f"no end after {[request.micro_batch_size for request in asked]}")


def sizes(asked: list[Request]) -> list[int]:
    return [request.micro_batch_size for request in asked]


def failures(asked: list[Request], curve: Curve, capacity: int = CAPACITY) -> int:
    return sum(int(curve(size)) > capacity for size in sizes(asked))


def line(fixed_mib: float, mib_per_sample: float) -> Curve:
    return lambda size: (fixed_mib + mib_per_sample * size) * MIB


def bent(size: int) -> float:
    """Nearly flat, where the optimizer's step peaks; then the activations take over."""
    return max(300 + 0.01 * size, 180 + 0.3 * size) * MIB


def two_lines(size: int) -> float:
    """Twice as steep above 1,500 samples."""
    return max(220 + 0.075 * size, 107.5 + 0.15 * size) * MIB


def flat_then_steep(size: int) -> float:
    return max(300.0, -1000 + 0.3 * size) * MIB


@pytest.mark.parametrize(
    ("curve", "options", "tried", "answer"),
    [
        pytest.param(line(12, 2.3), {}, [1, 4, 16, 217, 218], 217, id="a line"),
        pytest.param(line(12, 260), {}, [1, 4, 2], 1, id="only one sample fits"),
        pytest.param(line(12, 500.1), {}, [1], 0, id="nothing fits"),
        pytest.param(bent, {}, [1, 4, 16, 256, 4096, 1024, 1075, 1106, 1107], 1106, id="a bend"),
        pytest.param(
            two_lines, {}, [1, 4, 16, 256, 3893, 2074, 2833, 2453, 2696, 2697], 2696, id="a bend behind the last point"
        ),
        pytest.param(
            flat_then_steep,
            {},
            [1, 4, 16, 64, 256, 1024, 4096, 16384, 8192, 6144, 5120, 4608, 4864, 5040, 5041],
            5040,
            id="flat, then steep",
        ),
        pytest.param(line(12, 2.3), {"start": 1000}, [1000, 500, 250, 125, 187, 217, 218], 217, id="start too large"),
        pytest.param(line(12, 2.3), {"start": 100}, [100, 400, 200, 217, 218], 217, id="start close to the answer"),
        pytest.param(line(12, 2.3), {"multiple_of": 8}, [8, 32, 120, 216, 224], 216, id="multiples of eight"),
        pytest.param(
            line(12, 2.3), {"multiple_of": 8, "start": 30}, [32, 128, 168, 216, 224], 216, id="start rounded up"
        ),
    ],
)
def test_the_sizes_that_are_tried(curve: Curve, options: dict[str, int], tried: list[int], answer: int) -> None:
    asked, result = search(curve, options)

    assert sizes(asked) == tried
    step = options.get("multiple_of", 1)
    assert result == SearchResult(largest_fit=answer, smallest_misfit=answer + step)


@pytest.mark.parametrize(
    ("ceiling", "options", "tried", "result"),
    [
        pytest.param(64, {}, [1, 4, 16, 64], SearchResult(largest_fit=64, smallest_misfit=None), id="below the answer"),
        pytest.param(1, {}, [1], SearchResult(largest_fit=1, smallest_misfit=None), id="one"),
        pytest.param(
            217, {}, [1, 4, 16, 217], SearchResult(largest_fit=217, smallest_misfit=None), id="the answer itself"
        ),
        pytest.param(
            218, {}, [1, 4, 16, 217, 218], SearchResult(largest_fit=217, smallest_misfit=218), id="one too many"
        ),
        pytest.param(
            5000, {}, [1, 4, 16, 217, 218], SearchResult(largest_fit=217, smallest_misfit=218), id="above the answer"
        ),
        pytest.param(
            64, {"start": 200}, [64], SearchResult(largest_fit=64, smallest_misfit=None), id="below the start"
        ),
        pytest.param(
            100,
            {"multiple_of": 8},
            [8, 32, 96],
            SearchResult(largest_fit=96, smallest_misfit=None),
            id="no multiple",
        ),
    ],
)
def test_a_ceiling_is_tried_and_never_passed(
    ceiling: int, options: dict[str, int], tried: list[int], result: SearchResult
) -> None:
    asked, found = search(line(12, 2.3), {"ceiling": ceiling, **options})

    assert sizes(asked) == tried
    assert found == result


@pytest.mark.parametrize(
    "options",
    [{"ceiling": 0}, {"ceiling": 7, "multiple_of": 8}, {"start": 0}, {"multiple_of": 0}],
    ids=["ceiling 0", "ceiling below the multiple", "start 0", "multiple 0"],
)
def test_what_cannot_be_searched_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="all must be positive, and the ceiling at least the smallest"):
        search(line(12, 2.3), options)


def test_no_size_below_the_smallest_is_tried() -> None:
    asked, result = search(line(12, 2.3), {"smallest": 3})
    assert sizes(asked)[0] == 3
    assert result == SearchResult(largest_fit=217, smallest_misfit=218)

    asked, result = search(line(12, 260), {"smallest": 2})
    assert sizes(asked) == [2]
    assert result == SearchResult(largest_fit=0, smallest_misfit=2)


@pytest.mark.parametrize("most", [1, 2, 100, 216, 217, 218, 5000])
def test_a_failure_that_names_the_largest_size_leads_there(most: int) -> None:
    asked, result = search(line(12, 2.3), most=most)

    answer = min(most, 217)
    assert result == SearchResult(largest_fit=answer, smallest_misfit=answer + 1)
    assert len(asked) <= 7


def test_no_capacity_cannot_be_searched() -> None:
    with pytest.raises(UsageError, match="capacity 0 bytes"):
        search(line(12, 2.3), capacity=0)


def test_sizes_that_fit_only_by_retrying_do_not_bend_the_line() -> None:
    plain, _ = search(line(12, 2.3))
    asked, result = search(line(12, 2.3), retried=lambda size: size >= 217)

    assert sizes(asked) == sizes(plain)
    assert result.largest_fit == 217


def test_every_request_says_why() -> None:
    asked, _ = search(line(12, 2.3), {"start": 4})

    assert [request.why for request in asked[:2]] == ["the smallest size", "memory hardly grows yet: a larger step"]
    assert all(request.why for request in asked)


# What follows holds for every curve that does not fall.


def check(curve: Curve, capacity: int = CAPACITY, **options: int) -> list[Request]:
    """The search on `curve` is exact, certified by both sizes, and tries none twice; the requests."""
    asked, result = search(curve, options, capacity=capacity)
    tried, step = sizes(asked), options.get("multiple_of", 1)
    assert len(set(tried)) == len(tried)
    assert all(size > 0 and size % step == 0 for size in tried)
    if result.largest_fit:
        assert result.largest_fit in tried
        assert int(curve(result.largest_fit)) <= capacity
    if result.smallest_misfit is None:
        assert result.largest_fit == options["ceiling"] // step * step
    else:
        assert result.smallest_misfit == result.largest_fit + step
        assert result.smallest_misfit in tried
        assert int(curve(result.smallest_misfit)) > capacity
    if "ceiling" in options:
        assert max(tried) <= options["ceiling"]
    return asked


@st.composite
def options_of_search(draw: st.DrawFn) -> dict[str, int]:
    step = draw(st.sampled_from([1, 1, 2, 8]))
    options = {"multiple_of": step, "start": draw(st.integers(1, 3000))}
    if draw(st.booleans()):
        options["ceiling"] = draw(st.integers(step, 20_000))
    return options


fixed_costs = st.floats(0, 0.95).map(lambda share: share * CAPACITY)
costs_per_sample = st.floats(-4, 0).map(lambda power: CAPACITY * 10**power)


@given(fixed_costs, costs_per_sample)
def test_a_line_takes_few_trials_and_fewer_failures(fixed: float, per_sample: float) -> None:
    def curve(size: int) -> float:
        return fixed + per_sample * size

    asked = check(curve)

    assert len(asked) <= 9
    assert failures(asked, curve) <= 3


@given(fixed_costs, costs_per_sample, st.floats(0, 0.002), st.integers(0, 2**32))
def test_a_line_with_a_little_noise_takes_few_trials(fixed: float, per_sample: float, noise: float, seed: int) -> None:
    def curve(size: int) -> float:
        # Never falling: the noise of a size is less than what the next sample costs.
        return fixed + per_sample * (size + noise * (hash((seed, size)) % 1000))

    asked = check(curve)

    assert len(asked) <= 16
    assert failures(asked, curve) <= 8


@st.composite
def convex_curves(draw: st.DrawFn) -> Curve:
    """A maximum of lines above a floor, as live bytes at the moments of a step are."""
    floor = draw(fixed_costs)
    lines = draw(st.lists(st.tuples(st.floats(-3, 1), costs_per_sample), min_size=1, max_size=5))
    return lambda size: max(floor, *(share * CAPACITY + per_sample * size for share, per_sample in lines))


@given(convex_curves(), options_of_search())
def test_a_convex_curve_is_searched_exactly(curve: Curve, options: dict[str, int]) -> None:
    asked = check(curve, **options)

    assert len(asked) <= 40


@given(convex_curves(), options_of_search(), st.sampled_from([4096, 2 * MIB, 20 * MIB]))
def test_a_curve_in_steps_is_searched_exactly(curve: Curve, options: dict[str, int], step: int) -> None:
    check(lambda size: -(-int(curve(size)) // step) * step, **options)


@st.composite
def staircases(draw: st.DrawFn, highest: int = 3000) -> tuple[Curve, int]:
    """Any curve that does not fall, and the size above which nothing fits any more."""
    edges = sorted(draw(st.sets(st.integers(0, highest), min_size=1, max_size=12)))
    heights = sorted(draw(st.lists(st.integers(0, 1000), min_size=len(edges), max_size=len(edges))))
    return lambda size: [*heights, 1001][bisect_left(edges, size)], edges[-1]


@given(staircases(), options_of_search())
def test_any_curve_is_searched_exactly(staircase: tuple[Curve, int], options: dict[str, int]) -> None:
    curve, top = staircase

    check(curve, capacity=1000, **options)
    _, result = search(curve, capacity=1000)
    assert result.largest_fit == top


@given(staircases(highest=100_000))
def test_any_curve_takes_trials_in_the_logarithm_of_its_size(staircase: tuple[Curve, int]) -> None:
    curve, top = staircase

    assert len(check(curve, capacity=1000)) <= 12 + 4 * log2(top + 2)


@pytest.mark.parametrize(
    ("edges", "heights", "trials"),
    [
        pytest.param([2075, 2421], [121, 510, 513], 30, id="a plateau just below the capacity"),
        pytest.param([2, 6, 3845, 5097], [61, 151, 179, 511, 513], 30, id="two plateaus"),
        pytest.param([777], [300, 513], 20, id="a cliff"),
    ],
)
def test_a_plateau_is_not_crept_along(edges: list[int], heights: list[int], trials: int) -> None:
    asked = check(lambda size: heights[bisect_left(edges, size)], capacity=512)

    assert len(asked) <= trials
