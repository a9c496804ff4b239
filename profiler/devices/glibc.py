"""What glibc's malloc holds, by mallinfo2 (glibc 2.33 and newer; see mallinfo(3))."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

from profiler.devices.base import Usage


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
