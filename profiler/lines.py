"""One line of `records.jsonl`: a value as a JSON object with its schema and kind, and back; standard library only.

    {"schema": 1, "kind": "run", "workload": ..., "device": ..., "capacity_bytes": ..., "environment": {...}, ...}
    {"schema": 1, "kind": "trial", "micro_batch_size": 1, "outcome": "fits", "peak_bytes": ..., "seconds": ..., ...}

The kinds: "run" (a `RunInfo`), "trial", "comparison" and "evaluation" (a `Trial`), "throughput" (a `Throughput`),
"finding" and "evaluation_finding" (a `SearchEnd`), "equivalence" (an `Equivalence`), "verified_plan" and "plan" (an
`AccumulationPlan`: one that ran its five steps, before its soak, and the one that was chosen in the end), "soak" (a `Soak`, of
which a plan that failed leaves one too) and "note" (a sentence). Keys are the dataclass's fields, with their units; a trial's
outcome lies flat beside its other fields, and one of evaluation has no strategy. Unknown is null.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from statistics import quantiles
from typing import Any

from profiler.codec import decode, encode
from profiler.equivalence import Equivalence
from profiler.outcomes import Finding, Fits, OutOfMemory, Purpose, Refused, Throughput, Trial
from profiler.plan import AccumulationPlan
from profiler.report import RunInfo
from profiler.soak import Soak

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchEnd:
    """How a search ended: a `Finding` without its trials, which have lines of their own, and what the search took."""

    largest_fit: int
    smallest_misfit: int | None
    limited_by: str
    capacity_bytes: int
    search_seconds: float
    search_trials: int


Value = RunInfo | Trial | Throughput | SearchEnd | Equivalence | AccumulationPlan | Soak | str

_KINDS: dict[type, str] = {
    RunInfo: "run",
    Trial: "trial",
    Throughput: "throughput",
    SearchEnd: "finding",
    Equivalence: "equivalence",
    AccumulationPlan: "plan",
    Soak: "soak",
    str: "note",
}
# Kinds whose record is their dataclass's fields and no more.
_DECODED: dict[str, type[RunInfo | SearchEnd | Equivalence | AccumulationPlan | Soak]] = {
    "run": RunInfo,
    "finding": SearchEnd,
    "evaluation_finding": SearchEnd,
    "equivalence": Equivalence,
    "verified_plan": AccumulationPlan,
    "plan": AccumulationPlan,
    "soak": Soak,
}
_OUTCOMES: dict[str, type[Fits] | type[OutOfMemory] | type[Refused]] = {
    "fits": Fits,
    "fits_after_retry": Fits,
    "out_of_memory": OutOfMemory,
    "refused": Refused,
}
_OUTCOME_FIELDS = tuple(dict.fromkeys(field.name for cls in (Fits, OutOfMemory, Refused) for field in fields(cls)))


def search_end(finding: Finding, *, search_seconds: float, search_trials: int) -> SearchEnd:
    """What `finding` says beside its trials."""
    return SearchEnd(
        largest_fit=finding.largest_fit,
        smallest_misfit=finding.smallest_misfit,
        limited_by=finding.limited_by,
        capacity_bytes=finding.capacity_bytes,
        search_seconds=search_seconds,
        search_trials=search_trials,
    )


def to_record(value: Value, *, kind: str | None = None) -> dict[str, Any]:
    """`value` as the object of one line; `kind` follows from it, but for a comparison's trial and a plan that is only verified."""
    evaluates = isinstance(value, Trial) and value.purpose is Purpose.EVALUATION
    head: dict[str, Any] = {"schema": SCHEMA, "kind": kind or ("evaluation" if evaluates else _KINDS[type(value)])}
    if isinstance(value, str):
        return head | {"text": value}
    return head | (trial_entries(value) if isinstance(value, Trial) else encode(value))


def trial_entries(trial: Trial) -> dict[str, Any]:
    """A trial as one flat object: its outcome's label, then every field of any outcome, null where this one has none."""
    entries: dict[str, Any] = {"micro_batch_size": trial.micro_batch_size, "outcome": trial.outcome.label}
    entries |= {name: getattr(trial.outcome, name, None) for name in _OUTCOME_FIELDS}
    way = ("strategy", "accumulation_steps") if trial.purpose is Purpose.TRAINING else ()
    return entries | {name: encode(getattr(trial, name)) for name in (*way, "why")}


def throughput_entries(timed: Throughput) -> dict[str, Any]:
    """A timing as one flat object: medians and quartiles over its windows in place of the windows."""
    seconds = timed.micro_step_seconds
    fast, _, slow = quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
    return {
        "micro_batch_size": timed.micro_batch_size,
        "samples_per_second": timed.samples_per_second,
        "samples_per_second_low": timed.micro_batch_size / slow,
        "samples_per_second_high": timed.micro_batch_size / fast,
        "spread": timed.spread,
        "micro_step_seconds": timed.median_micro_step_seconds,
        "optimizer_seconds": timed.median_optimizer_seconds if timed.optimizer_seconds else None,
        "windows": len(seconds),
        "joules_per_sample": timed.joules_per_sample,
        "energy_note": timed.energy_note,
    }


def from_record(record: Mapping[str, Any]) -> Value:
    """The value that `to_record` made this object of.

    Raises ValueError, with the reason, where the object is no record of this schema, and UsageError where it is a plan
    that contradicts itself.
    """
    if record.get("schema") != SCHEMA:
        raise ValueError(f'"schema" is {record.get("schema")!r}, and this version reads {SCHEMA}')
    kind = record.get("kind")
    if isinstance(kind, str) and kind in _DECODED:
        return decode(_DECODED[kind], record)
    match kind:
        case "trial" | "comparison":
            return _trial(record, Purpose.TRAINING)
        case "evaluation":
            return _trial(record, Purpose.EVALUATION)
        case "throughput":
            return _throughput(record)
        case "note" if isinstance(record.get("text"), str):
            return str(record["text"])
    raise ValueError(f'"kind" is {record.get("kind")!r}, none that this version knows')


def _trial(record: Mapping[str, Any], purpose: Purpose) -> Trial:
    outcome = _OUTCOMES.get(str(record.get("outcome")))
    if outcome is None:
        raise ValueError(f'"outcome" is {record.get("outcome")!r}, not one of {", ".join(_OUTCOMES)}')
    return decode(Trial, record, outcome=decode(outcome, record), purpose=purpose)


def _throughput(record: Mapping[str, Any]) -> Throughput:
    throughput = decode(Throughput, record)
    if not throughput.micro_step_seconds or min(throughput.micro_step_seconds) <= 0:
        raise ValueError(f'"micro_step_seconds" is {record["micro_step_seconds"]}, not a list of positive numbers')
    return throughput
