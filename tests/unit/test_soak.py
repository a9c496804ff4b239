from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_soaks import on_a_gpu, on_the_cpu, out_of_memory

from profiler.soak import MOST_POINTS, Soak, SoakFailure, SoakPoint, with_point
from profiler.units import GIB, MIB


def points_of(peaks: list[int], steps: int) -> tuple[SoakPoint, ...]:
    points: tuple[SoakPoint, ...] = ()
    for step, peak in enumerate(peaks, start=1):
        points = with_point(points, SoakPoint(step=step, peak_bytes=peak, unused_bytes=peak % 7), steps)
    return points


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=900))
def test_points_are_thinned_and_lose_no_maximum(peaks: list[int]) -> None:
    points = points_of(peaks, len(peaks))

    assert len(points) <= MOST_POINTS
    assert points[-1].step == len(peaks)
    assert max(point.peak_bytes for point in points) == max(peaks)
    assert max(point.unused_bytes or 0 for point in points) == max(peak % 7 for peak in peaks)
    assert [point.step for point in points] == sorted({point.step for point in points})


def test_a_short_soak_keeps_every_step() -> None:
    assert points_of([5, 6, 7], 3) == tuple(
        SoakPoint(step=step, peak_bytes=peak, unused_bytes=peak % 7) for step, peak in ((1, 5), (2, 6), (3, 7))
    )


def test_points_of_several_steps_hold_the_larger_of_each_number_and_what_is_known() -> None:
    one = SoakPoint(step=4, peak_bytes=9, reserved_bytes=5, allocated_bytes=5, unused_bytes=0, largest_elements=None)
    other = SoakPoint(step=5, peak_bytes=9, reserved_bytes=4, allocated_bytes=1, unused_bytes=3, largest_elements=8)

    assert one.merged(other) == SoakPoint(
        step=5, peak_bytes=9, reserved_bytes=5, allocated_bytes=5, unused_bytes=3, largest_elements=8
    )


def test_on_the_cpu_unused_is_the_most_at_the_end_of_a_step() -> None:
    assert on_the_cpu().unused_bytes == 3 * MIB
    assert on_the_cpu().inactive_split_bytes == MIB // 2


def test_on_a_gpu_unused_is_what_was_reserved_at_the_peak_beyond_what_was_allocated() -> None:
    assert on_a_gpu(reserved=70.0).unused_bytes == 11 * GIB
    failure = SoakFailure(step=9, phase="forward", message="out", unused_bytes=13 * GIB)
    assert on_a_gpu(reserved=70.0, failure=failure).unused_bytes == 13 * GIB


@pytest.mark.parametrize(("reserved", "fragmented"), [(63.0, False), (64.0, True)])
def test_a_soak_is_fragmented_from_five_percent_of_the_capacity_on(reserved: float, fragmented: bool) -> None:
    assert on_a_gpu(reserved=reserved).is_fragmented(80 * GIB) is fragmented


def test_what_is_unknown_is_not_fragmented() -> None:
    soak = Soak(micro_batch_sizes=(1,), steps=1, steps_run=1, seconds=1.0, points=(SoakPoint(step=1, peak_bytes=1),))

    assert (soak.unused_bytes, soak.inactive_split_bytes) == (None, None)
    assert not soak.is_fragmented(1)


def test_a_soak_passes_if_every_step_ran_without_retries() -> None:
    assert on_the_cpu().passed
    assert not out_of_memory().passed
    assert not replace(on_a_gpu(), allocator_retries=1).passed
