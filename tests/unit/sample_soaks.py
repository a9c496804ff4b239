"""Soaks with the shapes that real ones take."""

from __future__ import annotations

from dataclasses import replace

from profiler.soak import Soak, SoakFailure, SoakPoint
from profiler.units import GIB, MIB


def on_the_cpu(steps: int = 200) -> Soak:
    """A GPT on text: the peak rises while longer samples come, and little is held for nothing."""
    points = tuple(
        SoakPoint(
            step=step,
            peak_bytes=(96 + min(step, 40) // 4) * MIB,
            reserved_bytes=(14 + step % 3) * MIB,
            allocated_bytes=13 * MIB,
            unused_bytes=(1 + step % 3) * MIB,
            inactive_split_bytes=(step % 3) * MIB // 4,
            largest_elements=2048 + step,
        )
        for step in range(1, steps + 1)
    )
    return Soak(
        micro_batch_sizes=(16, 16, 16, 16),
        steps=steps,
        steps_run=steps,
        seconds=181.5,
        peak_bytes=points[-1].peak_bytes,
        verified_peak_bytes=92 * MIB,
        verified_elements=1500,
        points=points,
    )


def out_of_memory() -> Soak:
    """The same with too large a micro-batch: a longer sample came in its 37th step."""
    soak = on_the_cpu()
    failure = SoakFailure(
        step=37, phase="backward", message="RuntimeError: can't allocate memory.", elements=4096, unused_bytes=3 * MIB
    )
    return replace(
        soak, micro_batch_sizes=(32, 32), steps_run=36, points=soak.points[:36], peak_bytes=500 * MIB, failure=failure
    )


def ended_at_once() -> Soak:
    """Its second step ran out of memory."""
    failure = SoakFailure(step=2, phase="forward", message="MemoryError: ")
    points = (SoakPoint(step=1, peak_bytes=60 * MIB),)
    return replace(out_of_memory(), steps_run=1, points=points, peak_bytes=63 * MIB, failure=failure)


def on_a_gpu(*, reserved: float = 78.0, failure: SoakFailure | None = None) -> Soak:
    """A card whose allocator holds more and more that no tensor needs, GiB by GiB."""
    points = tuple(
        SoakPoint(
            step=step,
            peak_bytes=round((60 + (reserved - 60) * step / 50) * GIB),
            reserved_bytes=round((59 + (reserved - 60) * step / 50) * GIB),
            allocated_bytes=20 * GIB,
            unused_bytes=round((39 + (reserved - 60) * step / 50) * GIB),
            inactive_split_bytes=step * GIB // 10,
            largest_elements=10_000,
        )
        for step in range(1, 51)
    )
    return Soak(
        micro_batch_sizes=(8, 8),
        steps=50,
        steps_run=50 if failure is None else (failure.step or 1) - 1,
        seconds=60.0,
        peak_bytes=points[-1].peak_bytes,
        verified_peak_bytes=60 * GIB,
        peak_allocated_bytes=58 * GIB,
        peak_reserved_bytes=round((reserved - 1) * GIB),
        points=points if failure is None else points[: (failure.step or 1) - 1],
        failure=failure,
    )
