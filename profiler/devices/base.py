"""The seam between the profiler and hardware: what every device can be asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from profiler.placing import Placement


@dataclass(frozen=True, slots=True, kw_only=True)
class Peaks:
    """The most memory in use since the device was opened, in bytes; None where the device does not know.

    peak_bytes is in the unit of the device's capacity. allocator_retries counts since then too.
    """

    peak_bytes: int
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    device_used_bytes: int | None = None
    resident_bytes: int | None = None
    allocator_retries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What ran would need elsewhere, in bytes, as `profiler.outcomes.Fits` has it; None where the device does not know."""

    unlimited_reserved_bytes: int | None = None
    least_capacity_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What the framework's allocator holds now, in bytes; None where the device does not know.

    allocated_bytes: in use. reserved_bytes: held, in use or not. inactive_split_bytes: free blocks that cannot be given
    back, because other parts of what they were cut from are in use: fragmentation.
    """

    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    inactive_split_bytes: int | None = None

    @property
    def unused_bytes(self) -> int | None:
        """Held and not in use."""
        if self.reserved_bytes is None or self.allocated_bytes is None:
            return None
        return self.reserved_bytes - self.allocated_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """What a device is: its own name, its memory and what of it is free now, and the versions that records carry."""

    description: str
    total_bytes: int
    available_bytes: int
    environment: Mapping[str, str]


class Device(ABC):
    """A place to train on, used from inside the process that trains.

    The order is: `settle`, then the workload is loaded, `open` with a limit, then the model is built and trained,
    with `charge_loaded` after its first step and its first evaluation, `read_peaks`, and `close`. Methods other than the properties may need torch and a driver,
    so they run in a worker; constructing a device touches no hardware.
    """

    name: str
    # Host memory is what is measured, so that nothing may be kept in it that training would not keep.
    measures_host_memory: bool
    # One worker serves several trials while its memory comes back; else every trial gets a fresh one.
    keeps_workers: bool
    # Whether tensors have values, and time passes. Else every number is predicted from shapes.
    computes: bool = True

    @property
    @abstractmethod
    def type(self) -> str:
        """The kind of device in torch's words: "cpu" or "cuda"."""

    @property
    @abstractmethod
    def torch_device(self) -> torch.device:
        """The device as torch names it."""

    @abstractmethod
    def why_not(self) -> str | None:
        """None, or a sentence that says why this device cannot be used here."""

    @abstractmethod
    def facts(self) -> DeviceFacts:
        """Name, memory and versions."""

    @abstractmethod
    def sizing_environment(self) -> dict[str, str]:
        """Environment variables that a worker needs from its start so that memory is measured exactly."""

    @abstractmethod
    def exact_here(self) -> AbstractContextManager[None]:
        """The same for a process that runs already, as far as it can be had there, while the block runs."""

    @abstractmethod
    def default_limit_bytes(self) -> int | None:
        """The budget where the user names none; None means all that is free."""

    @abstractmethod
    def settle(self) -> None:
        """Bring everything into memory that training loads once, so that it does not count as the workload's."""

    @abstractmethod
    def open(self, limit_bytes: int | None, *, live_bytes: int = 0) -> int:
        """Enforce `limit_bytes` on what comes next, begin a new measurement of peaks, and return the capacity in force.

        None measures without a limit. live_bytes: what a model that exists already holds, which counts too.
        Raises UsageError for a limit above what is available.
        """

    @abstractmethod
    def close(self) -> None:
        """Lift the limit, so that a report can be made after an out-of-memory."""

    def placement(self) -> Placement:
        """How a workload is brought onto the device, once it is open."""
        from profiler.placing import Placement

        return Placement(self.torch_device)

    def standing_in(self) -> AbstractContextManager[object]:
        """What the user's code is loaded and trained in, so that it finds the device that it asks torch for."""
        return nullcontext()

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until the device has done all that it was given."""

    @abstractmethod
    def charge_loaded(self) -> None:
        """Charge to the budget what a first step, or evaluation, has loaded outside of the framework's allocator (kernels)."""

    @abstractmethod
    def read_peaks(self) -> Peaks:
        """The peaks since `open`."""

    def needs(self) -> Needs:
        """What all that ran since `open` would need with more memory, and with less; it must have run to its end."""
        return Needs()

    @abstractmethod
    def usage(self) -> Usage:
        """What the allocator holds at this moment."""

    @abstractmethod
    def defragmenting_environment(self) -> dict[str, str]:
        """Variables with which a process's allocator fragments less, the one to recommend first; empty where there are none.

        What the caller's environment sets already is kept. Touches no hardware.
        """

    @abstractmethod
    def release(self) -> bool:
        """Give back what can be given back; whether memory is as it was at `settle`, so that the worker may be kept."""

    @abstractmethod
    def energy_joules(self) -> float | None:
        """Reading of the device's energy counter; None where it has none."""

    @abstractmethod
    def energy_why_not(self) -> str | None:
        """None, or a sentence that says why there is no energy to read."""
