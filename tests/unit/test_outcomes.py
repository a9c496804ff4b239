from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.outcomes import Finding, Fits, OutOfMemory, Strategy, Throughput, Trial


def fit(size: int, **outcome: int) -> Trial:
    return Trial(micro_batch_size=size, outcome=Fits(peak_bytes=100 * size, seconds=1.0, **outcome))


def misfit(size: int, peak_bytes: int | None = None) -> Trial:
    outcome = OutOfMemory(phase="forward", message="out", evidence="certain", peak_bytes=peak_bytes, seconds=1.0)
    return Trial(micro_batch_size=size, outcome=outcome)


def finding(**changes: Any) -> Finding:
    fields: dict[str, Any] = {
        "largest_fit": 4,
        "smallest_misfit": 5,
        "limited_by": "memory",
        "capacity_bytes": 450,
        "trials": (fit(1), fit(4), misfit(16), misfit(5)),
    }
    return Finding(**fields | changes)


def timed(*micro_steps: float, size: int = 8, optimizer: tuple[float, ...] = (0.01,)) -> Throughput:
    return Throughput(micro_batch_size=size, micro_step_seconds=micro_steps, optimizer_seconds=optimizer)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="memory"),
        pytest.param({"smallest_misfit": None, "limited_by": "ceiling", "trials": (fit(1), fit(4))}, id="the ceiling"),
        pytest.param({"largest_fit": 0, "smallest_misfit": 1, "trials": (misfit(1),)}, id="nothing fits"),
        pytest.param({"trials": (fit(4, allocator_retries=3), misfit(5))}, id="fits after retries"),
    ],
)
def test_a_finding_that_its_trials_bear_out(changes: dict[str, Any]) -> None:
    found = finding(**changes)

    assert (found.smallest_misfit is None) == (found.limited_by == "ceiling")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"largest_fit": 3}, "3 was never run", id="a size that was not tried"),
        pytest.param({"largest_fit": 16}, "16 was never run", id="a size that failed"),
        pytest.param({"trials": ()}, "4 was never run", id="no trials"),
        pytest.param({"smallest_misfit": 6}, "6 never failed", id="a misfit that was not tried"),
        pytest.param({"smallest_misfit": 1}, "1 never failed", id="a misfit that fits"),
        pytest.param({"limited_by": "time"}, None, id="no such limit"),
        pytest.param({"limited_by": "ceiling"}, None, id="a ceiling with a misfit"),
        pytest.param({"smallest_misfit": None}, None, id="memory without a misfit"),
    ],
)
def test_a_finding_without_its_proof_cannot_be_built(changes: dict[str, Any], message: str | None) -> None:
    with pytest.raises(AssertionError, match=message):
        finding(**changes)


def test_a_finding_gives_the_trial_of_a_size() -> None:
    found = finding()

    assert found.trial_of(5) == misfit(5)
    assert found.trial_of(4) == fit(4)
    assert found.trial_of(3) is None


@pytest.mark.parametrize(
    ("trial", "label", "fits", "peak_bytes"),
    [
        (fit(4), "fits", True, 400),
        (fit(4, allocator_retries=1), "fits_after_retry", True, 400),
        (misfit(5, peak_bytes=440), "out_of_memory", False, 440),
        (misfit(5), "out_of_memory", False, None),
    ],
)
def test_a_trial_says_what_it_came_to(trial: Trial, label: str, fits: bool, peak_bytes: int | None) -> None:
    assert (trial.outcome.label, trial.fits, trial.peak_bytes) == (label, fits, peak_bytes)


def test_a_sizing_trial_accumulates_two_micro_batches() -> None:
    assert (fit(4).strategy, fit(4).accumulation_steps) == (Strategy.ACCUMULATION, 2)


def test_strategies_are_the_words_of_the_records() -> None:
    assert [str(strategy) for strategy in Strategy] == ["whole_batch", "summed_loss", "accumulation"]


@pytest.mark.parametrize(
    "value",
    [fit(1), misfit(1), fit(1).outcome, misfit(1).outcome, timed(0.1), finding()],
    ids=["trial", "failed trial", "fits", "out of memory", "throughput", "finding"],
)
def test_what_was_found_does_not_change(value: Any) -> None:
    name = next(iter(type(value).__slots__))

    with pytest.raises(FrozenInstanceError):
        setattr(value, name, 1)


@pytest.mark.parametrize(
    ("micro_steps", "median", "spread"),
    [
        pytest.param((0.5,), 0.5, 0.0, id="one window has no spread"),
        pytest.param((0.4, 0.6), 0.5, 0.2, id="two"),
        pytest.param((1.2, 0.8, 1.0), 1.0, 0.2, id="three in any order"),
        pytest.param((1.0, 1.1, 1.2, 1.3, 9.0), 1.2, 0.2 / 1.2, id="an outlier moves neither"),
        pytest.param((0.3, 0.3, 0.3), 0.3, 0.0, id="all alike"),
    ],
)
def test_a_throughput_is_told_by_its_median_and_the_spread_of_its_middle_half(
    micro_steps: tuple[float, ...], median: float, spread: float
) -> None:
    throughput = timed(*micro_steps)

    assert throughput.median_micro_step_seconds == pytest.approx(median)
    assert throughput.samples_per_second == pytest.approx(8 / median)
    assert throughput.spread == pytest.approx(spread)


def test_the_optimizer_has_a_median_of_its_own_that_is_not_in_the_rate() -> None:
    throughput = timed(0.5, optimizer=(0.3, 0.1, 0.2))

    assert throughput.median_optimizer_seconds == 0.2
    assert throughput.samples_per_second == 16


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=9), st.floats(0.01, 100))
def test_the_spread_is_relative_and_takes_no_order(micro_steps: list[float], factor: float) -> None:
    throughput = timed(*micro_steps)

    assert throughput.spread >= 0
    assert timed(*sorted(micro_steps)).spread == throughput.spread
    assert timed(*(step * factor for step in micro_steps)).spread == pytest.approx(
        throughput.spread, rel=1e-9, abs=1e-9
    )
    assert min(micro_steps) <= throughput.median_micro_step_seconds <= max(micro_steps)
