"""Joins search and trials: the largest micro-batch, or batch of evaluation, that fits."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from profiler.curve import falls
from profiler.errors import MicrobatchError, TooFewSamples, WorkloadError
from profiler.events import Found, Noted
from profiler.outcomes import Finding, Fits, Outcome, OutOfMemory, Purpose, Refused, Trial
from profiler.prober import Prober, needed_bytes, schedule_for
from profiler.search import Observation, SearchResult, largest_fit
from profiler.surprise import surprises, unsure
from profiler.trial import Completed, run_schedule
from profiler.units import format_bytes

NOTHING_FITS_IN_EVALUATION = "nothing fits in evaluation"
# A model that fails at one sample may take pairs, fours or eights only.
MULTIPLES_TRIED = (2, 4, 8)
# What a larger size may need less than a smaller one before it is worth a word, as a share of the capacity: libraries choose
# other kernels for other sizes.
FALL = 0.05


def find_largest(prober: Prober, *, ceiling: int | None = None, purpose: Purpose = Purpose.TRAINING) -> Finding:
    """Search until a size ran and the next one did not, or the ceiling ran; every trial for `purpose` is in the finding.

    Sizes are the prober's multiples, from its smallest size on, which is raised here where the model cannot train it.
    A misfit that the answer rests on and that no line foretold is tried again, and if it fits then, the search goes on.
    Raises what `Prober.try_size` raises: WorkloadError for a bug at any size, TrialError for a crash or a hang.
    """
    start = time.monotonic()
    tried = 0

    def attempt(size: int, why: str) -> Trial:
        nonlocal tried
        tried += size not in prober.tried(purpose)
        return prober.try_size(size, why, purpose)

    _try_smallest(prober, ceiling, attempt, purpose)
    result = _search(prober, ceiling, attempt)
    while (misfit := result.smallest_misfit) is not None:
        refused = isinstance(prober.tried(purpose)[misfit].outcome, Refused)
        if refused or not surprises(prober.predicted_bytes(misfit, purpose), prober.capacity_bytes):
            break
        tried += 1
        if not prober.try_again(misfit, "the sizes below it foretold no out of memory here", purpose).fits:
            break
        result = _search(prober, ceiling, attempt)
    finding = Finding(
        largest_fit=result.largest_fit,
        smallest_misfit=result.smallest_misfit,
        limited_by=_limit(None if misfit is None else prober.tried(purpose)[misfit]),
        capacity_bytes=prober.capacity_bytes,
        trials=tuple(prober.tried(purpose).values()),
        purpose=purpose,
    )
    if misfit is not None and (said := unsure(prober.tried(purpose)[misfit])) is not None:
        prober.observe(Noted(text=said))
    seconds = prober.replay.seconds_of_search(purpose, time.monotonic() - start)
    prober.observe(Found(finding=finding, trials=tried, seconds=seconds))
    return finding


def _search(prober: Prober, ceiling: int | None, attempt: Callable[[int, str], Trial]) -> SearchResult:
    """The search from its first size on; what was tried before is remembered and costs nothing."""
    search = largest_fit(
        prober.capacity_bytes, ceiling=ceiling, multiple_of=prober.multiple_of, smallest=prober.smallest_size
    )
    request = next(search)
    while True:
        outcome = attempt(request.micro_batch_size, request.why).outcome
        try:
            request = search.send(_observation(outcome))
        except StopIteration as end:
            found: SearchResult = end.value
            return found


def _observation(outcome: Outcome) -> Observation:
    if isinstance(outcome, Fits):
        return Observation(fits=True, peak_bytes=None if outcome.allocator_retries else needed_bytes(outcome))
    return Observation(fits=False, at_most=outcome.at_most if isinstance(outcome, Refused) else None)


def _limit(misfit: Trial | None) -> str:
    """What ended the search, as `Finding.limited_by` has it."""
    if misfit is None:
        return "ceiling"
    return "refusal" if isinstance(misfit.outcome, Refused) else "memory"


def _try_smallest(prober: Prober, ceiling: int | None, attempt: Callable[[int, str], Trial], purpose: Purpose) -> None:
    """Try the smallest size; where it cannot be trained and the next one can, that is the smallest from here on.

    Raises the WorkloadError of the smallest size, with what larger sizes came to where they run.
    """
    size = prober.smallest_size
    larger = size + prober.multiple_of
    recorded = prober.replay.note(f"sizes start at {larger}: ")
    if recorded is not None:
        prober.smallest_size = larger
        prober.observe(Noted(text=recorded))
        return
    try:
        attempt(size, "the smallest size")
    except TooFewSamples as error:
        if ceiling is not None and larger > ceiling:
            raise
        prober.smallest_size = larger
        prober.observe(Noted(text=f"sizes start at {larger}: {error}."))
    except WorkloadError as error:
        runs = _running_multiple(prober, ceiling, purpose) if size == 1 and not prober.tried(purpose) else None
        if runs is None:
            raise
        raise WorkloadError(
            f"{error}. Micro-batches of {runs} run: where the model takes multiples of a number only, pass it, "
            f"--multiple-of {runs}.",
            user_traceback=error.user_traceback,
        ) from None


def _running_multiple(prober: Prober, ceiling: int | None, purpose: Purpose) -> int | None:
    """The first of a few sizes that runs, None where none does."""
    for size in MULTIPLES_TRIED:
        if ceiling is not None and size > ceiling:
            return None
        try:
            if isinstance(prober.run(schedule_for(purpose, size, size), size, purpose), Fits):
                return size
        except MicrobatchError:  # the first one is the user's to see
            continue
    return None


def ladder(largest: int, smallest: int = 1) -> tuple[int, ...]:
    """`smallest` and its doubles up to `largest`: the sizes that give the curve its points."""
    return tuple(smallest * 2**power for power in range((largest // smallest).bit_length()))


def climb(prober: Prober, largest: int) -> None:
    """Try every size of the ladder that the search left out; say so where memory does not rise with the size."""
    for size in ladder(largest, prober.smallest_size):
        prober.try_size(size, "a point of the curve")
    fall = falls(prober.line_points(), FALL * prober.capacity_bytes)
    failed = [size for size, trial in prober.trials.items() if size < largest and not trial.fits]
    if failed:
        what = f"{min(failed)} does not fit, and {largest} does"
    elif fall is not None:
        (size, peak_bytes), (larger, less_bytes) = fall
        what = f"{size} needs {format_bytes(peak_bytes)}, and {larger} needs {format_bytes(less_bytes)}"
    else:
        return
    prober.observe(
        Noted(
            text=f"memory does not rise with the micro-batch size everywhere: {what}. {largest} was run, and so is the plan; "
            "sizes in between that were not run may need more, and larger ones than the answer may fit."
        )
    )


def why_nothing_fits(prober: Prober, finding: Finding) -> str:
    """What the smallest size needs, measured without the budget where the device has the room, and what the limit is."""
    nothing = "nothing fits" if finding.purpose is Purpose.TRAINING else NOTHING_FITS_IN_EVALUATION
    recorded = prober.replay.note(f"{nothing}: ")
    if recorded is not None:
        return recorded
    size = prober.smallest_size
    misfit = finding.trial_of(size)
    assert misfit is not None, "a search in which nothing fits ends at the smallest size"
    assert isinstance(misfit.outcome, OutOfMemory)
    limit = format_bytes(prober.capacity_bytes)
    reply = prober.runner.size(
        run_schedule,
        replace(prober.setting, limit_bytes=None),
        schedule_for(finding.purpose, size, size),
        timeout_seconds=prober.limits.trial_seconds,
        fresh=True,
    )
    if isinstance(reply, Completed):
        need = format_bytes(reply.fits.peak_bytes)
        return f"{nothing}: size {size} needs about {need}, the limit is {limit}. Raise --memory-limit, or shrink the model."
    return (
        f"{nothing}: size {size} runs out of memory in its {misfit.outcome.phase}, and the limit is {limit}. Raise "
        "--memory-limit, shrink the model, or use a lower precision or a lighter optimizer."
    )
