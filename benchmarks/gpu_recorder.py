"""Records what the CUDA caching allocator does while a schedule runs. Not yet run on a GPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from profiler.devices import Device
from profiler.schedules import Schedule
from profiler.simulation.recordings import Origin, Recording
from profiler.simulation.snapshots import Reading, steps_of
from profiler.steps import Phase, run_step
from profiler.trial import Failed, Setting, guarded, started
from profiler.units import MIB

_INDEX = 0
_SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A recording, and how the schedule ended: "" as planned, else its error."""

    recording: Recording
    peak_allocated_bytes: int
    peak_reserved_bytes: int
    ended: str


class NotReadable(RuntimeError):
    """A trace that could not be made a recording of. raw: its entries and the readings, as JSON types."""

    def __init__(self, message: str, raw: dict[str, Any]) -> None:
        super().__init__(message)
        self.raw = raw


class Readings(TorchDispatchMode):
    """Reads counters after every operation below autograd, in backward's thread too, since modes travel with it."""

    def __init__(self, read: Callable[[], Reading]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.taken: list[Reading] = []
        self._read = read

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.take()
        return result

    def take(self) -> None:
        """One more reading, now."""
        self.taken.append(self._read())


def reading() -> Reading:
    """The allocator's counters: active are those blocks whose free is not completed, and they count what came and went."""
    stats = torch.cuda.memory_stats_as_nested_dict(_INDEX)
    blocks = stats["active"]["all"]
    return Reading(blocks["allocated"] + blocks["freed"], stats["active_bytes"]["all"]["current"])


def record(setting: Setting, schedule: Schedule, *, allowed_bytes: int | None = None) -> Recorded:
    """`schedule` in this process, whose allocator must not have been used; allowed_bytes: the most that it may reserve.

    Raises RuntimeError for an allocator with a past or with settings of its own, NotReadable for a trace that cannot be read.
    """
    if own := [f"{name}={os.environ[name]}" for name in _SETTINGS if os.environ.get(name)]:
        raise RuntimeError(f"The model is of the allocator with its default settings: unset {', '.join(own)}.")
    torch.cuda.init()
    if before := reading().events:
        raise RuntimeError(f"The allocator has served {before} events already: record in a fresh process.")
    torch.cuda.memory._record_memory_history(enabled="all", context=None, stacks="python")
    readings, kept = Readings(reading), _Kept()

    def job(device: Device, phase: Phase) -> None:
        device.settle()
        with readings:
            training = started(setting, device, phase)
            kept.workload, kept.precision = training.workload.name, training.workload.precision
            if allowed_bytes is not None:
                _allow(allowed_bytes)
            try:
                with training.placement.training():
                    for sizes in schedule.steps:
                        run_step(training, schedule.strategy, sizes)
                        device.synchronize()
            finally:
                kept.capacity_bytes = int(torch.cuda.get_per_process_memory_fraction(_INDEX) * _total_bytes())
                kept.peaks = torch.cuda.max_memory_allocated(_INDEX), torch.cuda.max_memory_reserved(_INDEX)
                readings.take()
                kept.snapshot = torch.cuda.memory._snapshot()

    result = guarded(setting, job).result
    torch.cuda.memory._record_memory_history(enabled=None)
    ended = f"{result.phase}: {result.message}" if isinstance(result, Failed) else ""
    if kept.snapshot is None:
        raise RuntimeError(f"Nothing was trained: {ended}")
    return _recorded(kept, readings.taken, ended, max(max(schedule.steps)))


@dataclass(slots=True)
class _Kept:
    """What the job leaves, however it ends."""

    snapshot: dict[str, Any] | None = None
    workload: str = ""
    precision: str = ""
    capacity_bytes: int = 0
    peaks: tuple[int, int] = (0, 0)


def _recorded(kept: _Kept, readings: list[Reading], ended: str, size: int) -> Recorded:
    snapshot = kept.snapshot
    assert snapshot is not None
    origin = Origin(
        workload=kept.workload,
        micro_batch_size=size,
        precision=kept.precision,
        card=torch.cuda.get_device_properties(_INDEX).name,
        torch=str(torch.__version__),
        capacity_bytes=kept.capacity_bytes,
    )
    try:
        steps = steps_of(snapshot, readings, device=_INDEX, capacity_bytes=kept.capacity_bytes)
    except (ValueError, KeyError) as error:  # a key that this torch has under another name
        names = ("action", "addr", "size", "stream")
        trace = [[entry.get(name) for name in names] for entry in snapshot["device_traces"][_INDEX]]
        raise NotReadable(f"{type(error).__name__}: {error}", {"trace": trace, "readings": readings}) from error
    return Recorded(
        recording=Recording(origin=origin, steps=steps),
        peak_allocated_bytes=kept.peaks[0],
        peak_reserved_bytes=kept.peaks[1],
        ended=ended,
    )


def _allow(allowed_bytes: int) -> None:
    """Half a segment more, since all segments are whole 2 MiB: no rounding of the fraction decides."""
    allowed_bytes = allowed_bytes // (2 * MIB) * 2 * MIB + MIB
    torch.cuda.set_per_process_memory_fraction(min(allowed_bytes / _total_bytes(), 1.0), _INDEX)


def _total_bytes() -> int:
    """What torch multiplies the fraction by."""
    return torch.cuda.get_device_properties(_INDEX).total_memory
