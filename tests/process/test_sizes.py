"""Models that take some sizes only, and data that end: the right answer, or a clear sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from process.workloads import Scale, prober_of, rows, sgd, squares
from profiler import find_accumulation_plan
from profiler.errors import WorkloadError
from profiler.events import Event, Noted
from profiler.finder import climb, find_largest
from profiler.outcomes import Finding, Refused
from profiler.prober import Prober
from profiler.units import MIB
from profiler.workers.runner import ProcessRunner
from profiler.workload import Workload

WIDTH = 2**14


class Normed(nn.Module):
    """One value a channel and sample: BatchNorm has no variance of a single sample."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, batch: Tensor) -> Tensor:
        normed: Tensor = self.norm(batch)
        return normed


class Fours(Scale):
    def forward(self, batch: Tensor) -> Tensor:
        fours: Tensor = super().forward(batch).unflatten(0, (-1, 4))
        return fours.sum(1)


def short_rows(size: int) -> Tensor:
    return torch.ones(size, WIDTH)


def nine_rows(size: int) -> Tensor:
    return rows(min(size, 9))


def rows_by_index(size: int) -> Tensor:
    stored = [torch.ones(2**16)] * 9
    return torch.stack([stored[index] for index in range(size)])


def limited(model: nn.Module, batch: Tensor) -> Tensor:
    if len(batch) > 11:
        raise RuntimeError("the batch must be at most 65,535")
    return squares(model, batch)


def workload(**changes: Any) -> Workload:
    return replace(Workload(model=Scale, make_batch=rows, loss=squares, optimizer=sgd, name="sized"), **changes)


def watched(runner: ProcessRunner, sized: Workload, events: list[Event], limit_bytes: int = 16 * MIB) -> Prober:
    prober = prober_of(sized, runner, limit_bytes)
    prober.observe = events.append
    return prober


def test_batch_norm_starts_at_two(runner: ProcessRunner) -> None:
    events: list[Event] = []
    prober = watched(runner, workload(model=Normed, make_batch=short_rows), events)
    finding = find_largest(prober)
    climb(prober, finding.largest_fit)

    assert prober.smallest_size == 2
    assert finding.limited_by == "memory"
    assert finding.largest_fit > 8
    assert min(prober.trials) == 2
    assert [size for size in prober.trials if size & (size - 1) == 0 and size <= finding.largest_fit] != []
    (note,) = [event.text for event in events if isinstance(event, Noted) and "start at" in event.text]
    assert note.startswith("sizes start at 2: ")
    assert "Expected more than 1 value per channel" in note


def test_batch_norm_below_its_smallest_size_is_the_users_error(runner: ProcessRunner) -> None:
    prober = watched(runner, workload(model=Normed, make_batch=short_rows), [])

    with pytest.raises(WorkloadError, match="at micro-batch size 1, in its forward: ValueError: Expected more than 1"):
        find_largest(prober, ceiling=1)


def test_a_model_of_fours_is_searched_in_fours(runner: ProcessRunner) -> None:
    prober = watched(runner, workload(model=Fours), [])
    prober.multiple_of = prober.smallest_size = 4
    finding = find_largest(prober)

    assert finding.limited_by == "memory"
    assert finding.largest_fit >= 4
    assert finding.smallest_misfit == finding.largest_fit + 4
    assert all(size % 4 == 0 for size in prober.trials)


def test_a_model_of_fours_says_so_where_nobody_did(runner: ProcessRunner) -> None:
    with pytest.raises(WorkloadError, match=r"Micro-batches of 4 run: .* --multiple-of 4\.") as raised:
        find_largest(watched(runner, workload(model=Fours), []))

    assert "unflatten" in (raised.value.user_traceback or "")


@pytest.mark.parametrize(
    ("changes", "most", "said"),
    [
        pytest.param({"make_batch": nine_rows}, 9, "returned a batch of 9 samples", id="fewer samples"),
        pytest.param({"make_batch": rows_by_index}, 9, "list index out of range", id="an index too far"),
        pytest.param({"loss": limited}, 11, "at most 65,535", id="a kernel's limit"),
    ],
)
def test_another_limit_than_memory_is_found_and_named(
    runner: ProcessRunner, changes: dict[str, Callable[..., Tensor]], most: int, said: str
) -> None:
    finding: Finding = find_largest(watched(runner, workload(**changes), [], 64 * MIB))

    assert (finding.largest_fit, finding.smallest_misfit, finding.limited_by) == (most, most + 1, "refusal")
    misfit = finding.trial_of(most + 1)
    assert misfit is not None
    assert isinstance(misfit.outcome, Refused)
    assert said in misfit.outcome.message
    assert misfit.outcome.label == "refused"


def test_a_plan_is_made_of_multiples(kept_servers: None) -> None:
    plan = find_accumulation_plan(
        workload(model=Fours), 40, device="cpu", memory_limit=16 * MIB, multiple_of=4, check=False
    )

    assert sum(plan.micro_batch_sizes) == 40
    assert all(size % 4 == 0 for size in plan.micro_batch_sizes)
    assert plan.verified_steps == 5


def heavier_below_eight(model: nn.Module, batch: Tensor) -> Tensor:
    copies = torch.ones(2**20, 4) if 4 <= len(batch) < 8 else torch.ones(1)
    return squares(model, batch) + 0 * copies.sum()


def test_memory_that_falls_with_the_size_is_said(runner: ProcessRunner) -> None:
    events: list[Event] = []
    prober = watched(runner, workload(loss=heavier_below_eight), events, 64 * MIB)
    climb(prober, find_largest(prober, ceiling=16).largest_fit)

    (note,) = [event.text for event in events if isinstance(event, Noted)]
    assert note.startswith("memory does not rise with the micro-batch size everywhere: ")
    assert " and 8 needs " in note
