"""What an interrupted run recorded, handed out where a probe comes to it again, so that nothing of it runs twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from profiler.equivalence import Equivalence
from profiler.errors import UsageError
from profiler.events import (
    Began,
    Checked,
    Compared,
    Event,
    Found,
    Noted,
    Planned,
    Resumed,
    SizeTried,
    SoakEnded,
    Started,
    Timed,
    Verified,
)
from profiler.outcomes import Finding, Purpose, Strategy, Throughput, Trial
from profiler.plan import AccumulationPlan
from profiler.records import Records
from profiler.report import RunInfo
from profiler.soak import Soak

T = TypeVar("T")
Sizes = tuple[tuple[int, ...], ...]


@dataclass(slots=True, kw_only=True)
class Replay:
    """What is on record and was not come to yet, each kind in its order; empty for a probe that begins.

    A probe is decided by what its jobs came to. So one that is given these in place of running them says and decides
    again what was recorded, event by event, and what it says beyond that is new. Trials are handed out one by one, and
    not all at once, because decisions look at those that went before and at no later ones.
    """

    trials: dict[Purpose, list[Trial]] = field(default_factory=lambda: {purpose: [] for purpose in Purpose})
    throughput: list[Throughput] = field(default_factory=list)
    comparison: list[Trial] = field(default_factory=list)
    checks: list[Equivalence] = field(default_factory=list)
    verifications: list[AccumulationPlan] = field(default_factory=list)
    plans: list[AccumulationPlan] = field(default_factory=list)
    soaks: list[Soak] = field(default_factory=list)
    ends: dict[Purpose, tuple[int, int | None]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    run: RunInfo | None = None
    resumed: Resumed | None = None
    search_seconds: dict[Purpose, float] = field(default_factory=dict)
    trial_seconds: dict[Purpose, float] = field(default_factory=dict)
    began: bool = False

    @classmethod
    def of(cls, records: Records | None) -> Replay:
        """Everything that `records` hold."""
        if records is None:
            return cls()
        tried = {purpose: [trial for trial in records.attempts if trial.purpose is purpose] for purpose in Purpose}
        seconds = {
            Purpose.TRAINING: records.search_seconds,
            Purpose.EVALUATION: records.evaluation_search_seconds,
        }
        return cls(
            trials=tried,
            throughput=list(records.throughput),
            comparison=list(records.comparison),
            checks=[records.equivalence] if records.equivalence else [],
            # A finished report says only of its plan that it ran.
            verifications=list(records.verified) or [plan for plan in (records.plan,) if plan],
            plans=[records.plan] if records.plan else [],
            soaks=list(records.soaks),
            ends={found.purpose: _end(found) for found in (records.finding, records.evaluation) if found},
            notes=list(records.notes),
            run=records.run,
            resumed=Resumed(
                trials=len(records.attempts), timings=len(records.throughput), compared=len(records.comparison)
            ),
            search_seconds={purpose: took for purpose, took in seconds.items() if took is not None},
            trial_seconds={
                purpose: sum(trial.outcome.seconds for trial in trials) for purpose, trials in tried.items()
            },
        )

    def trial(self, size: int, purpose: Purpose) -> Trial | None:
        """The recorded trial of `size`, None where it was not recorded."""
        return _first(self.trials[purpose], lambda trial: trial.micro_batch_size == size)

    def timing(self, size: int) -> Throughput | None:
        """The recorded throughput at `size`, likewise."""
        # A report holds them by size, whenever they were measured.
        return next((timed for timed in self.throughput if timed.micro_batch_size == size), None)

    def compared(self, strategy: Strategy, steps: int, size: int) -> Trial | None:
        """The recorded trial of a strategy over `steps` micro-batches of `size`, likewise."""
        key = strategy, steps, size
        return _first(
            self.comparison, lambda trial: (trial.strategy, trial.accumulation_steps, trial.micro_batch_size) == key
        )

    def check(self, batch_size: int) -> Equivalence | None:
        """The recorded check of `batch_size` samples, likewise."""
        return _first(self.checks, lambda check: check.batch_size == batch_size)

    def verified(self, replicas: Sizes) -> AccumulationPlan | None:
        """The recorded plan of these sizes with what running it measured, then that with its time, likewise."""
        return _first(self.verifications, lambda plan: plan.replicas == replicas)

    def plan(self, replicas: Sizes) -> AccumulationPlan | None:
        """The recorded plan of these sizes that was chosen in the end, likewise."""
        return _first(self.plans, lambda plan: plan.replicas == replicas)

    def soak(self, sizes: tuple[int, ...], steps: int) -> Soak | None:
        """The recorded soak of a replica's micro-batch sizes over so many optimizer steps, then that with another setting's."""
        return _first(self.soaks, lambda soak: (soak.micro_batch_sizes, soak.steps) == (sizes, steps))

    def note(self, beginning: str) -> str | None:
        """The recorded note that begins so, where a note is all that a job came to, likewise."""
        return next((text for text in self.notes if text.startswith(beginning)), None)

    def seconds_of_search(self, purpose: Purpose, this_run: float) -> float:
        """What the search took: as recorded, else its recorded trials by themselves and `this_run` of going on."""
        return self.search_seconds.get(purpose, self.trial_seconds.get(purpose, 0.0) + this_run)

    def covers(self, event: Event) -> bool:
        """Whether `event` is on record; it is taken off.

        Raises UsageError where the records hold something else at that place: another workload or options made them.
        """
        if isinstance(event, Began):
            self.began = True
        elif isinstance(event, Started) and self.began:
            self._check_empty(event.what)
        return self._take(event)

    def _take(self, event: Event) -> bool:
        match event:
            case SizeTried(trial=trial):
                return _take(self.trials[trial.purpose], trial)
            case Timed(throughput=throughput):
                return _remove(self.throughput, throughput)
            case Compared(trial=trial):
                return _take(self.comparison, trial)
            case Checked(equivalence=equivalence):
                return _take(self.checks, equivalence)
            case Verified(plan=plan) | Planned(plan=plan):
                return _take(self.plans if isinstance(event, Planned) else self.verifications, plan)
            case Found(finding=finding):
                recorded = self.ends.pop(finding.purpose, None)
                if recorded is not None and recorded != _end(finding):
                    raise _unlike(f"{recorded[0]} as the largest size that fits", f"{finding.largest_fit}")
                return recorded is not None
            case SoakEnded(soak=soak):
                return _take(self.soaks, soak)
            case Noted(text=text):
                return _remove(self.notes, text)
        return False

    def _check_empty(self, what: str) -> None:
        """Raise UsageError where something is about to run although the records go on with something else."""
        found = [f"{largest} as the largest size that fits" for largest, _ in self.ends.values()]
        sizes = [f"the trial of size {trial.micro_batch_size}" for trials in self.trials.values() for trial in trials]
        times = [f"the time of size {timed.micro_batch_size}" for timed in self.throughput]
        ways = [f"{_words(trial.strategy)} of {trial.accumulation_steps} micro-batches" for trial in self.comparison]
        checks = [f"the check with {check.batch_size} samples" for check in self.checks]
        plans = [f"the plan {list(plan.micro_batch_sizes)}" for plan in (*self.verifications, *self.plans)]
        soaks = [f"the soak of the plan {list(soak.micro_batch_sizes)}" for soak in self.soaks]
        left = [*sizes, *found, *times, *checks, *plans, *soaks, *ways]
        if left:
            raise _unlike(left[0], what)


def _first(queue: list[T], is_meant: Callable[[T], bool]) -> T | None:
    return queue[0] if queue and is_meant(queue[0]) else None


def _take(queue: list[T], value: T) -> bool:
    if not queue or queue[0] != value:
        return False
    del queue[0]
    return True


def _remove(values: list[T], value: T) -> bool:
    known = value in values
    if known:
        values.remove(value)
    return known


def _end(finding: Finding) -> tuple[int, int | None]:
    return finding.largest_fit, finding.smallest_misfit


def _words(strategy: Strategy) -> str:
    return strategy.value.replace("_", " ")


def _unlike(recorded: str, now: str) -> UsageError:
    return UsageError(
        f"the records go on with {recorded}, and this probe with {now}: another workload, option or version made them. "
        "Start a new probe."
    )
