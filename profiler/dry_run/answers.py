"""What torch.cuda and torch.accelerator say of a simulated card: its name, capability and memory, and what it holds now."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from profiler.dry_run.named_devices import stays
from profiler.dry_run.unknown import users_place
from profiler.errors import UnknownOfCard, WorkloadError
from profiler.simulation.allocator import CachingAllocator
from profiler.simulation.cards import Card
from profiler.simulation.ledger import Ledger

GPU = torch.device("cuda", 0)
# torch's own state of a GPU's random numbers has 16 bytes. Nothing is drawn, so that there is nothing to keep in it.
_RNG_BYTES = 16
_NATIVE_BF16 = 8  # the major compute capability from which on cards compute in bfloat16


@dataclass(frozen=True, slots=True, kw_only=True)
class StandIn:
    """A card that answers for torch's GPU. ledger: gives what keeps its memory, None before it was opened."""

    card: Card
    ledger: Callable[[], Ledger | None]

    def allocator(self) -> CachingAllocator:
        """The card's, or an empty one."""
        ledger = self.ledger()
        return CachingAllocator() if ledger is None else ledger.allocator


class Properties:
    """What is known of what `torch.cuda.get_device_properties` gives; the rest raises UnknownOfCard."""

    def __init__(self, card: Card) -> None:
        self.name, self.total_memory = card.description, card.total_bytes
        self.major, self.minor = card.compute_capability

    def __getattr__(self, name: str) -> NoReturn:
        raise UnknownOfCard(
            f"{users_place()} asks for {name} of {self.name}, and of a simulated card only name, total_memory, major and minor "
            "are known: put a number of your own there, or probe on the card itself."
        )

    def __repr__(self) -> str:
        return (
            f"Properties(name={self.name!r}, major={self.major}, minor={self.minor}, total_memory={self.total_memory})"
        )


class Stream:
    """Order on a card that computes nothing: everything is done at once."""

    cuda_stream, stream_id, device_index, device_type, priority = 0, 0, 0, 1, 0
    device = GPU

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def query(self) -> bool:
        """Whether all work is done."""
        return True

    def synchronize(self, *_: Any) -> None:
        """Nothing to wait for."""

    wait_event = wait_stream = synchronize

    def record_event(self, event: Event | None = None) -> Event:
        """`event`, or a new one, as of now."""
        event = event or Event()
        event.record(self)
        return event

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Event:
    """A moment of the simulation's own time, since the card has none."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self._seconds = time.perf_counter()

    def record(self, *_: Any) -> None:
        """Now is the moment."""
        self._seconds = time.perf_counter()

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds between the two, of the simulation."""
        return (end._seconds - self._seconds) * 1000

    def query(self) -> bool:
        """Whether it has come."""
        return True

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def wait(self, *_: Any) -> None:
        """Nothing to wait for."""


class Ranges:
    """Marks for a profiler that is not there, in the place of NVIDIA's library."""

    def __getattr__(self, name: str) -> Callable[..., int]:
        return lambda *_: 0


def _checked(_: StandIn, device: Any = None, *__: Any, **___: Any) -> None:
    """Nothing; WorkloadError for another GPU than the first."""
    stays(None, device)


def _exchanged(_: StandIn, device: int) -> int:
    """The GPU that was current, which is the only one."""
    stays(None, device)
    return 0


def _memory_info(this: StandIn, *_: Any, **__: Any) -> tuple[int, int]:
    """Bytes that are free outside of the allocator, and all."""
    return this.card.total_bytes - this.card.context_bytes - this.allocator().reserved_bytes, this.card.total_bytes


def _memory_stats(this: StandIn, *_: Any, **__: Any) -> dict[str, int]:
    of = this.allocator()
    pairs = {
        "allocated_bytes.all": (of.allocated_bytes, of.marked_allocated_bytes),
        "active_bytes.all": (of.allocated_bytes, of.marked_allocated_bytes),
        "reserved_bytes.all": (of.reserved_bytes, of.marked_reserved_bytes),
    }
    stats = {f"{name}.{kind}": value for name, pair in pairs.items() for kind, value in zip(_KINDS, pair, strict=True)}
    return {**stats, "inactive_split_bytes.all.current": of.inactive_split_bytes, "num_alloc_retries": of.retries}


_KINDS = ("current", "peak")


def _memory_summary(this: StandIn, *_: Any, **__: Any) -> str:
    return "\n".join(f"{name}: {value:,}" for name, value in _memory_stats(this).items())


def _reset_peaks(this: StandIn, *_: Any, **__: Any) -> None:
    this.allocator().mark_peaks()


def _empty_cache(this: StandIn) -> None:
    if (ledger := this.ledger()) is not None:
        ledger.empty_cache()


def _bf16(this: StandIn, including_emulation: bool = True) -> bool:
    """As torch says: tensors of bfloat16 can be made on every card, and newer ones compute in it."""
    return including_emulation or this.card.compute_capability[0] >= _NATIVE_BF16


def _rng_state(*_: Any, **__: Any) -> Tensor:
    return torch.zeros(_RNG_BYTES, dtype=torch.uint8)


def _needs_cuda(this: StandIn) -> NoReturn:
    """What torch calls before anything that only CUDA itself can do."""
    asked = sys._getframe(2).f_code  # of torch's function, or of what called a kernel
    called = f" (torch.cuda.{asked.co_name})" if "cuda" in asked.co_filename else ""
    raise WorkloadError(
        f"{users_place()} needs CUDA itself{called}, and {this.card.description} is simulated: leave it out for the prediction, "
        "or probe on a real device."
    )


def _nobody_knows(name: str) -> Callable[..., NoReturn]:
    def raising(this: StandIn, *_: Any, **__: Any) -> NoReturn:
        Properties(this.card).__getattr__(name)

    return raising


def _value(value: Any) -> Callable[..., Any]:
    return lambda *_, **__: value


_MEMORY: dict[str, Callable[..., Any]] = {
    "memory_stats": _memory_stats,
    "memory_summary": _memory_summary,
    "mem_get_info": _memory_info,
    "empty_cache": _empty_cache,
    "reset_peak_memory_stats": _reset_peaks,
    "reset_accumulated_memory_stats": _value(None),
    "_record_memory_history": _value(None),
    **{name: _nobody_knows(name) for name in ("memory_snapshot", "_snapshot", "_dump_snapshot")},
}
_RANDOM: dict[str, Callable[..., Any]] = {"get_rng_state": _rng_state, "set_rng_state": _value(None)}
_ON_CUDA: dict[str, Callable[..., Any]] = {
    **_MEMORY,
    **_RANDOM,
    "device_count": _value(1),
    "current_device": _value(0),
    "get_device_properties": lambda this, *_: Properties(this.card),
    "get_arch_list": lambda this: ["sm_{}{}".format(*this.card.compute_capability)],
    "is_bf16_supported": _bf16,
    "set_device": _checked,
    "synchronize": _checked,
    "init": _value(None),
    "ipc_collect": _value(None),
    "is_current_stream_capturing": _value(False),
    "current_stream": lambda *_, **__: Stream(),
    "default_stream": lambda *_, **__: Stream(),
    "set_stream": _value(None),
    "stream": lambda _, stream: nullcontext(stream),
    "_exchange_device": _exchanged,
    "_maybe_exchange_device": _exchanged,
    "_lazy_init": _needs_cuda,
    **{name: _nobody_knows(name) for name in ("utilization", "temperature", "power_draw", "clock_rate")},
}
_ON_ACCELERATOR: dict[str, Callable[..., Any]] = {
    "device_count": _value(1),
    "current_device_index": _value(0),
    "set_device_index": _checked,
    "synchronize": _checked,
    "current_stream": lambda *_: Stream(),
    "set_stream": _value(None),
}
_ACCELERATOR_MEMORY = {**_MEMORY, "get_memory_info": _memory_info}
# By module and name, what answers for it, given the StandIn first. A version of torch need not have every one.
ANSWERS: tuple[tuple[Any, str, Callable[..., Any]], ...] = (
    *((torch.cuda, name, answer) for name, answer in _ON_CUDA.items()),
    *((torch.cuda.memory, name, answer) for name, answer in _MEMORY.items()),
    *((torch.cuda.random, name, answer) for name, answer in _RANDOM.items()),
    # Where these modules have the name from torch.cuda.
    *((module, "_lazy_init", _needs_cuda) for module in (torch.cuda.memory, torch.cuda.random)),
    *((torch.accelerator, name, answer) for name, answer in {**_ON_ACCELERATOR, **_ACCELERATOR_MEMORY}.items()),
    *((getattr(torch.accelerator, "memory", None), name, answer) for name, answer in _ACCELERATOR_MEMORY.items()),
    # Without it a GradScaler for a GPU is switched off.
    (torch.cuda.amp.common, "amp_definitely_not_available", _value(False)),
)
# The same for what torch's own code is told the truth about: told of a GPU, it takes paths that end in CUDA's initialisation.
ANSWERS_BUT_FOR_TORCH: tuple[tuple[Any, str, Callable[..., Any]], ...] = (
    (torch.cuda, "is_available", _value(True)),
    (torch.accelerator, "is_available", _value(True)),
    (torch.accelerator, "current_accelerator", _value(torch.device("cuda"))),
)
# What stands there while the card does.
STANDING: tuple[tuple[Any, str, Any], ...] = (
    (torch.cuda, "Stream", Stream),
    (torch.cuda, "Event", Event),
    (torch.cuda.nvtx, "_nvtx", Ranges()),
)
