"""Tiny workloads, and how to try them in workers that are shared."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from profiler.events import unobserved
from profiler.limits import Limits
from profiler.outcomes import Fits, Outcome, Strategy
from profiler.prober import Prober
from profiler.schedules import Schedule
from profiler.switches import Switches
from profiler.targets import LiveSource
from profiler.trial import Setting
from profiler.units import MIB
from profiler.workers.runner import ProcessRunner
from profiler.workload import Workload

# A sample of 256 KiB: the micro-batch that fits a budget of some MiB is small, and so are the trials.
WIDTH = 2**16


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.001)


def adamw(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters)


def wide() -> nn.Module:
    """1 MiB of parameters."""
    return nn.Linear(WIDTH, 4)


def rows(size: int) -> Tensor:
    return torch.ones(size, WIDTH)


def squares(model: nn.Module, batch: Tensor) -> Tensor:
    outputs: Tensor = model(batch)
    return outputs.square().mean()


class Scale(nn.Module):
    """A quarter of a MiB of parameters; without matrix products, whose libraries take room only where there is some."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, batch: Tensor) -> Tensor:
        return batch * self.weight


def slow_squares(model: nn.Module, batch: Tensor) -> Tensor:
    """Takes as long for one sample as for many, so that the fewest micro-batches are the fastest."""
    time.sleep(0.01)
    return squares(model, batch)


def even(**changes: Any) -> Workload:
    """A workload that needs half a MiB, and one and a half a sample; four fit in 8 MiB."""
    return replace(Workload(model=Scale, make_batch=rows, loss=slow_squares, optimizer=sgd, name="even"), **changes)


def tiny(**changes: Any) -> Workload:
    """A workload that needs about 2 MiB, and half a MiB a sample."""
    return replace(Workload(model=wide, make_batch=rows, loss=squares, optimizer=sgd, name="tiny"), **changes)


def prober_of(
    workload: Workload, runner: ProcessRunner, limit_bytes: int = 64 * MIB, *, trial_seconds: float = 60.0
) -> Prober:
    """A prober as `open_prober` makes it on the CPU, with workers that others use too."""
    setting = Setting(
        source=LiveSource.of(workload), device="cpu", limit_bytes=limit_bytes, switches=Switches.of_caller()
    )
    return Prober(
        runner=runner,
        setting=setting,
        timing_setting=replace(setting, limit_bytes=None),
        capacity_bytes=limit_bytes,
        compiled=workload.compile,
        limits=Limits(trial_seconds=trial_seconds),
        observe=unobserved,
    )


def attempt(prober: Prober, *steps: tuple[int, ...]) -> Outcome:
    """What optimizer steps over micro-batches of these sizes come to."""
    schedule = Schedule(strategy=Strategy.ACCUMULATION, steps=steps)
    return prober.run(schedule, max(size for sizes in steps for size in sizes))


def peak_mib(prober: Prober, *steps: tuple[int, ...]) -> float:
    outcome = attempt(prober, *steps)
    assert isinstance(outcome, Fits), outcome
    return outcome.peak_bytes / MIB


def failing(error: Callable[[], Exception], *, at_call: int = 1) -> Callable[[nn.Module, Tensor], Tensor]:
    """A loss that raises at one of its calls."""
    calls: list[int] = []

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == at_call:
            raise error()
        return squares(model, batch)

    return loss
