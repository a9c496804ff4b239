from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gpu.jobs import in_worker
from gpu.workloads import LIMIT, attempt, fitting, prober_of, setting_of, sizing, small, squares
from profiler.finder import find_largest
from profiler.limits import VERIFIED_STEPS
from profiler.outcomes import Finding, Fits, OutOfMemory, Trial
from profiler.planner import Goal, make_plan
from profiler.prober import Prober
from profiler.trial import Completed, run_schedule
from profiler.units import GIB, MIB
from profiler.workers.runner import ProcessRunner

pytestmark = pytest.mark.gpu

TIMES = 3
MIDDLE = 64


@pytest.fixture(scope="module")
def found(runner: ProcessRunner) -> tuple[Prober, Finding]:
    prober = prober_of(small(), runner)
    return prober, find_largest(prober)


def edge_of(finding: Finding) -> tuple[Trial, Trial]:
    assert finding.smallest_misfit is not None
    largest, misfit = finding.trial_of(finding.largest_fit), finding.trial_of(finding.smallest_misfit)
    assert largest is not None
    assert misfit is not None
    return largest, misfit


def test_the_next_size_is_really_out_of_memory(found: tuple[Prober, Finding]) -> None:
    _, finding = found
    largest, misfit = edge_of(finding)

    assert misfit.micro_batch_size == largest.micro_batch_size + 1
    assert isinstance(misfit.outcome, OutOfMemory)
    assert "CUDA out of memory" in misfit.outcome.message
    assert isinstance(largest.outcome, Fits)


def test_the_budget_is_used_and_never_exceeded(found: tuple[Prober, Finding]) -> None:
    _, finding = found
    peaks = [trial.peak_bytes or 0 for trial in finding.trials if trial.fits]
    largest, _ = edge_of(finding)

    assert max(peaks) <= LIMIT
    assert largest.peak_bytes is not None
    assert largest.peak_bytes > 0.9 * LIMIT


def test_the_edge_repeats(found: tuple[Prober, Finding]) -> None:
    prober, finding = found
    size = finding.largest_fit

    assert [isinstance(attempt(prober, size), Fits) for _ in range(TIMES)] == [True] * TIMES
    assert [isinstance(attempt(prober, size + 1), OutOfMemory) for _ in range(TIMES)] == [True] * TIMES


def test_a_plan_is_proved_by_running_it(found: tuple[Prober, Finding]) -> None:
    prober, finding = found
    goal = Goal(
        effective_batch_size=2 * finding.largest_fit + 1,
        data_parallel_size=1,
        headroom=0.05,
        equal=False,
        prefer_equal=False,
    )
    plan = make_plan(prober, finding, goal)

    assert plan.verified_steps == VERIFIED_STEPS
    assert sum(plan.micro_batch_sizes) == goal.effective_batch_size
    assert plan.peak_bytes is not None
    assert plan.peak_bytes <= LIMIT


def test_a_kept_worker_and_a_fresh_one_measure_the_same(runner: ProcessRunner) -> None:
    setting, middle = setting_of(small()), sizing(MIDDLE)
    replies = [in_worker(runner, run_schedule, setting, middle, fresh=fresh) for fresh in (True, False, False, True)]

    assert all(isinstance(reply, Completed) for reply in replies)
    allocated = [reply.fits.peak_allocated_bytes for reply in replies]
    peaks = [reply.fits.peak_bytes for reply in replies]
    assert max(allocated) - min(allocated) <= MIB
    assert max(peaks) - min(peaks) <= 32 * MIB


def test_the_device_uses_what_torch_has_reserved_and_more(runner: ProcessRunner) -> None:
    fits = fitting(prober_of(small(), runner), MIDDLE)

    assert fits.peak_allocated_bytes is not None
    assert fits.peak_reserved_bytes is not None
    assert fits.peak_device_used_bytes is not None
    assert fits.peak_allocated_bytes <= fits.peak_reserved_bytes <= fits.peak_device_used_bytes
    assert fits.peak_reserved_bytes < fits.peak_bytes


def test_bf16_needs_less_than_fp32(runner: ProcessRunner) -> None:
    fp32, bf16 = (
        fitting(prober_of(small(precision=precision), runner), 2 * MIDDLE).peak_allocated_bytes or 0
        for precision in ("fp32", "bf16")
    )

    assert 0 < bf16 < 0.8 * fp32


@pytest.mark.parametrize("changes", [{"precision": "tf32"}, {"precision": "fp16"}, {"compile": True}], ids=str)
def test_other_ways_to_train_run(runner: ProcessRunner, changes: dict[str, object]) -> None:
    assert fitting(prober_of(small(**changes), runner), MIDDLE).label == "fits"


def two_sizes_in_turn(model: nn.Module, batch: Tensor) -> Tensor:
    """Either fits into 4 GiB, and both do not: the allocator must give the first back for the second."""
    for size in (int(1.8 * GIB), 2 * GIB):
        torch.empty(size, dtype=torch.uint8, device=batch.device)
    return squares(model, batch)


def test_a_size_that_needs_the_cache_given_back_is_said_to(runner: ProcessRunner) -> None:
    outcome = fitting(prober_of(small(loss=two_sizes_in_turn), runner, 4 * GIB), 1)

    assert outcome.label == "fits_after_retry"
    assert outcome.allocator_retries >= 1
