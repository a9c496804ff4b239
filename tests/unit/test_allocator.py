from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_allocators import PlainAllocator, PlainExpandableAllocator

from profiler.simulation.allocator import BlockState, CachingAllocator, SegmentState
from profiler.simulation.blocks import AddressSpace, Block, segment_size
from profiler.simulation.replay import Event, RanOut, Replayed, least_capacity, peak_live_bytes, replay
from profiler.units import KIB, MIB


def state(allocator: CachingAllocator) -> list[list[tuple[int, str]]]:
    """Every segment's blocks from its beginning on, in bytes and words; the endless part of an expandable one left out."""
    words = {(False, True): "used", (True, True): "free", (True, False): "unmapped"}
    return [
        [
            (block.size_bytes, words[block.is_free, block.is_mapped])
            for block in segment.blocks
            if block.is_mapped or block is not segment.blocks[-1]
        ]
        for segment in allocator.segments()
    ]


def blocks_of(allocator: CachingAllocator, *sizes_mib: int) -> list[Block]:
    """A block for each of the sizes, one after the other."""
    return [taken(allocator, size * MIB) for size in sizes_mib]


def taken(allocator: CachingAllocator, size_bytes: int, stream: int = 0) -> Block:
    """A block for which there is memory."""
    block = allocator.allocate(size_bytes, stream)
    assert block is not None
    return block


def allocate(storage: int, size_bytes: int, stream: int = 0) -> Event:
    return Event("allocate", storage, size_bytes, stream)


def free(storage: int) -> Event:
    return Event("free", storage)


# --- Sizes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("requested_bytes", "allocated_bytes", "reserved_bytes"),
    [
        (1, 512, 2 * MIB),
        (512, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        # The largest small block is 1 MiB after rounding; a byte more is large.
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        # Below 10 MiB after rounding: a shared segment. 10 MiB - 511 is 10 MiB after rounding, and has its own.
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB - 511, 10 * MIB, 10 * MIB),
        # Its own segment goes to the next 2 MiB: 1 MiB and less are handed out with it ...
        (11 * MIB, 12 * MIB, 12 * MIB),
        # ... more stays free: 12 MiB - (10 MiB + 512) = 2 MiB - 512.
        (10 * MIB + 1, 10 * MIB + 512, 12 * MIB),
    ],
)
def test_a_first_request_takes_its_rounded_size_from_a_segment_of_its_kind(
    requested_bytes: int, allocated_bytes: int, reserved_bytes: int
) -> None:
    allocator = CachingAllocator()

    allocator.allocate(requested_bytes)

    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (allocated_bytes, reserved_bytes)
    assert allocator.inactive_split_bytes == reserved_bytes - allocated_bytes


def test_no_bytes_take_no_block() -> None:
    allocator = CachingAllocator(capacity_bytes=0)

    allocator.free(taken(allocator, 0))

    assert allocator.segments() == ()


# --- Blocks --------------------------------------------------------------------------------------------------------


def test_small_requests_share_segments_of_2_mib() -> None:
    allocator = CachingAllocator()

    # 700 KiB + 700 KiB leave 648 KiB of 2,048: the third 700 KiB open a second segment, the last 600 KiB go into the first.
    for size in (700, 700, 700, 600):
        allocator.allocate(size * KIB)

    assert state(allocator) == [
        [(700 * KIB, "used"), (700 * KIB, "used"), (600 * KIB, "used"), (48 * KIB, "free")],
        [(700 * KIB, "used"), (1348 * KIB, "free")],
    ]
    # 3 x 700 + 600 KiB of 2 x 2 MiB.
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (2700 * KIB, 4 * MIB)


def test_large_requests_below_10_mib_share_segments_of_20_mib() -> None:
    allocator = CachingAllocator()

    # 8 + 8 leave 4 of 20: 5 do not fit, 3 do, in the first segment rather than in the 15 free of the second.
    for size in (8, 8, 5, 3):
        allocator.allocate(size * MIB)

    assert state(allocator) == [
        # 20 - 8 - 8 - 3 leaves 1 MiB, which is not *more* than 1 MiB: the block of 3 is handed out with it.
        [(8 * MIB, "used"), (8 * MIB, "used"), (4 * MIB, "used")],
        [(5 * MIB, "used"), (15 * MIB, "free")],
    ]
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (25 * MIB, 40 * MIB)


@pytest.mark.parametrize(
    ("rest_bytes", "blocks"),
    [
        (MIB, [(20 * MIB, "used")]),
        (MIB + 512, [(19 * MIB - 512, "used"), (MIB + 512, "free")]),
    ],
)
def test_a_large_block_is_split_only_if_more_than_1_mib_remains(rest_bytes: int, blocks: list[tuple[int, str]]) -> None:
    allocator = CachingAllocator()
    allocator.free(taken(allocator, 20 * MIB))

    allocator.allocate(20 * MIB - rest_bytes)

    assert state(allocator) == [blocks]
    assert allocator.allocated_bytes == blocks[0][0]


def test_a_small_block_is_split_down_to_512_bytes() -> None:
    allocator = CachingAllocator()

    # 2 MiB - 512 of one segment, in halves of 1 MiB and 1 MiB - 512.
    allocator.allocate(MIB)
    allocator.allocate(MIB - 512)

    assert state(allocator) == [[(MIB, "used"), (MIB - 512, "used"), (512, "free")]]


def test_the_smallest_block_that_fits_is_taken_and_of_equals_the_lowest() -> None:
    allocator = CachingAllocator()
    # Three segments of 14, 12 and 12 MiB, at 0, 14 and 26 MiB.
    blocks = blocks_of(allocator, 14, 12, 12)
    for block in blocks:
        allocator.free(block)

    again = blocks_of(allocator, 12, 12, 12)

    # The last takes 12 of 14: 2 MiB remain.
    assert [block.address // MIB for block in again] == [14, 26, 0]
    assert state(allocator)[0] == [(12 * MIB, "used"), (2 * MIB, "free")]


def test_a_freed_block_joins_both_its_neighbours() -> None:
    allocator = CachingAllocator()
    first, second, third, _ = blocks_of(allocator, 4, 4, 4, 4)

    allocator.free(first)
    allocator.free(third)
    # 4 + 4 free blocks of 4 MiB, and 20 - 16 = 4 at the end: three that are no neighbours.
    assert allocator.inactive_split_bytes == 12 * MIB
    allocator.free(second)

    assert state(allocator) == [[(12 * MIB, "free"), (4 * MIB, "used"), (4 * MIB, "free")]]
    assert (allocator.allocated_bytes, allocator.inactive_split_bytes) == (4 * MIB, 16 * MIB)


def test_a_segment_that_is_free_again_is_one_block_that_could_be_released() -> None:
    allocator = CachingAllocator()
    blocks = blocks_of(allocator, 4, 4, 4)

    for block in blocks:
        allocator.free(block)

    assert state(allocator) == [[(20 * MIB, "free")]]
    assert (allocator.inactive_split_bytes, allocator.reserved_bytes) == (0, 20 * MIB)


def test_streams_share_no_segment() -> None:
    allocator = CachingAllocator()
    allocator.free(taken(allocator, 12 * MIB, stream=0))

    allocator.allocate(12 * MIB, stream=7)

    assert state(allocator) == [[(12 * MIB, "free")], [(12 * MIB, "used")]]
    assert [segment.stream for segment in allocator.segments()] == [0, 7]


def test_a_block_is_freed_once() -> None:
    allocator = CachingAllocator()
    first, second = taken(allocator, 512), taken(allocator, 512)
    allocator.free(first)
    allocator.free(second)

    with pytest.raises(AssertionError, match="the block at 512 is free already"):
        allocator.free(second)


# --- Capacity ------------------------------------------------------------------------------------------------------


def test_at_capacity_free_segments_are_released_and_one_with_a_live_block_is_kept() -> None:
    allocator = CachingAllocator(capacity_bytes=54 * MIB)
    kept = taken(allocator, 4 * MIB)  # a shared segment: 20
    allocator.free(taken(allocator, 12 * MIB))  # of the shared one: 16 are free
    allocator.free(taken(allocator, 18 * MIB))  # its own: 38
    allocator.free(taken(allocator, MIB))  # small: 40
    assert (allocator.reserved_bytes, allocator.retries) == (40 * MIB, 0)

    # 40 + 34 > 54: without the 18 and the small one, 20 + 34 = 54.
    allocator.allocate(34 * MIB)

    assert state(allocator) == [[(4 * MIB, "used"), (16 * MIB, "free")], [(34 * MIB, "used")]]
    assert (allocator.reserved_bytes, allocator.peak_reserved_bytes, allocator.retries) == (54 * MIB, 54 * MIB, 1)
    assert not kept.is_free


def test_a_request_beyond_the_capacity_changes_nothing_but_what_could_be_released() -> None:
    allocator = CachingAllocator(capacity_bytes=40 * MIB)
    allocator.allocate(4 * MIB)
    allocator.free(taken(allocator, 18 * MIB))

    # 38 are reserved, 20 of them in a segment with a live block: 20 + 22 > 40.
    assert allocator.allocate(20 * MIB + 1) is None

    assert state(allocator) == [[(4 * MIB, "used"), (16 * MIB, "free")]]
    assert (allocator.allocated_bytes, allocator.reserved_bytes, allocator.retries) == (4 * MIB, 20 * MIB, 1)


def test_the_addresses_of_a_released_segment_are_used_again() -> None:
    allocator = CachingAllocator(capacity_bytes=50 * MIB)
    first, _ = blocks_of(allocator, 14, 16)
    allocator.free(first)
    allocator.allocate(20 * MIB)  # 14 + 16 + 20 = 50
    allocator.allocate(10 * MIB)  # from the 14 at 0, where 4 remain
    assert [segment.blocks[0].address // MIB for segment in allocator.segments()] == [0, 14, 30]

    space = AddressSpace()
    assert [space.take(size) for size in (14, 16, 20)] == [0, 14, 30]
    space.give_back(30, 20)
    space.give_back(0, 14)
    assert [space.take(size) for size in (15, 10, 4, 6)] == [30, 0, 10, 50]
    space.give_back(14, 16)
    space.give_back(10, 4)
    # 10 to 30, and 45 to 50, which 15 of the 20 from 30 on had left.
    assert space.holes == [(10, 20), (45, 5)]
    space.give_back(30, 15)
    assert space.holes == [(10, 40)]


# --- Expandable segments -------------------------------------------------------------------------------------------


def test_an_expandable_segment_grows_by_the_pages_that_are_missing() -> None:
    allocator = CachingAllocator(expandable=True)

    allocator.allocate(15 * MIB)  # a page of 20: 5 remain
    allocator.allocate(12 * MIB)  # 7 are missing: a page more
    allocator.allocate(MIB)  # small: a page of 2

    # 15 + 12 of 40; a first segment for the large pool, a second for the small one.
    assert state(allocator) == [
        [(15 * MIB, "used"), (12 * MIB, "used"), (13 * MIB, "free")],
        [(MIB, "used"), (MIB, "free")],
    ]
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (28 * MIB, 42 * MIB)
    assert allocator.inactive_split_bytes == 0


def test_an_expandable_segment_is_split_down_to_512_bytes_in_the_large_pool_too() -> None:
    allocator = CachingAllocator(expandable=True)

    allocator.allocate(20 * MIB - 512)

    assert state(allocator) == [[(20 * MIB - 512, "used"), (512, "free")]]


def test_free_pages_are_unmapped_and_mapped_again_where_they_are_missing() -> None:
    allocator = CachingAllocator(capacity_bytes=80 * MIB, expandable=True)
    # 30 + 5 + 25 of three pages: the live block lies in the second one, from 30 to 35.
    first, _, third = blocks_of(allocator, 30, 5, 25)
    allocator.free(first)
    allocator.free(third)

    # Two pages are missing at the end, for 45 of which 25 are there: 60 + 20 = 80.
    allocator.allocate(45 * MIB)
    assert state(allocator) == [[(30 * MIB, "free"), (5 * MIB, "used"), (45 * MIB, "used")]]
    assert (allocator.reserved_bytes, allocator.retries) == (80 * MIB, 0)

    # 31 do not fit into 30, and two pages at the end would make 120: the first page is given back, and 60 + 40 are too much.
    assert allocator.allocate(31 * MIB) is None
    assert state(allocator) == [[(20 * MIB, "unmapped"), (10 * MIB, "free"), (5 * MIB, "used"), (45 * MIB, "used")]]
    assert (allocator.reserved_bytes, allocator.retries) == (60 * MIB, 1)

    # 25 do not fit into 10, but do where the first page is mapped again: that page alone, 80.
    allocator.allocate(25 * MIB)
    assert state(allocator) == [[(25 * MIB, "used"), (5 * MIB, "free"), (5 * MIB, "used"), (45 * MIB, "used")]]
    assert allocator.reserved_bytes == 80 * MIB


def test_a_page_is_mapped_again_between_two_free_blocks() -> None:
    allocator = CachingAllocator(expandable=True)
    # 5 + 50 + 5 of three pages; only the second, 20 to 40, is free as a whole.
    _, middle, _ = blocks_of(allocator, 5, 50, 5)
    allocator.free(middle)
    allocator.empty_cache()
    assert state(allocator) == [
        [(5 * MIB, "used"), (15 * MIB, "free"), (20 * MIB, "unmapped"), (15 * MIB, "free"), (5 * MIB, "used")]
    ]

    allocator.allocate(45 * MIB)

    # 15 + 20 + 15 hold 45.
    assert state(allocator) == [[(5 * MIB, "used"), (45 * MIB, "used"), (5 * MIB, "free"), (5 * MIB, "used")]]
    assert allocator.reserved_bytes == 60 * MIB


def test_a_free_block_that_can_grow_is_taken_after_a_larger_one_that_cannot() -> None:
    allocator = CachingAllocator(expandable=True)
    # 15 + 12 of two pages; 13 are free at the end, where the segment can grow.
    first, _ = blocks_of(allocator, 15, 12)
    allocator.free(first)

    allocator.allocate(12 * MIB)

    # Of 15 rather than of 13.
    assert state(allocator) == [[(12 * MIB, "used"), (3 * MIB, "free"), (12 * MIB, "used"), (13 * MIB, "free")]]


def test_pages_in_which_a_live_block_ends_stay() -> None:
    allocator = CachingAllocator(expandable=True)
    # 25 to 45 of three pages are freed: no whole page lies in it, the second and third hold live blocks' ends.
    _, middle, _ = blocks_of(allocator, 25, 20, 15)
    allocator.free(middle)

    allocator.empty_cache()

    assert state(allocator) == [[(25 * MIB, "used"), (20 * MIB, "free"), (15 * MIB, "used")]]


# --- Replaying -----------------------------------------------------------------------------------------------------


def test_a_replay_empties_the_cache_where_it_was_emptied() -> None:
    events = [allocate(1, 12 * MIB), free(1), Event("empty cache", 0), allocate(2, 14 * MIB)]

    assert replay(events).peak_reserved_bytes == 14 * MIB
    assert peak_live_bytes(events) == least_capacity(events) == 14 * MIB


def test_marked_peaks_begin_anew_and_the_others_stay() -> None:
    allocator = CachingAllocator()
    for block in blocks_of(allocator, 12, 20):
        allocator.free(block)

    allocator.mark_peaks()
    assert (allocator.marked_allocated_bytes, allocator.marked_reserved_bytes) == (0, 32 * MIB)
    blocks_of(allocator, 12, 12)
    assert (allocator.marked_allocated_bytes, allocator.marked_reserved_bytes) == (24 * MIB, 32 * MIB)
    assert (allocator.peak_allocated_bytes, allocator.peak_reserved_bytes) == (32 * MIB, 32 * MIB)


def test_a_replay_gives_the_peaks_and_says_where_memory_ran_out() -> None:
    events = [allocate(1, 12 * MIB), free(1), allocate(2, 14 * MIB), allocate(3, 0), free(3), allocate(1, 20 * MIB)]

    # Nothing of the 12 serves the 14: 26; 20 more: 46.
    assert replay(events) == Replayed(
        peak_allocated_bytes=34 * MIB, peak_reserved_bytes=46 * MIB, retries=0, ran_out=None
    )
    # 12 + 14 > 24: the 12 are released, for 14 + 20 they are not enough.
    assert replay(events, capacity_bytes=24 * MIB) == Replayed(
        peak_allocated_bytes=14 * MIB,
        peak_reserved_bytes=14 * MIB,
        retries=2,
        ran_out=RanOut(event=5, requested_bytes=20 * MIB, allocated_bytes=14 * MIB, reserved_bytes=14 * MIB),
    )
    # The least is what is live: 14 + 20.
    assert (peak_live_bytes(events), least_capacity(events)) == (34 * MIB, 34 * MIB)


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([free(4)], "Event 0 is out of order: storage 4 is freed but not live."),
        ([allocate(4, 1), allocate(4, 1)], "Event 1 is out of order: storage 4 is allocated while it is live."),
    ],
)
def test_events_that_do_not_belong_together_are_refused(events: list[Event], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replay(events)


def test_nothing_needs_nothing() -> None:
    assert least_capacity([]) == 0
    assert least_capacity([allocate(1, 0)], expandable=True) == 0


def test_more_capacity_can_be_too_little() -> None:
    events = [
        *(allocate(1, 4 * MIB), free(1)),  # 20 are reserved
        *(allocate(2, 22 * MIB), allocate(3, 16 * MIB)),
        *(free(2), allocate(4, 24 * MIB)),
    ]

    # In 40, the 20 go for the 22 (20 + 22 > 40), the 16 get a segment of their own, and 16 + 24 = 40 fit.
    # In 42, the 20 stay and take the 16, and are kept by it: 20 + 24 > 42. In 44 they fit.
    ran_out = [replay(events, capacity_bytes=capacity * MIB).ran_out for capacity in (40, 42, 44)]

    assert [each is None for each in ran_out] == [True, False, True]
    assert least_capacity(events) == 40 * MIB


def test_the_least_capacity_is_an_edge_below_which_another_may_lie() -> None:
    events = [
        *(allocate(1, 14 * MIB), allocate(2, 2 * MIB), free(1), free(2)),  # 14 and 20 are reserved
        *(allocate(3, 30 * MIB), allocate(4, 16 * MIB), allocate(5, 16 * MIB)),
    ]

    # In 62, both go for the 30: 30 + 16 + 16 = 62. In 64 both stay, a 16 is put into the 20, and 20 + 30 + 16 = 66.
    # Bisection from 80 (nothing is released) goes to 70, 64 and 66.
    ran_out = [replay(events, capacity_bytes=capacity * MIB).ran_out for capacity in (60, 62, 64, 66)]

    assert [each is None for each in ran_out] == [False, True, False, True]
    assert least_capacity(events) == 66 * MIB


# --- Properties ----------------------------------------------------------------------------------------------------

SIZES = st.one_of(
    st.integers(min_value=0, max_value=2 * MIB),
    st.integers(min_value=MIB, max_value=64 * MIB),
    # Round sizes meet the bounds of the rules, and fit each other exactly.
    st.integers(min_value=1, max_value=64).map(lambda size: size * MIB // 2),
)


@st.composite
def sequences(draw: st.DrawFn) -> list[Event]:
    """Storages that come and go in any order, on up to two streams; some stay."""
    events: list[Event] = []
    live: list[int] = []
    for storage in range(draw(st.integers(min_value=1, max_value=40))):
        events.append(allocate(storage, draw(SIZES), draw(st.sampled_from((0, 0, 0, 1)))))
        live.append(storage)
        while draw(st.booleans()) and live:
            events.append(free(live.pop(draw(st.integers(min_value=0, max_value=len(live) - 1)))))
    return events


CAPACITIES = st.integers(min_value=0, max_value=150).map(lambda size: size * 2 * MIB)
MODES = pytest.mark.parametrize("expandable", [False, True])


def mapped_blocks(allocator: CachingAllocator) -> list[BlockState]:
    return [block for segment in allocator.segments() for block in segment.blocks if block.is_mapped]


def step(allocator: CachingAllocator, live: dict[int, Block], event: Event) -> bool:
    """One event, a block that found no memory left out from there on; whether there was memory."""
    if event.kind == "free":
        if event.storage in live:
            allocator.free(live.pop(event.storage))
        return True
    block = allocator.allocate(event.size_bytes, event.stream)
    if block is not None:
        live[event.storage] = block
    return block is not None


def check_segments(segments: tuple[SegmentState, ...]) -> None:
    for segment in segments:
        for block, behind in pairwise(segment.blocks):
            assert block.address + block.size_bytes == behind.address
            assert not (block.is_free and behind.is_free and block.is_mapped == behind.is_mapped)
    for lower, higher in pairwise(segments):
        assert lower.blocks[-1].address + lower.blocks[-1].size_bytes <= higher.blocks[0].address


def check(allocator: CachingAllocator, capacity_bytes: int) -> None:
    """What holds after every event, whatever it was."""
    segments = allocator.segments()
    check_segments(segments)
    blocks = mapped_blocks(allocator)
    assert sum(block.size_bytes for block in blocks) == allocator.reserved_bytes
    assert sum(block.size_bytes for block in blocks if not block.is_free) == allocator.allocated_bytes
    assert allocator.reserved_bytes <= allocator.peak_reserved_bytes <= capacity_bytes
    if not allocator.expandable:
        split = [block for segment in segments if len(segment.blocks) > 1 for block in segment.blocks]
        assert allocator.inactive_split_bytes == sum(block.size_bytes for block in split if block.is_free)


@MODES
@settings(deadline=None)
@given(events=sequences(), capacity_bytes=CAPACITIES)
def test_blocks_tile_their_segments_and_sums_are_the_counters(
    expandable: bool, events: list[Event], capacity_bytes: int
) -> None:
    allocator = CachingAllocator(capacity_bytes=capacity_bytes, expandable=expandable)
    live: dict[int, Block] = {}
    for event in events:
        step(allocator, live, event)
        check(allocator, capacity_bytes)

    for block in live.values():
        allocator.free(block)
    assert allocator.allocated_bytes == 0
    allocator.empty_cache()
    check(allocator, capacity_bytes)
    assert (allocator.reserved_bytes, mapped_blocks(allocator)) == (0, [])


@MODES
@settings(deadline=None)
@given(events=sequences(), capacity_bytes=CAPACITIES)
def test_the_model_is_the_plain_allocator_to_the_byte(
    expandable: bool, events: list[Event], capacity_bytes: int
) -> None:
    plain = PlainExpandableAllocator(capacity_bytes) if expandable else PlainAllocator(capacity_bytes)
    model = CachingAllocator(capacity_bytes=capacity_bytes, expandable=expandable)
    live: dict[int, Block] = {}
    for event in events:
        fits = step(model, live, event)
        if event.kind == "free":
            plain.free(event.storage)
        elif event.size_bytes:
            assert plain.allocate(event.storage, event.size_bytes, event.stream) == fits
        assert (model.allocated_bytes, model.reserved_bytes) == (plain.allocated_bytes, plain.reserved_bytes)

    assert (model.peak_allocated_bytes, model.peak_reserved_bytes, model.retries) == (
        plain.peak_allocated_bytes,
        plain.peak_reserved_bytes,
        plain.retries,
    )


@MODES
@settings(deadline=None, max_examples=50)
@given(events=sequences())
def test_the_least_capacity_runs_and_2_mib_less_does_not(expandable: bool, events: list[Event]) -> None:
    least_bytes = least_capacity(events, expandable=expandable)

    assert replay(events, capacity_bytes=least_bytes, expandable=expandable).ran_out is None
    assert least_bytes >= peak_live_bytes(events)
    if least_bytes:
        less = replay(events, capacity_bytes=least_bytes - 2 * MIB, expandable=expandable)
        assert less.ran_out is not None


@given(st.integers(min_value=512, max_value=64 * MIB))
def test_a_segment_holds_its_block_and_is_whole_2_mib(size_bytes: int) -> None:
    assert segment_size(size_bytes) >= size_bytes
    assert segment_size(size_bytes) % (2 * MIB) == 0
