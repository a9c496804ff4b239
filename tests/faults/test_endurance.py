"""What many searches, and trials that ran out of memory, leave in the process that asked for them."""

from __future__ import annotations

import gc
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from process.workloads import squares
from torch import Tensor, nn

from benchmarks.endurance import Held, search
from benchmarks.endurance import tiny as searched
from profiler import Options, Workload
from profiler.events import unobserved
from profiler.opening import open_prober
from profiler.outcomes import OutOfMemory
from profiler.units import MIB

LIMIT = 320 * MIB
# Above 32 MiB glibc takes every block from the system and gives it back, so that data size tells what is held.
BLOCK = 34 * MIB // 4
# What Python itself keeps of a trial: code that it specialised, names.
KEPT_BYTES = MIB


@pytest.mark.parametrize(("isolation", "searches"), [("process", 10), ("none", 6)])
def test_many_searches_leave_nothing(
    kept_servers: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, isolation: str, searches: int
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for _ in range(4):
        search(isolation)
    gc.freeze()
    try:
        before = Held.now()
        for _ in range(searches):
            search(isolation)
        after = Held.now()
    finally:
        gc.unfreeze()

    assert counted(after) == counted(before)
    # A tenth of a MiB a search, and holes in the heap, which come and go.
    assert after.allocated_bytes - before.allocated_bytes <= searches * MIB / 10
    assert after.data_bytes - before.data_bytes <= 4 * MIB


def test_servers_of_their_own_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = Held.now()
    with open_prober(searched(), Options(device="cpu", memory_limit=4 * MIB), unobserved) as (prober, _):
        prober.try_size(1, "a test")
    after = Held.now()

    assert counted(after) == counted(before)


def counted(held: Held) -> Held:
    """Everything but bytes."""
    return replace(held, data_bytes=0, allocated_bytes=0)


class Hungry(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        eat()
        return gradients[0]


def eat() -> list[Tensor]:
    """Takes the whole budget block by block, and is refused the last one."""
    return [torch.ones(BLOCK) for _ in range(2 * LIMIT // (4 * BLOCK))]


def in_forward(model: nn.Module, batch: Tensor) -> Tensor:
    loss = squares(model, batch)
    eat()
    return loss


def in_backward(model: nn.Module, batch: Tensor) -> Tensor:
    loss: Tensor = Hungry.apply(squares(model, batch))  # type: ignore[no-untyped-call]
    return loss


class HungrySGD(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["moments"] = []
                while True:
                    self.state[parameter]["moments"].append(torch.ones(BLOCK))


class Large(nn.Module):
    """34 MiB of parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(BLOCK))

    def forward(self, batch: Tensor) -> Tensor:
        return batch * self.weight


def rows(size: int) -> Tensor:
    return torch.ones(size, BLOCK)


def hungry_rows(size: int) -> Tensor:
    return torch.cat(eat())


def hungry_model() -> nn.Module:
    return nn.ParameterList(eat())


PHASES: dict[str, dict[str, Any]] = {
    "model": {"model": hungry_model},
    "batch": {"make_batch": hungry_rows},
    "forward": {"loss": in_forward},
    "backward": {"loss": in_backward},
    "optimizer step": {"optimizer": lambda parameters: HungrySGD(parameters, lr=0.1)},
}


def plain(**changes: Any) -> Workload:
    sound: dict[str, Any] = {
        "model": Large,
        "make_batch": rows,
        "loss": squares,
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    }
    return Workload(**{**sound, **changes})


@pytest.fixture(autouse=True)
def few_collections(quick_collection: None) -> None:
    """Every trial here runs in this process."""


def attempt(workload: Workload) -> Any:
    options = Options(device="cpu", memory_limit=LIMIT, isolation="none")
    with open_prober(workload, options, unobserved) as (prober, _):
        return prober.try_size(1, "a test").outcome


@pytest.fixture(scope="module")
def all_is_loaded() -> None:
    """A sound trial, after which everything that training loads is there."""
    attempt(plain())


@pytest.mark.parametrize("phase", PHASES)
def test_memory_returns_to_the_start_after_out_of_memory(all_is_loaded: None, phase: str) -> None:
    changes = PHASES[phase]
    models = [hungry_model] if phase == "model" else [Large, Large()]
    for model in models:
        workload = plain(**{**changes, "model": model})
        attempt(workload)
        held = [Held.now().data_bytes]
        for _ in range(3):
            outcome = attempt(workload)
            held.append(Held.now().data_bytes)

        assert isinstance(outcome, OutOfMemory)
        assert outcome.phase == phase
        assert outcome.peak_bytes is not None
        assert outcome.peak_bytes > LIMIT - 4 * 2 * BLOCK, "it never filled the budget"
        # What a trial keeps, every trial keeps; the heap of a process that ran other tests also grows now and then.
        assert min(after - before for before, after in pairwise(held)) <= KEPT_BYTES
