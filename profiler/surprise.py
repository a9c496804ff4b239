"""An out-of-memory where none was to be expected: what to try again, and what to say; pure, standard library only.

The line through the last fits never lies above the curve by more than rounding, so the smallest misfit of a finished search
is predicted at the capacity or beyond. Where it is not, the curve bends just there, or something else took the memory for
a moment: another process, or a worker that was killed. One more trial tells them apart.
"""

from __future__ import annotations

from profiler.outcomes import Fits, Trial
from profiler.search import NOISE
from profiler.units import format_bytes

# A misfit predicted closer to the capacity than peaks lie to their line is one.
EXPECTED = 1 - NOISE
# Further below, a misfit that failed twice is said: it may be the curve, and it may be a neighbour that stays.
FAR_BELOW = 0.9
_OWN_HEAP = 'this process, in which it ran, holds memory of its own that comes and goes (isolation="process" is exact)'


def surprises(predicted_bytes: int | None, capacity_bytes: int) -> bool:
    """Whether a misfit has to be tried again; predicted_bytes: by the line, None where there is none."""
    return predicted_bytes is None or predicted_bytes < EXPECTED * capacity_bytes


def after_another_try(
    again: Trial, predicted_bytes: int | None, capacity_bytes: int, *, own_heap: bool = False
) -> str | None:
    """What the user should know of a surprising misfit that was tried again; None where it is as sure as any.

    own_heap: whether the trial shares its memory with the caller's process, which then is the likelier cause.
    """
    size = again.micro_batch_size
    if isinstance(again.outcome, Fits):
        cause = _OWN_HEAP if own_heap else "something else took the memory for a moment, such as another process"
        return f"{again.purpose.size} {size} ran out of memory once and fits: {cause}. What was found with it is from trials that ran."
    if predicted_bytes is None or predicted_bytes >= FAR_BELOW * capacity_bytes:
        return None
    otherwise = (
        f"or {_OWN_HEAP}."
        if own_heap
        else "or another process takes memory. If others run on the device, stop them and probe again."
    )
    return (
        f"{again.purpose.size} {size} ran out of memory twice, though smaller ones put it at {format_bytes(predicted_bytes)} of "
        f"{format_bytes(capacity_bytes)}: its memory grows in a step there, {otherwise}"
    )


def unsure(misfit: Trial) -> str | None:
    """What to know of a misfit that decides the answer and did not say itself that memory ran out; None for the others."""
    if isinstance(misfit.outcome, Fits) or misfit.outcome.phase != "worker":
        return None
    return (
        f"that {misfit.micro_batch_size} does not fit is a conclusion: {misfit.outcome.message} ({misfit.outcome.evidence}). "
        "Probe again if something else can have been the reason."
    )
