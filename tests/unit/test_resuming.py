from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from answered_probes import CAPACITY, CASES, ENVIRONMENT, Answering, Case, Rules, answered_by, options_of
from sample_records import resnet

from profiler import api
from profiler.commands.recording import Recording
from profiler.errors import UsageError
from profiler.events import Event, Noted, Resumed, SizeTried, Started
from profiler.options import Options
from profiler.records import Records, RecordWriter, read_records
from profiler.report import Report, RunInfo
from profiler.resuming import as_recorded, reopen, same_run
from profiler.units import GIB


@dataclass(slots=True)
class Probed:
    """What a probe came to, what it said, and what it asked for."""

    report: Report
    events: list[Event]
    jobs: list[str]

    @property
    def started(self) -> list[str]:
        return [event.what for event in self.events if isinstance(event, Started)]


@dataclass(slots=True)
class Interrupting:
    """An observer that is interrupted when so many results were recorded."""

    after: int
    events: list[Event] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if sum(not isinstance(event, Started) for event in self.events) > self.after:
            raise KeyboardInterrupt


def probed(
    case: Case, folder: Path, *, resume: bool = False, observe: Any = None, options: Options | None = None
) -> Probed:
    """The case's probe, recorded in `folder` as the command does it; it begins there, or goes on."""
    runner = Answering(case.rules)
    events: list[Event] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("profiler.opening._runner", answered_by(runner))
        reopened = reopen(folder) if resume else None
        recording = Recording(None if resume else folder, force=False, resumed=reopened)
        with recording:
            report = api.probe(
                "answered",
                options or case.options,
                resume=reopened.records if reopened else None,
                observe=recording.also(observe or events.append),
            )
    return Probed(report=report, events=events, jobs=runner.jobs)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """The records, but for the search's time, which is the clock's."""
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    return [{**record, "search_seconds": 0} if record["kind"] == "finding" else record for record in records]


def cuts(content: bytes) -> Iterator[bytes]:
    """Every way to be interrupted once the run's line is whole: between two lines, within one, and before its end."""
    lines = content.splitlines(keepends=True)
    for count in range(1, len(lines)):
        before = b"".join(lines[:count])
        yield before
        yield before + lines[count][: len(lines[count]) // 2]
        yield before + lines[count].removesuffix(b"\n")
    yield content


def folder_with(content: bytes, folder: Path) -> Path:
    folder.mkdir()
    (folder / "records.jsonl").write_bytes(content)
    return folder


def is_part(some: Iterable[str], every: Iterable[str]) -> bool:
    """Whether `some` come in `every`, in their order."""
    rest = iter(every)
    return all(each in rest for each in some)


def clockless(report: Report) -> Report:
    return replace(report, search_seconds=0.0)


@pytest.mark.parametrize("name", CASES)
def test_wherever_it_is_interrupted_a_resumed_run_ends_as_if_it_had_not_been(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    whole = probed(case, tmp_path / "whole")
    content = (tmp_path / "whole" / "records.jsonl").read_bytes()

    for number, cut in enumerate(cuts(content)):
        folder = folder_with(cut, tmp_path / f"cut-{number}")
        recorded = read_records(folder / "records.jsonl")
        again = probed(case, folder, resume=True)

        assert clockless(again.report) == replace(clockless(whole.report), run=again.report.run)
        assert again.report.run == recorded.run
        assert lines_of(folder) == lines_of(tmp_path / "whole")
        # A size that was to be tried again runs once more, where only its first trial is on record.
        left = Counter(trial.micro_batch_size for trial in read_records(tmp_path / "whole" / "records.jsonl").attempts)
        left.subtract(trial.micro_batch_size for trial in recorded.attempts)
        sizes = {
            f"micro-batch size {trial.micro_batch_size}"
            for trial in recorded.trials
            if not left[trial.micro_batch_size]
        }
        timed = {f"timing micro-batch size {each.micro_batch_size}" for each in recorded.throughput}
        assert (sizes | timed).isdisjoint(again.started)
        assert is_part(again.jobs, whole.jobs)
        on_record = (*recorded.trials, *recorded.throughput, *recorded.verified, *recorded.soaks)
        assert len(again.jobs) + len(on_record) <= len(whole.jobs)


@pytest.mark.parametrize("name", CASES)
def test_a_run_that_had_ended_runs_nothing_again_and_says_the_same(name: str, tmp_path: Path) -> None:
    whole = probed(CASES[name], tmp_path / "run")
    content = (tmp_path / "run" / "records.jsonl").read_bytes()
    again = probed(CASES[name], tmp_path / "run", resume=True)

    assert again.jobs == []
    assert again.report == whole.report
    assert (tmp_path / "run" / "records.jsonl").read_bytes() == content


@pytest.mark.parametrize("name", CASES)
def test_it_can_be_interrupted_again_and_again(name: str, tmp_path: Path) -> None:
    case, folder = CASES[name], tmp_path / "run"
    whole = probed(case, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        probed(case, folder, observe=Interrupting(after=3))
    for _ in range(len(lines_of(tmp_path / "whole"))):
        try:
            again = probed(case, folder, resume=True, observe=Interrupting(after=3))
        except KeyboardInterrupt:
            continue
        break
    else:
        pytest.fail("it does not get on")

    assert clockless(again.report) == replace(clockless(whole.report), run=again.report.run)
    assert lines_of(folder)[1:] == lines_of(tmp_path / "whole")[1:]


def test_each_case_is_the_one_that_it_is_called(tmp_path: Path) -> None:
    said = {name: probed(case, tmp_path / name).report for name, case in CASES.items()}

    def notes(name: str) -> str:
        return "\n".join(said[name].notes)

    assert said["everything"].plan is not None
    assert all(words in notes("everything") for words in ("AdamW", "samples differ", "timing varies"))
    nothing = said["nothing fits"].finding
    assert nothing is not None
    assert nothing.largest_fit == 0
    assert "size 1, the smallest, does not fit: it needs about 73 MiB" in notes("nothing fits")
    assert "no micro-batch leaves the headroom" in notes("no plan leaves the headroom")
    assert "micro-batch size 4 could not be timed" in notes("a size and the plan untimed")
    assert "the plan could not be timed" in notes("a size and the plan untimed")
    assert "not checked: " in notes("a plan too slow, and no check")
    assert "did not end 5 optimizer steps" in notes("a plan too slow, and no check")
    assert "the strategies could not be compared" in notes("a strategy that crashes")
    lasting = said["a plan that lasts"].plan
    assert lasting is not None
    assert lasting.soaked_steps == 20
    for name in ("soaks that fail", "soaks that fail, untimed"):
        plan = said[name].plan
        assert plan is not None
        assert (max(plan.micro_batch_sizes), plan.soaked_steps) == (3, 20)
        assert notes(name).count("failed its soak") == 3
    assert notes("soaks that fail, untimed").count("the plan could not be timed") == 4
    assert notes("no plan lasts").endswith("Raise the memory limit.")
    assert "did not end its soak of 20 optimizer steps" in notes("a soak too slow")
    assert said["no plan lasts"].comparison
    assert said["a soak too slow"].comparison


def half_way(tmp_path: Path, trials: int = 3) -> Path:
    """The records of a run that was interrupted in its search."""
    probed(CASES["everything"], tmp_path / "whole")
    lines = (tmp_path / "whole" / "records.jsonl").read_bytes().splitlines(keepends=True)
    first = next(number for number, line in enumerate(lines) if b'"kind": "trial"' in line)
    return folder_with(b"".join(lines[: first + trials]), tmp_path / "half-way")


def test_an_observer_is_told_what_is_taken_over_in_one_event_and_then_what_is_new(tmp_path: Path) -> None:
    events = probed(CASES["everything"], half_way(tmp_path), resume=True).events
    recorded = {trial.micro_batch_size for trial in read_records(tmp_path / "half-way" / "records.jsonl").trials[:3]}

    assert [event for event in events if isinstance(event, Resumed)] == [Resumed(trials=3, timings=0, compared=0)]
    tried = [event.trial.micro_batch_size for event in events if isinstance(event, SizeTried)]
    assert tried
    assert recorded.isdisjoint(tried)
    assert not any(isinstance(event, Noted) and "AdamW" in event.text for event in events)


def test_the_seconds_of_a_search_are_those_of_its_recorded_trials_and_those_since(tmp_path: Path) -> None:
    folder = half_way(tmp_path)
    recorded = read_records(folder / "records.jsonl")
    report = probed(CASES["everything"], folder, resume=True).report

    taken_over = sum(trial.outcome.seconds for trial in recorded.trials)
    assert taken_over == 1.5
    assert taken_over < report.search_seconds < taken_over + 1
    assert read_records(folder / "records.jsonl").search_seconds == report.search_seconds


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"environment": {**ENVIRONMENT, "threads": "8"}}, "threads is 2 in the records and 8 here"),
        ({"environment": {**ENVIRONMENT, "driver": "575"}}, "driver is unknown in the records and 575 here"),
        ({"workload": "another"}, "the workload is answered in the records and another here"),
    ],
)
def test_another_environment_is_refused_with_both_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    runner = Answering(CASES["everything"].rules, **change)
    monkeypatch.setattr("profiler.opening._runner", answered_by(runner))
    records = read_records(half_way(tmp_path) / "records.jsonl")
    monkeypatch.setattr("profiler.opening._runner", answered_by(runner))

    with pytest.raises(UsageError, match=f"{message}, .* start a new probe"):
        api.probe("answered", CASES["everything"].options, resume=records)
    assert runner.jobs == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (options_of(effective_batch_size=41), "the effective batch is 40 in the records and 41 here"),
        (options_of(effective_batch_size=40, headroom=0.1), r"the headroom is 0\.05 in the records and 0\.1 here"),
        (
            options_of(effective_batch_size=40, data_parallel_size=2),
            "the data parallel size is 1 in the records and 2 here",
        ),
        (
            replace(options_of(effective_batch_size=40), memory_limit="1GiB"),
            "the memory limit is 64 MiB in the records and 1 GiB here",
        ),
        (
            options_of(effective_batch_size=40, ceiling=7),
            r"the records go on with the trial of size \d+, and this probe",
        ),
    ],
)
def test_other_options_than_those_of_the_records_are_refused(tmp_path: Path, options: Options, message: str) -> None:
    folder = half_way(tmp_path)
    before = (folder / "records.jsonl").read_bytes()

    with pytest.raises(UsageError, match=message):
        probed(CASES["everything"], folder, resume=True, options=options)
    assert (folder / "records.jsonl").read_bytes() == before


def test_records_that_another_workload_would_not_have_made_are_refused(tmp_path: Path) -> None:
    probed(CASES["everything"], tmp_path / "whole")
    (tmp_path / "whole" / "records.jsonl").write_text(
        "".join(
            line
            for line in (tmp_path / "whole" / "records.jsonl").read_text().splitlines(keepends=True)
            if '"micro_batch_size": 4,' not in line
        )
    )

    with pytest.raises(UsageError, match=r"the records go on with .*, and this probe with micro-batch size 4: "):
        probed(CASES["everything"], tmp_path / "whole", resume=True)


RUN = resnet().run


def test_the_capacity_that_was_recorded_is_the_budget_and_its_device_the_device() -> None:
    gpu = replace(RUN, device="cuda:1", capacity_bytes=3 * GIB, command="microbatch probe x")

    options = as_recorded(Options(), gpu)
    assert (options.limit_bytes, options.device, options.command) == (3 * GIB, "cuda:1", "microbatch probe x")
    assert as_recorded(Options(device="cuda:0"), gpu).device == "cuda:0"
    assert as_recorded(Options(), RUN).device is None
    assert as_recorded(Options(memory_limit="1MiB"), None) == Options(memory_limit="1MiB")


def test_a_target_file_that_was_edited_is_refused_and_one_of_unknown_content_is_not() -> None:
    before, after = replace(RUN, target_sha256="a" * 64), replace(RUN, target_sha256="b" * 64)

    with pytest.raises(UsageError, match="the target's file has changed since the records were made"):
        same_run(before, after)
    assert same_run(before, replace(after, target_sha256=None)) is before
    assert same_run(RUN, after) is RUN
    assert same_run(None, after) is after


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (replace(RUN, device="cuda:0"), "the device is cpu in the records and cuda:0 here"),
        (replace(RUN, capacity_bytes=GIB), "the capacity is 512 MiB in the records and 1 GiB here"),
        (replace(RUN, environment={}), r"torch is 2\.13\.0 in the records and unknown here"),
    ],
)
def test_another_device_or_capacity_is_refused(changed: RunInfo, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        same_run(RUN, changed)


def written(folder: Path, records: Records | None = None) -> Path:
    folder.mkdir()
    with RecordWriter(folder / "records.jsonl") as writer:
        writer.append_all(records or resnet())
    return folder / "records.jsonl"


@pytest.mark.parametrize("tail", [b'{"schema": 1, "kind": "tri', b"{", b"\xff\x00"])
def test_what_was_cut_short_is_cut_off_before_anything_is_appended(tmp_path: Path, tail: bytes) -> None:
    path = written(tmp_path / "run")
    before = path.read_bytes()
    path.write_bytes(before + tail)
    run = reopen(tmp_path / "run")
    with run.writer as writer:
        writer.append("a note")

    assert path.read_bytes().startswith(before + b'{"schema": 1, "kind": "note"')
    assert read_records(path) == replace(resnet(), notes=("a note",))


def test_a_whole_last_line_without_its_end_is_kept(tmp_path: Path) -> None:
    path = written(tmp_path / "run", replace(resnet(), notes=("the last",)))
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    run = reopen(tmp_path / "run")
    with run.writer as writer:
        writer.append("a note")

    assert read_records(path).notes == ("the last", "a note")


def test_damaged_records_are_refused_and_left_as_they_are(tmp_path: Path) -> None:
    path = written(tmp_path / "run")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"{}\n", *lines[1:], b"{half"]))
    before = path.read_bytes()

    for _ in range(2):  # and no longer anyone's
        with pytest.raises(UsageError, match="line 2, is no record that this version can read"):
            reopen(tmp_path / "run")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, r"there is no records\.jsonl in it"), (b"", "does not hold one run"), (b"{", "one run")],
)
def test_what_holds_no_run_cannot_be_gone_on_with(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "records.jsonl").write_bytes(content)

    with pytest.raises(UsageError, match=message):
        reopen(tmp_path)
    with pytest.raises(UsageError, match="cannot be gone on with: it is no folder"):
        reopen(tmp_path / "nowhere")


def test_a_link_in_place_of_the_records_is_not_followed(tmp_path: Path) -> None:
    path = written(tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "records.jsonl").symlink_to(path)

    with pytest.raises(UsageError, match="cannot be written"):
        reopen(tmp_path / "other")


def test_a_run_that_goes_on_already_or_still_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "run")
    path.write_bytes(path.read_bytes() + b"{half")
    before = path.read_bytes()
    with RecordWriter(path):
        with pytest.raises(UsageError, match="is being written by a run that has not ended"):
            reopen(tmp_path / "run")
        assert path.read_bytes() == before
    with reopen(tmp_path / "run").writer, pytest.raises(UsageError, match="has not ended"):
        reopen(tmp_path / "run")
    reopen(tmp_path / "run").writer.close()


def test_records_from_python_are_gone_on_with_in_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["everything"]
    whole = probed(case, tmp_path / "whole")
    with RecordWriter(tmp_path / "records.jsonl") as writer:
        writer.append_all(whole.report)
    runner = Answering(Rules(samples_vary=True, wide_at=8))
    monkeypatch.setattr("profiler.opening._runner", answered_by(runner))

    again = api.probe("answered", case.options, resume=read_records(tmp_path / "records.jsonl"))
    assert runner.jobs == []
    assert again == whole.report
    assert again.run.capacity_bytes == CAPACITY
