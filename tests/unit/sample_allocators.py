"""The caching allocator a second time, slow and plain, with nothing of the model's own: what the model is compared with."""

from __future__ import annotations

from dataclasses import dataclass, field

from profiler.units import MIB

STEP = 512


def rounded(requested_bytes: int) -> int:
    return max(STEP, (requested_bytes + STEP - 1) // STEP * STEP)


@dataclass
class Segment:
    """Blocks as [bytes, storage], the storage None where the block is free."""

    address: int
    size_bytes: int
    pool: tuple[int, bool]
    blocks: list[tuple[int, int | None]]

    def joined(self) -> None:
        merged: list[tuple[int, int | None]] = []
        for size, storage in self.blocks:
            if merged and storage is None and merged[-1][1] is None:
                merged[-1] = (merged[-1][0] + size, None)
            else:
                merged.append((size, storage))
        self.blocks = merged


@dataclass
class PlainAllocator:
    """Segments of cudaMalloc; every question is answered by looking at every block."""

    capacity_bytes: int
    segments: list[Segment] = field(default_factory=list)
    retries: int = 0
    peak_allocated_bytes: int = 0
    peak_reserved_bytes: int = 0

    @property
    def allocated_bytes(self) -> int:
        return sum(size for each in self.segments for size, storage in each.blocks if storage is not None)

    @property
    def reserved_bytes(self) -> int:
        return sum(each.size_bytes for each in self.segments)

    def allocate(self, storage: int, requested_bytes: int, stream: int) -> bool:
        size = rounded(requested_bytes)
        pool = (stream, size <= MIB)
        if not self.place(storage, size, pool) and not self.add_segment(size, pool):
            self.segments = [each for each in self.segments if any(owner is not None for _, owner in each.blocks)]
            self.retries += 1
            if not self.add_segment(size, pool):
                return False
        if not any(owner == storage for each in self.segments for _, owner in each.blocks):
            assert self.place(storage, size, pool)
        self.peak_allocated_bytes = max(self.peak_allocated_bytes, self.allocated_bytes)
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)
        return True

    def place(self, storage: int, size: int, pool: tuple[int, bool]) -> bool:
        fits = []
        for segment in self.segments:
            address = segment.address
            for index, (length, owner) in enumerate(segment.blocks):
                if segment.pool == pool and owner is None and length >= size:
                    fits.append((length, address, index, segment))
                address += length
        if not fits:
            return False
        length, _, index, segment = min(fits, key=lambda fit: fit[:2])
        rest = length - size
        splits = rest >= STEP if pool[1] else rest > MIB
        segment.blocks[index : index + 1] = [(size, storage), (rest, None)] if splits else [(length, storage)]
        return True

    def add_segment(self, size: int, pool: tuple[int, bool]) -> bool:
        if size <= MIB:
            length = 2 * MIB
        elif size < 10 * MIB:
            length = 20 * MIB
        else:
            length = (size + 2 * MIB - 1) // (2 * MIB) * 2 * MIB
        if self.reserved_bytes + length > self.capacity_bytes:
            return False
        address = 0
        for each in sorted(self.segments, key=lambda each: each.address):
            if each.address - address >= length:
                break
            address = each.address + each.size_bytes
        self.segments.append(Segment(address, length, pool, [(length, None)]))
        return True

    def free(self, storage: int) -> None:
        for segment in self.segments:
            segment.blocks = [(size, None if owner == storage else owner) for size, owner in segment.blocks]
            segment.joined()


@dataclass
class Pages:
    """One expandable segment: which pages have memory, and which stretches are in use."""

    page_bytes: int
    mapped: set[int] = field(default_factory=set)
    used: dict[int, tuple[int, int]] = field(default_factory=dict)

    def has_memory(self, address: int) -> bool:
        return address // self.page_bytes in self.mapped

    def is_free(self, begin: int, end: int) -> bool:
        return not any(begin < last and first < end for first, last in self.used.values())

    def runs(self) -> list[tuple[int, int]]:
        """Every free stretch that has memory, as long as it goes, by size and address."""
        borders = {page * self.page_bytes for page in self.mapped} | {last for _, last in self.used.values()}
        runs = []
        for begin in borders:
            before_is_free = begin > 0 and self.has_memory(begin - 1) and self.is_free(begin - 1, begin)
            if before_is_free or not self.has_memory(begin) or not self.is_free(begin, begin + 1):
                continue
            end = min((first for first, _ in self.used.values() if first > begin), default=None)
            page = begin // self.page_bytes
            while page in self.mapped and (end is None or page * self.page_bytes < end):
                page += 1
            runs.append((begin, min(page * self.page_bytes, end if end is not None else page * self.page_bytes)))
        return sorted(runs, key=lambda run: (run[1] - run[0], run[0]))

    def growth(self, run: tuple[int, int]) -> float:
        """How large the stretch is with the addresses behind it that have no memory."""
        if self.has_memory(run[1]):
            return run[1] - run[0]
        behind = min((page * self.page_bytes for page in self.mapped if page * self.page_bytes >= run[1]), default=None)
        return float("inf") if behind is None else behind - run[0]

    def best(self, size: int) -> int | None:
        runs = [run for run in self.runs() if run[1] - run[0] >= size]
        while len(runs) > 1 and self.growth(runs[1]) < self.growth(runs[0]):
            del runs[0]
        return runs[0][0] if runs else None

    def place_to_grow(self, size: int) -> int:
        ends = {run[1]: run[0] for run in self.runs()}
        page = 0
        while True:
            begin = page * self.page_bytes
            if page not in self.mapped and (page == 0 or page - 1 in self.mapped):
                begin = ends.get(begin, begin)
                if self.is_free(begin, begin + size):
                    return begin
            page += 1

    def missing(self, begin: int, end: int) -> list[list[int]]:
        """The pages without memory that a stretch needs, those beside each other together."""
        groups: list[list[int]] = []
        for page in range(begin // self.page_bytes, (end - 1) // self.page_bytes + 1):
            if page in self.mapped:
                continue
            if groups and groups[-1][-1] == page - 1:
                groups[-1].append(page)
            else:
                groups.append([page])
        return groups

    def release(self) -> None:
        whole = self.page_bytes
        self.mapped = {page for page in self.mapped if not self.is_free(page * whole, (page + 1) * whole)}


@dataclass
class PlainExpandableAllocator:
    """Expandable segments, by sets of pages."""

    capacity_bytes: int
    pools: dict[tuple[int, bool], Pages] = field(default_factory=dict)
    retries: int = 0
    peak_allocated_bytes: int = 0
    peak_reserved_bytes: int = 0

    @property
    def allocated_bytes(self) -> int:
        return sum(last - first for pages in self.pools.values() for first, last in pages.used.values())

    @property
    def reserved_bytes(self) -> int:
        return sum(len(pages.mapped) * pages.page_bytes for pages in self.pools.values())

    def allocate(self, storage: int, requested_bytes: int, stream: int) -> bool:
        size = rounded(requested_bytes)
        is_small = size <= MIB
        pages = self.pools.setdefault((stream, is_small), Pages((2 if is_small else 20) * MIB))
        begin = pages.best(size)
        if begin is None:
            begin = self.grow(pages, size)
        if begin is None:
            for each in self.pools.values():
                each.release()
            self.retries += 1
            begin = self.grow(pages, size)
        if begin is None:
            return False
        pages.used[storage] = (begin, begin + size)
        self.peak_allocated_bytes = max(self.peak_allocated_bytes, self.allocated_bytes)
        return True

    def grow(self, pages: Pages, size: int) -> int | None:
        begin = pages.place_to_grow(size)
        for group in pages.missing(begin, begin + size):
            if self.reserved_bytes + len(group) * pages.page_bytes > self.capacity_bytes:
                return None
            pages.mapped.update(group)
            self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)
        return begin

    def free(self, storage: int) -> None:
        for pages in self.pools.values():
            pages.used.pop(storage, None)
