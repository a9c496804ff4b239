"""Processes that a worker left behind: a server adopts them, so that they can be found and ended. Linux; else nothing is found."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
# Each round ends a generation: the children of what was ended are adopted in turn.
_GENERATIONS = 10


def adopt() -> None:
    """Become the parent of every descendant whose own parent ends, whatever process group it moved to (prctl(2))."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children() -> frozenset[int]:
    """The process ids of this process's children, ended ones that nobody waited for among them."""
    parent = str(os.getpid())
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if stat.read_text(errors="replace").rpartition(")")[2].split()[1] == parent:
                found.add(int(stat.parent.name))
    return frozenset(found)


def end_all(others: frozenset[int]) -> None:
    """Kill every child of this process but `others`, and what they leave behind."""
    for _ in range(_GENERATIONS):
        left = children() - others
        if not left:
            return
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        for pid in left:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
