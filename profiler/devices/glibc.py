"""What glibc's malloc holds, by mallinfo2 (glibc 2.33 and newer; see mallinfo(3)), and how it is made exact for a while."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

from profiler.devices.base import Usage
from profiler.units import MIB

with suppress(ModuleNotFoundError):  # Windows, where `why_not` refuses before anything of it is called
    import resource


class _Info(ctypes.Structure):
    """struct mallinfo2, of which some fields are history."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


@cache
def _mallinfo2() -> Any:
    """The function, None where the C library has none."""
    function = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if function is not None:
        function.restype = _Info
    return function


def heap_usage() -> Usage:
    """What malloc holds in this process now, the interpreter's share included.

    allocated: blocks in use in the heap (uordblks) and blocks mapped by themselves (hblkhd). reserved: the whole heap
    (arena) and those. inactive split: what is free in the heap (fordblks) but for its top (keepcost), which alone can be
    given back. Everything None where the C library has no mallinfo2.
    """
    function = _mallinfo2()
    if function is None:
        return Usage()
    info = function()
    return Usage(
        allocated_bytes=info.uordblks + info.hblkhd,
        reserved_bytes=info.arena + info.hblkhd,
        inactive_split_bytes=info.fordblks - info.keepcost,
    )


def since(before: Usage, now: Usage) -> Usage:
    """What was added since `before`. Filling what was free then is no addition: reserved is at least allocated."""
    if before.allocated_bytes is None or now.allocated_bytes is None:
        return Usage()
    assert before.unused_bytes is not None
    assert now.unused_bytes is not None
    assert before.inactive_split_bytes is not None
    assert now.inactive_split_bytes is not None
    allocated = max(0, now.allocated_bytes - before.allocated_bytes)
    return Usage(
        allocated_bytes=allocated,
        reserved_bytes=allocated + max(0, now.unused_bytes - before.unused_bytes),
        inactive_split_bytes=max(0, now.inactive_split_bytes - before.inactive_split_bytes),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """What mallopt(3) sets. mmap_bytes: from there on a block is mapped by itself, and given back when it is freed.

    trim_bytes: the free top of the heap that is given back. top_pad_bytes: what the heap grows by beyond what is asked for.
    """

    mmap_bytes: int
    trim_bytes: int
    top_pad_bytes: int

    @classmethod
    def of_process(cls, environment: Mapping[str, str]) -> Thresholds:
        """What a process of this environment comes to: its own settings, else where glibc's moving thresholds end."""
        tunables = dict(
            entry.split("=", 1) for entry in environment.get("GLIBC_TUNABLES", "").split(":") if "=" in entry
        )

        def setting(name: str, otherwise: int) -> int:
            value = environment.get(f"MALLOC_{name.upper()}_", tunables.get(f"glibc.malloc.{name}", ""))
            return int(value) if value.isdecimal() else otherwise

        mmap_bytes = setting("mmap_threshold", _LARGEST_MMAP_THRESHOLD)
        return cls(
            mmap_bytes=mmap_bytes,
            trim_bytes=setting("trim_threshold", 2 * mmap_bytes),
            top_pad_bytes=setting("top_pad", 128 * 1024),
        )

    def apply(self) -> None:
        """Put them in force, for good: glibc moves no threshold that was set."""
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in (
            (_M_MMAP_THRESHOLD, self.mmap_bytes),
            (_M_TRIM_THRESHOLD, self.trim_bytes),
            (_M_TOP_PAD, self.top_pad_bytes),
        ):
            mallopt(parameter, value)


# The parameters' numbers in malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
# glibc's own thresholds move up to here with what is freed, on 64 bits.
_LARGEST_MMAP_THRESHOLD = 32 * MIB
_LARGEST_HOLE = 2**40
# What stays free while the rest is occupied, for small objects: every second of twice as many pieces of less than a page.
_SMALL_HOLES, _SMALL_HOLE_BYTES = 256, 3584
# A page, so that all but small blocks are mapped by themselves; little is held for later.
EXACT = Thresholds(mmap_bytes=4096, trim_bytes=128 * 1024, top_pad_bytes=0)


@contextmanager
def exact() -> Iterator[None]:
    """Inside the block malloc takes every block of a page or more from the system, and gives it back when it is freed.

    What the heap held free before is occupied meanwhile, else blocks would come from it unseen by any limit. glibc cannot
    be told to let its thresholds move again: afterwards they are those of `Thresholds.of_process`, where freeing a block of
    32 MiB would have moved them too. Nothing happens where the C library has no mallopt.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        yield
        return
    EXACT.apply()
    block = _occupied()
    try:
        yield
    finally:
        _give_back(block)
        Thresholds.of_process(os.environ).apply()


def _occupied() -> int:
    """The first of the blocks that fill what malloc holds free, down to a page; each begins with the next one's address.

    The process may not grow meanwhile, so that every block is from what is held already: by this thread's arena and by the
    one that malloc turns to when the first has nothing. Nothing else grows here either, hence no list.

    Of the first 2 MiB every second piece stays free, each smaller than a page: small objects find room there, for which the
    heap would grow each time, and not shrink where one of them stays.
    """
    malloc = ctypes.CDLL(None).malloc
    malloc.restype = ctypes.c_void_p
    given, kept, size = 0, 0, _LARGEST_HOLE
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (mmap.PAGESIZE, hard))  # Linux takes 0 for no limit
    try:
        for _ in range(_SMALL_HOLES):
            given = _linked(malloc(ctypes.c_size_t(_SMALL_HOLE_BYTES)), given)
            kept = _linked(malloc(ctypes.c_size_t(_SMALL_HOLE_BYTES)), kept)
        while size >= EXACT.mmap_bytes:
            block = malloc(ctypes.c_size_t(size))
            if block is None:
                size //= 2
            kept = _linked(block, kept)
    except MemoryError:  # Python's own, which has come to an end as well
        pass
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    _give_back(given)
    return kept


def _linked(block: int | None, following: int) -> int:
    """`block`, which begins with the address of `following` from now on; `following` where there is no block."""
    if block is None:
        return following
    ctypes.c_size_t.from_address(block).value = following
    return block


def _give_back(block: int) -> None:
    """Free `block` and all that follow it."""
    free = ctypes.CDLL(None).free
    while block:
        following = ctypes.c_size_t.from_address(block).value
        free(ctypes.c_void_p(block))
        block = following
