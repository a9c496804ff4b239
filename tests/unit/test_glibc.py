from __future__ import annotations

import ctypes
from typing import Any

import pytest

from profiler.devices import Usage
from profiler.devices.cpu import CpuDevice
from profiler.devices.glibc import _Info, _mallinfo2, heap_usage, since
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
