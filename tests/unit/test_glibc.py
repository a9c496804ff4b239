from __future__ import annotations

import ctypes
import resource
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from profiler.devices import Usage
from profiler.devices.cpu import CpuDevice
from profiler.devices.glibc import EXACT, Thresholds, _Info, _mallinfo2, exact, heap_usage, since
from profiler.units import MIB


@pytest.fixture
def heap(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A malloc of which the test says what it holds."""
    info = _Info()
    monkeypatch.setattr("profiler.devices.glibc._mallinfo2", lambda: lambda: info)
    return info


def test_held_is_the_heap_and_what_is_mapped_and_only_the_top_can_be_given_back(heap: Any) -> None:
    heap.arena, heap.uordblks, heap.fordblks, heap.keepcost, heap.hblkhd = 100, 70, 30, 12, 1000

    assert heap_usage() == Usage(allocated_bytes=1070, reserved_bytes=1100, inactive_split_bytes=18)
    assert heap_usage().unused_bytes == 30


def test_a_libc_without_mallinfo2_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    _mallinfo2.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert heap_usage() == Usage()
    assert since(heap_usage(), heap_usage()) == Usage()
    assert Usage().unused_bytes is None
    monkeypatch.undo()
    _mallinfo2.cache_clear()


def test_filling_what_was_free_before_is_no_fragmentation() -> None:
    before = Usage(allocated_bytes=70, reserved_bytes=100, inactive_split_bytes=20)
    filled = Usage(allocated_bytes=95, reserved_bytes=100, inactive_split_bytes=5)
    grown = Usage(allocated_bytes=90, reserved_bytes=160, inactive_split_bytes=50)

    assert since(before, filled) == Usage(allocated_bytes=25, reserved_bytes=25, inactive_split_bytes=0)
    assert since(before, grown) == Usage(allocated_bytes=20, reserved_bytes=60, inactive_split_bytes=30)


@pytest.mark.skipif(_mallinfo2() is None, reason="this C library has no mallinfo2")
def test_a_block_is_counted_while_it_lives() -> None:
    before = heap_usage()
    block = ctypes.create_string_buffer(8 * MIB)
    during = since(before, heap_usage())
    del block

    assert during.allocated_bytes is not None
    assert during.allocated_bytes >= 8 * MIB


def test_nothing_helps_the_cpus_allocator() -> None:
    assert CpuDevice().defragmenting_environment() == {}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (32 * MIB, 64 * MIB, 128 * 1024)),
        ({"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"}, (65536, 131072, 0)),
        ({"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=7:glibc.rtld.nns=4"}, (32 * MIB, 7, 128 * 1024)),
        ({"MALLOC_TRIM_THRESHOLD_": "much"}, (32 * MIB, 64 * MIB, 128 * 1024)),
    ],
)
def test_the_thresholds_afterwards_are_the_callers_or_where_glibcs_own_end(
    environment: dict[str, str], expected: tuple[int, int, int]
) -> None:
    thresholds = Thresholds.of_process(environment)
    assert (thresholds.mmap_bytes, thresholds.trim_bytes, thresholds.top_pad_bytes) == expected


def mapped(size: int) -> bool:
    """Whether malloc takes a block of this size from the system."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    address = libc.malloc(ctypes.c_size_t(size))
    # Where malloc keeps the block's size, the second bit says so.
    found = bool(ctypes.c_size_t.from_address(address - ctypes.sizeof(ctypes.c_size_t)).value & 2)
    libc.free(ctypes.c_void_p(address))
    return found


@pytest.fixture
def hole() -> Iterator[int]:
    """Some MiB free in the heap, below a block that keeps them from being given back."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    # Holes that are there already are filled first: only blocks in one row leave one hole.
    row: list[int] = []
    others: list[int] = []
    while len(row) < 100:
        address = libc.malloc(ctypes.c_size_t(100_000))
        if row and not 0 < address - row[-1] < 101_000:
            others, row = others + row, []
        row.append(address)
    pin = libc.malloc(ctypes.c_size_t(1000))
    for address in row:
        libc.free(ctypes.c_void_p(address))
    yield 8 * MIB
    for address in (pin, *others):
        libc.free(ctypes.c_void_p(address))


@pytest.mark.skipif(_mallinfo2() is None, reason="this C library has no mallinfo2")
@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_while_it_is_exact_no_block_comes_from_the_heap(hole: int, error: type[BaseException] | None) -> None:
    EXACT.apply()
    assert not mapped(hole), "the hole serves it, whatever the thresholds"
    free_bytes = _mallinfo2()().fordblks
    with suppress(KeyboardInterrupt), exact():
        assert [size for size in (hole, MIB, 64 * 1024, 8192) if not mapped(size)] == []
        if error is not None:
            raise error
    assert not mapped(hole)
    assert not mapped(16 * MIB), "the thresholds are an ordinary process's again"
    assert _mallinfo2()().fordblks == pytest.approx(free_bytes, abs=20 * MIB)


def test_another_libc_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    with exact():
        assert resource.getrlimit(resource.RLIMIT_DATA) == limits
