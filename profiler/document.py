"""A run, or a check, as one JSON object: what `--json` prints and `plan.json` holds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from profiler.codec import encode
from profiler.equivalence import Equivalence
from profiler.lines import SCHEMA, throughput_entries, trial_entries
from profiler.outcomes import OutOfMemory
from profiler.plan import AccumulationPlan
from profiler.records import Records, records_of
from profiler.report import Report, RunInfo


def to_json_document(results: Report | Records, files: Iterable[Path] = ()) -> dict[str, Any]:
    """The whole run as one object of JSON types, schema 1; unknown is null, `files` are the paths that were written.

    "predicted": whether the card was simulated, so that no number was measured. "peak_bytes" is in the unit of
    "capacity_bytes"; of a trial that ran out of memory it is the peak up to the failure.
    "search" counts the out-of-memory events of all "trials". Where no search was made or it was interrupted, "limited_by"
    is null and the two sizes are the bounds so far. "equivalence" is null where that was not checked, "soak" where none was
    asked for; else it is that of the plan, or the last one that failed. "evaluation" is the same of batches of evaluation, of
    which "micro_batch_size" counts the samples; null where none was tried.
    """
    records = records_of(results)
    return {
        "schema": SCHEMA,
        "workload": records.run.workload,
        "device": records.run.device,
        "predicted": records.run.is_simulated,
        "capacity_bytes": records.run.capacity_bytes,
        "headroom": records.run.headroom,
        "largest_fit": records.largest_fit,
        "smallest_misfit": records.smallest_misfit,
        "limited_by": records.finding.limited_by if records.finding else None,
        "trials": [trial_entries(trial) for trial in records.trials],
        "evaluation": _evaluation_entries(records.of_evaluation) if records.evaluations else None,
        "throughput": [throughput_entries(timed) for timed in records.throughput],
        "comparison": [trial_entries(trial) for trial in records.comparison],
        "equivalence": equivalence_entries(records.equivalence) if records.equivalence else None,
        "plan": plan_entries(records.plan) if records.plan else None,
        "soak": encode(records.soak) if records.soak else None,
        "search": _search_entries(records),
        "notes": list(records.notes),
        "files": [str(path) for path in files],
    }


def _evaluation_entries(records: Records) -> dict[str, Any]:
    return {
        "largest_fit": records.largest_fit,
        "smallest_misfit": records.smallest_misfit,
        "limited_by": records.finding.limited_by if records.finding else None,
        "trials": [trial_entries(trial) for trial in records.trials],
        "search": _search_entries(records),
    }


def _search_entries(records: Records) -> dict[str, Any]:
    return {
        "trials": records.search_trials,
        "seconds": records.search_seconds,
        "out_of_memory": sum(isinstance(trial.outcome, OutOfMemory) for trial in records.trials),
    }


def plan_document(records: Records) -> dict[str, Any] | None:
    """What `plan.json` holds: the plan, and where and for what it was made; None where there is no plan."""
    if records.plan is None:
        return None
    run = records.run
    return {
        "schema": SCHEMA,
        "workload": run.workload,
        "device": run.device,
        "predicted": run.is_simulated,
        "capacity_bytes": run.capacity_bytes,
        "headroom": run.headroom,
        "largest_fit": records.largest_fit,
        "started_at": run.started_at,
        "command": run.command,
        "environment": dict(run.environment),
        "equivalence": equivalence_entries(records.equivalence) if records.equivalence else None,
        "plan": plan_entries(records.plan),
    }


def check_document(run: RunInfo, equivalence: Equivalence) -> dict[str, Any]:
    """What `microbatch check --json` prints: what was checked, where, and everything that came of it."""
    return {
        "schema": SCHEMA,
        "workload": run.workload,
        "device": run.device,
        **equivalence_entries(equivalence),
    }


def equivalence_entries(equivalence: Equivalence) -> dict[str, Any]:
    """A check as one object; "ways" has one for each way to the gradient, with null for numbers that it did not give."""
    return {
        "batch_size": equivalence.batch_size,
        "equal": equivalence.equal,
        "decomposes": equivalence.decomposes.value,
        "items": equivalence.items,
        "modules": list(equivalence.modules),
        "random_modules": list(equivalence.random_modules),
        "verdict": equivalence.verdict,
        "reasons": list(equivalence.reasons),
        "ways": encode(equivalence.ways),
        "advice": equivalence.advice,
        "notes": list(equivalence.notes),
    }


def plan_entries(plan: AccumulationPlan) -> dict[str, Any]:
    """A plan as one object: the first replica's micro-batches and weights, every replica's sizes, and what it costs.

    A micro-batch's averaged loss is multiplied by its weight and by "replica_factor" before its backward.
    """
    return {
        "micro_batch_sizes": list(plan.micro_batch_sizes),
        "weights": list(plan.weights),
        "accumulation_steps": plan.accumulation_steps,
        "effective_batch_size": plan.effective_batch_size,
        "data_parallel_size": plan.data_parallel_size,
        "replicas": [list(sizes) for sizes in plan.replicas],
        "replica_weights": [list(weights) for weights in plan.replica_weights],
        "replica_factor": plan.replica_factor,
        "peak_bytes": plan.peak_bytes,
        "step_seconds": plan.step_seconds,
        "verified_steps": plan.verified_steps,
        "soaked_steps": plan.soaked_steps,
        "soaked_peak_bytes": plan.soaked_peak_bytes,
        "predicted_peak_bytes": plan.predicted_peak_bytes,
        "predicted_step_seconds": plan.predicted_step_seconds,
        "equivalence": plan.equivalence,
        "reason": plan.reason,
        "notes": list(plan.notes),
    }
