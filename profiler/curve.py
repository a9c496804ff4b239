"""What one more sample costs, read from trials; pure, standard library only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# Two sizes say what a sample costs only where they lie this far apart: between neighbours, rounding is as large.
LINE_SHARE = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Peak memory as a line in the micro-batch size n: `intercept_bytes + bytes_per_sample * n`."""

    intercept_bytes: float
    bytes_per_sample: float

    @classmethod
    def through(cls, first: tuple[int, int], second: tuple[int, int]) -> Line:
        """The line through two points (size, bytes)."""
        slope = (second[1] - first[1]) / (second[0] - first[0])
        return cls(intercept_bytes=first[1] - slope * first[0], bytes_per_sample=slope)

    def at(self, size: float) -> float:
        """Bytes at `size`."""
        return self.intercept_bytes + self.bytes_per_sample * size

    def crossing(self, limit_bytes: float) -> float | None:
        """The size at which the line reaches `limit_bytes`; None where it never does."""
        return (limit_bytes - self.intercept_bytes) / self.bytes_per_sample if self.bytes_per_sample > 0 else None


def line_through_last(points: Iterable[tuple[int, int]]) -> Line | None:
    """The line through the largest size of `points` (size, bytes) and the largest at most LINE_SHARE of it, or the smallest.

    None where there are fewer than two sizes, or memory does not rise between the two. Peak memory is convex in the
    size: the last fits tell what the next sample costs, smaller ones tell too little.
    """
    ordered = sorted(points)
    if not ordered:
        return None
    last = ordered[-1]
    before = next((point for point in reversed(ordered) if point[0] <= LINE_SHARE * last[0]), ordered[0])
    return Line.through(before, last) if before[0] < last[0] and before[1] < last[1] else None


def falls(points: Iterable[tuple[int, int]], noise_bytes: float) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Two of `points` (size, bytes) of which the larger size needs less, by more than `noise_bytes`; None where none does."""
    highest: tuple[int, int] | None = None
    for point in sorted(points):
        if highest is not None and point[1] < highest[1] - noise_bytes:
            return highest, point
        if highest is None or point[1] > highest[1]:
            highest = point
    return None
