"""What happens during a probe, told to whoever watches: the progress display, the records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from profiler.equivalence import Equivalence
from profiler.outcomes import Finding, Throughput, Trial
from profiler.plan import AccumulationPlan
from profiler.report import RunInfo
from profiler.soak import Soak


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A job begins: what it does, in words, and why."""

    what: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeTried:
    """A sizing trial ended."""

    trial: Trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The search for the largest micro-batch, or batch of evaluation, ended, after `trials` trials in `seconds`."""

    finding: Finding
    trials: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """A size was timed."""

    throughput: Throughput


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One strategy was run with one number of micro-batches."""

    trial: Trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """Accumulation was compared with the whole batch."""

    equivalence: Equivalence


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """A plan was run for five optimizer steps; told once more where its time was measured apart."""

    plan: AccumulationPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A plan was chosen and run, for its soak too where one was asked for."""

    plan: AccumulationPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class SoakEnded:
    """A plan was run for many optimizer steps, to the end or not; told once more with what another setting gave."""

    soak: Soak


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted:
    """Something the user should know, in a sentence."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Began:
    """The workload was loaded and the device answered; the probe begins."""

    run: RunInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """What an interrupted probe recorded is taken over: so many trials of sizes, timings, and trials of strategies."""

    trials: int
    timings: int
    compared: int


Event = (
    Began | Resumed | Started | SizeTried | Found | Timed | Compared | Checked | Verified | Planned | SoakEnded | Noted
)
Observer = Callable[[Event], None]


def unobserved(event: Event) -> None:
    """Watch nothing."""
