"""A card that is not here: training on fake tensors, whose memory goes through a model of the card's allocator."""

from __future__ import annotations

import gc
import os
import platform
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from profiler.devices.base import Device, DeviceFacts, Needs, Peaks, Usage
from profiler.errors import UsageError
from profiler.simulation.cards import Card
from profiler.simulation.replay import least_capacity, replay
from profiler.simulation.settings import FOLLOWED, settings_of
from profiler.units import format_bytes

if TYPE_CHECKING:
    import torch

    from profiler.dry_run.placement import SimulatedPlacement
    from profiler.placing import Placement


class SimulatedDevice(Device):
    """`sim:NAME`: what a card would be asked for, and whether it has it. Every number is predicted, and nothing is timed.

    The context and what the driver loads take `card.context_bytes` off its memory, and the rest is the allocator's.
    assumptions: see `profiler.dry_run.unknown`.
    """

    measures_host_memory = False
    keeps_workers = True
    computes = False

    def __init__(self, name: str, card: Card, assumptions: Sequence[str] = ()) -> None:
        self.name = name
        self._card = card
        self._assumptions = tuple(assumptions)
        self._placement: SimulatedPlacement | None = None

    @property
    def type(self) -> str:
        return "cuda"

    @property
    def torch_device(self) -> torch.device:
        import torch

        return torch.device("cpu")

    def why_not(self) -> str | None:
        return None

    def facts(self) -> DeviceFacts:
        import torch

        card = self._card
        major, minor = card.compute_capability
        return DeviceFacts(
            description=f"{card.description}, simulated",
            total_bytes=card.total_bytes,
            available_bytes=card.total_bytes,
            environment={
                "python": platform.python_version(),
                "torch": str(torch.__version__),
                "system": f"{platform.system()} {platform.release()}",
                "device_name": f"{card.description} (simulated: every number is predicted)",
                "compute_capability": f"{major}.{minor}",
                **{name: os.environ[name] for name in FOLLOWED if os.environ.get(name)},
            },
        )

    def sizing_environment(self) -> dict[str, str]:
        return {}

    def exact_here(self) -> AbstractContextManager[None]:
        return nullcontext()

    def default_limit_bytes(self) -> int | None:
        return self._card.total_bytes

    def settle(self) -> None:
        # When garbage goes, and its memory with it, must not depend on the worker's earlier trials.
        gc.collect()

    def open(self, limit_bytes: int | None, *, live_bytes: int = 0) -> int:
        from profiler.dry_run.placement import SimulatedPlacement

        card = self._card
        capacity = card.total_bytes if limit_bytes is None else limit_bytes
        if capacity > card.total_bytes:
            raise UsageError(
                f"the memory limit of {format_bytes(capacity)} is more than the {format_bytes(card.total_bytes)} of "
                f"{card.description}: ask for less, or name a larger card."
            )
        if capacity <= card.context_bytes:
            raise UsageError(
                f"the memory limit of {format_bytes(capacity)} does not even hold a CUDA context and kernels, about "
                f"{format_bytes(card.context_bytes)}: ask for more."
            )
        self._placement = SimulatedPlacement(
            card, capacity - card.context_bytes, self._assumptions, settings=settings_of(os.environ)
        )
        return capacity

    def close(self) -> None:
        pass

    def placement(self) -> Placement:
        return self._opened()

    def standing_in(self) -> AbstractContextManager[object]:
        from profiler.dry_run.answers import StandIn
        from profiler.dry_run.standing_in import at_load

        return at_load(
            StandIn(card=self._card, ledger=lambda: None if self._placement is None else self._placement.ledger)
        )

    def synchronize(self) -> None:
        pass

    def charge_loaded(self) -> None:
        pass

    def read_peaks(self) -> Peaks:
        allocator = self._opened().ledger.allocator
        return Peaks(
            peak_bytes=allocator.peak_reserved_bytes + self._card.context_bytes,
            allocated_bytes=allocator.peak_allocated_bytes,
            reserved_bytes=allocator.peak_reserved_bytes,
            allocator_retries=allocator.retries,
        )

    def needs(self) -> Needs:
        ledger = self._opened().ledger
        expandable = ledger.allocator.expandable
        return Needs(
            unlimited_reserved_bytes=replay(ledger.events, expandable=expandable).peak_reserved_bytes,
            least_capacity_bytes=least_capacity(ledger.events, expandable=expandable) + self._card.context_bytes,
        )

    def usage(self) -> Usage:
        allocator = self._opened().ledger.allocator
        return Usage(
            allocated_bytes=allocator.allocated_bytes,
            reserved_bytes=allocator.reserved_bytes,
            inactive_split_bytes=allocator.inactive_split_bytes,
        )

    def defragmenting_environment(self) -> dict[str, str]:
        return {}

    def release(self) -> bool:
        self._placement = None
        return True

    def energy_joules(self) -> float | None:
        return None

    def energy_why_not(self) -> str | None:
        return "a simulated card uses no energy."

    def _opened(self) -> SimulatedPlacement:
        assert self._placement is not None, "a device is opened before it is trained on"
        return self._placement
