from __future__ import annotations

from math import fsum
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from profiler.errors import UsageError
from profiler.plan import (
    TIE,
    WIDEST_TIE,
    AccumulationPlan,
    Candidate,
    better_targets,
    check_effective_batch,
    check_multiple,
    choose,
    equal_steps,
    least_steps,
    split,
)
from profiler.units import MIB

Replicas = tuple[tuple[int, ...], ...]


@st.composite
def divisions(draw: st.DrawFn) -> tuple[int, int, int]:
    """An effective batch, accumulation steps and replicas that it can be split over."""
    steps, replicas = draw(st.integers(1, 60)), draw(st.integers(1, 9))
    parts = steps * replicas
    return draw(st.integers(parts, parts + 20) | st.integers(parts, 20_000)), steps, replicas


@st.composite
def targets(draw: st.DrawFn) -> tuple[int, int, int]:
    """An effective batch, a largest size and replicas, each of which gets a sample."""
    replicas = draw(st.integers(1, 5))
    return draw(st.integers(replicas, 300)), draw(st.integers(1, 300)), replicas


def plan_of(replicas: Replicas, effective_batch_size: int | None = None) -> AccumulationPlan:
    batch = sum(map(sum, replicas)) if effective_batch_size is None else effective_batch_size
    return AccumulationPlan(effective_batch_size=batch, replicas=replicas, reason="It is a test's.")


@given(divisions())
def test_the_parts_add_up_exactly_and_differ_by_at_most_one_sample(division: tuple[int, int, int]) -> None:
    sizes = [size for replica in split(*division) for size in replica]

    assert sum(sizes) == division[0]
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1


@given(divisions())
def test_replicas_run_the_same_number_of_parts_and_share_the_samples_evenly(division: tuple[int, int, int]) -> None:
    _, steps, replicas = division
    parts = split(*division)
    sums = [sum(replica) for replica in parts]

    assert [len(replica) for replica in parts] == [steps] * replicas
    assert max(sums) - min(sums) <= 1


@given(divisions())
def test_the_largest_part_comes_first_and_on_the_first_replica(division: tuple[int, int, int]) -> None:
    parts = split(*division)

    assert all(list(replica) == sorted(replica, reverse=True) for replica in parts)
    assert list(parts) == sorted(parts, reverse=True)
    assert plan_of(parts).micro_batch_sizes[0] == max(size for replica in parts for size in replica)


@given(divisions())
def test_weights_over_all_replicas_add_up_to_one_and_the_factor_undoes_their_averaging(
    division: tuple[int, int, int],
) -> None:
    batch, steps, replicas = division
    plan = plan_of(split(*division))
    sums = [sum(sizes) / batch for sizes in plan.replicas]

    assert fsum(plan.weights) == pytest.approx(sums[0])
    assert fsum(plan.replica_factor * share for share in sums) / replicas == pytest.approx(1)
    assert (plan.data_parallel_size, plan.replica_factor, plan.accumulation_steps) == (replicas, replicas, steps)
    assert plan.weights == tuple(size / batch for size in plan.micro_batch_sizes)


@pytest.mark.parametrize(("batch", "steps", "replicas"), [(3, 4, 1), (3, 2, 2), (3, 0, 1), (0, 1, 1)])
def test_a_split_with_an_empty_part_is_our_own_mistake(batch: int, steps: int, replicas: int) -> None:
    with pytest.raises(AssertionError, match=f"{steps * replicas} parts of {batch} × 1 samples"):
        split(batch, steps, replicas)


@pytest.mark.parametrize(
    ("batch", "largest", "replicas", "expected"),
    [
        pytest.param(512, 212, 1, ((171, 171, 170),), id="three nearly equal parts"),
        pytest.param(512, 256, 1, ((256, 256),), id="just as large as fits"),
        pytest.param(512, 255, 1, ((171, 171, 170),), id="one short of half"),
        pytest.param(512, 10_000, 1, ((512,),), id="the whole batch fits"),
        pytest.param(5, 1, 1, ((1, 1, 1, 1, 1),), id="one sample fits"),
        pytest.param(512, 212, 2, ((128, 128), (128, 128)), id="two replicas"),
        pytest.param(10, 2, 3, ((2, 2), (2, 1), (2, 1)), id="the larger parts are dealt out"),
        pytest.param(11, 2, 3, ((2, 2), (2, 2), (2, 1)), id="one part is smaller"),
        pytest.param(4, 9, 3, ((2,), (1,), (1,)), id="a sample is left over"),
    ],
)
def test_the_fewest_parts_that_fit(batch: int, largest: int, replicas: int, expected: Replicas) -> None:
    assert split(batch, least_steps(batch, largest, replicas), replicas) == expected


def test_512_samples_with_room_for_212_are_171_171_and_170() -> None:
    plan = plan_of(split(512, least_steps(512, 212)))

    assert plan.micro_batch_sizes == (171, 171, 170)
    assert plan.weights == (171 / 512, 171 / 512, 170 / 512)
    assert (plan.accumulation_steps, plan.data_parallel_size, plan.replica_factor) == (3, 1, 1)


@given(targets())
def test_the_fewest_steps_keep_to_the_largest_size_and_one_less_does_not(target: tuple[int, int, int]) -> None:
    batch, largest, replicas = target
    least = least_steps(batch, largest, replicas)
    assume(least * replicas <= batch)

    assert split(batch, least, replicas)[0][0] <= largest
    assert least == 1 or split(batch, least - 1, replicas)[0][0] > largest


def test_where_single_samples_cannot_be_dealt_out_evenly_the_fewest_steps_are_too_many_to_split() -> None:
    assert least_steps(5, 1, 2) * 2 > 5


def test_the_fewest_steps_are_counted_in_whole_numbers() -> None:
    assert least_steps(2**53 + 1, 1) == 2**53 + 1


@given(targets())
def test_equal_steps_are_all_that_make_equal_parts(target: tuple[int, int, int]) -> None:
    share, largest, replicas = target
    batch = share * replicas
    least = least_steps(batch, largest, replicas)
    splits = {steps: split(batch, steps, replicas) for steps in range(least, share + 1)}
    expected = [steps for steps, parts in splits.items() if len({size for part in parts for size in part}) == 1]

    assert list(equal_steps(batch, least, replicas)) == expected
    assert expected[-1] == share


@pytest.mark.parametrize(
    ("batch", "largest", "replicas", "steps", "better"),
    [
        pytest.param(512, 212, 1, (4, 8, 16, 32, 64, 128, 256, 512), (510, 513), id="a power of two"),
        pytest.param(509, 212, 1, (509,), (507, 510), id="a prime"),
        pytest.param(1018, 212, 2, (509,), (1014, 1020), id="twice a prime on two replicas"),
        pytest.param(7, 100, 1, (1, 7), (6, 8), id="it fits whole"),
        pytest.param(3, 2, 1, (3,), (2, 4), id="three"),
        pytest.param(2, 1, 1, (2,), (4,), id="nothing below"),
    ],
)
def test_equal_parts_of_a_target_and_the_targets_that_divide_better(
    batch: int, largest: int, replicas: int, steps: tuple[int, ...], better: tuple[int, ...]
) -> None:
    least = least_steps(batch, largest, replicas)

    assert equal_steps(batch, least, replicas) == steps
    assert better_targets(batch, least, replicas) == better


@given(targets())
def test_better_targets_are_the_nearest_others_that_divide(target: tuple[int, int, int]) -> None:
    batch, largest, replicas = target
    least = least_steps(batch, largest, replicas)
    block = least * replicas
    expected = [
        next((other for other in range(batch - 1, 0, -1) if other % block == 0), None),
        next(other for other in range(batch + 1, batch + block + 1) if other % block == 0),
    ]

    assert list(better_targets(batch, least, replicas)) == [other for other in expected if other is not None]


@given(targets())
def test_where_the_target_does_not_divide_the_better_ones_keep_to_the_largest_size(
    target: tuple[int, int, int],
) -> None:
    batch, largest, replicas = target
    least = least_steps(batch, largest, replicas)
    assume(batch % (least * replicas))

    assert all(other // (least * replicas) <= largest for other in better_targets(batch, least, replicas))


@pytest.mark.parametrize(
    ("batch", "replicas", "message"),
    [
        (513, 2, "2 replicas cannot share 513 samples equally: use 512 or 514, or leave out --equal."),
        (5, 4, "4 replicas cannot share 5 samples equally: use 4 or 8, or leave out --equal."),
    ],
)
def test_replicas_that_do_not_divide_the_batch_have_no_equal_parts(batch: int, replicas: int, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        equal_steps(batch, 1, replicas)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("batch", "replicas", "message"),
    [
        (512, ((171, 171, 171),), r"\[171, 171, 171\] add up to 513, not to the effective batch of 512"),
        (512, ((256,), (255,)), r"\[256, 255\] add up to 511, not to the effective batch of 512"),
        (5, ((5, 0),), r"\[5, 0\]: each counts samples, so it must be at least 1"),
        (5, ((6, -1),), r"\[6, -1\]: each counts samples, so it must be at least 1"),
        (6, ((2, 2), (2,)), r"different numbers of micro-batches: \[2, 1\]"),
        (5, ((5,), ()), r"different numbers of micro-batches: \[1, 0\]"),
        (5, ((),), r"\[\] add up to 0, not to the effective batch of 5"),
        (0, ((),), "the effective batch is 0"),
        (5, (), "data_parallel_size is 0"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(batch: int, replicas: Replicas, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan_of(replicas, effective_batch_size=batch)


@pytest.mark.parametrize(
    ("batch", "replicas", "message"),
    [
        (0, 1, "the effective batch is 0: it counts samples, so it must be at least 1."),
        (-8, 1, "the effective batch is -8: it counts samples, so it must be at least 1."),
        (8, 0, "data_parallel_size is 0: it counts replicas, so it must be at least 1."),
        (8, -2, "data_parallel_size is -2: it counts replicas, so it must be at least 1."),
        (
            3,
            4,
            "an effective batch of 3 cannot be shared by 4 replicas: each needs a sample. Use fewer replicas or a larger "
            "batch.",
        ),
    ],
)
def test_an_effective_batch_that_cannot_be_shared_is_refused(batch: int, replicas: int, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_effective_batch(batch, replicas)
    assert str(caught.value) == message


@pytest.mark.parametrize(("batch", "replicas"), [(1, 1), (4, 4), (512, 3)])
def test_a_sample_for_each_replica_is_enough(batch: int, replicas: int) -> None:
    check_effective_batch(batch, replicas)


def candidate(steps: int, peak_mib: float, seconds: float | None = None, spread: float = 0.0) -> Candidate:
    return Candidate(replicas=split(512, steps), peak_bytes=int(peak_mib * MIB), step_seconds=seconds, spread=spread)


def chosen_steps(*candidates: Candidate, safe_mib: int = 512, prefer_equal: bool = False) -> int:
    return choose(candidates, safe_bytes=safe_mib * MIB, prefer_equal=prefer_equal)[0].accumulation_steps


def reason(*candidates: Candidate, prefer_equal: bool = False) -> str:
    return choose(candidates, safe_bytes=512 * MIB, prefer_equal=prefer_equal)[1]


@pytest.mark.parametrize(("steps", "equal"), [(3, False), (4, True), (512, True)])
def test_a_candidate_knows_whether_its_parts_are_equal(steps: int, equal: bool) -> None:
    assert candidate(steps, 1).is_equal == equal


def test_replicas_with_different_parts_are_not_equal() -> None:
    assert not Candidate(replicas=((2,), (1,)), peak_bytes=1).is_equal


def test_the_fastest_is_chosen_and_not_the_largest() -> None:
    assert chosen_steps(candidate(3, 500, 1.2), candidate(4, 400, 1.0), candidate(8, 200, 1.5)) == 4


@pytest.mark.parametrize(
    ("slower", "spread_of_best", "spread_of_slower", "is_a_tie"),
    [
        pytest.param(1.02, 0.0, 0.0, True, id="2 %"),
        pytest.param(1.021, 0.0, 0.0, False, id="above 2 %"),
        pytest.param(1.02, 0.001, 0.001, True, id="2 % whatever the spread says"),
        pytest.param(1.05, 0.05, 0.0, True, id="the best one's spread"),
        pytest.param(1.051, 0.05, 0.0, False, id="above the best one's spread"),
        pytest.param(1.05, 0.0, 0.05, True, id="the slower one's spread"),
        pytest.param(1.051, 0.0, 0.05, False, id="above the slower one's spread"),
        pytest.param(1.06, 0.03, 0.04, False, id="spreads do not add up"),
    ],
)
def test_a_tie_goes_to_the_one_with_less_memory(
    slower: float, spread_of_best: float, spread_of_slower: float, is_a_tie: bool
) -> None:
    best, other = candidate(3, 500, 1.0, spread_of_best), candidate(4, 400, slower, spread_of_slower)

    assert chosen_steps(best, other) == chosen_steps(other, best) == (4 if is_a_tie else 3)


def test_a_tie_that_needs_more_memory_does_not_win() -> None:
    assert chosen_steps(candidate(3, 500, 1.01), candidate(4, 400, 1.0)) == 4


def test_a_tie_in_memory_too_goes_to_the_faster_one() -> None:
    assert chosen_steps(candidate(3, 400, 1.01), candidate(4, 400, 1.0)) == 4
    assert chosen_steps(candidate(3, 400, 1.0), candidate(4, 400, 1.01)) == 3


def test_equal_parts_are_preferred_only_where_that_is_asked_for_and_only_among_ties() -> None:
    ties = candidate(3, 500, 1.0), candidate(4, 400, 1.01), candidate(7, 300, 1.015)

    assert chosen_steps(*ties) == 7
    assert chosen_steps(*ties, prefer_equal=True) == 4
    assert chosen_steps(*ties, candidate(8, 250, 1.01), prefer_equal=True) == 8
    assert chosen_steps(ties[0], ties[2], candidate(8, 250, 1.1), prefer_equal=True) == 7


def test_the_headroom_is_kept_however_fast_the_others_are() -> None:
    assert chosen_steps(candidate(3, 500, 0.1), candidate(4, 400, 1.0), candidate(8, 200, 2.0), safe_mib=400) == 4


def test_without_times_the_largest_is_chosen() -> None:
    assert chosen_steps(candidate(8, 200), candidate(3, 500), candidate(4, 400), prefer_equal=True) == 3
    assert chosen_steps(candidate(8, 200), candidate(3, 500), candidate(4, 400), safe_mib=450) == 4


def test_what_was_not_timed_is_passed_over_where_something_was() -> None:
    assert chosen_steps(candidate(3, 500), candidate(8, 200, 9.0)) == 8


def test_where_none_leaves_the_headroom_the_error_says_by_how_much() -> None:
    with pytest.raises(UsageError) as caught:
        choose([candidate(4, 400, 1.0), candidate(3, 500)], safe_bytes=300 * MIB)
    assert str(caught.value) == (
        "no split leaves the headroom: the smallest peak is 400 MiB, and 300 MiB may be used. Lower --headroom, or raise "
        "the limit."
    )


def test_a_choice_from_nothing_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="nothing to choose from"):
        choose([], safe_bytes=MIB)


@pytest.mark.parametrize(
    ("candidates", "prefer_equal", "expected"),
    [
        pytest.param(
            [candidate(3, 500)],
            False,
            "3 micro-batches, 2 of 171 and 1 of 170: the largest that leaves the headroom; nothing was timed on this "
            "device.",
            id="nothing timed",
        ),
        pytest.param(
            [candidate(1, 500, 0.25)],
            False,
            "1 micro-batch of 512: 250 ms per optimizer step by its parts; the only split that leaves the headroom and "
            "was timed.",
            id="only one",
        ),
        pytest.param(
            [candidate(3, 500), candidate(4, 400, 0.25)],
            False,
            "4 micro-batches of 128: 250 ms per optimizer step by its parts; the only split that leaves the headroom and "
            "was timed.",
            id="only one timed",
        ),
        pytest.param(
            [candidate(3, 500, 1.5), candidate(4, 400, 1.0)],
            False,
            "4 micro-batches of 128: 1 s per optimizer step by its parts, the fastest of the 2 splits that leave the "
            "headroom and were timed.",
            id="the fastest",
        ),
        pytest.param(
            [candidate(3, 500, 1.0), candidate(4, 400, 1.01), candidate(8, 300, 2.0)],
            False,
            "4 micro-batches of 128: 1.01 s per optimizer step by its parts; 2 of the 3 splits that leave the headroom "
            "and were timed are within 2% of the best, 1 s, or within the spread of their timing, and this one needs the "
            "least memory, 400 MiB.",
            id="a tie",
        ),
        pytest.param(
            [candidate(3, 500, 1.0), candidate(4, 400, 1.01), candidate(7, 300, 1.01)],
            True,
            "4 micro-batches of 128: 1.01 s per optimizer step by its parts; 3 of the 3 splits that leave the headroom "
            "and were timed are within 2% of the best, 1 s, or within the spread of their timing, and of those with equal "
            "micro-batches this one needs the least memory, 400 MiB.",
            id="equal ones first",
        ),
    ],
)
def test_the_reason_is_a_true_sentence_with_numbers(
    candidates: list[Candidate], prefer_equal: bool, expected: str
) -> None:
    assert reason(*candidates, prefer_equal=prefer_equal) == expected


@given(
    st.lists(
        st.builds(
            candidate,
            st.integers(1, 512),
            st.integers(1, 600),
            st.none() | st.floats(0.5, 2.0),
            st.floats(0, 0.3),
        ),
        min_size=1,
        max_size=6,
        unique_by=lambda each: each.step_seconds,
    ),
    st.booleans(),
)
def test_whatever_there_is_to_choose_from_the_choice_is_safe_fast_and_small(
    candidates: list[Candidate], prefer_equal: bool
) -> None:
    safe = [each for each in candidates if each.peak_bytes <= 512 * MIB]
    assume(safe)
    chosen, _ = choose(candidates, safe_bytes=512 * MIB, prefer_equal=prefer_equal)
    times = {each.step_seconds: each for each in safe if each.step_seconds is not None}

    assert chosen in safe
    assert choose(candidates[::-1], safe_bytes=512 * MIB, prefer_equal=prefer_equal)[0] == chosen
    if not times:
        assert chosen.accumulation_steps == min(each.accumulation_steps for each in safe)
        return
    best = times[min(times)]
    ties = {
        seconds: each
        for seconds, each in times.items()
        if seconds <= min(times) * (1 + min(max(TIE, best.spread, each.spread), WIDEST_TIE))
    }
    rivals = [each for each in ties.values() if each.is_equal] if prefer_equal else []
    assert chosen in ties.values()
    assert chosen.peak_bytes == min(each.peak_bytes for each in rivals or ties.values())


def test_every_replica_has_weights_of_its_own() -> None:
    plan = plan_of(split(7, 2, 2))

    assert plan.replicas == ((2, 2), (2, 1))
    assert plan.replica_weights == ((2 / 7, 2 / 7), (2 / 7, 1 / 7))
    assert plan.replica_weights[0] == plan.weights


@pytest.mark.parametrize("batch", [8.0, "8", None])
def test_an_effective_batch_is_a_whole_number(batch: Any) -> None:
    with pytest.raises(UsageError, match=r"the effective batch is .*: it must be a whole number"):
        check_effective_batch(batch, 1)


@given(st.integers(1, 8), st.integers(1, 64), st.integers(1, 4), st.data())
def test_parts_that_must_be_multiples_are_and_add_up(
    multiple: int, blocks: int, replicas: int, data: st.DataObject
) -> None:
    blocks = max(blocks, replicas)
    steps = data.draw(st.integers(1, blocks // replicas))
    parts = [size for sizes in split(blocks * multiple, steps, replicas, multiple_of=multiple) for size in sizes]

    assert sum(parts) == blocks * multiple
    assert all(size % multiple == 0 and size > 0 for size in parts)
    assert max(parts) - min(parts) in (0, multiple)


@pytest.mark.parametrize(
    ("batch", "multiple", "replicas", "message"),
    [
        (100, 8, 1, "no sum of micro-batches that are multiples of 8: use 96 or 104"),
        (5, 8, 1, "no sum of micro-batches that are multiples of 8: use 8"),
        (16, 8, 3, "cannot be shared by 3 replicas in multiples of 8: use at least 24"),
    ],
)
def test_an_effective_batch_that_is_made_of_no_multiples_is_refused(
    batch: int, multiple: int, replicas: int, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        check_multiple(batch, multiple, replicas)
