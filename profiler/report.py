"""Everything a probe found out, as one value; standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from profiler.equivalence import Equivalence
from profiler.outcomes import Finding, Throughput, Trial
from profiler.plan import AccumulationPlan
from profiler.simulation.cards import is_simulated
from profiler.soak import Soak


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """What was asked, where, and with what; known before the first trial.

    capacity_bytes: what the process may use. headroom: the share of it a recommended plan leaves unused.
    environment: versions, device name, driver, threads: what two records must share to be compared.
    command: what to type to get these results again, None from Python. directory: where it was typed, None where unknown.
    started_at: local time with its offset, ISO 8601.
    target_sha256: of the user's file that the target names; None where it names none. What the file imports is not in it.
    """

    workload: str
    device: str
    capacity_bytes: int
    headroom: float
    effective_batch_size: int | None = None
    data_parallel_size: int = 1
    command: str | None = None
    directory: str | None = None
    started_at: str
    environment: Mapping[str, str] = field(default_factory=dict)
    target_sha256: str | None = None

    @property
    def is_simulated(self) -> bool:
        """Whether its card is not here, and its numbers were predicted."""
        return is_simulated(self.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A probe's results. `comparison` holds trials of the three strategies; `plan` is None without an effective batch.

    finding: the largest micro-batch, evaluation: the largest batch of evaluation; None where that was not asked for.
    equivalence: whether accumulation equals the whole batch, None where that was not asked or could not be checked.
    soak: the last that ran, which is the plan's where there is one; None where none was asked for.
    search_seconds: wall time of the search for the largest micro-batch alone, ladder, timing and comparison excluded; of a
    search that was resumed, the seconds of the recorded trials by themselves and the wall time since.
    search_trials: how many trials the search needed. evaluation_search_seconds, evaluation_search_trials: the same of the
    search for the largest batch of evaluation. notes: what the user should know, a sentence each.
    """

    run: RunInfo
    finding: Finding | None
    evaluation: Finding | None = None
    throughput: tuple[Throughput, ...] = ()
    comparison: tuple[Trial, ...] = ()
    equivalence: Equivalence | None = None
    plan: AccumulationPlan | None = None
    soak: Soak | None = None
    search_seconds: float = 0.0
    search_trials: int = 0
    evaluation_search_seconds: float = 0.0
    evaluation_search_trials: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The three strategies at one micro-batch size: `comparison` holds their trials, `trials` that of the size itself."""

    run: RunInfo
    trials: tuple[Trial, ...]
    comparison: tuple[Trial, ...]
    notes: tuple[str, ...] = ()
