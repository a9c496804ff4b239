"""Joins search and trials: the largest micro-batch, or batch of evaluation, that fits."""

from __future__ import annotations

import time
from collections.abc import Callable

from profiler.curve import falls
from profiler.events import Found, Noted
from profiler.multiples import try_size
from profiler.outcomes import Finding, Fits, Outcome, Purpose, Refused, Trial
from profiler.prober import Prober
from profiler.search import Observation, SearchResult, largest_fit
from profiler.smallest import try_smallest
from profiler.surprise import surprises, unsure
from profiler.units import format_bytes

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
        return try_size(prober, size, why, purpose)

    try_smallest(prober, ceiling, attempt, purpose)
    result = _search(prober, ceiling, attempt, purpose)
    while (misfit := result.smallest_misfit) is not None:
        refused = isinstance(prober.tried(purpose)[misfit].outcome, Refused)
        # What is simulated would come to the same again.
        if (
            refused
            or not prober.computes
            or not surprises(prober.predicted_bytes(misfit, purpose), prober.capacity_bytes)
        ):
            break
        tried += 1
        if not prober.try_again(misfit, "the sizes below it foretold no out of memory here", purpose).fits:
            break
        result = _search(prober, ceiling, attempt, purpose)
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


def _search(
    prober: Prober, ceiling: int | None, attempt: Callable[[int, str], Trial], purpose: Purpose
) -> SearchResult:
    """The search from its first size on; what was tried before is remembered and costs nothing."""
    search = largest_fit(
        prober.capacity_bytes, ceiling=ceiling, multiple_of=prober.multiple_of, smallest=prober.smallest(purpose)
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
        return Observation(fits=True, peak_bytes=None if outcome.allocator_retries else outcome.needed_bytes)
    return Observation(fits=False, at_most=outcome.at_most if isinstance(outcome, Refused) else None)


def _limit(misfit: Trial | None) -> str:
    """What ended the search, as `Finding.limited_by` has it."""
    if misfit is None:
        return "ceiling"
    return "refusal" if isinstance(misfit.outcome, Refused) else "memory"


def ladder(largest: int, smallest: int = 1) -> tuple[int, ...]:
    """`smallest` and its doubles up to `largest`: the sizes that give the curve its points."""
    return tuple(smallest * 2**power for power in range((largest // smallest).bit_length()))


def climb(prober: Prober, largest: int) -> None:
    """Try every size of the ladder that the search left out; say so where memory does not rise with the size."""
    for size in ladder(largest, prober.smallest_size):
        try_size(prober, size, "a point of the curve")
    note_falls(prober, largest)


def note_falls(prober: Prober, largest: int, purpose: Purpose = Purpose.TRAINING) -> None:
    """Say so where, among the sizes tried, memory does not rise with the size."""
    fall = falls(prober.line_points(purpose), FALL * prober.capacity_bytes)
    failed = [size for size, trial in prober.tried(purpose).items() if size < largest and not trial.fits]
    if failed:
        what = f"{min(failed)} does not fit, and {largest} does"
    elif fall is not None:
        (size, peak_bytes), (larger, less_bytes) = fall
        what = f"{size} needs {format_bytes(peak_bytes)}, and {larger} needs {format_bytes(less_bytes)}"
    else:
        return
    training = purpose is Purpose.TRAINING
    rises = (
        "memory does not rise with the micro-batch size"
        if training
        else "memory in evaluation does not rise with the batch size"
    )
    prober.observe(
        Noted(
            text=f"{rises} everywhere: {what}. {largest} was run; sizes in between that were not run may need more, and larger "
            "ones than the answer may fit."
        )
    )


def note_repeats(prober: Prober, effective_batch_size: int | None, *findings: Finding | None) -> None:
    """Say so where the Dataset has fewer samples than the effective batch or a largest size, which no epoch holds then."""
    samples = prober.dataset_samples
    if samples is None:
        return
    asked = [f"the effective batch of {effective_batch_size}"] if (effective_batch_size or 0) > samples else []
    found = [
        f"the largest {'micro-batch' if finding.purpose is Purpose.TRAINING else 'batch for evaluation'} of {finding.largest_fit}"
        for finding in findings
        if finding is not None and finding.largest_fit > samples
    ]
    if asked or found:
        ending = f" --ceiling {samples} tries no larger sizes." if found else ""
        prober.observe(
            Noted(
                text=f"the Dataset has {samples} samples, fewer than {' and '.join([*asked, *found])}: they were repeated for "
                f"measuring, and an epoch of training has only {samples}.{ending}"
            )
        )
