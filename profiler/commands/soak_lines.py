"""A soak in words: what it came to, and how much memory was held for nothing."""

from __future__ import annotations

from collections.abc import Iterable

from profiler.soak import Soak
from profiler.units import format_bytes


def soak_lines(soak: Soak, capacity_bytes: int) -> Iterable[str]:
    """Lines of a plan: the peak over its soak, and fragmentation."""
    label = f"soaked for {soak.steps_run} optimizer steps"
    yield f"  {label:<36}{_peak(soak, capacity_bytes)}"
    if soak.unused_bytes is not None:
        yield f"  {'fragmentation over the soak':<36}{_fragmentation(soak)}"


def soak_summary(soak: Soak, capacity_bytes: int) -> str:
    """One line for a soak that may have failed."""
    if soak.failure is None:
        return f"{soak.steps_run} optimizer steps: {_peak(soak, capacity_bytes)}"
    if soak.failure.step is None:
        return f"out of memory within {soak.steps} optimizer steps"
    return f"out of memory in optimizer step {soak.failure.step} of {soak.steps}"


def _peak(soak: Soak, capacity_bytes: int) -> str:
    """The peak, and that of the verification where the soak's is another as printed."""
    if soak.peak_bytes is None:
        return "peak unknown"
    text = f"peak {format_bytes(soak.peak_bytes)}, {soak.peak_bytes / capacity_bytes:.0%} of the capacity"
    verified = soak.verified_peak_bytes
    if verified is None or format_bytes(verified) == format_bytes(soak.peak_bytes):
        return text
    return f"{text} ({format_bytes(verified)} when it was verified)"


def _fragmentation(soak: Soak) -> str:
    """Held and unused at most, as a share of what the allocator held, and what of it could not be given back."""
    unused = soak.unused_bytes or 0
    held = soak.peak_reserved_bytes or max((point.reserved_bytes or 0 for point in soak.points), default=0)
    share = f" ({unused / held:.0%} of what was held)" if held else ""
    split = soak.inactive_split_bytes
    rest = f", inactive split {format_bytes(split)}" if split is not None else ""
    return f"held but unused at most {format_bytes(unused)}{share}{rest}"
