"""What a caching allocator is made of: sizes, blocks, pools of free blocks, and addresses; standard library only.

Sizes and rules are those of PyTorch's c10/cuda/CUDACachingAllocator.cpp, 2.6 to 2.15, with its default settings. The names
of its constants and functions stand beside what follows them.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter

from profiler.units import MIB

BLOCK_STEP_BYTES = 512  # kMinBlockSize
SMALL_BYTES = MIB  # kSmallSize: the largest block of the small pool
SMALL_SEGMENT_BYTES = 2 * MIB  # kSmallBuffer
SHARED_SEGMENT_BYTES = 20 * MIB  # kLargeBuffer: where requests of the large pool below the next share a segment
OWN_SEGMENT_FROM_BYTES = 10 * MIB  # kMinLargeAlloc
SEGMENT_STEP_BYTES = 2 * MIB  # kRoundLarge

# The address space of an expandable segment, in pages. The real one takes 9/8 of the card's memory, and starts another
# segment beyond it; this one does not end.
_PAGES = 2**20


def rounded_up(size_bytes: int, step_bytes: int) -> int:
    """The next multiple of `step_bytes`."""
    return -(-size_bytes // step_bytes) * step_bytes


def segment_size(size_bytes: int) -> int:
    """How large a segment a block of `size_bytes` is cut from where no free block serves it (get_allocation_size)."""
    if size_bytes <= SMALL_BYTES:
        return SMALL_SEGMENT_BYTES
    if size_bytes < OWN_SEGMENT_FROM_BYTES:
        return SHARED_SEGMENT_BYTES
    return rounded_up(size_bytes, SEGMENT_STEP_BYTES)


@dataclass(slots=True, eq=False)
class Block:
    """A stretch of a segment between its neighbours, in use or free; the only thing here that changes with every event.

    is_mapped: memory lies behind the addresses. Always, but in an expandable segment.
    """

    address: int
    size_bytes: int
    pool: Pool
    is_free: bool = True
    is_mapped: bool = True
    previous: Block | None = None
    next: Block | None = None

    def split(self, size_bytes: int) -> Block:
        """Cut to `size_bytes`; what is left becomes a block of its own behind it, free and in no list yet."""
        rest = Block(
            self.address + size_bytes, self.size_bytes - size_bytes, self.pool, True, self.is_mapped, self, self.next
        )
        if self.next is not None:
            self.next.previous = rest
        self.next = rest
        self.size_bytes = size_bytes
        return rest

    def absorb_next(self) -> None:
        """Takes in the block behind it, which is no more."""
        behind = self.next
        assert behind is not None
        self.size_bytes += behind.size_bytes
        self.next = behind.next
        if behind.next is not None:
            behind.next.previous = self


class Pool:
    """The free blocks of one stream in one of the two pools, by size and then address.

    PyTorch keeps all streams in one ordered set, with the stream before the size (BlockComparatorSize); no block crosses
    streams, so that one list a stream is the same.
    """

    __slots__ = ("_keys", "blocks", "is_small", "least_rest_bytes", "page_bytes", "start", "stream", "unmapped")

    def __init__(self, stream: int, *, is_small: bool, expandable: bool) -> None:
        self.stream = stream
        self.is_small = is_small
        # should_split: all sizes are multiples of 512 bytes, and in the large pool *more* than 1 MiB must remain.
        whole = is_small or expandable
        self.least_rest_bytes = BLOCK_STEP_BYTES if whole else SMALL_BYTES + BLOCK_STEP_BYTES
        self.page_bytes = SMALL_SEGMENT_BYTES if is_small else SHARED_SEGMENT_BYTES
        # Where the one expandable segment begins; None where there is none.
        self.start: int | None = None
        # Two lists with one order: bisect needs keys that compare.
        self._keys: list[tuple[int, int]] = []
        self.blocks: list[Block] = []
        # Addresses without memory, by address; in an expandable segment alone.
        self.unmapped: list[Block] = []

    def insert(self, block: Block) -> None:
        """Offers a free block, or addresses without memory."""
        if not block.is_mapped:
            insort(self.unmapped, block, key=attrgetter("address"))
            return
        key = (block.size_bytes, block.address)
        index = bisect_left(self._keys, key)
        self._keys.insert(index, key)
        self.blocks.insert(index, block)

    def remove(self, block: Block) -> None:
        """Takes back what `insert` offered."""
        if not block.is_mapped:
            self.unmapped.remove(block)
            return
        index = bisect_left(self._keys, (block.size_bytes, block.address))
        del self._keys[index], self.blocks[index]

    def insert_joined(self, block: Block) -> Block:
        """Offers `block` together with its free neighbours, as one (try_merge_blocks); returns that one."""
        behind = block.next
        if behind is not None and behind.is_free and behind.is_mapped == block.is_mapped:
            self.remove(behind)
            block.absorb_next()
        # The lower of two blocks stays, so that the first block of a segment is always the same.
        before = block.previous
        if before is not None and before.is_free and before.is_mapped == block.is_mapped:
            self.remove(before)
            before.absorb_next()
            block = before
        self.insert(block)
        return block

    def take(self, size_bytes: int) -> Block | None:
        """The smallest free block that holds `size_bytes`, of equals the lowest; no longer offered (get_free_block)."""
        index = bisect_left(self._keys, (size_bytes, 0))
        if index == len(self._keys):
            return None
        if self.start is not None:
            index = self._less_expandable(index)
        del self._keys[index]
        return self.blocks.pop(index)

    def _less_expandable(self, index: int) -> int:
        """The block to take instead of the one at `index`: the next, as long as that could grow to less (expandable_size).

        So that addresses at the end of the segment, which can become anything, are the last to be taken.
        """
        while index + 1 < len(self.blocks) and _growth(self.blocks[index + 1]) < _growth(self.blocks[index]):
            index += 1
        return index

    def expandable_block(self, size_bytes: int) -> Block:
        """Where the segment grows for `size_bytes`: the lowest stretch of free blocks and addresses without memory that
        holds them, and that has such addresses at its beginning or behind its first block (find_expandable_block).
        """
        for unmapped in self.unmapped:
            before = unmapped.previous
            first = before if before is not None and before.is_free else unmapped
            if _holds(first, size_bytes):
                return first
        raise AssertionError("the address space of an expandable segment does not end")

    def whole_pages(self, block: Block) -> tuple[int, int]:
        """The first whole page in `block`, and what follows the last, as offsets in it; equal or crossed where none is."""
        assert self.start is not None
        offset = block.address - self.start
        end = (offset + block.size_bytes) // self.page_bytes * self.page_bytes
        return rounded_up(offset, self.page_bytes) - offset, end - offset


def _growth(block: Block) -> int:
    """How large a free block of an expandable segment can become where it is."""
    behind = block.next
    return block.size_bytes + (behind.size_bytes if behind is not None and not behind.is_mapped else 0)


def _holds(block: Block | None, size_bytes: int) -> bool:
    """Whether the free blocks from `block` on, with and without memory, come to `size_bytes`."""
    while size_bytes > 0 and block is not None and block.is_free:
        size_bytes -= block.size_bytes
        block = block.next
    return size_bytes <= 0


def expandable_segment(pool: Pool, start: int) -> Block:
    """The addresses of a pool's one expandable segment, from `start` on: no memory lies behind them yet."""
    pool.start = start
    segment = Block(start, _PAGES * pool.page_bytes, pool, is_mapped=False)
    pool.insert(segment)
    return segment


@dataclass(slots=True)
class AddressSpace:
    """Addresses for segments: the lowest hole that a released one left and that is large enough, else behind all others.

    What addresses the driver gives is not known. They decide between free blocks of equal size alone, and this choice
    keeps old segments low, as a driver that takes the first fit does.

    given: those that it did give, where they are known; they are handed out first.
    """

    end: int = 0
    holes: list[tuple[int, int]] = field(default_factory=list)
    given: Iterator[int] = field(default_factory=lambda: iter(()))

    def take(self, size_bytes: int) -> int:
        """Where a new segment begins."""
        for address in self.given:
            return address
        for index, (address, length) in enumerate(self.holes):
            if length >= size_bytes:
                rest = [(address + size_bytes, length - size_bytes)] if length > size_bytes else []
                self.holes[index : index + 1] = rest
                return address
        address = self.end
        self.end += size_bytes
        return address

    def give_back(self, address: int, size_bytes: int) -> None:
        """A segment was released: a hole, one with those beside it."""
        index = bisect_left(self.holes, (address, 0))
        first, last = index, index
        if index < len(self.holes) and self.holes[index][0] == address + size_bytes:
            size_bytes += self.holes[index][1]
            last += 1
        if index > 0 and sum(self.holes[index - 1]) == address:
            address, size_bytes = self.holes[index - 1][0], self.holes[index - 1][1] + size_bytes
            first -= 1
        self.holes[first:last] = [(address, size_bytes)]
