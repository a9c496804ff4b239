"""What running a plan for many optimizer steps came to, as data; standard library only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# More points than this a figure cannot show, and a worker should not keep: its memory is what is measured.
MOST_POINTS = 200
# Held and unused at the peak, as a share of the capacity: above it, fragmentation is worth another soak.
FRAGMENTED_SHARE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class SoakPoint:
    """Memory at the ends of the optimizer steps up to `step` since the point before, the most of each in bytes.

    peak_bytes: the peak since the soak began, in the capacity's unit. reserved_bytes: what the allocator holds.
    allocated_bytes: what of it is in use. unused_bytes: the difference of the two. inactive_split_bytes: free blocks
    that cannot be given back because what they were cut from is in use. largest_elements: the numbers in the largest
    micro-batch of these steps. None where the device does not say.
    """

    step: int
    peak_bytes: int
    reserved_bytes: int | None = None
    allocated_bytes: int | None = None
    unused_bytes: int | None = None
    inactive_split_bytes: int | None = None
    largest_elements: int | None = None

    def merged(self, other: SoakPoint) -> SoakPoint:
        """One point for the steps of both: the later step, and the larger of each number."""
        return SoakPoint(
            step=max(self.step, other.step),
            peak_bytes=max(self.peak_bytes, other.peak_bytes),
            reserved_bytes=_larger(self.reserved_bytes, other.reserved_bytes),
            allocated_bytes=_larger(self.allocated_bytes, other.allocated_bytes),
            unused_bytes=_larger(self.unused_bytes, other.unused_bytes),
            inactive_split_bytes=_larger(self.inactive_split_bytes, other.inactive_split_bytes),
            largest_elements=_larger(self.largest_elements, other.largest_elements),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SoakFailure:
    """Where a soak ran out of memory.

    step: the optimizer step, from 1; None where the worker died before it could say. phase and message: as in
    `OutOfMemory`. elements: the numbers in the micro-batch that was running. unused_bytes: held by the allocator and not
    in use at that moment. None where unknown.
    """

    step: int | None
    phase: str
    message: str
    elements: int | None = None
    unused_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Soak:
    """A plan's micro-batches run for many optimizer steps on batches as training takes them, under the budget.

    micro_batch_sizes: of each step. steps: asked for; steps_run: those that ended. seconds: wall time in the worker.
    peak_bytes: the peak over all of it, in the capacity's unit, None where the worker died. verified_peak_bytes and
    verified_elements: the peak of the plan's verification, and the numbers in the micro-batch that it ran on (None
    where batches do not come from a Dataset). peak_allocated_bytes, peak_reserved_bytes: None on the CPU.
    points: at most MOST_POINTS of them, over all steps. not_finite_from: the first step whose loss was not a number;
    memory does not depend on it. failure: None where it ran to its end. environment: variables of its workers that
    others have not, as NAME=value. again: the same with such variables, None where that was not tried.
    """

    micro_batch_sizes: tuple[int, ...]
    steps: int
    steps_run: int
    seconds: float
    peak_bytes: int | None = None
    verified_peak_bytes: int | None = None
    verified_elements: int | None = None
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    allocator_retries: int = 0
    points: tuple[SoakPoint, ...] = ()
    not_finite_from: int | None = None
    failure: SoakFailure | None = None
    environment: str | None = None
    again: Soak | None = None

    @property
    def passed(self) -> bool:
        """Whether every step ran, and without allocator retries."""
        return self.failure is None and not self.allocator_retries

    @property
    def unused_bytes(self) -> int | None:
        """Held but in use by nothing, at most.

        The peak of reserved less the peak of allocated where both are known: what the allocator keeps between steps is
        a cache and no loss. Else (on the CPU, where freed blocks go back at once) the most at the end of a step. Where it
        ran out of memory with more unused, that.
        """
        at_failure = self.failure.unused_bytes if self.failure else None
        if self.peak_reserved_bytes is not None and self.peak_allocated_bytes is not None:
            return _larger(self.peak_reserved_bytes - self.peak_allocated_bytes, at_failure)
        return _larger(_most(point.unused_bytes for point in self.points), at_failure)

    @property
    def inactive_split_bytes(self) -> int | None:
        """The most at the end of a step."""
        return _most(point.inactive_split_bytes for point in self.points)

    def is_fragmented(self, capacity_bytes: int) -> bool:
        """Whether more than FRAGMENTED_SHARE of the capacity was held unused."""
        return (self.unused_bytes or 0) > FRAGMENTED_SHARE * capacity_bytes


def with_point(points: tuple[SoakPoint, ...], point: SoakPoint, steps: int) -> tuple[SoakPoint, ...]:
    """`points` and that of the next step, which joins the last one where `steps` are too many for one each."""
    stride = -(-steps // MOST_POINTS)
    if points and (point.step - 1) % stride:
        return (*points[:-1], points[-1].merged(point))
    return (*points, point)


def _most(numbers: Iterable[int | None]) -> int | None:
    return max((number for number in numbers if number is not None), default=None)


def _larger(one: int | None, other: int | None) -> int | None:
    return _most((one, other))
