from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from process.workloads import WIDTH, adamw, attempt, failing, peak_mib, prober_of, rows, sgd, squares, tiny, wide
from profiler.errors import TrialError, UsageError, WorkloadError
from profiler.finder import find_largest
from profiler.outcomes import Fits, OutOfMemory
from profiler.prober import Prober
from profiler.smallest import why_nothing_fits
from profiler.units import MIB
from profiler.workers.runner import ProcessRunner
from profiler.workload import Workload

TIMES = 5


def large() -> nn.Module:
    """8 MiB of parameters."""
    return nn.Linear(WIDTH, 32, bias=False)


def too_large() -> nn.Module:
    return nn.Linear(WIDTH, 512)


def too_many(size: int) -> Tensor:
    return torch.ones(size, 2000 * WIDTH)


def hungry_loss(model: nn.Module, batch: Tensor) -> Tensor:
    return squares(model, batch.repeat(2000, 1))


class HungryBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * torch.ones(2000 * WIDTH).mean()


def hungry_backward(model: nn.Module, batch: Tensor) -> Tensor:
    loss: Tensor = HungryBackward.apply(squares(model, batch))  # type: ignore[no-untyped-call]
    return loss


@pytest.mark.parametrize(
    ("phase", "changes", "limit_mib"),
    [
        ("model", {"model": too_large}, 64),
        ("batch", {"make_batch": too_many}, 64),
        ("forward", {"loss": hungry_loss}, 64),
        ("backward", {"loss": hungry_backward}, 64),
        # 8 MiB of parameters, as much of gradients and of the first moment; none left for the second.
        ("optimizer step", {"model": large, "optimizer": adamw}, 28),
    ],
)
def test_out_of_memory_is_an_outcome_that_names_its_phase(
    runner: ProcessRunner, phase: str, changes: dict[str, Any], limit_mib: int
) -> None:
    outcome = attempt(prober_of(tiny(**changes), runner, limit_mib * MIB), (1,))

    assert isinstance(outcome, OutOfMemory)
    assert outcome.phase == phase
    assert "allocate memory" in outcome.message
    assert outcome.evidence
    assert outcome.peak_bytes is not None
    assert outcome.peak_bytes <= limit_mib * MIB


def test_under_a_budget_below_the_models_own_size_nothing_fits(runner: ProcessRunner) -> None:
    prober = prober_of(tiny(model=large), runner, 6 * MIB)
    finding = find_largest(prober)
    why = why_nothing_fits(prober, finding)
    needed = re.search(r"size 1, the smallest, does not fit: it needs about ([\d.]+) MiB, the limit is 6 MiB", why)

    assert (finding.largest_fit, finding.smallest_misfit) == (0, 1)
    assert needed is not None, why
    # Parameters, gradients, and the second micro-batch's own gradients before they are added: 8 MiB each.
    assert 24 <= float(needed[1]) < 26


def test_a_live_model_above_the_budget_does_not_fit_either(runner: ProcessRunner) -> None:
    assert isinstance(attempt(prober_of(tiny(model=large()), runner, 6 * MIB), (1,)), OutOfMemory)


@pytest.fixture(scope="module")
def edge(runner: ProcessRunner) -> tuple[Prober, int]:
    """A prober under 16 MiB, and the largest size that fits; a sample needs some 10 KiB."""
    model = nn.Sequential(nn.Linear(1024, 256), nn.ReLU(), nn.Linear(256, 1024))
    workload = Workload(model=model, make_batch=features, loss=squares, optimizer=adamw)
    prober = prober_of(workload, runner, 16 * MIB)
    return prober, find_largest(prober).largest_fit


def features(size: int) -> Tensor:
    return torch.ones(size, 1024)


def test_the_edge_is_the_same_five_times_of_five(edge: tuple[Prober, int]) -> None:
    prober, size = edge

    assert [attempt(prober, (size,), (size, size)).label for _ in range(TIMES)] == ["fits"] * TIMES
    assert [attempt(prober, (size + 1,), (size + 1, size + 1)).label for _ in range(TIMES)] == ["out_of_memory"] * TIMES


def test_peaks_repeat(edge: tuple[Prober, int]) -> None:
    prober, size = edge
    peaks = [peak_mib(prober, (size // 2,), (size // 2, size // 2)) for _ in range(TIMES)]

    assert max(peaks) - min(peaks) <= 0.2


def test_the_peak_is_within_the_budget_and_rises_with_the_size(edge: tuple[Prober, int]) -> None:
    prober, size = edge

    assert peak_mib(prober, (size // 2,), (size // 2, size // 2)) < peak_mib(prober, (size,), (size, size)) <= 16


def deep() -> nn.Module:
    """4 MiB of parameters, and 4 MiB of activations a layer for 256 samples."""
    return nn.Sequential(nn.Linear(256, 4096, bias=False), *(nn.Sigmoid() for _ in range(8)))


def small_rows(size: int) -> Tensor:
    return torch.ones(size, 256)


@pytest.fixture(scope="module")
def deep_peaks(runner: ProcessRunner) -> Callable[[Any], list[float]]:
    """The peaks of a step over one and over two micro-batches, in MiB, by the optimizer."""

    def peaks(optimizer: Any) -> list[float]:
        workload = Workload(model=deep, make_batch=small_rows, loss=squares, optimizer=optimizer)
        prober = prober_of(workload, runner, 128 * MIB)
        return [peak_mib(prober, (256,), (256,) * steps) for steps in (1, 2)]

    return peaks


def test_a_second_micro_batch_costs_the_gradients_and_adamw_two_more_of_them(
    deep_peaks: Callable[[Any], list[float]],
) -> None:
    gradients_mib = 4
    one, two = deep_peaks(sgd)
    one_adamw, two_adamw = deep_peaks(adamw)

    assert two - one == pytest.approx(gradients_mib, abs=1)
    assert two_adamw - one_adamw == pytest.approx(gradients_mib, abs=1)
    assert two_adamw - two == pytest.approx(2 * gradients_mib, abs=1)


def test_a_live_model_counts_as_much_as_one_from_a_builder(runner: ProcessRunner) -> None:
    built, live = (peak_mib(prober_of(tiny(model=model), runner), (4, 4)) for model in (large, large()))

    assert live == pytest.approx(built, abs=1)


def users_bug() -> Exception:
    return ArithmeticError("seven is not eight")


def test_a_users_bug_is_that_bug_with_their_traceback(runner: ProcessRunner) -> None:
    prober = prober_of(tiny(loss=failing(users_bug, at_call=2)), runner)
    with pytest.raises(WorkloadError, match=r"at micro-batch size 2, in its forward: ArithmeticError: seven") as info:
        attempt(prober, (1,), (2, 2))

    lines = (info.value.user_traceback or "").splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert "workloads.py" in lines[1]
    assert lines[-1] == "ArithmeticError: seven is not eight"


def bad_builder() -> nn.Module:
    raise users_bug()


def bad_maker(size: int) -> Any:
    raise users_bug()


def bad_optimizer(parameters: Any) -> torch.optim.Optimizer:
    raise users_bug()


@pytest.mark.parametrize(
    ("phase", "changes"),
    [
        ("model", {"model": bad_builder}),
        ("model", {"optimizer": bad_optimizer}),
        ("batch", {"make_batch": bad_maker}),
    ],
)
def test_a_bug_elsewhere_names_its_phase(runner: ProcessRunner, phase: str, changes: dict[str, Any]) -> None:
    with pytest.raises(WorkloadError, match=f"in its {phase}: ArithmeticError") as info:
        attempt(prober_of(tiny(**changes), runner), (1,))

    assert "test_trials.py" in (info.value.user_traceback or "").splitlines()[1]


def crash(model: nn.Module, batch: Tensor) -> Tensor:
    os.write(2, b"these were my last words\n")
    os.kill(os.getpid(), signal.SIGSEGV)
    return squares(model, batch)


def test_a_crash_is_an_error_with_the_workers_last_words(runner: ProcessRunner) -> None:
    with pytest.raises(TrialError, match=r"(?s)size 3 with exit status -11 .*these were my last words"):
        attempt(prober_of(tiny(loss=crash), runner), (3,))


def hang(model: nn.Module, batch: Tensor) -> Tensor:
    time.sleep(600)
    return squares(model, batch)


def test_a_hang_is_an_error_with_the_next_step(runner: ProcessRunner) -> None:
    with pytest.raises(TrialError, match=r"size 1 did not end within 1(\.\d+)? s.*--trial-timeout.*--ceiling"):
        attempt(prober_of(tiny(loss=hang), runner, trial_seconds=1.0), (1,))


def not_scalar(model: nn.Module, batch: Tensor) -> Tensor:
    outputs: Tensor = model(batch)
    return outputs


def not_finite(model: nn.Module, batch: Tensor) -> Tensor:
    return squares(model, batch) * float("nan")


def without_gradient(model: nn.Module, batch: Tensor) -> Tensor:
    return squares(model, batch).detach()


def not_a_tensor(model: nn.Module, batch: Tensor) -> Any:
    return squares(model, batch).item()


def always_eight(size: int) -> Any:
    return rows(8)


def no_tensors(size: int) -> Any:
    return ["a sentence"] * size


def no_parameters() -> nn.Module:
    return nn.ReLU()


def frozen() -> nn.Module:
    return wide().requires_grad_(False)


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        (r"tensor of shape \(3, 4\): it must be a scalar", {"loss": not_scalar}),
        (r"the loss of the first step is nan", {"loss": not_finite}),
        (r"the loss has no gradient", {"loss": without_gradient}),
        (r"loss returned a float: it must return a scalar tensor", {"loss": not_a_tensor}),
        (r"make_batch\(3\) returned a batch of 8 samples", {"make_batch": always_eight}),
        (r"make_batch returned list without a tensor", {"make_batch": no_tensors}),
        (r"the model \(ReLU\) has no parameter with requires_grad", {"model": no_parameters}),
        (r"the model \(Linear\) has no parameter with requires_grad", {"model": frozen}),
    ],
)
def test_a_workload_that_cannot_be_trained_is_refused_in_words(
    runner: ProcessRunner, words: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(WorkloadError, match=words):
        attempt(prober_of(tiny(**changes), runner), (3,))


def a_number() -> Any:
    return 3


def test_a_builder_that_builds_no_module_is_refused(runner: ProcessRunner) -> None:
    with pytest.raises(UsageError, match="the model builder returned int"):
        attempt(prober_of(tiny(model=a_number), runner), (1,))


def large_gradients(model: nn.Module, batch: Tensor) -> Tensor:
    return squares(model, batch) * 1e10


def test_gradients_that_fp16_cannot_hold_are_refused(runner: ProcessRunner) -> None:
    with pytest.raises(WorkloadError, match=r"the gradients are not finite in fp16 even at a loss scale of 1,.*bf16"):
        attempt(prober_of(tiny(loss=large_gradients, precision="fp16"), runner), (2,))


def test_an_outcome_carries_its_measurements(runner: ProcessRunner) -> None:
    outcome = attempt(prober_of(tiny(), runner), (1,), (2, 2))

    assert isinstance(outcome, Fits)
    assert outcome.peak_resident_bytes is not None
    assert outcome.peak_allocated_bytes is outcome.peak_reserved_bytes is outcome.peak_device_used_bytes is None
    assert outcome.seconds > 0
