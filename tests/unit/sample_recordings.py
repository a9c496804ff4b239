"""Snapshots as PyTorch gives them, written by the plain allocator of `sample_allocators` in place of a GPU's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sample_allocators import PlainAllocator, Segment

from profiler.simulation.recordings import Origin, Recording, Step
from profiler.simulation.snapshots import Reading, steps_of
from profiler.units import MIB

# Where a driver's addresses begin.
BASE = 0x7F0000000000
STREAMS = (0, 94_000_000_001_024)


def origin(capacity_bytes: int | None = None) -> Origin:
    return Origin(
        workload="sample",
        micro_batch_size=1,
        precision="fp32",
        card="a card",
        torch="2.13",
        capacity_bytes=capacity_bytes,
    )


def recording(*steps: Step, capacity_bytes: int | None = None) -> Recording:
    return Recording(origin=origin(capacity_bytes), steps=steps)


def address_of(allocator: PlainAllocator, storage: int) -> tuple[int, int]:
    """Where the block of `storage` lies, and its bytes."""
    for segment in allocator.segments:
        address = segment.address
        for size_bytes, owner in segment.blocks:
            if owner == storage:
                return address, size_bytes
            address += size_bytes
    raise AssertionError(storage)


@dataclass
class Traced:
    """A plain allocator that leaves a trace as PyTorch does, and counters as torch.cuda.memory_stats gives them."""

    capacity_bytes: int = 2**40
    trace: list[dict[str, Any]] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    requested: dict[int, int] = field(default_factory=dict)
    events: int = 0

    def __post_init__(self) -> None:
        self.allocator = PlainAllocator(self.capacity_bytes)

    def note(self, action: str, address: int, size_bytes: int, stream: int = 0) -> None:
        place = {"device_free": address} if action == "oom" else {"addr": BASE + address}
        self.trace.append({"action": action, "size": size_bytes, "stream": STREAMS[stream], **place})

    def allocate(self, storage: int, size_bytes: int, stream: int = 0) -> bool:
        before = list(self.allocator.segments)
        fits = self.allocator.allocate(storage, size_bytes, stream)
        for segment in before:
            if not any(segment is each for each in self.allocator.segments):
                self.note("segment_free", segment.address, segment.size_bytes, stream)
        for segment in self.allocator.segments:
            if not any(segment is each for each in before):
                self.note("segment_alloc", segment.address, segment.size_bytes, stream)
        if not fits:
            self.note("oom", 0, -(-size_bytes // 512) * 512, stream)  # in whole blocks, as PyTorch writes it
            return False
        self.requested[storage] = size_bytes
        self.note("alloc", address_of(self.allocator, storage)[0], size_bytes, stream)
        self.events += 1
        return True

    def free(self, storage: int) -> None:
        address = address_of(self.allocator, storage)[0]
        size_bytes = self.requested.pop(storage)
        self.allocator.free(storage)
        self.note("free_requested", address, size_bytes)
        self.note("free_completed", address, size_bytes)
        self.events += 1

    def empty_cache(self) -> None:
        kept: list[Segment] = []
        for segment in self.allocator.segments:
            if any(owner is not None for _, owner in segment.blocks):
                kept.append(segment)
            else:
                self.note("segment_free", segment.address, segment.size_bytes)
        self.allocator.segments = kept

    def read(self) -> None:
        self.readings.append(Reading(self.events, self.allocator.allocated_bytes))

    def snapshot(self) -> dict[str, Any]:
        self.read()
        return {"segments": [self.segment(each) for each in self.allocator.segments], "device_traces": [self.trace]}

    def segment(self, segment: Segment) -> dict[str, Any]:
        blocks = [
            {
                "size": size_bytes,
                "requested_size": 0 if owner is None else self.requested[owner],
                "state": "inactive" if owner is None else "active_allocated",
            }
            for size_bytes, owner in segment.blocks
        ]
        return {"device": 0, "address": BASE + segment.address, "total_size": segment.size_bytes, "blocks": blocks}

    def recording(self) -> Recording:
        steps = steps_of(self.snapshot(), self.readings, capacity_bytes=self.capacity_bytes)
        return Recording(origin=origin(self.capacity_bytes), steps=steps)


def small_training() -> Traced:
    """Weights that stay, activations that come and go, a release in between, and a request that finds no room at first."""
    traced = Traced(capacity_bytes=66 * MIB)
    traced.allocate(0, 3 * MIB + 100)
    for storage, size_bytes in ((1, 18 * MIB), (2, 700), (3, 12 * MIB)):
        traced.allocate(storage, size_bytes)
        traced.read()
    traced.free(2)
    traced.free(1)
    traced.read()
    traced.empty_cache()
    traced.allocate(4, 24 * MIB)
    traced.free(4)
    traced.allocate(5, 30 * MIB)  # 20 + 24 and 30 are more than 66: the 24 go
    traced.allocate(6, 40 * MIB)  # and this finds none
    traced.free(5)
    return traced
