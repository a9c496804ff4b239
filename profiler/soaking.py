"""The job of a soak: a plan's optimizer steps on batches as training takes them, with the memory at the end of each."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from math import isfinite
from random import Random
from typing import TYPE_CHECKING, Any

from profiler.devices import Device, Usage
from profiler.errors import WorkloadError
from profiler.outcomes import Strategy
from profiler.schedules import Schedule
from profiler.soak import Soak, SoakPoint, with_point
from profiler.trial import SEED, Done, Failed, Setting, Source, guarded, started

if TYPE_CHECKING:
    from profiler.steps import Phase, Training
    from profiler.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class SoakRequest:
    """What to run: the micro-batch sizes of each optimizer step, and how many steps."""

    sizes: tuple[int, ...]
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Soaked:
    """What a soak came to. `failed`: how it ended early, None where it did not; what that means is decided elsewhere.

    elements: the numbers in the micro-batch that ran last. at_failure: what the allocator held then.
    """

    soak: Soak
    failed: Failed | None
    elements: int | None
    at_failure: Usage


@dataclass(slots=True)
class _Progress:
    """What is known while a soak runs, and still is when it has failed."""

    soak: Soak
    elements: int | None = None
    largest_elements: int | None = None
    at_failure: Usage = field(default_factory=Usage)


def soak(setting: Setting, request: SoakRequest) -> Done[Soaked]:
    """Run the soak under the setting's budget."""
    began = time.perf_counter()
    progress = _Progress(
        soak=Soak(micro_batch_sizes=request.sizes, steps=request.steps, steps_run=0, seconds=0.0),
    )
    source = _Watched(source=setting.source, sizes=request.sizes, progress=progress)

    def job(device: Device, phase: Phase) -> None:
        device.settle()
        warm_up = Schedule(strategy=Strategy.ACCUMULATION, steps=(request.sizes,))
        training = started(replace(setting, source=source), device, phase, warm_up, keep_batches=False)
        for step in range(1, request.steps + 1):
            _run_step(training, device, request.sizes, step, progress)

    done = guarded(setting, job)
    return Done(
        result=Soaked(
            soak=replace(progress.soak, seconds=time.perf_counter() - began),
            failed=done.result,
            elements=progress.elements,
            at_failure=progress.at_failure,
        ),
        worker_is_clean=done.worker_is_clean,
    )


def _run_step(training: Training, device: Device, sizes: tuple[int, ...], step: int, progress: _Progress) -> None:
    """One optimizer step, and its point."""
    progress.largest_elements = None
    try:
        finite = _is_finite_step(training, sizes)
        device.synchronize()
        if step == 1:
            device.charge_loaded()
    except Exception:
        with suppress(Exception):  # there may be no memory left to ask, or no device that answers
            progress.at_failure = device.usage()
        raise
    usage, peaks, so_far = device.usage(), device.read_peaks(), progress.soak
    point = SoakPoint(
        step=step,
        peak_bytes=peaks.peak_bytes,
        reserved_bytes=usage.reserved_bytes,
        allocated_bytes=usage.allocated_bytes,
        unused_bytes=usage.unused_bytes,
        inactive_split_bytes=usage.inactive_split_bytes,
        largest_elements=progress.largest_elements,
    )
    progress.soak = replace(
        so_far,
        steps_run=step,
        peak_bytes=peaks.peak_bytes,
        peak_allocated_bytes=peaks.allocated_bytes,
        peak_reserved_bytes=peaks.reserved_bytes,
        allocator_retries=peaks.allocator_retries,
        points=with_point(so_far.points, point, so_far.steps),
        not_finite_from=so_far.not_finite_from if finite or so_far.not_finite_from is not None else step,
    )


def _is_finite_step(training: Training, sizes: tuple[int, ...]) -> bool:
    """Run an optimizer step; whether its loss and, in fp16, its gradients were finite.

    That they are not after many steps is a matter of training; memory goes on as it was.
    """
    from profiler.steps import run_step

    try:
        loss = run_step(training, Strategy.ACCUMULATION, sizes)
    except WorkloadError:
        if training.passes.scaler is None or training.phase.name != "optimizer step":
            raise
        return False
    return isfinite(float(loss))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Watched:
    """The workload of `source` with batches as training takes them, each counted into `progress`."""

    source: Source
    sizes: tuple[int, ...]
    progress: _Progress

    def load(self) -> Workload:
        """The workload, in the process that calls this."""
        from profiler.batches import DatasetBatches, elements_of

        workload, progress = self.source.load(), self.progress
        batches = workload.make_batch
        if isinstance(batches, DatasetBatches):
            progress.soak = replace(progress.soak, verified_elements=elements_of(batches(max(self.sizes))))
        make_batch = as_trained(batches)

        def counted(size: int) -> Any:
            progress.elements = None
            batch = make_batch(size)
            progress.elements = elements_of(batch)
            progress.largest_elements = max(progress.elements, progress.largest_elements or 0)
            return batch

        return replace(workload, make_batch=counted)


def as_trained(make_batch: Callable[[int], Any]) -> Callable[[int], Any]:
    """A batch maker that takes the next samples of the Dataset in a shuffled order, epoch after epoch.

    The order is the same each time. A maker without a Dataset makes each batch itself, and is returned.
    """
    from profiler.batches import DatasetBatches

    if not isinstance(make_batch, DatasetBatches):
        return make_batch
    batches, places = make_batch, shuffled_places(len(make_batch.order))

    def take(size: int) -> Any:
        return batches.of(islice(places, size))

    return take


def shuffled_places(count: int) -> Iterator[int]:
    """0 to `count` - 1 in a random order, then in another, without end."""
    # Four bytes a place, made before the budget counts: a list of numbers would take a large Dataset's share of it.
    places, random = array("I", range(count)), Random(SEED)

    def epochs() -> Iterator[int]:
        while True:
            random.shuffle(places)
            yield from places

    return epochs()
