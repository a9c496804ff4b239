from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sample_checks import CHECKS, unequal_check
from sample_records import nothing_fits, resnet

from profiler.errors import UsageError
from profiler.lines import (
    SCHEMA,
    SearchEnd,
    Value,
    from_record,
    search_end,
    throughput_entries,
    to_record,
    trial_entries,
)
from profiler.outcomes import Fits, OutOfMemory, Purpose, Strategy, Throughput, Trial
from profiler.plan import AccumulationPlan

END = SearchEnd(
    largest_fit=212, smallest_misfit=213, limited_by="memory", capacity_bytes=1, search_seconds=2.0, search_trials=5
)
TRIAL = Trial(micro_batch_size=4, outcome=Fits(peak_bytes=40, seconds=1.0))
TIMED = Throughput(micro_batch_size=4, micro_step_seconds=(0.5,), optimizer_seconds=())
PLAN = AccumulationPlan(effective_batch_size=5, replicas=((3, 2),), reason="It is a test's.", equivalence="equal")


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (resnet().run, "run"),
        (TRIAL, "trial"),
        (TIMED, "throughput"),
        (END, "finding"),
        *((make(), "equivalence") for make in CHECKS.values()),
        (PLAN, "plan"),
        ("a", "note"),
    ],
)
def test_a_value_is_called_by_its_kind_after_the_schema(value: Value, kind: str) -> None:
    record = to_record(value)

    assert list(record)[:2] == ["schema", "kind"]
    assert (record["schema"], record["kind"]) == (SCHEMA, kind)
    assert from_record(record) == value


def test_a_trial_of_a_comparison_is_called_one_and_is_a_trial_all_the_same() -> None:
    record = to_record(TRIAL, kind="comparison")

    assert record["kind"] == "comparison"
    assert record | {"kind": "trial"} == to_record(TRIAL)
    assert from_record(record) == TRIAL


def test_an_evaluation_is_called_one_and_has_no_way_to_a_gradient() -> None:
    evaluated = replace(TRIAL, purpose=Purpose.EVALUATION)
    record = to_record(evaluated)
    trained = to_record(TRIAL) | {"kind": "evaluation"}

    assert record == {name: trained[name] for name in trained if name not in ("strategy", "accumulation_steps")}
    assert from_record(record) == evaluated


def test_the_end_of_a_search_of_evaluation_is_called_so_and_is_an_end_all_the_same() -> None:
    record = to_record(END, kind="evaluation_finding")

    assert from_record(record) == END


def test_a_check_is_written_with_every_way() -> None:
    record = to_record(unequal_check())

    assert (record["equal"], record["decomposes"], record["batch_size"]) == (False, "items", 16)
    assert record["modules"][:2] == ["layers.0.norm", "layers.1.norm"]
    assert len(record["ways"]) == 14
    assert record["ways"][1] == {
        "strategy": "summed_loss",
        "split": [4, 4, 4, 4],
        "precision": "fp64",
        "loss": pytest.approx(2.612585093),
        "gradient_difference": 0.31,
        "bound": 3.6e-12,
        "parameter_sum": pytest.approx(-1234.87789),
        "equal": False,
        "why": "BatchNorm normalises each micro-batch by itself (9 layers)",
    }


def test_a_plan_of_before_checks_were_made_is_read() -> None:
    record = to_record(PLAN)
    del record["equivalence"]

    assert from_record(record) == replace(PLAN, equivalence=None)


def test_a_note_is_its_text() -> None:
    assert to_record("stop other jobs") == {"schema": SCHEMA, "kind": "note", "text": "stop other jobs"}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({}, '"schema" is None, and this version reads 1'),
        ({"schema": "1", "kind": "note", "text": "a"}, "\"schema\" is '1', and this version reads 1"),
        ({"schema": 1}, '"kind" is None, none that this version knows'),
        ({"schema": 1, "kind": "note"}, "\"kind\" is 'note', none that this version knows"),
        ({"schema": 1, "kind": "note", "text": 3}, "\"kind\" is 'note', none that this version knows"),
        ({"schema": 1, "kind": "trial", "outcome": "fits"}, '"peak_bytes" is missing'),
        ({"schema": 1, "kind": "trial", "outcome": "out_of_memory", "peak_bytes": 1}, '"phase" is missing'),
        ({"schema": 1, "kind": "equivalence"}, '"batch_size" is missing'),
        (to_record(unequal_check()) | {"equal": "no"}, "\"equal\" is 'no', not true or false"),
        (to_record(unequal_check()) | {"decomposes": "parts"}, "not one of samples, items, weighted, sum, no"),
        (to_record(unequal_check()) | {"ways": [{"split": [1]}]}, '"strategy" is missing'),
        (
            to_record(TIMED) | {"micro_step_seconds": [1, -1]},
            r'"micro_step_seconds" is \[1, -1\], not a list of positive',
        ),
    ],
)
def test_an_object_that_is_no_record_is_refused_with_its_reason(record: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_record(record)


def test_a_plan_that_contradicts_itself_is_refused_as_a_plan() -> None:
    with pytest.raises(UsageError, match="add up to 5, not to the effective batch of 6"):
        from_record(to_record(PLAN) | {"effective_batch_size": 6})


def test_trials_have_the_same_keys_whatever_they_came_to() -> None:
    failed = replace(TRIAL, outcome=OutOfMemory(phase="forward", message="out", evidence="certain", seconds=1.0))
    retried = replace(TRIAL, outcome=Fits(peak_bytes=40, seconds=1.0, allocator_retries=2))

    assert list(trial_entries(failed)) == list(trial_entries(TRIAL)) == list(trial_entries(retried))
    assert trial_entries(failed)["allocator_retries"] is None
    assert trial_entries(TRIAL)["phase"] is None
    outcomes = [trial_entries(trial)["outcome"] for trial in (TRIAL, retried, failed)]
    assert outcomes == ["fits", "fits_after_retry", "out_of_memory"]


def test_a_trial_is_written_with_how_and_why_it_was_run() -> None:
    trial = replace(TRIAL, strategy=Strategy.SUMMED_LOSS, accumulation_steps=8, why="to compare peaks")
    told = {"strategy": "summed_loss", "accumulation_steps": 8, "why": "to compare peaks"}

    assert trial_entries(trial) | told == trial_entries(trial)


def test_a_timing_is_written_as_its_median_and_quartiles() -> None:
    timed = Throughput(
        micro_batch_size=12,
        micro_step_seconds=(1.2, 0.8, 1.0, 0.6, 9.0),
        optimizer_seconds=(0.2, 0.4),
        joules_per_sample=0.5,
    )

    assert throughput_entries(timed) == {
        "micro_batch_size": 12,
        "samples_per_second": 12.0,
        "samples_per_second_low": pytest.approx(10.0),
        "samples_per_second_high": pytest.approx(15.0),
        "spread": pytest.approx(0.4),
        "micro_step_seconds": 1.0,
        "optimizer_seconds": pytest.approx(0.3),
        "windows": 5,
        "joules_per_sample": 0.5,
        "energy_note": None,
    }


def test_a_finding_is_written_without_its_trials() -> None:
    records = nothing_fits()
    assert records.finding is not None

    assert search_end(records.finding, search_seconds=1.5, search_trials=1) == SearchEnd(
        largest_fit=0,
        smallest_misfit=1,
        limited_by="memory",
        capacity_bytes=records.finding.capacity_bytes,
        search_seconds=1.5,
        search_trials=1,
    )
