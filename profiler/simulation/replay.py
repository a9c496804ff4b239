"""A recorded sequence of allocations through the model of the caching allocator: its peaks, and how little holds it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from profiler.simulation.allocator import CachingAllocator
from profiler.simulation.blocks import BLOCK_STEP_BYTES, SEGMENT_STEP_BYTES, Block, rounded_up


class Event(NamedTuple):
    """A storage comes into being, or goes. Its bytes and stream count where it comes; they are known where it goes.

    Or every segment that nothing lies in is released, and no storage counts.
    storage: a number of the caller's, which may be used again once the storage is gone.
    """

    kind: Literal["allocate", "free", "empty cache"]
    storage: int
    size_bytes: int = 0
    stream: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RanOut:
    """The event that found no memory: its place in the sequence, and what was held then."""

    event: int
    requested_bytes: int
    allocated_bytes: int
    reserved_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What a sequence of events came to; up to where it ran out of memory, if it did."""

    peak_allocated_bytes: int
    peak_reserved_bytes: int
    retries: int
    ran_out: RanOut | None


def replay(events: Iterable[Event], *, capacity_bytes: int | None = None, expandable: bool = False) -> Replayed:
    """`events` in a new allocator of `capacity_bytes`.

    Raises ValueError for a storage that comes twice, or goes without having come.
    """
    allocator = CachingAllocator(capacity_bytes=capacity_bytes, expandable=expandable)
    live: dict[int, Block] = {}
    ran_out = None
    for index, (kind, storage, size_bytes, stream) in enumerate(events):
        if kind == "empty cache":
            allocator.empty_cache()
            continue
        if (kind == "allocate") == (storage in live):
            raise ValueError(_out_of_order(index, kind, storage))
        if kind == "free":
            allocator.free(live.pop(storage))
            continue
        block = allocator.allocate(size_bytes, stream)
        if block is None:
            ran_out = RanOut(
                event=index,
                requested_bytes=size_bytes,
                allocated_bytes=allocator.allocated_bytes,
                reserved_bytes=allocator.reserved_bytes,
            )
            break
        live[storage] = block
    return Replayed(
        peak_allocated_bytes=allocator.peak_allocated_bytes,
        peak_reserved_bytes=allocator.peak_reserved_bytes,
        retries=allocator.retries,
        ran_out=ran_out,
    )


def least_capacity(events: Sequence[Event], *, expandable: bool = False) -> int:
    """How little capacity `events` run in, in steps of 2 MiB: they run in it, and in 2 MiB less they run out of memory.

    Found by bisection between the bytes that are live at the peak and what is reserved without a limit. Nearly always it is
    the least. But with less capacity the allocator releases segments earlier, and what comes next may lie better: of 3,000
    random sequences of 60 events, 53 ran in one capacity and not in a larger one, and 20 ran in less than is returned here,
    by 16 MiB on average and 36 MiB at most. With expandable segments it was 3, and none. `replay` tells for one capacity.
    """
    most = rounded_up(replay(events, expandable=expandable).peak_reserved_bytes, SEGMENT_STEP_BYTES)
    high = most // SEGMENT_STEP_BYTES
    # One step less than the live bytes cannot hold them.
    low = rounded_up(peak_live_bytes(events), SEGMENT_STEP_BYTES) // SEGMENT_STEP_BYTES - 1
    while high - low > 1:
        middle = (low + high) // 2
        if replay(events, capacity_bytes=middle * SEGMENT_STEP_BYTES, expandable=expandable).ran_out is None:
            high = middle
        else:
            low = middle
    return high * SEGMENT_STEP_BYTES


def peak_live_bytes(events: Iterable[Event]) -> int:
    """The most bytes that are live at once, each storage rounded to blocks: no allocator of blocks needs less.

    What the caching allocator counts as allocated can be more, and less with less capacity: a block is handed out whole
    where little would remain of it.
    """
    live: dict[int, int] = {}
    total = peak = 0
    for kind, storage, size_bytes, _ in events:
        if kind == "free":
            total -= live.pop(storage)
        elif kind == "allocate":
            live[storage] = rounded_up(size_bytes, BLOCK_STEP_BYTES)
            total += live[storage]
            peak = max(peak, total)
    return peak


def _out_of_order(index: int, kind: str, storage: int) -> str:
    what = "is allocated while it is live" if kind == "allocate" else "is freed but not live"
    return f"Event {index} is out of order: storage {storage} {what}. Record from before the first allocation on."
