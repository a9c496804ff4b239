from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sample_checks import equal_check, unequal_check
from sample_records import SHAPES, bent, evaluated, evaluated_alone, no_plan, nothing_fits, resnet
from sample_soaks import out_of_memory

from profiler.codec import decode, encode
from profiler.document import check_document, plan_document, to_json_document
from profiler.equivalence import Decomposition, Equivalence, Way
from profiler.errors import UsageError
from profiler.lines import SearchEnd, Value, from_record, to_record
from profiler.outcomes import Finding, Fits, OutOfMemory, Purpose, Refused, Strategy, Throughput, Trial
from profiler.plan import AccumulationPlan
from profiler.records import (
    Records,
    RecordWriter,
    read_records,
    records_of,
    soak_frame,
    summed_loss_frame,
    table_frame,
    throughput_frame,
    trials_frame,
)
from profiler.report import Report, RunInfo
from profiler.soak import Soak, SoakFailure, SoakPoint

PEAKS = {"peak_bytes", "peak_allocated_bytes", "peak_reserved_bytes", "peak_device_used_bytes", "peak_resident_bytes"}

sizes = st.integers(1, 10**6)
amounts = st.integers(0, 2**50)
seconds = st.floats(0, 1e9)
durations = st.floats(1e-9, 1e6)
maybe = st.none()
texts = st.text()
fits = st.builds(
    Fits,
    peak_bytes=amounts,
    peak_allocated_bytes=maybe | amounts,
    peak_reserved_bytes=maybe | amounts,
    peak_device_used_bytes=maybe | amounts,
    peak_resident_bytes=maybe | amounts,
    allocator_retries=st.integers(0, 9),
    seconds=seconds,
)
misfits = st.builds(
    OutOfMemory, phase=texts, message=texts, evidence=texts, peak_bytes=maybe | amounts, seconds=seconds
)
refusals = st.builds(Refused, phase=texts, message=texts, evidence=texts, at_most=maybe | amounts, seconds=seconds)
trials = st.builds(
    Trial,
    micro_batch_size=sizes,
    outcome=fits | misfits | refusals,
    strategy=st.sampled_from(Strategy),
    accumulation_steps=sizes,
    why=texts,
)
timings = st.builds(
    Throughput,
    micro_batch_size=sizes,
    micro_step_seconds=st.lists(durations, min_size=1, max_size=5).map(tuple),
    optimizer_seconds=st.lists(seconds, max_size=3).map(tuple),
    joules_per_sample=maybe | seconds,
    energy_note=maybe | texts,
)
runs = st.builds(
    RunInfo,
    workload=texts,
    device=texts,
    capacity_bytes=amounts,
    headroom=st.floats(0, 0.99),
    effective_batch_size=maybe | sizes,
    data_parallel_size=sizes,
    command=maybe | texts,
    started_at=texts,
    environment=st.dictionaries(texts, texts, max_size=3),
)


@st.composite
def plans(draw: st.DrawFn) -> AccumulationPlan:
    count = draw(st.integers(1, 4))
    parts = st.lists(sizes, min_size=count, max_size=count).map(tuple)
    replicas = draw(st.lists(parts, min_size=1, max_size=3))
    replicas[0] = (max(map(max, replicas)), *replicas[0][1:])
    return AccumulationPlan(
        effective_batch_size=sum(map(sum, replicas)),
        replicas=tuple(replicas),
        reason=draw(texts),
        notes=draw(st.lists(texts, max_size=2).map(tuple)),
        predicted_peak_bytes=draw(maybe | amounts),
        predicted_step_seconds=draw(maybe | seconds),
        peak_bytes=draw(maybe | amounts),
        step_seconds=draw(maybe | seconds),
        verified_steps=draw(st.integers(0, 9)),
        equivalence=draw(maybe | texts),
    )


ways = st.builds(
    Way,
    strategy=st.sampled_from(Strategy),
    split=st.lists(sizes, max_size=3).map(tuple),
    precision=texts,
    loss=maybe | seconds,
    gradient_difference=maybe | seconds,
    bound=seconds,
    parameter_sum=maybe | seconds,
    equal=st.booleans(),
    why=texts,
)
checks = st.builds(
    Equivalence,
    batch_size=sizes,
    equal=st.booleans(),
    decomposes=st.sampled_from(Decomposition),
    items=maybe | texts,
    modules=st.lists(texts, max_size=2).map(tuple),
    random_modules=st.lists(texts, max_size=2).map(tuple),
    ways=st.lists(ways, max_size=2).map(tuple),
    verdict=texts,
    reasons=st.lists(texts, max_size=2).map(tuple),
    advice=texts,
    notes=st.lists(texts, max_size=2).map(tuple),
)


failures = st.builds(
    SoakFailure,
    step=maybe | sizes,
    phase=texts,
    message=texts,
    elements=maybe | sizes,
    unused_bytes=maybe | amounts,
)
points = st.builds(
    SoakPoint,
    step=sizes,
    peak_bytes=amounts,
    reserved_bytes=maybe | amounts,
    unused_bytes=maybe | amounts,
    largest_elements=maybe | sizes,
)


def soaks_like(again: st.SearchStrategy[Soak | None]) -> st.SearchStrategy[Soak]:
    return st.builds(
        Soak,
        micro_batch_sizes=st.lists(sizes, min_size=1, max_size=3).map(tuple),
        steps=sizes,
        steps_run=sizes,
        seconds=seconds,
        peak_bytes=maybe | amounts,
        points=st.lists(points, max_size=3).map(tuple),
        failure=maybe | failures,
        environment=maybe | texts,
        again=again,
    )


soaks = soaks_like(maybe | soaks_like(maybe))


evaluations = st.builds(
    Trial, micro_batch_size=sizes, outcome=fits | misfits, why=texts, purpose=st.just(Purpose.EVALUATION)
)


@st.composite
def searches(draw: st.DrawFn, tries: st.SearchStrategy[Trial] = trials) -> Finding:
    tried = tuple(draw(st.lists(tries, max_size=6, unique_by=lambda trial: trial.micro_batch_size)))
    fitting = [trial.micro_batch_size for trial in tried if trial.fits]
    failing = [trial.micro_batch_size for trial in tried if not trial.fits]
    least = min(failing, default=None)
    assume(fitting or failing)
    assume(least is None or least > max(fitting, default=0))
    return Finding(
        largest_fit=max(fitting, default=0),
        smallest_misfit=least,
        limited_by="memory" if failing else "ceiling",
        capacity_bytes=draw(amounts),
        trials=tried,
        purpose=tried[0].purpose,
    )


reports = st.builds(
    Report,
    run=runs,
    finding=maybe | searches(),
    evaluation=maybe | searches(evaluations),
    throughput=st.lists(timings, max_size=3).map(tuple),
    comparison=st.lists(trials, max_size=4).map(tuple),
    equivalence=maybe | checks,
    plan=maybe | plans(),
    soak=maybe | soaks,
    search_seconds=seconds,
    search_trials=st.integers(0, 99),
    evaluation_search_seconds=seconds,
    evaluation_search_trials=st.integers(0, 99),
    notes=st.lists(texts, max_size=2).map(tuple),
)


@given(value=runs | trials | evaluations | timings | checks | plans() | soaks | texts)
def test_a_value_survives_its_line(value: Value) -> None:
    line = json.dumps(to_record(value), allow_nan=False)

    assert "\n" not in line
    assert from_record(json.loads(line)) == value


@given(report=reports)
def test_a_report_survives_its_file(report: Report) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "records.jsonl"
        with RecordWriter(path) as writer:
            writer.append_all(report)

        assert read_records(path) == records_of(report)


@given(report=reports)
def test_the_json_document_is_json(report: Report) -> None:
    document = to_json_document(report, [Path("a/table.csv")])

    assert json.loads(json.dumps(document, allow_nan=False)) == document
    trained = report.finding.trials if report.finding else ()
    assert document["search"]["out_of_memory"] == sum(isinstance(trial.outcome, OutOfMemory) for trial in trained)
    assert (document["evaluation"] is None) == (report.evaluation is None)


def write(path: Path, records: Records) -> Path:
    with RecordWriter(path) as writer:
        writer.append_all(records)
    return path


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return write(tmp_path / "records.jsonl", resnet())


def test_lines_are_flat_objects_with_units_in_their_keys(written: Path) -> None:
    lines = [json.loads(line) for line in written.read_text().splitlines()]

    assert lines[0] | {"environment": {}} == {
        "schema": 1,
        "kind": "run",
        "workload": "digits-resnet",
        "device": "cpu",
        "capacity_bytes": 512 * 2**20,
        "headroom": 0.05,
        "effective_batch_size": 512,
        "data_parallel_size": 1,
        "command": "microbatch probe",
        "directory": None,
        "started_at": "2026-11-23T08:31:05+01:00",
        "environment": {},
        "target_sha256": None,
    }
    assert lines[4] == {
        "schema": 1,
        "kind": "trial",
        "micro_batch_size": 213,
        "outcome": "out_of_memory",
        "peak_bytes": 511 * 2**20,
        "peak_allocated_bytes": None,
        "peak_reserved_bytes": None,
        "peak_device_used_bytes": None,
        "peak_resident_bytes": None,
        "unlimited_reserved_bytes": None,
        "least_capacity_bytes": None,
        "allocator_retries": None,
        "seconds": 0.5,
        "phase": "forward",
        "message": "out",
        "evidence": "certain",
        "at_most": None,
        "strategy": "accumulation",
        "accumulation_steps": 2,
        "why": "the sample's shape",
    }
    assert {line["kind"] for line in lines} == {"run", "trial", "throughput", "comparison", "finding", "soak", "plan"}


def test_each_line_is_in_the_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    with RecordWriter(path) as writer:
        values: list[Value] = [resnet().run, *resnet().trials]
        for number, value in enumerate(values, start=1):
            writer.append(value)
            assert path.read_text().count("\n") == number


def test_an_interruption_at_any_byte_keeps_what_was_written(written: Path) -> None:
    content = written.read_bytes()
    first = content.index(b"\n")
    whole = read_records(written)

    for end in range(first + 1, len(content), 37):
        written.write_bytes(content[:end])
        records = read_records(written)

        assert records.run == whole.run
        assert records.trials == whole.trials[: len(records.trials)]
        # A line that lacks only its end of line is whole.
        cut = content[end - 1 : end] != b"\n" and content[end : end + 1] != b"\n"
        assert any("cut short" in note for note in records.notes) == cut
        searching = records.finding is None and bool(records.trials) and not records.comparison
        assert any("No search was finished" in note for note in records.notes) == searching


def test_an_interrupted_run_says_what_it_knows_so_far(written: Path) -> None:
    lines = written.read_text().splitlines(keepends=True)
    written.write_text("".join(lines[:6]))
    records = read_records(written)
    document = to_json_document(records)

    assert (records.finding, records.plan, records.search_seconds) == (None, None, None)
    assert (records.largest_fit, records.smallest_misfit) == (212, 213)
    assert records.notes == ("No search was finished: sizes are bounds from 5 trials, not the answer.",)
    assert (document["largest_fit"], document["limited_by"], document["plan"]) == (212, None, None)
    assert document["search"] == {"trials": None, "seconds": None, "out_of_memory": 1}


def test_an_evaluation_has_lines_of_its_own_kinds_and_a_document_of_its_own(tmp_path: Path) -> None:
    path = write(tmp_path / "records.jsonl", evaluated())
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    own = [line for line in lines if line["kind"] == "evaluation"]
    (end,) = (line for line in lines if line["kind"] == "evaluation_finding")

    assert read_records(path) == evaluated()
    assert [line["micro_batch_size"] for line in own] == [1, 4, 16, 64, 1024, 2441, 2442]
    assert (end["largest_fit"], end["smallest_misfit"], end["search_trials"]) == (2441, 2442, 7)
    assert all("strategy" not in line and "accumulation_steps" not in line for line in own)
    document = to_json_document(evaluated())
    assert document["evaluation"] | {"trials": []} == {
        "largest_fit": 2441,
        "smallest_misfit": 2442,
        "limited_by": "memory",
        "trials": [],
        "search": {"trials": 7, "seconds": 9.5, "out_of_memory": 1},
    }
    assert [trial["micro_batch_size"] for trial in document["evaluation"]["trials"]][-1] == 2442
    assert document | {"evaluation": None} == to_json_document(resnet())


def test_an_evaluation_alone_has_no_micro_batch_sizes(tmp_path: Path) -> None:
    records = read_records(write(tmp_path / "records.jsonl", evaluated_alone()))
    document = to_json_document(records)

    assert records == evaluated_alone()
    assert (document["largest_fit"], document["limited_by"], document["trials"]) == (None, None, [])
    assert (document["evaluation"]["largest_fit"], document["evaluation"]["limited_by"]) == (64, "ceiling")


def test_an_evaluation_that_was_interrupted_says_what_it_knows_so_far(tmp_path: Path) -> None:
    path = write(tmp_path / "records.jsonl", evaluated_alone())
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]))
    records = read_records(path)
    document = to_json_document(records)["evaluation"]

    assert records.notes == (
        "The search of evaluation was not finished: sizes are bounds from 3 trials, not the answer.",
    )
    assert (document["largest_fit"], document["smallest_misfit"], document["limited_by"]) == (16, None, None)


def test_a_comparison_alone_is_no_interrupted_search(tmp_path: Path) -> None:
    compared = Records(run=resnet().run, trials=resnet().trials[-1:], comparison=resnet().comparison)

    assert read_records(write(tmp_path / "records.jsonl", compared)) == compared


def test_a_run_without_trials_has_no_sizes(tmp_path: Path) -> None:
    records = read_records(write(tmp_path / "records.jsonl", Records(run=resnet().run)))

    assert (records.largest_fit, records.smallest_misfit, records.notes) == (None, None, ())


def changed(number: int, **entries: object) -> Callable[[list[str]], list[str]]:
    def change(lines: list[str]) -> list[str]:
        lines[number - 1] = json.dumps(json.loads(lines[number - 1]) | entries)
        return lines

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            changed(2, schema=2),
            r"line 2, .*\"schema\" is 2, and this version reads 1.*Read it with the version that wrote",
        ),
        (changed(2, kind="tral"), r"line 2, .*\"kind\" is 'tral', none that this version knows"),
        (
            changed(2, outcome="maybe"),
            r"line 2, .*\"outcome\" is 'maybe', not one of fits, fits_after_retry, out_of_memory",
        ),
        (changed(2, outcome=["fits"]), r"line 2, .*\"outcome\" is \['fits'\]"),
        (changed(3, micro_batch_size="four"), r"line 3, .*\"micro_batch_size\" is 'four', not a whole number"),
        (changed(3, micro_batch_size=True), r"line 3, .*\"micro_batch_size\" is True, not a whole number"),
        (changed(3, seconds="1"), r"line 3, .*\"seconds\" is '1', not a number"),
        (
            changed(3, strategy="all"),
            r"line 3, .*\"strategy\" is 'all', not one of whole_batch, summed_loss, accumulation",
        ),
        (changed(1, environment=[]), r"line 1, .*\"environment\" is \[\], not an object"),
        (changed(1, workload=None), r"line 1, .*\"workload\" is None, not a text"),
        (
            lambda lines: [*lines[:4], lines[4][:30], *lines[5:]],
            r"line 5, is no record.*remove that line, or run the probe",
        ),
        (changed(3, seconds=float("nan")), "line 3, .*NaN is no number in JSON"),
        (lambda lines: [*lines[:2], "[1]", *lines[2:]], r"line 3, .*it is no JSON object"),
        (lambda lines: [*lines[:2], '{"schema": 1, "kind": "trial"}', *lines[2:]], r"line 3, .*\"outcome\" is None"),
        (
            lambda lines: [*lines[:2], '{"schema": 1, "kind": "finding"}', *lines[2:]],
            r"line 3, .*\"largest_fit\" is missing",
        ),
        (lambda lines: lines[1:], r"does not hold one run, with the run's record on its first line"),
        (lambda lines: [*lines, lines[0]], r"does not hold one run"),
    ],
)
def test_a_changed_file_is_refused_with_its_line(
    written: Path, change: Callable[[list[str]], list[str]], message: str
) -> None:
    written.write_text("\n".join(change(written.read_text().splitlines())) + "\n")

    with pytest.raises(UsageError, match=message) as caught:
        read_records(written)
    assert str(written) in str(caught.value)


def line_of(path: Path, kind: str) -> int:
    lines = path.read_text().splitlines()
    return next(number for number, line in enumerate(lines, start=1) if json.loads(line)["kind"] == kind)


@pytest.mark.parametrize(
    ("kind", "entries", "message"),
    [
        ("finding", {"largest_fit": 9000}, "the finding contradicts the trials: 9000 was never run"),
        ("plan", {"effective_batch_size": 500}, "add up to 512, not to the effective batch of 500"),
        ("throughput", {"micro_step_seconds": []}, "not a list of positive numbers"),
        ("throughput", {"micro_step_seconds": [0.1, 0.0]}, "not a list of positive numbers"),
    ],
)
def test_a_contradiction_is_refused(written: Path, kind: str, entries: dict[str, object], message: str) -> None:
    number = line_of(written, kind)
    lines = changed(number, **entries)(written.read_text().splitlines())
    written.write_text("\n".join(lines) + "\n")

    with pytest.raises(UsageError, match=message):
        read_records(written)


json_values = st.recursive(
    maybe | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)


@given(data=st.data(), value=runs | trials | timings | checks | plans(), new=json_values)
def test_any_value_under_any_key_is_read_or_refused_but_never_a_crash(
    data: st.DataObject, value: Value, new: Any
) -> None:
    record = to_record(value)
    record[data.draw(st.sampled_from(sorted(record)))] = new

    with suppress(ValueError, OverflowError, UsageError):
        from_record(record)


def test_keys_that_were_added_later_are_passed_over_and_missing_ones_take_their_default() -> None:
    record = to_record(resnet().trials[0]) | {"colour": "green"}
    del record["why"]

    assert from_record(record) == replace(resnet().trials[0], why="")


def test_a_whole_number_is_a_fine_float() -> None:
    end = SearchEnd(
        largest_fit=1, smallest_misfit=None, limited_by="ceiling", capacity_bytes=1, search_seconds=3.0, search_trials=1
    )

    assert decode(SearchEnd, encode(end) | {"search_seconds": 3}) == end


@pytest.mark.parametrize("content", [b"", b'{"schema": 1, "kind": "ru'])
def test_an_empty_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(content)

    with pytest.raises(UsageError, match="does not hold one run"):
        read_records(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"records\.jsonl cannot be read: No such file or directory; name the folder"):
        read_records(tmp_path / "records.jsonl")


def test_a_full_disk_is_said() -> None:
    with (
        RecordWriter(Path("/dev/full")) as writer,
        pytest.raises(UsageError, match="No space left on device; free some"),
    ):
        writer.append("a note")


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(UsageError, match="cannot be written"):
        RecordWriter(tmp_path / "records.jsonl")
    assert not (tmp_path / "elsewhere").exists()


def test_the_json_document_holds_what_the_command_promises() -> None:
    document = to_json_document(resnet(), [Path("results/table.csv")])

    head: dict[str, Any] = {
        "schema": 1,
        "workload": "digits-resnet",
        "device": "cpu",
        "capacity_bytes": 512 * 2**20,
        "largest_fit": 212,
        "smallest_misfit": 213,
        "limited_by": "memory",
        "search": {"trials": 6, "seconds": 12.5, "out_of_memory": 1},
        "files": ["results/table.csv"],
    }
    assert document | head == document
    trial = {"micro_batch_size": 1, "outcome": "fits", "peak_bytes": 145508794, "peak_allocated_bytes": None}
    trial |= {"peak_reserved_bytes": None, "peak_device_used_bytes": None, "seconds": 1.5}
    assert document["trials"][0] | trial == document["trials"][0]
    timed = document["throughput"][0]
    assert timed["micro_batch_size"] == 1
    assert timed["samples_per_second"] == pytest.approx(240 / 13)
    assert timed["spread"] == pytest.approx(0.04)
    compared = {"strategy": "whole_batch", "micro_batch_size": 171, "accumulation_steps": 1, "outcome": "fits"}
    assert document["comparison"][0] | compared == document["comparison"][0]
    plan = {
        "micro_batch_sizes": [171, 171, 170],
        "weights": [171 / 512, 171 / 512, 170 / 512],
        "accumulation_steps": 3,
        "effective_batch_size": 512,
        "data_parallel_size": 1,
        "replicas": [[171, 171, 170]],
        "step_seconds": 512 / 240,
        "verified_steps": 5,
        "reason": "It has the least time per optimizer step.",
    }
    assert document["plan"] | plan == document["plan"]


def test_a_file_of_before_checks_were_made_is_read_without_one(written: Path) -> None:
    lines = [json.loads(line) for line in written.read_text().splitlines()]
    for line in lines:
        line.pop("equivalence", None)
    written.write_text("".join(json.dumps(line) + "\n" for line in lines))

    assert read_records(written) == resnet()
    assert read_records(written).equivalence is None


def test_the_check_is_in_the_file_before_the_plan_and_comes_back(tmp_path: Path) -> None:
    checked = replace(resnet(), equivalence=unequal_check())
    path = write(tmp_path / "records.jsonl", checked)
    kinds = [json.loads(line)["kind"] for line in path.read_text().splitlines()]

    assert kinds[-3:] == ["equivalence", "soak", "plan"]
    assert read_records(path) == checked


def test_the_document_has_what_the_check_found() -> None:
    plan = resnet().plan
    assert plan is not None
    checked = replace(resnet(), equivalence=unequal_check(), plan=replace(plan, equivalence="not equal"))
    document, saved = to_json_document(checked), plan_document(checked)

    assert saved is not None
    assert document["equivalence"] == saved["equivalence"]
    assert document["plan"]["equivalence"] == saved["plan"]["equivalence"] == "not equal"
    assert document["equivalence"]["equal"] is False
    assert document["equivalence"]["modules"] == list(unequal_check().modules)
    for unchecked in (to_json_document(resnet()), plan_document(resnet())):
        assert unchecked is not None
        assert unchecked["equivalence"] is None
        assert unchecked["plan"]["equivalence"] is None


def test_the_document_of_a_check_has_these_keys() -> None:
    document = check_document(resnet().run, equal_check())

    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert list(document) == [
        *("schema", "workload", "device", "batch_size", "equal", "decomposes", "items", "modules", "random_modules"),
        *("verdict", "reasons", "ways", "advice", "notes"),
    ]
    assert (document["schema"], document["workload"], document["device"]) == (1, "digits-resnet", "cpu")
    assert (document["equal"], document["decomposes"], document["random_modules"]) == (
        True,
        "samples",
        ["body.1", "body.4"],
    )
    assert [way["split"] for way in document["ways"]][:4] == [[16], [4] * 4, [5, 5, 5, 1], [1] * 16]
    assert list(document["ways"][0]) == [
        *("strategy", "split", "precision", "loss", "gradient_difference", "bound", "parameter_sum", "equal", "why"),
    ]


def test_where_nothing_fits_the_largest_fit_is_0_and_the_plan_null() -> None:
    document = to_json_document(nothing_fits())

    assert (document["largest_fit"], document["smallest_misfit"], document["plan"]) == (0, 1, None)


def test_the_plan_document_says_where_and_for_what() -> None:
    document = plan_document(resnet())

    assert document is not None
    assert document["environment"] == {"torch": "2.13.0"}
    assert document["plan"] == to_json_document(resnet())["plan"]
    assert plan_document(nothing_fits()) is None


def test_frames_hold_a_row_a_point_in_types_that_know_a_missing_value() -> None:
    frame = trials_frame(resnet())

    assert list(frame["micro_batch_size"]) == [1, 4, 16, 213, 212, 2, 8, 32, 64, 128, 171]
    assert {name: str(frame.dtypes[name]) for name in ("micro_batch_size", "peak_bytes", "seconds", "outcome")} == {
        "micro_batch_size": "Int64",
        "peak_bytes": "Int64",
        "seconds": "Float64",
        "outcome": "string",
    }
    assert set(frame.columns) >= PEAKS
    assert frame["peak_allocated_bytes"].isna().all()
    # The sample's memory is a line, so the line through its last fits meets every peak.
    fitting = frame[frame["outcome"] == "fits"]
    assert list(fitting["line_bytes"]) == pytest.approx(list(fitting["peak_bytes"]), abs=4)


def test_the_throughput_frame_is_sorted_and_brackets_the_median() -> None:
    frame = throughput_frame(resnet())

    assert list(frame["micro_batch_size"]) == sorted(frame["micro_batch_size"])
    assert (frame["samples_per_second_low"] < frame["samples_per_second"]).all()
    assert (frame["samples_per_second"] < frame["samples_per_second_high"]).all()
    assert list(frame["windows"]) == [5] * len(frame)


def test_one_window_has_no_spread_and_no_optimizer_time_is_missing() -> None:
    timed = Throughput(micro_batch_size=4, micro_step_seconds=(0.5,), optimizer_seconds=())
    frame = throughput_frame(Records(run=resnet().run, throughput=(timed,)))

    low, median, high = (frame[f"samples_per_second{end}"].item() for end in ("_low", "", "_high"))
    assert (low, median, high) == (8.0, 8.0, 8.0)
    assert frame["optimizer_seconds"].isna().all()


def test_the_summed_loss_frame_counts_the_whole_batch() -> None:
    frame = summed_loss_frame(resnet())

    assert list(frame["batch_size"]) == [171 * count for count in frame["accumulation_steps"]]
    assert set(frame["strategy"]) == {"whole_batch", "summed_loss", "accumulation"}


def test_the_soak_frame_has_a_row_a_point_and_none_without_a_soak() -> None:
    frame = soak_frame(resnet())

    assert list(frame["step"]) == list(range(1, 201))
    assert list(frame.columns) == [
        *("step", "peak_bytes", "reserved_bytes", "allocated_bytes", "unused_bytes", "inactive_split_bytes"),
        "largest_elements",
    ]
    assert {str(kind) for kind in frame.dtypes} == {"Int64"}
    assert frame["peak_bytes"].iloc[-1] == 106 * 2**20
    assert soak_frame(no_plan()).empty


def test_the_last_soak_of_a_file_is_the_runs_own(tmp_path: Path) -> None:
    records = resnet()
    assert records.soak is not None
    with RecordWriter(tmp_path / "records.jsonl") as writer:
        writer.append(records.run)
        writer.append(out_of_memory())
        writer.append(records.soak)

    assert read_records(tmp_path / "records.jsonl").soak == records.soak


def test_the_document_has_the_soak_or_null() -> None:
    soak = to_json_document(bent())["soak"]

    assert soak["failure"] == {
        "step": 37,
        "phase": "backward",
        "message": "RuntimeError: can't allocate memory.",
        "elements": 4096,
        "unused_bytes": 3 * 2**20,
    }
    assert (soak["steps"], soak["steps_run"], len(soak["points"]), soak["again"]) == (200, 36, 36, None)
    assert to_json_document(no_plan())["soak"] is None


def test_the_table_has_a_row_a_size_tried_or_timed() -> None:
    extra = Throughput(micro_batch_size=170, micro_step_seconds=(0.5,), optimizer_seconds=(), joules_per_sample=0.25)
    frame = table_frame(replace(resnet(), throughput=(*resnet().throughput, extra))).set_index("micro_batch_size")

    assert list(frame.index) == [1, 2, 4, 8, 16, 32, 64, 128, 170, 171, 212, 213]
    assert frame.loc[170, "joules_per_sample"] == 0.25
    assert frame["outcome"].isna().to_dict() == {size: size == 170 for size in frame.index}
    assert frame.loc[213, "outcome"] == "out_of_memory"
    assert frame["samples_per_second"].isna()[213]


def test_tables_write_whole_numbers_and_leave_the_unknown_empty() -> None:
    text = table_frame(resnet()).to_csv(index=False)

    assert text.splitlines()[1].startswith("1,fits,145508794,,,,,,,18.46")


@pytest.mark.parametrize("name", [*SHAPES, "nothing_fits"])
def test_empty_frames_keep_their_columns(name: str) -> None:
    full = SHAPES.get(name, nothing_fits)()
    empty = Records(run=full.run)

    for frame in (trials_frame, throughput_frame, summed_loss_frame, table_frame):
        assert list(frame(empty).columns) == list(frame(full).columns)
        assert len(frame(empty)) == 0


def trial_of(size: int, peak: int, retries: int = 0) -> Trial:
    return Trial(micro_batch_size=size, outcome=Fits(peak_bytes=peak, allocator_retries=retries, seconds=1))


def test_the_line_leaves_out_what_fitted_only_after_retries() -> None:
    trials = (trial_of(1, 10), trial_of(2, 20), trial_of(9, 50, retries=1))
    frame = trials_frame(Records(run=resnet().run, trials=trials))

    assert list(frame["line_bytes"]) == [10, 20, 90]


def test_importing_records_imports_neither_pandas_nor_matplotlib() -> None:
    script = "import sys, profiler.run_folder; print({'pandas', 'matplotlib', 'torch', 'numpy'} & sys.modules.keys())"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert result.stdout.strip() == "set()"


def test_a_plan_that_is_only_verified_is_not_the_runs_plan(tmp_path: Path) -> None:
    records = resnet()
    assert records.plan is not None
    with RecordWriter(tmp_path / "records.jsonl") as writer:
        writer.append_all(replace(no_plan(), verified=(records.plan,)))

    read = read_records(tmp_path / "records.jsonl")
    assert (read.verified, read.plan) == ((records.plan,), None)
