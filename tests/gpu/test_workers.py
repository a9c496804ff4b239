from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gpu import jobs
from gpu.jobs import in_worker
from gpu.workloads import LIMIT, fitting, prober_of, setting_of, sizing, small, squares
from profiler.errors import WorkloadError
from profiler.trial import Completed, Failed, run_schedule
from profiler.workers.runner import ProcessRunner

pytestmark = pytest.mark.gpu


def too_much(model: nn.Module, batch: Tensor) -> Tensor:
    return squares(model, batch) + torch.empty(LIMIT, dtype=torch.uint8, device=batch.device)[0]


class HungryBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] + torch.empty(LIMIT, dtype=torch.uint8, device=gradients[0].device)[0]


def too_much_backward(model: nn.Module, batch: Tensor) -> Tensor:
    loss: Tensor = HungryBackward.apply(squares(model, batch))  # type: ignore[no-untyped-call]
    return loss


def heavy() -> nn.Module:
    """281 MiB of parameters: with gradients they fit the budget, with AdamW's state they do not."""
    return nn.Linear(64, 1_150_000, bias=False)


def test_a_worker_is_kept_while_it_is_clean_and_replaced_after_an_out_of_memory(runner: ProcessRunner) -> None:
    first = in_worker(runner, jobs.process_id)
    fits = in_worker(runner, run_schedule, setting_of(small()), sizing(2), fresh=False)
    second = in_worker(runner, jobs.process_id, fresh=False)
    fails = in_worker(runner, run_schedule, setting_of(small(loss=too_much)), sizing(2), fresh=False)
    third = in_worker(runner, jobs.process_id, fresh=False)

    assert isinstance(fits, Completed)
    assert isinstance(fails, Failed)
    assert first == second != third


@pytest.mark.parametrize(
    ("phase", "changes"),
    [
        ("forward", {"loss": too_much}),
        ("backward", {"loss": too_much_backward}),
        ("optimizer step", {"model": heavy}),
    ],
)
def test_after_an_out_of_memory_everything_is_given_back(
    runner: ProcessRunner, phase: str, changes: dict[str, Any]
) -> None:
    failed_in, before, after = in_worker(runner, jobs.memory_after, changes)

    assert failed_in == phase
    assert after == before


def test_a_live_model_on_the_gpu_is_as_it_was_bit_for_bit(runner: ProcessRunner) -> None:
    different, plan, notes, before, after = in_worker(runner, jobs.probe_live_model)

    assert different == []
    assert plan.verified_steps > 0
    assert any("probed in this process" in note for note in notes)
    assert after <= before


def bad_index(model: nn.Module, batch: Tensor) -> Tensor:
    table = nn.functional.embedding(batch.long() + 1000, next(model.parameters()))
    return squares(model, batch) + table.mean()


def narrow() -> nn.Module:
    return nn.Linear(64, 8)


def test_a_bug_that_breaks_the_context_is_the_workload_s_and_the_next_trial_runs(runner: ProcessRunner) -> None:
    with pytest.raises(WorkloadError, match="device-side assert"):
        fitting(prober_of(small(model=narrow, loss=bad_index), runner), 2)

    assert fitting(prober_of(small(), runner), 2).label == "fits"
