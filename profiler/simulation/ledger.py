"""A simulated card's memory: every request carried out in a caching allocator of its capacity, and kept in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from profiler.simulation.allocator import CachingAllocator
from profiler.simulation.blocks import Block
from profiler.simulation.replay import Event


@dataclass(slots=True)
class Ledger:
    """Requests and returns in the order in which they came, and the allocator that served them.

    when_full: makes what is raised where a request finds no memory, of its bytes and those that are allocated and reserved
    then; such a request is not in `events`.
    """

    allocator: CachingAllocator
    when_full: Callable[[int, int, int], Exception]
    events: list[Event] = field(default_factory=list)
    _live: dict[int, Block] = field(default_factory=dict)
    _next: int = 0

    def take(self, size_bytes: int) -> int:
        """The number of a new allocation of `size_bytes`; raises what `when_full` makes where there is no memory for it."""
        block = self.allocator.allocate(size_bytes)
        if block is None:
            raise self.when_full(size_bytes, self.allocator.allocated_bytes, self.allocator.reserved_bytes)
        return self._entered(block, size_bytes)

    def _entered(self, block: Block, size_bytes: int) -> int:
        number, self._next = self._next, self._next + 1
        self._live[number] = block
        self.events.append(Event("allocate", number, size_bytes))
        return number

    def give_back(self, number: int) -> None:
        """The allocation of that number ends."""
        self.allocator.free(self._live.pop(number))
        self.events.append(Event("free", number))

    def empty_cache(self) -> None:
        """What the allocator holds for nothing goes back to the card."""
        self.allocator.empty_cache()
        self.events.append(Event("empty cache", 0))

    def pass_through(self, size_bytes: int) -> bool:
        """Whether there is memory for something that goes again at once, such as a workspace."""
        block = self.allocator.allocate(size_bytes)
        if block is None:
            return False
        self.give_back(self._entered(block, size_bytes))
        return True
