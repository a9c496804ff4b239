"""What one process of `benchmarks.finders` runs: a finder, or the trials by which finders are judged; one JSON object out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from benchmarks.finder_rows import OURS, first_line
from profiler.errors import MicrobatchError
from profiler.events import unobserved
from profiler.finder import find_largest
from profiler.opening import open_prober
from profiler.options import Options
from profiler.outcomes import Fits, Trial
from profiler.prober import Prober
from profiler.schedules import SIZING_MICRO_BATCHES

REPEATS = 5
# An edge that flips over more sizes than this is noise all over, which the table would show as a wrong answer.
WIDEST_BAND = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One process's work: `what` is a finder's name, "truth", or "answers" for trials at `sizes`.

    begun: when the process was started, by the system's monotonic clock.
    """

    what: str
    target: str
    options: Options
    begun: float
    sizes: tuple[int, ...] = ()


def perform(task: Task) -> dict[str, Any]:
    """What came of it, as JSON has it."""
    try:
        if task.what == "truth":
            return truth(task)
        if task.what == "answers":
            return answers(task)
        return ours(task) if task.what == OURS else theirs(task)
    except MicrobatchError as error:
        return {"crashed": f"{type(error).__name__}: {first_line(str(error))}"}


def ours(task: Task) -> dict[str, Any]:
    """The search in open workers, and the whole call around it: start of the fork server, loading, search, end."""
    begun = time.monotonic()
    with open_prober(task.target, task.options, unobserved) as (prober, _):
        start = time.monotonic()
        finding = find_largest(prober)
        seconds = time.monotonic() - start
    end = time.monotonic()
    return {
        "answer": finding.largest_fit,
        "seconds": seconds,
        "whole_seconds": end - begun,
        "process_seconds": end - task.begun,
        **_counts(finding.trials),
    }


def theirs(task: Task) -> dict[str, Any]:
    """A finder of another library in this process, under the budget.

    Timed are its call alone, and that with the process's start and imports; loading the workload and the run on a toy are in neither.
    """
    from benchmarks.finder_adapters import FINDERS, Subject, warm_up
    from profiler.devices import open_device
    from profiler.switches import Switches
    from profiler.targets import TargetSource
    from profiler.trial import Setting, loaded

    library, finder = FINDERS[task.what]
    if find_spec(library) is None:
        return {"not_installed": library}
    assert task.options.device is not None, "the parent names the device"
    device, source = open_device(task.options.device), TargetSource(task.target, task.options.target_options)
    limit = task.options.limit_bytes
    import_module(library)
    imported = time.monotonic() - task.begun
    device.settle()
    warm_up(finder, device)
    workload = loaded(Setting(source=source, device=device.name, limit_bytes=limit, switches=Switches()))
    subject = Subject.of(workload, device)
    answer, crashed = None, None
    device.settle()
    device.open(limit)
    start = time.monotonic()
    try:
        answer = finder(subject)
    except Exception as error:  # whatever ends a finder is what became of it
        device.close()  # first: the report needs memory too
        crashed = f"{type(error).__name__}: {first_line(str(error))}"
    seconds = time.monotonic() - start
    device.close()
    count = subject.count
    return {
        "answer": answer,
        "crashed": crashed,
        "seconds": seconds,
        "whole_seconds": seconds,
        "process_seconds": imported + seconds,
        "steps": count.steps,
        "out_of_memory": count.out_of_memory,
        "tried": " ".join(count.tried),
    }


def truth(task: Task) -> dict[str, Any]:
    """The edge by doubling and bisection, each trial in a process of its own; then both of its sizes again, under new servers."""
    with open_prober(task.target, task.options, unobserved) as (prober, run):
        prober = replace(prober, compiled=True)  # which gives every size a fresh worker, on every device
        start = time.monotonic()
        edge = bisect(prober)
        seconds = time.monotonic() - start
        counts = _counts(tuple(prober.trials.values()))
        pairs = [_anew(task, edge, edge + 1) for _ in range(REPEATS)]
        low, high = band(
            edge,
            [fits for (fits, _), _ in pairs],
            [fits for _, (fits, _) in pairs],
            lambda size: [_anew(task, size)[0][0] for _ in range(REPEATS)],
        )
        return {
            "answer": edge,
            "low": low,
            "high": high,
            "seconds": seconds,
            "whole_seconds": seconds,
            "pair_seconds": [at + above for (_, at), (_, above) in pairs],
            "workload": run.workload,
            "capacity_bytes": run.capacity_bytes,
            "environment": dict(run.environment),
            **counts,
        }


def bisect(prober: Prober) -> int:
    """The largest size that fits, by doubling until one fails and halving the gap."""
    low, high = 0, 1
    while prober.try_size(high, "doubling").fits:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if prober.try_size(middle, "bisection").fits else (low, middle)
    return low


def band(edge: int, at: list[bool], above: list[bool], repeat: Any) -> tuple[int, int]:
    """From the largest size that fitted every time to the largest that fitted at all.

    at, above: whether `edge` and `edge + 1` fitted, each time. repeat: the same for another size. Both ends are followed
    over at most WIDEST_BAND sizes.
    """
    low, high, fitted = edge, edge, at
    while not all(fitted) and low > max(0, edge - WIDEST_BAND):
        low -= 1
        fitted = repeat(low) if low else [True]
    fitted = above
    while any(fitted) and high < edge + WIDEST_BAND:
        high += 1
        fitted = repeat(high + 1)
    return low, high


def _anew(task: Task, *sizes: int) -> list[tuple[bool, float]]:
    """The trials of `sizes` under a fork server of their own: an edge can hold under one server and lie elsewhere under the next."""
    with open_prober(task.target, task.options, unobserved) as (prober, _):
        prober = replace(prober, compiled=True)
        return [_again(prober, size) for size in sizes]


def _again(prober: Prober, size: int) -> tuple[bool, float]:
    """Whether it fits this time, and the seconds of the trial."""
    if size < 1:
        return True, 0.0
    start = time.monotonic()
    fits = prober.try_size(size, "once more").fits
    return fits, time.monotonic() - start


def answers(task: Task) -> dict[str, Any]:
    """The peak of our trial at each size, None where it does not fit."""
    peaks: dict[str, int | None] = {}
    with open_prober(task.target, task.options, unobserved) as (prober, _):
        prober = replace(prober, compiled=True)
        for size in sorted(task.sizes):
            outcome = prober.try_size(size, "an answer").outcome
            peaks[str(size)] = outcome.peak_bytes if isinstance(outcome, Fits) else None
    return {"peaks": peaks}


def _counts(trials: Sequence[Trial]) -> dict[str, Any]:
    """A trial that failed counts in full, for which of its passes it failed in is not kept."""
    return {
        "steps": SIZING_MICRO_BATCHES * len(trials),
        "out_of_memory": sum(not trial.fits for trial in trials),
        "tried": " ".join(f"{trial.micro_batch_size}{'' if trial.fits else '!'}" for trial in trials),
    }
