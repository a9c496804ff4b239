"""Starting a process whose memory lies at the same addresses every time.

Where the kernel puts the heap and the mappings, at random by default, decides how blocks merge in them: text-gpt's peak at 12
samples was 1 MiB larger in one fork server of seven, and a page off in the others (benchmarks/LOG.md). See personality(2).
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_ADDR_NO_RANDOMIZE = 0x0040000
_ASK = 0xFFFFFFFF


@contextmanager
def addresses_fixed() -> Iterator[None]:
    """Processes that this thread starts in the block have fixed addresses, and so have their children.

    Nothing changes where the system does not allow it (Docker's default filter of system calls): `are_addresses_fixed`, asked
    in the process itself, then says so.
    """
    before = _personality(_ASK)
    if before is None or _personality(before | _ADDR_NO_RANDOMIZE) is None:
        yield
        return
    try:
        yield
    finally:
        _personality(before)


def are_addresses_fixed() -> bool:
    """Whether this process was started with fixed addresses."""
    now = _personality(_ASK)
    return now is not None and bool(now & _ADDR_NO_RANDOMIZE)


def _personality(persona: int) -> int | None:
    """The execution domain before it was set to `persona` (_ASK leaves it); None where there is none or it may not be set."""
    function = getattr(ctypes.CDLL(None), "personality", None)  # Linux's own
    if function is None:
        return None
    function.argtypes = [ctypes.c_ulong]
    found: int = function(persona)
    return None if found == -1 else found
