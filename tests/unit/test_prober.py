from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from sample_checks import equal_check, unequal_check

from profiler.checking.job import CheckRequest, check
from profiler.devices.out_of_memory import Failure
from profiler.equivalence import Equivalence
from profiler.errors import MicrobatchError, NothingFits, TrialError, UsageError, WorkloadError
from profiler.events import Checked, Event, Noted, Started
from profiler.finder import note_repeats
from profiler.limits import Limits
from profiler.outcomes import Finding, Fits, OutOfMemory, Purpose, Trial
from profiler.prober import Prober
from profiler.schedules import evaluation_schedule
from profiler.switches import Switches
from profiler.targets import TargetSource
from profiler.trial import Completed, Failed, Setting
from profiler.units import GIB, MIB
from profiler.workers.protocol import Died, TimedOut


@dataclass(frozen=True, slots=True)
class Answering:
    """A runner that answers everything in the same way, and remembers how it was asked."""

    reply: Any
    asked: list[tuple[Any, ...]] = field(default_factory=list)
    kept: list[tuple[float, bool]] = field(default_factory=list)

    def close(self) -> None:
        """Nothing was started."""

    def size(self, function: Callable[..., Any], *arguments: Any, timeout_seconds: float, fresh: bool) -> Any:
        self.asked.append((function, *arguments))
        self.kept.append((timeout_seconds, fresh))
        return self.reply

    def time(self, function: Callable[..., Any], *arguments: Any, timeout_seconds: float, fresh: bool) -> Any:
        raise AssertionError("a check measures no time")

    def with_environment(self, environment: Mapping[str, str]) -> None:
        raise AssertionError("a check runs in the prober's own workers")


def setting(device: str, limit_bytes: int | None) -> Setting:
    return Setting(
        source=TargetSource(target="digits-cnn", directory=str(Path("/"))),
        device=device,
        limit_bytes=limit_bytes,
        switches=Switches(),
    )


def prober_of(runner: Answering, events: list[Event], device: str = "cpu") -> Prober:
    shared = setting(device, 64 * MIB)
    return Prober(
        runner=runner,
        setting=shared,
        timing_setting=shared,
        capacity_bytes=64 * MIB,
        compiled=False,
        limits=Limits(trial_seconds=3.0),
        observe=events.append,
    )


def checked(reply: Any, device: str = "cpu", size: int = 8) -> Equivalence:
    return prober_of(Answering(reply), [], device).check(size, thorough=True)


@pytest.mark.parametrize("thorough", [True, False])
@pytest.mark.parametrize("found", [equal_check(), unequal_check()])
def test_a_check_is_announced_run_once_in_a_worker_of_its_own_and_told(found: Equivalence, thorough: bool) -> None:
    runner, events = Answering(found), list[Event]()
    said = prober_of(runner, events).check(8, thorough=thorough)

    assert said is found
    assert events == [
        Started(what="the check with 8 samples", why="whether accumulation equals the whole batch"),
        Checked(equivalence=found),
    ]
    ((function, _, request),) = runner.asked
    ((timeout_seconds, fresh),) = runner.kept
    assert function is check
    assert request == CheckRequest(batch_size=8, thorough=thorough)
    assert timeout_seconds >= 2 * 3.0
    assert fresh


@pytest.mark.parametrize(("device", "limit_bytes"), [("cpu", None), ("cuda:1", 64 * MIB)])
def test_a_check_has_no_budget_on_the_cpu_and_the_probes_on_a_gpu(device: str, limit_bytes: int | None) -> None:
    runner = Answering(equal_check())
    prober_of(runner, [], device).check(2, thorough=False)

    ((_, used, _),) = runner.asked
    assert used == setting(device, limit_bytes)


def failed(error: Exception, phase: str = "forward", **changes: Any) -> Failed:
    failure = Failure.of(error)
    return replace(
        Failed(
            failure=failure,
            phase=phase,
            message=f"{type(error).__name__}: {failure.errors[0].text}\nand more",
            user_traceback="File train.py",
            refusal=error if isinstance(error, MicrobatchError) else None,
            peak_bytes=GIB,
            seconds=1.0,
        ),
        **changes,
    )


FULL = RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize(
    ("reply", "device", "place"),
    [
        (failed(MemoryError("as it says")), "cpu", " in its forward (MemoryError: as it says)"),
        (failed(FULL, "backward"), "cuda:0", " in its backward (RuntimeError: CUDA out of memory. Tried"),
        (Died(exit_status=-9, output=""), "cpu", " (the worker ended with exit status -9)"),
    ],
)
def test_a_check_without_the_memory_does_not_fit_and_says_how_it_would(reply: Any, device: str, place: str) -> None:
    with pytest.raises(NothingFits) as caught:
        checked(reply, device)

    assert str(caught.value).startswith(f"the check with 8 samples ran out of memory{place}")
    assert str(caught.value).endswith(
        ": run `microbatch check` with a smaller --effective-batch, or take shorter sequences."
    )


@pytest.mark.parametrize(
    ("reply", "device", "words"),
    [
        (TimedOut(seconds=30.0, output=""), "cpu", ("did not end within 30 s", "--trial-timeout")),
        (TimedOut(seconds=30.0, output=""), "cuda:0", ("did not end within 30 s", "--trial-timeout")),
        (Died(exit_status=-11, output=""), "cpu", ("died in", "exit status -11", "It printed nothing")),
        (Died(exit_status=1, output="the end\n"), "cuda:0", ("died in", "exit status 1", "Its last words:\nthe end")),
        (Died(exit_status=None, output=""), "cpu", ("died in", "its pipe closed")),
    ],
)
def test_a_check_that_hangs_or_crashes_says_so_of_the_check(reply: Any, device: str, words: tuple[str, ...]) -> None:
    with pytest.raises(TrialError) as caught:
        checked(reply, device)

    said = str(caught.value)
    assert [each for each in ("the check with 8 samples", "--effective-batch", *words) if each not in said] == []
    assert "micro-batch size" not in said
    assert "--ceiling" not in said
    assert "capacity" not in said


def test_host_memory_that_ran_out_beside_a_gpu_is_an_error_of_the_check() -> None:
    with pytest.raises(TrialError, match="the check with 8 samples ran out of host memory outside what is measured on"):
        checked(failed(MemoryError("")), "cuda:0")


def test_a_bug_in_a_check_is_the_users_with_the_users_traceback() -> None:
    with pytest.raises(WorkloadError) as caught:
        checked(failed(KeyError("labels")))

    assert str(caught.value) == "the workload failed in the check with 8 samples, in its forward: KeyError: 'labels'"
    assert caught.value.user_traceback == "File train.py"


def test_what_may_be_memory_is_not_taken_for_it_where_no_size_was_tried() -> None:
    with pytest.raises(WorkloadError, match="in the check with 8 samples, in its forward: RuntimeError: could not"):
        checked(failed(RuntimeError("could not execute a primitive")))


def test_a_refusal_in_a_check_is_passed_on() -> None:
    refusal = UsageError("tf32 is a mode of NVIDIA GPUs.")
    with pytest.raises(UsageError) as caught:
        checked(failed(refusal))

    assert caught.value is refusal


def test_an_evaluation_that_hangs_is_called_one() -> None:
    with pytest.raises(TrialError, match="the evaluation trial at batch size 7 did not end within 30 s"):
        prober_of(Answering(TimedOut(seconds=30.0, output="")), []).try_size(7, "a test", Purpose.EVALUATION)


def test_an_evaluation_that_crashes_is_called_one() -> None:
    with pytest.raises(
        TrialError, match="the worker died in the evaluation trial at batch size 7 with exit status -11"
    ):
        prober_of(Answering(Died(exit_status=-11, output="")), []).try_size(7, "a test", Purpose.EVALUATION)


def test_a_suspect_evaluation_is_judged_by_a_smaller_evaluation_and_not_by_training() -> None:
    runner, events = Answering(failed(RuntimeError("could not execute a primitive"), peak_bytes=None)), list[Event]()
    prober = prober_of(runner, events)
    fits = Fits(peak_bytes=MIB, seconds=1.0)
    prober.trials |= {6: Trial(micro_batch_size=6, outcome=fits)}
    prober.evaluations |= {3: Trial(micro_batch_size=3, outcome=fits, purpose=Purpose.EVALUATION)}
    with pytest.raises(WorkloadError, match="in the evaluation trial at batch size 7"):
        prober.try_size(7, "a test", Purpose.EVALUATION)

    schedules = [schedule for _, _, schedule in runner.asked]
    assert schedules == [evaluation_schedule(7), evaluation_schedule(3)]
    assert [event.what for event in events if isinstance(event, Started)] == [
        "evaluation batch size 7",
        "evaluation batch size 3 again",
    ]


def test_a_plan_that_ran_above_the_capacity_is_out_of_memory() -> None:
    within, above = (
        Completed(fits=Fits(peak_bytes=peak, seconds=1.0), step_seconds=(1.0,)) for peak in (64 * MIB, 65 * MIB)
    )

    assert prober_of(Answering(within), []).run_plan((2, 2), 5) is within
    outcome = prober_of(Answering(above), []).run_plan((2, 2), 5)
    assert isinstance(outcome, OutOfMemory)
    assert outcome.evidence == "its peak of 65 MiB exceeds the capacity"


def found(size: int, purpose: Purpose) -> Finding:
    trial = Trial(micro_batch_size=size, outcome=Fits(peak_bytes=MIB, seconds=1.0), purpose=purpose)
    return Finding(
        largest_fit=size,
        smallest_misfit=None,
        limited_by="ceiling",
        capacity_bytes=GIB,
        trials=(trial,),
        purpose=purpose,
    )


@pytest.mark.parametrize(
    ("samples", "asked", "trained", "evaluated", "said"),
    [
        (
            5,
            12,
            4,
            5,
            "the effective batch of 12: they were repeated for measuring, and an epoch of training has only 5.",
        ),
        (5, 12, 8, None, "the effective batch of 12 and the largest micro-batch of 8: "),
        (5, 5, 8, None, "the largest micro-batch of 8: "),
        (5, None, None, 9, "the largest batch for evaluation of 9: "),
        (5, 5, 5, 5, None),
        (None, 12, 8, 9, None),
    ],
)
def test_a_dataset_with_fewer_samples_than_what_is_asked_or_found_is_said(
    samples: int | None, asked: int | None, trained: int | None, evaluated: int | None, said: str | None
) -> None:
    events = list[Event]()
    prober = prober_of(Answering(None), events)
    prober.dataset_samples = samples
    findings = (trained and found(trained, Purpose.TRAINING), evaluated and found(evaluated, Purpose.EVALUATION))
    note_repeats(prober, asked, *(finding or None for finding in findings))

    notes = [event.text for event in events if isinstance(event, Noted)]
    assert len(notes) == (said is not None)
    for note in notes:
        assert note.startswith(f"the Dataset has 5 samples, fewer than {said}")
        assert note.endswith("--ceiling 5 tries no larger sizes.") == ("largest" in str(said))
