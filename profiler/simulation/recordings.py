"""What a real caching allocator did, event by event, and where the model of it first does otherwise; standard library only."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from profiler.simulation.allocator import CachingAllocator
from profiler.simulation.blocks import AddressSpace, Block

FORMAT = 1
_LETTERS = {"allocate": "a", "free": "f", "release": "r", "refused": "o"}
_KINDS = {letter: kind for kind, letter in _LETTERS.items()}

Kind = Literal["allocate", "free", "release", "refused"]


class Step(NamedTuple):
    """One event, and what the allocator had after it.

    kind: "refused" is a request that found no memory; "release" gives back every segment in which nothing is in use, other
      than for a request that found no room. value: the bytes that were asked for; of a free, which of the allocations
      before it ends, counted from 0; of a release, 0. active_bytes: in blocks that are in use, None where it was not read.
    segment: the address of the segment that was made for this allocation, None where none was.
    """

    kind: Kind
    value: int
    stream: int
    reserved_bytes: int
    active_bytes: int | None = None
    segment: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a recording comes from. capacity_bytes: the most that the allocator was allowed to reserve, None for no limit."""

    workload: str
    micro_batch_size: int
    precision: str
    card: str
    torch: str
    capacity_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """An allocator's events from its first on, in order."""

    origin: Origin
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The first event after which the model is not as the allocator was.

    step: its place, counted from 0. what: "reserved" or "active" bytes, or the bytes "given" to a request, 0 for none.
    """

    step: int
    what: Literal["reserved", "active", "given"]
    recorded_bytes: int
    replayed_bytes: int


def first_difference(recording: Recording, *, own_addresses: bool = False) -> Difference | None:
    """The first event at which the model, fed with the same events, has other reserved or active bytes; None where none is.

    own_addresses: segments lie where the model puts them, and not where the driver put them, which decides between free
    blocks of equal size.
    """
    given = () if own_addresses else (step.segment for step in recording.steps if step.segment is not None)
    allocator = CachingAllocator(
        capacity_bytes=recording.origin.capacity_bytes, addresses=AddressSpace(given=iter(given))
    )
    live: dict[int, Block] = {}
    allocations = 0
    for index, step in enumerate(recording.steps):
        if step.kind == "free":
            allocator.free(live.pop(step.value))
        elif step.kind == "release":
            allocator.empty_cache()
        else:
            block = allocator.allocate(step.value, step.stream)
            if (block is None) != (step.kind == "refused"):
                sizes = (step.value, 0) if block is None else (0, step.value)
                return Difference(step=index, what="given", recorded_bytes=sizes[0], replayed_bytes=sizes[1])
            if block is not None:
                live[allocations] = block
                allocations += 1
        if step.reserved_bytes != allocator.reserved_bytes:
            return Difference(
                step=index,
                what="reserved",
                recorded_bytes=step.reserved_bytes,
                replayed_bytes=allocator.reserved_bytes,
            )
        if step.active_bytes not in (None, allocator.allocated_bytes):
            assert step.active_bytes is not None
            return Difference(
                step=index,
                what="active",
                recorded_bytes=step.active_bytes,
                replayed_bytes=allocator.allocated_bytes,
            )
    return None


def to_bytes(recording: Recording) -> bytes:
    """A file's content: gzip of a line with the origin, then a line for each step, which leaves out what did not change."""
    lines = [json.dumps({"format": FORMAT, **asdict(recording.origin)})]
    reserved_bytes = 0
    for step in recording.steps:
        changed = step.reserved_bytes if step.reserved_bytes != reserved_bytes else None
        reserved_bytes = step.reserved_bytes
        entries = [_LETTERS[step.kind], step.value, step.stream, changed, step.active_bytes, step.segment]
        while entries[-1] is None:
            entries.pop()
        lines.append(json.dumps(entries, separators=(",", ":")))
    # Without the time, so that the same recording is the same file.
    return gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0)


def from_bytes(content: bytes) -> Recording:
    """The recording of that content.

    Raises ValueError, with the reason, for one of another format and for one whose events do not belong together.
    """
    head, *lines = gzip.decompress(content).decode().splitlines()
    origin = json.loads(head)
    if (found := origin.pop("format", None)) != FORMAT:
        raise ValueError(f"The recording is of format {found}, and {FORMAT} is read here: record it again.")
    steps = tuple(_steps_of(lines))
    check_order(steps)
    return Recording(origin=Origin(**origin), steps=steps)


def _steps_of(lines: Sequence[str]) -> Iterator[Step]:
    reserved_bytes = 0
    for line in lines:
        entries: list[Any] = json.loads(line)
        letter, value, stream, changed, active_bytes, segment = entries + [None] * (6 - len(entries))
        reserved_bytes = reserved_bytes if changed is None else changed
        kind: Any = _KINDS[letter]
        yield Step(kind, value, stream, reserved_bytes, active_bytes, segment)


def check_order(steps: Sequence[Step]) -> None:
    """ValueError for an allocation that ends before it began, or twice."""
    live: set[int] = set()
    allocations = 0
    for index, step in enumerate(steps):
        if step.kind == "allocate":
            live.add(allocations)
            allocations += 1
        elif step.kind == "free":
            if step.value not in live:
                raise ValueError(f"Step {index} frees allocation {step.value}, which is not live.")
            live.remove(step.value)
