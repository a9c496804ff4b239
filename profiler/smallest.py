"""Where sizes begin: the smallest one that the model takes, and what to say where it does not fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from profiler.errors import TooFewSamples, WorkloadError
from profiler.events import Noted
from profiler.multiples import with_running_multiple
from profiler.outcomes import Finding, OutOfMemory, Purpose, Trial
from profiler.prober import Prober
from profiler.schedules import schedule_for
from profiler.trial import Completed, run_schedule
from profiler.units import format_bytes


def try_smallest(prober: Prober, ceiling: int | None, attempt: Callable[[int, str], Trial], purpose: Purpose) -> None:
    """Try the smallest size; where it has too few samples and the next one has not, that is the smallest from here on.

    Raises the WorkloadError of the smallest size, with what larger sizes came to where they run.
    """
    _take_over(prober, purpose)
    while True:
        size = prober.smallest(purpose)
        try:
            attempt(size, "the smallest size")
            return
        except TooFewSamples as error:
            if not _raised(prober, ceiling, purpose, error):
                raise
        except WorkloadError as error:
            if prober.tried(purpose):
                raise
            raise with_running_multiple(prober, error, size, ceiling, purpose) from None


def _raised(prober: Prober, ceiling: int | None, purpose: Purpose, error: TooFewSamples) -> bool:
    """Whether the size that `error` is about could be raised, once; a note says so.

    Evaluation itself may take single samples where the training step before it does not.
    """
    larger = 2 * prober.multiple_of
    if purpose is Purpose.EVALUATION and error.phase != "evaluation forward":
        if prober.smallest_size >= larger:
            return False
        prober.smallest_size = larger
        prober.observe(Noted(text=f"{_trained(larger)}{error}."))
        return True
    if prober.smallest(purpose) >= larger or (ceiling is not None and larger > ceiling):
        return False
    _start(prober, larger, purpose)
    prober.observe(Noted(text=f"{_starts(larger, purpose)}{error}."))
    return True


def _take_over(prober: Prober, purpose: Purpose) -> None:
    """Raise what an interrupted run raised, as its notes say."""
    larger = 2 * prober.multiple_of
    trained = prober.replay.note(_trained(larger)) if purpose is Purpose.EVALUATION else None
    if trained is not None:
        prober.smallest_size = larger
        prober.observe(Noted(text=trained))
    started = prober.replay.note(_starts(larger, purpose))
    if started is not None:
        _start(prober, larger, purpose)
        prober.observe(Noted(text=started))


def _start(prober: Prober, size: int, purpose: Purpose) -> None:
    if purpose is Purpose.TRAINING:
        prober.smallest_size = size
    else:
        prober.smallest_evaluation = size


def _starts(size: int, purpose: Purpose) -> str:
    sizes = "sizes" if purpose is Purpose.TRAINING else "batch sizes of evaluation"
    return f"{sizes} start at {size}: "


def _trained(size: int) -> str:
    return f"the training step before an evaluation takes {size} samples: "


def does_not_fit(finding: Finding) -> str:
    """How `why_nothing_fits` begins for `finding`, in which nothing fits."""
    size = finding.smallest_misfit
    if finding.purpose is Purpose.TRAINING:
        return f"size {size}, the smallest, does not fit: "
    return f"batch size {size}, the smallest, does not fit in evaluation: "


def why_nothing_fits(prober: Prober, finding: Finding) -> str:
    """What the smallest size needs, measured without the budget where the device has the room, and what the limit is."""
    beginning = does_not_fit(finding)
    recorded = prober.replay.note(beginning)
    if recorded is not None:
        return recorded
    size = prober.smallest(finding.purpose)
    misfit = finding.trial_of(size)
    assert misfit is not None, "a search in which nothing fits ends at the smallest size"
    assert isinstance(misfit.outcome, OutOfMemory)
    limit = format_bytes(prober.capacity_bytes)
    reply = prober.runner.size(
        run_schedule,
        replace(prober.setting, limit_bytes=None),
        schedule_for(finding.purpose, size, prober.smallest_size),
        timeout_seconds=prober.limits.trial_seconds,
        fresh=True,
    )
    if isinstance(reply, Completed):
        need = format_bytes(reply.fits.peak_bytes)
        return f"{beginning}it needs about {need}, the limit is {limit}. Raise --memory-limit, or shrink the model."
    return (
        f"{beginning}it runs out of memory in its {misfit.outcome.phase}, and the limit is {limit}. Raise --memory-limit, "
        "shrink the model, or use a lower precision or a lighter optimizer."
    )
