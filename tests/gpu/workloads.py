"""A small workload for a GPU, and how to try it in workers that are shared."""

from __future__ import annotations

from collections.abc import Iterable
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

# A context with its kernels takes 300 to 700 MiB, and cuBLAS 64 MiB for its workspaces.
LIMIT = 1536 * MIB
WIDTH = 2**16
LAYERS = 5


def adamw(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters)


def deep() -> nn.Module:
    """16 MiB of parameters, and 256 KiB of activations a layer for each sample."""
    return nn.Sequential(nn.Linear(64, WIDTH), *(nn.Sigmoid() for _ in range(LAYERS)))


def rows(size: int) -> Tensor:
    return torch.ones(size, 64)


def squares(model: nn.Module, batch: Tensor) -> Tensor:
    outputs: Tensor = model(batch)
    return outputs.square().mean()


def small(**changes: Any) -> Workload:
    """A workload that needs about 130 MiB, and 1.5 MiB a sample."""
    return replace(Workload(model=deep, make_batch=rows, loss=squares, optimizer=adamw, name="small"), **changes)


def setting_of(workload: Workload, limit_bytes: int | None = LIMIT) -> Setting:
    return Setting(
        source=LiveSource.of(workload), device="cuda:0", limit_bytes=limit_bytes, switches=Switches.of_caller()
    )


def prober_of(workload: Workload, runner: ProcessRunner, limit_bytes: int = LIMIT) -> Prober:
    setting = setting_of(workload, limit_bytes)
    return Prober(
        runner=runner,
        setting=setting,
        timing_setting=setting,
        capacity_bytes=limit_bytes,
        compiled=workload.compile,
        limits=Limits(trial_seconds=90.0),
        observe=unobserved,
    )


def schedule(*steps: tuple[int, ...]) -> Schedule:
    return Schedule(strategy=Strategy.ACCUMULATION, steps=steps)


def sizing(size: int) -> Schedule:
    """What a sizing trial runs."""
    return schedule((size,), (size, size))


def attempt(prober: Prober, size: int) -> Outcome:
    return prober.run(sizing(size), size)


def fitting(prober: Prober, size: int) -> Fits:
    outcome = attempt(prober, size)
    assert isinstance(outcome, Fits), outcome
    return outcome
