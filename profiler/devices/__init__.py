"""Every device behind one seam; vendor code lives only here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from profiler.devices.base import Device, DeviceFacts, Peaks, Usage
from profiler.devices.cpu import CpuDevice
from profiler.devices.cuda import CudaDevice
from profiler.devices.nvml import gpus_are_visible
from profiler.devices.simulated import SimulatedDevice
from profiler.errors import UsageError
from profiler.simulation.cards import SIMULATED, card_of, is_simulated

__all__ = ["Device", "DeviceFacts", "Peaks", "Surveyed", "Usage", "default_device_name", "open_device", "survey"]


def open_device(name: str, assumptions: Sequence[str] = ()) -> Device:
    """The device called "cpu", "cuda" (its first GPU), "cuda:N" or "sim:NAME"; UsageError for any other name.

    assumptions: for a simulated card, what lines of the model give that need values (see `profiler.dry_run.unknown`).

    Touches no hardware: whether the device can be used is what `Device.why_not` says.
    """
    if name == "cpu":
        return CpuDevice()
    if match := re.fullmatch(r"cuda(?::(\d+))?", name):
        return CudaDevice(int(match[1] or 0))
    if is_simulated(name):
        return SimulatedDevice(name, card_of(name.removeprefix(SIMULATED)), assumptions)
    raise UsageError(
        f"there is no device {name!r}: use cpu, cuda, cuda:N, or sim:NAME for a card that is not here; `microbatch devices` "
        "lists them."
    )


def default_device_name() -> str:
    """ "cuda:0" where the driver sees a GPU that this process may use, else "cpu"."""
    return "cuda:0" if gpus_are_visible() else "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Surveyed:
    """A device, and what it is or, where it cannot be used, why not: one of `facts` and `why_not` is None."""

    name: str
    facts: DeviceFacts | None
    why_not: str | None
    energy_why_not: str | None


def survey() -> tuple[Surveyed, ...]:
    """Every device that this machine could offer; imports torch and asks the drivers."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = ["cpu", *(f"cuda:{index}" for index in range(max(count, 1)))]
    return tuple(_surveyed(open_device(name)) for name in names)


def _surveyed(device: Device) -> Surveyed:
    why_not = device.why_not()
    return Surveyed(
        name=device.name,
        facts=device.facts() if why_not is None else None,
        why_not=why_not,
        energy_why_not=device.energy_why_not() if why_not is None else None,
    )
