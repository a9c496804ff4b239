"""Whole searches in real workers, to one of which something happens."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from process.workloads import prober_of, squares
from torch import Tensor, nn

from faults import workloads
from faults.workloads import ALWAYS, LARGEST, LIMIT, Faulty, workload
from profiler import Options, probe
from profiler.errors import MicrobatchError, TrialError, WorkloadError
from profiler.events import Event, Noted, SizeTried
from profiler.finder import find_largest
from profiler.outcomes import Finding
from profiler.report import Report
from profiler.workers.runner import ProcessRunner

SEED = 7


@dataclass(frozen=True, slots=True)
class Searched:
    """A search's end: what it found, or the error it ended in, and what it said."""

    finding: Finding | None
    error: MicrobatchError | None
    events: list[Event] = field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Noted)]

    @property
    def answer(self) -> tuple[int, int | None] | None:
        return None if self.finding is None else (self.finding.largest_fit, self.finding.smallest_misfit)


Search = Callable[..., Searched]


@pytest.fixture
def search(runner: ProcessRunner, tmp_path: Path) -> Search:
    """Searches a workload to which `fault` happens at `size`."""

    def run(fault: Callable[[], object], size: int, times: int = 1, *, trial_seconds: float = 60.0) -> Searched:
        faulty = Faulty(fault=fault, size=size, folder=tmp_path, times=times)
        events = list[Event]()
        prober = replace(prober_of(workload(faulty), runner, LIMIT, trial_seconds=trial_seconds), observe=events.append)
        try:
            return Searched(find_largest(prober), None, events)
        except MicrobatchError as error:
            return Searched(None, error, events)
        finally:
            assert list(tmp_path.iterdir()), "the fault never happened"

    return run


def test_the_workload_without_a_fault(runner: ProcessRunner) -> None:
    finding = find_largest(prober_of(workload(), runner, LIMIT))

    assert (finding.largest_fit, finding.smallest_misfit) == (LARGEST, LARGEST + 1)
    assert len(finding.trials) <= 6


@pytest.mark.parametrize("fault", [workloads.kill, workloads.lose_a_page])
@pytest.mark.parametrize("size", [1, 4, LARGEST, LARGEST + 1])
def test_a_worker_that_is_killed_once_changes_no_answer_and_is_said(
    search: Search, fault: Callable[[], object], size: int
) -> None:
    searched = search(fault, size)

    assert searched.answer == (LARGEST, LARGEST + 1)
    (note,) = searched.notes
    assert "the worker ended with exit status -" in note
    assert "somebody kills it: tried again" in note


@pytest.mark.parametrize("size", [1, 4, LARGEST])
def test_memory_that_is_gone_for_a_moment_changes_no_answer_and_is_said(search: Search, size: int) -> None:
    searched = search(workloads.refuse_memory, size)

    assert searched.answer == (LARGEST, LARGEST + 1)
    (note,) = searched.notes
    assert note.startswith(f"micro-batch size {size} ran out of memory once and fits: ")
    assert searched.finding is not None
    assert all(trial.fits for trial in searched.finding.trials if trial.micro_batch_size <= LARGEST)


@pytest.mark.parametrize("fault", [workloads.kill, workloads.refuse_memory])
def test_a_size_that_always_fails_far_below_the_capacity_is_the_answer_with_a_word(
    search: Search, fault: Callable[[], object]
) -> None:
    searched = search(fault, 4, ALWAYS)

    assert searched.answer == (3, 4)
    assert any("ran out of memory twice, though smaller ones put it at 6." in note for note in searched.notes)
    assert any("stop them and probe again" in note for note in searched.notes)


def test_an_answer_that_rests_on_killed_workers_says_so(search: Search) -> None:
    searched = search(workloads.kill, LARGEST, ALWAYS)

    assert searched.answer == (LARGEST - 1, LARGEST)
    assert any(f"that {LARGEST} does not fit is a conclusion: the worker ended with" in note for note in searched.notes)


def test_nothing_fits_only_where_the_smallest_size_fails_twice(search: Search) -> None:
    assert search(workloads.refuse_memory, 1, 2).answer == (0, 1)


CRASHES: dict[Callable[[], object], tuple[type[MicrobatchError], str]] = {
    workloads.segfault: (TrialError, "died at micro-batch size 4 with exit status -11"),
    workloads.abort: (TrialError, "died at micro-batch size 4 with exit status -6"),
    workloads.end_well: (TrialError, "died at micro-batch size 4 with exit status 0"),
    workloads.end_badly: (TrialError, "died at micro-batch size 4 with exit status 3"),
    workloads.write_everywhere: (TrialError, "with something on its pipe that is no result, written there by other"),
    workloads.close_everything: (TrialError, "died at micro-batch size 4"),
    workloads.interrupt: (TrialError, "KeyboardInterrupt"),
    workloads.leave: (WorkloadError, "failed at micro-batch size 4, in its forward: SystemExit: 0"),
    workloads.raise_what_cannot_be_said: (WorkloadError, "at micro-batch size 4, in its forward: Unspeakable"),
}


@pytest.mark.parametrize("fault", CRASHES, ids=[fault.__name__ for fault in CRASHES])
def test_a_worker_that_dies_ends_the_search_in_words_and_the_next_one_is_exact(
    search: Search, fault: Callable[[], object]
) -> None:
    kind, words = CRASHES[fault]
    broken = search(fault, 4)

    assert type(broken.error) is kind
    assert words in str(broken.error)
    assert [event.trial.micro_batch_size for event in broken.events if isinstance(event, SizeTried)] == [1]
    assert search(fault, 4).answer == (LARGEST, LARGEST + 1)


@pytest.mark.parametrize("fault", [workloads.move_away, workloads.fork_and_go_on])
def test_what_harms_nothing_changes_no_answer(search: Search, fault: Callable[[], object]) -> None:
    searched = search(fault, 4)

    assert searched.answer == (LARGEST, LARGEST + 1)
    assert searched.notes == []


HANGS = (workloads.sleep, workloads.stop, workloads.wait_with_the_lock, workloads.match_for_ever)


@pytest.mark.parametrize("fault", HANGS, ids=[fault.__name__ for fault in HANGS])
def test_a_search_that_hangs_in_python_or_in_c_ends_in_words(search: Search, fault: Callable[[], object]) -> None:
    searched = search(fault, 1, trial_seconds=0.7)

    assert type(searched.error) is TrialError
    assert "size 1 did not end within 70" in str(searched.error)
    assert "--trial-timeout" in str(searched.error)


def test_a_hang_near_the_capacity_is_taken_for_memory_with_a_word(search: Search) -> None:
    searched = search(workloads.sleep, LARGEST + 1, ALWAYS, trial_seconds=2.0)

    assert searched.answer == (LARGEST, LARGEST + 1)
    (note,) = searched.notes
    assert f"that {LARGEST + 1} does not fit is a conclusion: no end within 2" in note


@dataclass(frozen=True, slots=True, kw_only=True)
class KilledAt:
    """A loss whose worker is killed if it is the `job`-th that runs it."""

    job: int
    folder: Path

    def __call__(self, model: nn.Module, batch: Tensor) -> Tensor:
        mine = self.folder / f"{model.__dict__.setdefault('job', random.SystemRandom().random())}"
        if not mine.exists():
            mine.touch()
            if len(list(self.folder.iterdir())) == self.job:
                workloads.kill()
        return squares(model, batch)


def report_of(loss: Any) -> Report:
    options = Options(effective_batch_size=11, device="cpu", memory_limit=LIMIT)
    return probe(workload(loss), options, check=False, comparison=False)


# Two draws of the jobs of a probe: in the search, and in what follows it.
@pytest.mark.parametrize("jobs", [(1, 5), (6, 12)])
def test_whichever_job_of_a_probe_is_killed_the_plan_is_the_same(
    kept_servers: None, tmp_path: Path, jobs: tuple[int, int]
) -> None:
    job = random.Random(SEED).randint(*jobs)
    report = report_of(KilledAt(job=job, folder=tmp_path))

    assert report.finding is not None
    assert (report.finding.largest_fit, report.finding.smallest_misfit) == (LARGEST, LARGEST + 1)
    assert report.plan is not None
    assert sum(report.plan.micro_batch_sizes) == 11
    assert report.plan.verified_steps == 5
    was_killed = len(list(tmp_path.iterdir())) >= job
    said = [note for note in report.notes if "tried again" in note or "could not be timed" in note]
    assert bool(said) == was_killed, f"job {job} was to be killed"
