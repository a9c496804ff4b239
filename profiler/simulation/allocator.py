"""PyTorch's CUDA caching allocator as a model: which bytes a sequence of requests takes from a device; standard library only.

It follows DeviceCachingAllocator in PyTorch's c10/cuda/CUDACachingAllocator.cpp, 2.6 to 2.15, with default settings, or with
`expandable_segments:True`. Left out: max_split_size_mb, roundup_power2_divisions, garbage_collection_threshold, memory
pools and graph capture, and record_stream: a freed block is free at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from profiler.simulation.blocks import (
    BLOCK_STEP_BYTES,
    SMALL_BYTES,
    AddressSpace,
    Block,
    Pool,
    expandable_segment,
    rounded_up,
    segment_size,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockState:
    """A block of a segment as it is at one moment."""

    address: int
    size_bytes: int
    is_free: bool
    is_mapped: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentState:
    """A segment and its blocks from its beginning to its end, as they are at one moment."""

    stream: int
    is_small: bool
    blocks: tuple[BlockState, ...]


class CachingAllocator:
    """Blocks of a device's memory for requests on streams, cut from segments that it keeps until memory runs out.

    capacity_bytes: the most that it may reserve; None is no limit. With expandable segments this is the device's own limit,
      page by page. A memory fraction is another one with them: alloc_block compares the size of the segment that a request
      would have without them. It refuses requests for which few pages are missing, and goes up to 18 MiB beyond the fraction.
    expandable: one growing segment for each pool and stream. addresses: where segments come to lie.

    What may be read, after each event: `allocated_bytes` (in blocks that are in use, which is what PyTorch calls active too,
    since a freed block is free at once), `reserved_bytes` (in segments), the peaks of both, also since `mark_peaks`, and
    `retries`, how often every free segment was released to try again (num_alloc_retries).
    """

    def __init__(
        self, *, capacity_bytes: int | None = None, expandable: bool = False, addresses: AddressSpace | None = None
    ) -> None:
        self.capacity_bytes = capacity_bytes
        self.expandable = expandable
        self.allocated_bytes = 0
        self.peak_allocated_bytes = 0
        self.reserved_bytes = 0
        self.peak_reserved_bytes = 0
        self.marked_allocated_bytes = 0
        self.marked_reserved_bytes = 0
        self.retries = 0
        self._pools: dict[tuple[int, bool], Pool] = {}
        # The first block of every segment, by address.
        self._segments: dict[int, Block] = {}
        self._addresses = addresses or AddressSpace()

    def allocate(self, requested_bytes: int, stream: int = 0) -> Block | None:
        """A block of at least `requested_bytes`; None where there is no memory for it, even with every free segment released.

        No bytes always get a block of none, at no address (NativeCachingAllocator::allocate).
        """
        if requested_bytes == 0:
            return Block(0, 0, self._pool(stream, True), is_free=False)
        size_bytes = rounded_up(requested_bytes, BLOCK_STEP_BYTES)
        pool = self._pool(stream, size_bytes <= SMALL_BYTES)
        block = pool.take(size_bytes) or self._new_block(pool, size_bytes) or self._retried(pool, size_bytes)
        if block is None:
            return None
        if block.size_bytes - size_bytes >= pool.least_rest_bytes:
            pool.insert(block.split(size_bytes))
        block.is_free = False
        self.allocated_bytes += block.size_bytes
        if self.allocated_bytes > self.peak_allocated_bytes:
            self.peak_allocated_bytes = self.allocated_bytes
        if self.allocated_bytes > self.marked_allocated_bytes:
            self.marked_allocated_bytes = self.allocated_bytes
        return block

    def free(self, block: Block) -> None:
        """Gives back what `allocate` returned; memory stays reserved."""
        if block.size_bytes == 0:
            return
        assert not block.is_free, f"the block at {block.address} is free already"
        self.allocated_bytes -= block.size_bytes
        block.is_free = True
        block.pool.insert_joined(block)

    def empty_cache(self) -> None:
        """Releases every segment, or whole page of an expandable one, in which nothing is in use (release_cached_blocks)."""
        # Large blocks come first in PyTorch too.
        for pool in sorted(self._pools.values(), key=lambda pool: pool.is_small):
            for block in tuple(pool.blocks):
                if self.expandable:
                    self._unmap(block)
                elif block.previous is None and block.next is None:
                    self._release(block)

    def mark_peaks(self) -> None:
        """The marked peaks begin anew, as with torch's reset_peak_memory_stats."""
        self.marked_allocated_bytes, self.marked_reserved_bytes = self.allocated_bytes, self.reserved_bytes

    @property
    def inactive_split_bytes(self) -> int:
        """Free bytes that cannot be released, since the rest of their segment is in use; PyTorch leaves expandable ones out."""
        free = (block for pool in self._pools.values() for block in pool.blocks if not self.expandable)
        return sum(block.size_bytes for block in free if block.previous is not None or block.next is not None)

    def segments(self) -> tuple[SegmentState, ...]:
        """All segments and their blocks, by address."""
        return tuple(
            SegmentState(
                stream=first.pool.stream,
                is_small=first.pool.is_small,
                blocks=tuple(
                    BlockState(
                        address=block.address,
                        size_bytes=block.size_bytes,
                        is_free=block.is_free,
                        is_mapped=block.is_mapped,
                    )
                    for block in _from(first)
                ),
            )
            for _, first in sorted(self._segments.items())
        )

    def _pool(self, stream: int, is_small: bool) -> Pool:
        pool = self._pools.get((stream, is_small))
        if pool is None:
            pool = self._pools[stream, is_small] = Pool(stream, is_small=is_small, expandable=self.expandable)
        return pool

    def _retried(self, pool: Pool, size_bytes: int) -> Block | None:
        """The last attempt, with everything released that can be."""
        self.empty_cache()
        self.retries += 1
        return self._new_block(pool, size_bytes)

    def _new_block(self, pool: Pool, size_bytes: int) -> Block | None:
        """A block of new memory, in no list; None where the capacity does not allow it (alloc_block)."""
        return self._grown(pool, size_bytes) if self.expandable else self._new_segment(pool, size_bytes)

    def _new_segment(self, pool: Pool, size_bytes: int) -> Block | None:
        segment_bytes = segment_size(size_bytes)
        if not self._reserve(segment_bytes):
            return None
        address = self._addresses.take(segment_bytes)
        block = self._segments[address] = Block(address, segment_bytes, pool)
        return block

    def _release(self, segment: Block) -> None:
        segment.pool.remove(segment)
        del self._segments[segment.address]
        self._addresses.give_back(segment.address, segment.size_bytes)
        self.reserved_bytes -= segment.size_bytes

    def _grown(self, pool: Pool, size_bytes: int) -> Block | None:
        """A block of an expandable segment, with memory mapped where it had none (try_allocate_expandable_block).

        Memory that was mapped before the capacity was reached stays.
        """
        if pool.start is None:
            start = self._addresses.end
            self._segments[start] = segment = expandable_segment(pool, start)
            self._addresses.take(segment.size_bytes)
        block: Block | None = pool.expandable_block(size_bytes)
        if block is not None and not block.is_mapped:
            block = self._map(block, min(size_bytes, block.size_bytes))
        while block is not None and block.size_bytes < size_bytes:
            unmapped = block.next
            assert unmapped is not None
            block = self._map(unmapped, min(size_bytes - block.size_bytes, unmapped.size_bytes))
        if block is not None:
            pool.remove(block)
        return block

    def _map(self, unmapped: Block, size_bytes: int) -> Block | None:
        """Pages for the first `size_bytes` of `unmapped`, and the free block they are now in; None if there is no memory."""
        pool = unmapped.pool
        mapped_bytes = rounded_up(size_bytes, pool.page_bytes)
        if not self._reserve(mapped_bytes):
            return None
        pool.remove(unmapped)
        if mapped_bytes < unmapped.size_bytes:
            pool.insert(unmapped.split(mapped_bytes))
        unmapped.is_mapped = True
        return pool.insert_joined(unmapped)

    def _unmap(self, block: Block) -> None:
        """Gives back the whole pages of a free block; what lies before and behind them stays free (unmap_block)."""
        pool = block.pool
        begin, end = pool.whole_pages(block)
        if begin >= end:
            return
        pool.remove(block)
        if end < block.size_bytes:
            pool.insert(block.split(end))
        if begin > 0:
            pages = block.split(begin)
            pool.insert(block)
            block = pages
        self.reserved_bytes -= block.size_bytes
        block.is_mapped = False
        pool.insert_joined(block)

    def _reserve(self, size_bytes: int) -> bool:
        """Whether the capacity allows `size_bytes` more, which then count."""
        if self.capacity_bytes is not None and self.reserved_bytes + size_bytes > self.capacity_bytes:
            return False
        self.reserved_bytes += size_bytes
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)
        self.marked_reserved_bytes = max(self.marked_reserved_bytes, self.reserved_bytes)
        return True


def _from(block: Block | None) -> Iterator[Block]:
    """`block` and all behind it in its segment."""
    while block is not None:
        yield block
        block = block.next
