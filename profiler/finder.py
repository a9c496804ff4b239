"""Joins search and trials: the largest micro-batch that fits."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from profiler.events import Found, Noted
from profiler.outcomes import Finding, Fits, OutOfMemory, Trial
from profiler.prober import Prober, needed_bytes, sizing_schedule
from profiler.search import Observation, SearchResult, largest_fit
from profiler.surprise import surprises, unsure
from profiler.trial import Completed, run_schedule
from profiler.units import format_bytes


def find_largest(prober: Prober, *, ceiling: int | None = None) -> Finding:
    """Search until a size ran and the next one did not, or the ceiling ran; every trial of `prober` is in the finding.

    A misfit that the answer rests on and that no line foretold is tried again, and if it fits then, the search goes on.
    Raises what `Prober.try_size` raises: WorkloadError for a bug at any size, TrialError for a crash or a hang.
    """
    start = time.monotonic()
    tried = 0

    def attempt(size: int, why: str) -> Trial:
        nonlocal tried
        tried += size not in prober.trials
        return prober.try_size(size, why)

    result = _search(prober, ceiling, attempt)
    while (misfit := result.smallest_misfit) is not None:
        if not surprises(prober.predicted_bytes(misfit), prober.capacity_bytes):
            break
        tried += 1
        if not prober.try_again(misfit, "the sizes below it foretold no out of memory here").fits:
            break
        result = _search(prober, ceiling, attempt)
    finding = Finding(
        largest_fit=result.largest_fit,
        smallest_misfit=result.smallest_misfit,
        limited_by=result.limited_by,
        capacity_bytes=prober.capacity_bytes,
        trials=tuple(prober.trials.values()),
    )
    if misfit is not None and (said := unsure(prober.trials[misfit])) is not None:
        prober.observe(Noted(text=said))
    prober.observe(Found(finding=finding, trials=tried, seconds=time.monotonic() - start))
    return finding


def _search(prober: Prober, ceiling: int | None, attempt: Callable[[int, str], Trial]) -> SearchResult:
    """The search from its first size on; what was tried before is remembered and costs nothing."""
    search = largest_fit(prober.capacity_bytes, ceiling=ceiling)
    request = next(search)
    while True:
        outcome = attempt(request.micro_batch_size, request.why).outcome
        clean = isinstance(outcome, Fits) and not outcome.allocator_retries
        observation = Observation(
            fits=isinstance(outcome, Fits),
            peak_bytes=needed_bytes(outcome) if clean and isinstance(outcome, Fits) else None,
        )
        try:
            request = search.send(observation)
        except StopIteration as end:
            found: SearchResult = end.value
            return found


def ladder(largest: int) -> tuple[int, ...]:
    """The powers of two up to `largest`: the sizes that give the curve its points."""
    return tuple(2**power for power in range(largest.bit_length()))


def climb(prober: Prober, largest: int) -> None:
    """Try every size of the ladder that the search left out."""
    for size in ladder(largest):
        prober.try_size(size, "a point of the curve")


def why_nothing_fits(prober: Prober, finding: Finding) -> str:
    """What the smallest size needs, measured without the budget where the device has the room, and what the limit is."""
    misfit = finding.trial_of(1)
    assert misfit is not None, "a search in which nothing fits ends at size 1"
    assert isinstance(misfit.outcome, OutOfMemory)
    limit = format_bytes(prober.capacity_bytes)
    reply = prober.runner.size(
        run_schedule,
        replace(prober.setting, limit_bytes=None),
        sizing_schedule(1),
        timeout_seconds=prober.limits.trial_seconds,
        fresh=True,
    )
    if isinstance(reply, Completed):
        need = format_bytes(reply.fits.peak_bytes)
        return (
            f"nothing fits: size 1 needs about {need}, the limit is {limit}. Raise --memory-limit, or shrink the model."
        )
    return (
        f"nothing fits: size 1 runs out of memory in its {misfit.outcome.phase}, and the limit is {limit}. Raise "
        "--memory-limit, shrink the model, or use a lower precision or a lighter optimizer."
    )
