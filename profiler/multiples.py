"""Models that take multiples of a number only: sizes that run beside one that failed, for its error to name."""

from __future__ import annotations

from math import lcm

from profiler.errors import MicrobatchError, ShortBatch, WorkloadError
from profiler.outcomes import Fits, OutOfMemory, Purpose, Refused, Trial
from profiler.prober import Prober
from profiler.schedules import schedule_for

# A model that fails at the smallest size may take these multiples of it only.
MULTIPLES_TRIED = (2, 4, 8)
# One that fails later, and takes 8 or a divisor of it only, runs at the nearest of its multiples.
COMMON_MULTIPLE = 8


def try_size(prober: Prober, size: int, why: str, purpose: Purpose = Purpose.TRAINING) -> Trial:
    """`prober.try_size`; where the workload fails after a smaller size ran, one more trial tells a model of multiples.

    Raises what `Prober.try_size` raises; the WorkloadError says what to pass where the multiple of 8 just below does not
    fail like that.
    """
    try:
        return prober.try_size(size, why, purpose)
    except WorkloadError as error:
        multiple = lcm(COMMON_MULTIPLE, prober.multiple_of)
        below = size // multiple * multiple
        smaller_ran = any(trial.fits for tried, trial in prober.tried(purpose).items() if tried < size)
        about_data = error.phase == "batch" or isinstance(error, ShortBatch)
        if about_data or not smaller_ran or below in (0, size):
            raise
        outcome = _outcome(prober, below, purpose, prober.smallest_size)
        if outcome is None:
            raise
        # The line may point beyond the capacity: a size that goes on until memory runs out is one that the model takes.
        came_to = "run" if isinstance(outcome, Fits) else "run out of memory instead"
        raise _with_hint(error, f"{below} {came_to}", multiple, purpose) from None


def with_running_multiple(
    prober: Prober, error: WorkloadError, size: int, ceiling: int | None, purpose: Purpose
) -> WorkloadError:
    """`error` of the smallest size, with the first of a few multiples that runs; as it is where none does."""
    for multiple in (factor * prober.multiple_of for factor in MULTIPLES_TRIED):
        if ceiling is not None and multiple > ceiling:
            break
        if multiple > size and isinstance(_outcome(prober, multiple, purpose, multiple), Fits):
            return _with_hint(error, f"{multiple} run", multiple, purpose)
    return error


def _outcome(prober: Prober, size: int, purpose: Purpose, trained_size: int) -> Fits | OutOfMemory | None:
    """What `size` comes to, by its trial where it had one; None where that says nothing for it."""
    trial = prober.tried(purpose).get(size)
    try:
        outcome = trial.outcome if trial else prober.run(schedule_for(purpose, size, trained_size), size, purpose)
    except MicrobatchError:  # the first one is the user's to see
        return None
    return None if isinstance(outcome, Refused) else outcome


def _with_hint(error: WorkloadError, came_to: str, multiple: int, purpose: Purpose) -> WorkloadError:
    batches = "Micro-batches" if purpose is Purpose.TRAINING else "Batches"
    return WorkloadError(
        f"{str(error).rstrip('.')}. {batches} of {came_to}: where the model takes multiples of a number only, pass it, "
        f"--multiple-of {multiple}.",
        user_traceback=error.user_traceback,
        phase=error.phase,
    )
