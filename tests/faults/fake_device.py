"""A card whose memory is arithmetic, as a device of this process: it can fill up, be shared, drift and disappear."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from profiler.devices.base import Device, DeviceFacts, Peaks, Usage
from profiler.errors import UsageError
from profiler.workload import Workload

TOTAL_BYTES = 1_000_000_000
FIXED_BYTES = 100_000_000
# The largest size leaves more of the default budget than peaks lie off a line, so that its failure is a surprise.
SAMPLE_BYTES = 7_100_000

CUDA_FULL = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.19 GiB"


def full() -> Exception:
    return torch.OutOfMemoryError(CUDA_FULL)


@dataclass(slots=True, kw_only=True)
class Card:
    """What the fake device and the workload on it share.

    phase: of training, in which memory is asked for. full: what is raised where there is none. others_bytes: what other
    processes hold, and visitors_bytes what those hold that go when the trial ends. at_trial: what happens when a trial has begun, by its number. lost: what every call raises from then on.
    """

    phase: str = "forward"
    full: Callable[[], BaseException] = full
    others_bytes: int = 0
    visitors_bytes: int = 0
    at_trial: Callable[[Card, int], None] = lambda card, trial: None
    lost: Callable[[], Exception] | None = None
    trials: int = 0
    budget_bytes: int = TOTAL_BYTES
    peak_bytes: int = 0
    refused: list[int] = field(default_factory=list)

    def ask(self) -> None:
        """Answer any call; a card that is gone does not."""
        if self.lost is not None:
            raise self.lost()

    @property
    def free_bytes(self) -> int:
        return TOTAL_BYTES - self.others_bytes - self.visitors_bytes

    def begin(self, limit_bytes: int | None) -> int:
        """As CudaDevice.open."""
        self.ask()
        if limit_bytes is not None and limit_bytes > self.free_bytes:
            raise UsageError(f"the memory limit of {limit_bytes} is more than the {self.free_bytes} that are free.")
        self.budget_bytes, self.peak_bytes = limit_bytes or self.free_bytes, 0
        self.trials += 1
        self.at_trial(self, self.trials)
        return self.budget_bytes

    def hold(self, phase: str, samples: int) -> None:
        """What training needs at once, if this is the phase that needs it."""
        self.ask()
        if phase != self.phase:
            return
        needed = FIXED_BYTES + samples * SAMPLE_BYTES
        if needed > min(self.budget_bytes, self.free_bytes):
            self.refused.append(samples)
            raise self.full()
        self.peak_bytes = max(self.peak_bytes, needed)


class FakeDevice(Device):
    """The seam to a Card. It calls itself a GPU, so failures are judged as one's, and its tensors lie in host memory."""

    name = "cuda:0"
    type = "cuda"
    torch_device = torch.device("cpu")
    measures_host_memory = False
    keeps_workers = True

    def __init__(self, card: Card) -> None:
        self._card = card

    def why_not(self) -> str | None:
        return None

    def facts(self) -> DeviceFacts:
        self._card.ask()
        return DeviceFacts(
            description="a fake card",
            total_bytes=TOTAL_BYTES,
            available_bytes=self._card.free_bytes,
            environment={"device_name": "a fake card"},
        )

    def sizing_environment(self) -> dict[str, str]:
        return {}

    def exact_here(self) -> AbstractContextManager[None]:
        return nullcontext()

    def default_limit_bytes(self) -> int | None:
        return None

    def settle(self) -> None:
        self._card.ask()

    def open(self, limit_bytes: int | None, *, live_bytes: int = 0) -> int:
        return self._card.begin(limit_bytes)

    def close(self) -> None:
        self._card.ask()
        self._card.visitors_bytes = 0

    def synchronize(self) -> None:
        self._card.ask()

    def charge_loaded(self) -> None:
        self._card.ask()

    def read_peaks(self) -> Peaks:
        self._card.ask()
        return Peaks(peak_bytes=self._card.peak_bytes)

    def usage(self) -> Usage:
        return Usage()

    def defragmenting_environment(self) -> dict[str, str]:
        return {}

    def release(self) -> bool:
        self._card.ask()
        return True

    def energy_joules(self) -> float | None:
        return None

    def energy_why_not(self) -> str | None:
        return "a fake card counts no energy."


class Moving(Tensor):
    """A batch that asks the card for its memory when it is brought there."""

    card: Card

    def to(self, *arguments: Any, **settings: Any) -> Tensor:
        self.card.hold("moving", len(self))
        return self.as_subclass(Tensor)


class Built(nn.Linear):
    """A model that asks the card for its memory when it is brought there."""

    card: Card

    def to(self, *arguments: Any, **settings: Any) -> Any:
        self.card.hold("model", 0)
        return self


class Passing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, card: Card, samples: int) -> Tensor:
        ctx.card, ctx.samples = card, samples
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        ctx.card.hold("backward", ctx.samples)
        return gradients[0], None, None


def workload(card: Card) -> Workload:
    """Needs FIXED_BYTES, and SAMPLE_BYTES a sample, in the card's phase."""
    largest = [0]

    class Stepping(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            card.hold("optimizer step", largest[0])
            return super().step(closure)

    def model() -> nn.Module:
        built = Built(1, 1)
        built.card = card
        return built

    def batch(size: int) -> Tensor:
        card.hold("making", size)
        made = torch.ones(size, 1).as_subclass(Moving)
        made.card = card
        return made

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        largest[0] = len(batch)
        card.hold("forward", len(batch))
        value: Tensor = Passing.apply(model(batch).square().mean(), card, len(batch))  # type: ignore[no-untyped-call]
        return value

    return Workload(
        model=model, make_batch=batch, loss=loss, optimizer=lambda owned: Stepping(owned, lr=0.1), name="on a fake card"
    )
