"""PyTorch's memory snapshots, read into recordings; standard library only.

A snapshot is what torch.cuda.memory._snapshot() gives after _record_memory_history(enabled="all"). In its trace, the `size`
of "alloc" and "free_completed" is what was asked for (alloc_found_block and free_block of c10/cuda/CUDACachingAllocator.cpp,
2.0 to 2.15), and not the block's, so that active bytes do not follow from it: they are read from the allocator's counters
while it runs. Reserved bytes follow from its segments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from profiler.simulation.recordings import Step

_FROM_THE_START = "record from before the first allocation of the process on, without a limit of entries."
# Entries that say nothing of blocks or segments; a block is free where its free is completed.
_PASSED_OVER = frozenset({"free_requested", "snapshot", "user_defined"})


class Reading(NamedTuple):
    """The allocator's counters at one moment. events: how many allocations and completed frees there had been."""

    events: int
    active_bytes: int


def steps_of(
    snapshot: Mapping[str, Any], readings: Iterable[Reading], *, device: int = 0, capacity_bytes: int | None = None
) -> tuple[Step, ...]:
    """The events of `device` from its allocator's first on, with active bytes where `readings` know them.

    The last reading must be of the snapshot's own moment. capacity_bytes: as in `Origin`; by it segments that were released
    for a request are told from those that the program released, but for a release right before a request without room.
    Raises ValueError for a trace that does not begin with the first event, that lacks some, or that is of expandable segments,
    and for one that holds the blocks' sizes in place of what was asked for.
    """
    reader = _Reader(capacity_bytes=capacity_bytes)
    for entry in snapshot["device_traces"][device]:
        reader.read(entry)
    reader.released()
    segments = [segment for segment in snapshot["segments"] if segment.get("device", device) == device]
    _check_state(reader, segments)
    return _with_active_bytes(reader.steps, list(readings))


@dataclass(slots=True)
class _Reader:
    """What the entries of a trace came to so far.

    live: number and size of the allocation at each address. pending_bytes: of segments that were freed just now. segment:
    the one that was made just now, for the allocation that comes next.
    """

    capacity_bytes: int | None
    steps: list[Step] = field(default_factory=list)
    live: dict[int, tuple[int, int]] = field(default_factory=dict)
    streams: dict[int, int] = field(default_factory=lambda: {0: 0})
    reserved_bytes: int = 0
    allocations: int = 0
    pending_bytes: int = 0
    segment: int | None = None

    def read(self, entry: Mapping[str, Any]) -> None:
        """Goes on by one entry."""
        action, size_bytes = entry["action"], entry.get("size", 0)
        if action in _PASSED_OVER:
            return
        if action == "segment_free":
            self.pending_bytes += size_bytes
            return
        if action == "segment_alloc":
            self._make_segment(entry["addr"], size_bytes)
            return
        if action == "oom":
            self.reserved_bytes -= self.pending_bytes
            self.pending_bytes = 0
            self._add("refused", size_bytes, entry)
            return
        self.released()
        if action == "alloc":
            self.live[entry["addr"]] = (self.allocations, size_bytes)
            self.allocations += 1
            self._add("allocate", size_bytes, entry)
        elif action == "free_completed":
            if entry["addr"] not in self.live:
                raise ValueError(
                    f"The trace frees what it did not allocate, at event {len(self.steps)}: {_FROM_THE_START}"
                )
            self._add("free", self.live.pop(entry["addr"])[0], entry)
        else:
            raise ValueError(
                f"The trace has {action!r}, which is not compared: record without expandable segments and memory pools."
            )

    def _make_segment(self, address: int, size_bytes: int) -> None:
        no_room = self.capacity_bytes is not None and self.reserved_bytes + size_bytes > self.capacity_bytes
        if no_room:  # so that the segments before it were released for this request
            self.reserved_bytes -= self.pending_bytes
            self.pending_bytes = 0
        self.released()
        self.reserved_bytes += size_bytes
        self.segment = address

    def released(self) -> None:
        """Segments that were freed just now were no request's."""
        if self.pending_bytes:
            self.reserved_bytes -= self.pending_bytes
            self.pending_bytes = 0
            self.steps.append(Step("release", 0, 0, self.reserved_bytes))

    def _add(self, kind: Any, value: int, entry: Mapping[str, Any]) -> None:
        stream = self.streams.setdefault(entry.get("stream", 0), len(self.streams))
        self.steps.append(Step(kind, value, stream, self.reserved_bytes, None, self.segment))
        self.segment = None


def _check_state(reader: _Reader, segments: Sequence[Mapping[str, Any]]) -> None:
    """The trace must lead to the state that the snapshot shows."""
    reserved_bytes = sum(segment["total_size"] for segment in segments)
    if reserved_bytes != reader.reserved_bytes:
        raise ValueError(
            f"The trace leads to {reader.reserved_bytes} reserved bytes and the snapshot has {reserved_bytes}: {_FROM_THE_START}"
        )
    for segment in segments:
        address = segment["address"]
        for block in segment["blocks"]:
            if block["state"] == "active_allocated":
                _check_size(block, reader.live.get(address))
            address += block["size"]


def _check_size(block: Mapping[str, Any], traced: tuple[int, int] | None) -> None:
    if traced is None:
        raise ValueError(f"The trace lacks the allocation of a live block of {block['size']} bytes: {_FROM_THE_START}")
    if traced[1] != block.get("requested_size", traced[1]):
        raise ValueError(
            f"The trace has {traced[1]} bytes for a block of {block['size']} for which {block['requested_size']} were asked: "
            "record with a torch whose trace holds what was asked for, 2.0 or later."
        )


def _with_active_bytes(steps: Sequence[Step], readings: Sequence[Reading]) -> tuple[Step, ...]:
    events = sum(step.kind in ("allocate", "free") for step in steps)
    if not readings or readings[-1].events != events:
        counted = readings[-1].events if readings else "none"
        raise ValueError(
            f"The trace has {events} events and the allocator counted {counted}: read its counters right before the snapshot, "
            "and record without a limit of entries."
        )
    known = {reading.events: reading.active_bytes for reading in readings}
    with_bytes, passed = [], 0
    for step in steps:
        if step.kind in ("allocate", "free"):
            passed += 1
            step = step._replace(active_bytes=known.get(passed))
        with_bytes.append(step)
    return tuple(with_bytes)
