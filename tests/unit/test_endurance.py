from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from sample_soaks import on_a_gpu

from profiler.devices import Usage
from profiler.devices.out_of_memory import Failure
from profiler.endurance import Unproved, endured, in_words
from profiler.errors import NothingFits, TrialError
from profiler.events import Event, Noted, SoakEnded, Started
from profiler.limits import Limits
from profiler.outcomes import Finding, Fits, Trial
from profiler.plan import AccumulationPlan
from profiler.planner import Goal, make_plan
from profiler.prober import Prober
from profiler.replay import Replay
from profiler.schedules import Schedule
from profiler.soak import Soak, SoakFailure, SoakPoint
from profiler.soaking import Soaked, SoakRequest, soak
from profiler.switches import Switches
from profiler.targets import TargetSource
from profiler.trial import Completed, Failed, Setting, run_schedule
from profiler.units import GIB, MIB
from profiler.workers.protocol import Died, TimedOut

CAPACITY = 64 * MIB
EXPANDABLE = "PYTORCH_ALLOC_CONF=expandable_segments:True"


def failed(message: str = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.") -> Failed:
    failure = Failure.of(RuntimeError(message))
    return Failed(
        failure=failure,
        phase="backward",
        message=f"RuntimeError: {failure.errors[0].text}",
        user_traceback=None,
        refusal=None,
        peak_bytes=CAPACITY,
        seconds=1.0,
    )


def ran_out(request: SoakRequest, *, elements: int = 4096, step: int = 3) -> Soaked:
    ran = Soak(
        micro_batch_sizes=request.sizes,
        steps=request.steps,
        steps_run=step - 1,
        seconds=1.0,
        peak_bytes=40 * MIB,
        verified_elements=2048,
    )
    return Soaked(soak=ran, failed=failed(), elements=elements, at_failure=Usage())


def lasted(request: SoakRequest, **changes: Any) -> Soaked:
    points = (SoakPoint(step=request.steps, peak_bytes=50 * MIB),)
    ran = Soak(
        micro_batch_sizes=request.sizes,
        steps=request.steps,
        steps_run=request.steps,
        seconds=1.0,
        peak_bytes=50 * MIB,
        points=points,
    )
    return Soaked(soak=replace(ran, **changes), failed=None, elements=2048, at_failure=Usage())


@dataclass
class Simulated:
    """A runner on which every schedule takes 8 MiB and a MiB a sample, and soaks end as `soaks` says."""

    soaks: Callable[[SoakRequest], Any]
    other: Simulated | None = None
    soaked: list[tuple[int, ...]] = field(default_factory=list)
    limits: list[float] = field(default_factory=list)
    environments: list[dict[str, str]] = field(default_factory=list)
    closed: bool = False

    def close(self) -> None:
        self.closed = True

    def with_environment(self, environment: Mapping[str, str]) -> Simulated | None:
        self.environments.append(dict(environment))
        return self.other

    def size(self, function: Callable[..., Any], *arguments: Any, timeout_seconds: float, fresh: bool) -> Any:
        request = arguments[-1]
        if function is soak:
            assert fresh
            self.soaked.append(request.sizes)
            self.limits.append(timeout_seconds)
            return self.soaks(request)
        assert function is run_schedule
        assert isinstance(request, Schedule)
        largest = max(size for sizes in request.steps for size in sizes)
        fits = Fits(peak_bytes=(8 + largest) * MIB, seconds=1.0)
        return Completed(fits=fits, step_seconds=(0.1,) * len(request.steps))

    def time(self, function: Callable[..., Any], *arguments: Any, timeout_seconds: float, fresh: bool) -> Any:
        raise AssertionError("nothing is timed here")


def prober_of(runner: Simulated, events: list[Event], *, device: str = "cpu", capacity: int = CAPACITY) -> Prober:
    setting = Setting(
        source=TargetSource(target="digits-cnn", directory=str(Path("/"))),
        device=device,
        limit_bytes=capacity,
        switches=Switches(),
    )
    return Prober(
        runner=runner,
        setting=setting,
        timing_setting=setting,
        capacity_bytes=capacity,
        compiled=False,
        limits=Limits(trial_seconds=3.0, verification_seconds=10.0),
        observe=events.append,
    )


def planned(runner: Simulated, events: list[Event], *, batch: int = 32, **goal: Any) -> AccumulationPlan:
    """The plan for `batch` samples, of which all fit at once."""
    prober = prober_of(runner, events)
    for size in (16, 32):
        prober.try_size(size, "a test")
    finding = Finding(
        largest_fit=32,
        smallest_misfit=None,
        limited_by="ceiling",
        capacity_bytes=CAPACITY,
        trials=(Trial(micro_batch_size=32, outcome=Fits(peak_bytes=40 * MIB, seconds=1.0)),),
    )
    asked = {"data_parallel_size": 1, "headroom": 0.05, "equal": False, "prefer_equal": False, "soak_steps": 200}
    return make_plan(prober, finding, Goal(effective_batch_size=batch, **{**asked, **goal}))


def test_without_a_soak_none_is_run() -> None:
    runner = Simulated(lambda request: pytest.fail("a soak was run"))
    plan = planned(runner, [], soak_steps=None)

    assert (plan.micro_batch_sizes, plan.soaked_steps, plan.soaked_peak_bytes) == ((32,), 0, None)


def test_a_plan_that_lasts_carries_what_its_soak_measured() -> None:
    runner, events = Simulated(lasted), list[Event]()
    plan = planned(runner, events)

    assert (plan.micro_batch_sizes, plan.verified_steps) == ((32,), 5)
    assert (plan.soaked_steps, plan.soaked_peak_bytes, plan.notes) == (200, 50 * MIB, ())
    (ended,) = (event for event in events if isinstance(event, SoakEnded))
    assert ended.soak.passed
    assert ended.soak.verified_peak_bytes == plan.peak_bytes
    assert Started(what="a soak of 200 optimizer steps", why="on batches as training takes them; some 20 s") in events
    assert runner.limits == [10.0 * 200 / 5]


@pytest.mark.parametrize(
    ("goal", "tried"),
    [
        ({}, [(32,), (16, 16), (8,) * 4]),
        ({"batch": 30}, [(30,), (15, 15), (8, 8, 7, 7)]),
        ({"batch": 30, "equal": True}, [(30,), (15, 15), (6,) * 5]),
        ({"batch": 32, "data_parallel_size": 2}, [(16,), (8, 8)]),
    ],
)
def test_a_plan_that_fails_its_soak_gives_way_to_smaller_micro_batches(goal: dict[str, Any], tried: Any) -> None:
    runner = Simulated(lambda request: lasted(request) if max(request.sizes) <= 8 else ran_out(request))
    events: list[Event] = []
    plan = planned(runner, events, **goal)

    assert runner.soaked == tried
    assert plan.micro_batch_sizes == tried[-1]
    assert plan.soaked_steps == 200
    said = [event.text for event in events if isinstance(event, Noted)]
    assert list(plan.notes) == said
    assert ["failed its soak" in note for note in said] == [True] * (len(tried) - 1) + [False]
    assert said[-1].startswith("--worst-case")
    ended = [event.soak.passed for event in events if isinstance(event, SoakEnded)]
    assert ended == [False] * (len(tried) - 1) + [True]


def test_a_failed_soak_says_where_on_what_and_what_to_do() -> None:
    events: list[Event] = []
    planned(Simulated(lambda request: lasted(request) if max(request.sizes) < 32 else ran_out(request)), events)

    note, advice = (event.text for event in events if isinstance(event, Noted))
    assert note == (
        "The plan 1 × 32 failed its soak: it ran out of memory in optimizer step 3 of 200, in its backward, on a micro-batch "
        "of 4,096 numbers, 2 times the 2,048 that it was verified with: samples longer than the Dataset's first: "
        "RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
    )
    assert advice == (
        "--worst-case (worst_case=True) sizes by the largest samples, so that they cannot come as a surprise."
    )


def test_a_soak_that_fails_on_samples_no_longer_than_the_first_does_not_speak_of_the_worst_case() -> None:
    events: list[Event] = []
    runner = Simulated(lambda request: lasted(request) if max(request.sizes) < 32 else ran_out(request, elements=2048))
    planned(runner, events)

    (note,) = (event.text for event in events if isinstance(event, Noted))
    assert "on a micro-batch of 2,048 numbers, no more than it was verified with" in note
    assert "--worst-case" not in note


def test_where_single_samples_fail_their_soak_too_there_is_no_plan() -> None:
    runner, events = Simulated(ran_out), list[Event]()
    with pytest.raises(NothingFits) as raised:
        planned(runner, events)

    assert [max(sizes) for sizes in runner.soaked] == [32, 16, 8, 4, 2, 1]
    assert str(raised.value) == (
        "no plan for an effective batch of 32 survived being run. The plan 32 × 1 failed its soak: it ran out of memory in "
        "optimizer step 3 of 200, in its backward, on a micro-batch of 4,096 numbers, 2 times the 2,048 that it was verified "
        "with: samples longer than the Dataset's first: RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried "
        "to allocate 9 bytes. 5 other plans failed before it. --worst-case (worst_case=True) sizes by the largest samples, "
        "so that they cannot come as a surprise. Raise the memory limit."
    )
    said = [event.text for event in events if isinstance(event, Noted)]
    assert ["failed its soak" in note and "--worst-case" not in note for note in said] == [True] * 6


def test_a_plan_whose_smallest_micro_batches_were_not_tried_may_need_more_headroom() -> None:
    class Slow(Simulated):
        def size(self, function: Callable[..., Any], *arguments: Any, timeout_seconds: float, fresh: bool) -> Any:
            if function is run_schedule and len(arguments[-1].steps) == 5:
                return TimedOut(seconds=10.0, output="")
            return super().size(function, *arguments, timeout_seconds=timeout_seconds, fresh=fresh)

    with pytest.raises(NothingFits) as raised:
        planned(Slow(lasted), [])
    assert str(raised.value) == (
        "no plan for an effective batch of 32 survived being run. The plan [32] did not end 5 optimizer steps within 10 s: "
        "allow more with --verification-timeout. Raise --headroom or the memory limit or the time limit."
    )


def test_a_soak_that_does_not_end_in_time_is_no_reason_to_try_smaller_ones() -> None:
    runner, events = Simulated(lambda request: TimedOut(seconds=400.0, output="")), list[Event]()
    said = "The plan 1 × 32 did not end its soak of 200 optimizer steps within 400 s."
    with pytest.raises(NothingFits, match=f"{said} Ask for fewer steps with --soak"):
        planned(runner, events)

    assert len(runner.soaked) == 1
    assert Noted(text=said) in events


def test_a_worker_that_the_kernel_killed_ran_out_of_memory_in_a_step_that_nobody_knows() -> None:
    runner = Simulated(lambda request: lasted(request) if max(request.sizes) < 32 else Died(exit_status=-9, output=""))
    plan = planned(runner, [])

    assert plan.micro_batch_sizes == (16, 16)
    assert plan.notes == (
        "The plan 1 × 32 failed its soak: it ran out of memory in 200 steps: the worker ended with exit status -9.",
    )


def test_a_crash_in_a_soak_is_an_error() -> None:
    with pytest.raises(TrialError, match="exit status -11"):
        planned(Simulated(lambda request: Died(exit_status=-11, output="")), [])


def test_a_loss_that_is_no_number_any_more_and_a_headroom_that_is_used_are_said_of_a_plan_that_lasts() -> None:
    plan = planned(Simulated(lambda request: lasted(request, not_finite_from=70, peak_bytes=62 * MIB)), [])

    assert plan.notes == (
        "the loss is no finite number from optimizer step 70 of the soak on: memory goes on as before, and training does "
        "not. Look at the learning rate, the data and the precision.",
        "over the soak the peak rose to 62 MiB, which leaves 3.1% of the capacity unused and not the headroom of 5%.",
    )


PLAN = AccumulationPlan(effective_batch_size=16, replicas=((8, 8),), reason="It is a test's.", peak_bytes=60 * GIB)
FULL = SoakFailure(step=9, phase="forward", message="OutOfMemoryError: CUDA out of memory", unused_bytes=9 * GIB)


def on_card(ran: Soak, again: Any, *, has_other: bool = True) -> tuple[AccumulationPlan | Unproved, Soak, Simulated]:
    """What comes of a soak on a card of 80 GiB, `again` being what it comes to with expandable segments."""

    def answer(of: Any) -> Any:
        if not isinstance(of, Soak):
            return of
        full = failed("CUDA out of memory. Tried to allocate 2.00 GiB.") if of.failure else None
        unused = of.failure.unused_bytes if of.failure else None
        usage = Usage(allocated_bytes=0, reserved_bytes=unused) if unused is not None else Usage()
        return Soaked(soak=replace(of, failure=None), failed=full, elements=None, at_failure=usage)

    other = Simulated(lambda request: answer(again)) if has_other else None
    runner, events = Simulated(lambda request: answer(ran), other=other), list[Event]()
    came_to = endured(prober_of(runner, events, device="cuda:0", capacity=80 * GIB), PLAN, 50, headroom=0.0)
    *_, ended = (event for event in events if isinstance(event, SoakEnded))
    assert other is None or other.closed == bool(runner.environments)
    return came_to, ended.soak, runner


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)


def test_a_soak_that_holds_little_for_nothing_is_not_run_again() -> None:
    came_to, ended, runner = on_card(on_a_gpu(reserved=62.0), again=None)

    assert isinstance(came_to, AccumulationPlan)
    assert came_to.notes == ()
    assert ended.again is None
    assert runner.environments == []


def test_a_fragmented_soak_is_run_again_and_the_setting_recommended_with_what_it_saves() -> None:
    came_to, ended, runner = on_card(on_a_gpu(reserved=78.0), on_a_gpu(reserved=62.0))

    assert isinstance(came_to, AccumulationPlan)
    assert came_to.notes == (
        f"train with {EXPANDABLE}: over the soak it lowers the reserved peak from 77 GiB to 61 GiB, by 16 GiB.",
    )
    assert ended.again is not None
    assert ended.again.environment == EXPANDABLE
    assert ended.again.peak_reserved_bytes == 61 * GIB
    assert [list(environment.values()) for environment in runner.environments] == [["expandable_segments:True"] * 2]


@pytest.mark.parametrize("reserved", [78.0, 79.0])
def test_a_setting_that_saves_nothing_is_not_recommended(reserved: float) -> None:
    came_to, _, _ = on_card(on_a_gpu(reserved=78.0), on_a_gpu(reserved=reserved))

    assert isinstance(came_to, AccumulationPlan)
    (note,) = came_to.notes
    assert note.startswith(f"{EXPANDABLE} does not help: a reserved peak of {reserved - 1:.0f} GiB with it")


def test_a_setting_under_which_the_soak_passes_is_named_and_the_plan_fails_all_the_same() -> None:
    came_to, ended, _ = on_card(on_a_gpu(reserved=78.0, failure=FULL), on_a_gpu(reserved=62.0))

    assert isinstance(came_to, Unproved)
    assert came_to.said.endswith(
        f"With {EXPANDABLE} the same soak passes, with a reserved peak of 61 GiB: set it, and probe again with it."
    )
    assert not ended.passed
    assert ended.again is not None
    assert ended.again.passed


def test_a_setting_under_which_it_fails_too_does_not_help() -> None:
    came_to, _, _ = on_card(on_a_gpu(reserved=78.0, failure=FULL), on_a_gpu(reserved=78.0, failure=FULL))

    assert isinstance(came_to, Unproved)
    assert f"{EXPANDABLE} does not help: with it, it ran out of memory in optimizer step 9 of 50" in came_to.said


def test_a_second_soak_that_takes_too_long_loses_nothing() -> None:
    came_to, ended, _ = on_card(on_a_gpu(reserved=78.0), TimedOut(seconds=99.0, output=""))

    assert isinstance(came_to, AccumulationPlan)
    assert came_to.notes == (f"with {EXPANDABLE} the soak did not end within 99 s.",)
    assert ended.again is None


@dataclass(frozen=True, slots=True)
class GoneOn:
    """What came of a fragmented soak that failed on a card, what was new of it, and how many soaks ran, with the setting too."""

    came_to: AccumulationPlan | Unproved
    soaks: list[Soak]
    ran: tuple[int, int]


def gone_on(again: Any, *, soaks: list[Soak], notes: list[str]) -> GoneOn:
    """The soak from what is on record of it; again: what it comes to with expandable segments."""
    full = Soaked(
        soak=replace(on_a_gpu(failure=FULL), failure=None),
        failed=failed("CUDA out of memory. Tried to allocate 2.00 GiB."),
        elements=None,
        at_failure=Usage(allocated_bytes=0, reserved_bytes=FULL.unused_bytes),
    )
    other = Simulated(lambda request: again)
    runner, new = Simulated(lambda request: full, other=other), list[Event]()
    prober = prober_of(runner, [], device="cuda:0", capacity=80 * GIB)
    prober.replay = Replay(soaks=list(soaks), notes=list(notes), began=True)
    prober.observe = lambda event: None if prober.replay.covers(event) else new.append(event)
    came_to = endured(prober, PLAN, 50, headroom=0.0)
    ended = [event.soak for event in new if isinstance(event, SoakEnded)]
    return GoneOn(came_to=came_to, soaks=ended, ran=(len(runner.soaked), len(other.soaked)))


PASSED = Soaked(soak=on_a_gpu(reserved=62.0), failed=None, elements=None, at_failure=Usage())


def test_a_soak_and_the_one_with_another_setting_are_recorded_as_each_ends_and_neither_runs_twice() -> None:
    whole = gone_on(PASSED, soaks=[], notes=[])
    first, second = whole.soaks
    assert isinstance(whole.came_to, Unproved)
    assert (whole.ran, first.again) == ((1, 1), None)
    assert second == replace(first, again=second.again)

    cut = gone_on(PASSED, soaks=[first], notes=[])
    assert (cut.came_to, cut.soaks, cut.ran) == (whole.came_to, [second], (0, 1))
    for notes in ([], [whole.came_to.said]):
        ended = gone_on(PASSED, soaks=[first, second], notes=notes)
        assert (ended.came_to, ended.soaks, ended.ran) == (whole.came_to, [], (0, 0))


def test_a_setting_whose_soak_took_too_long_is_not_tried_again_once_that_is_recorded() -> None:
    slow = TimedOut(seconds=99.0, output="")
    whole = gone_on(slow, soaks=[], notes=[])
    assert isinstance(whole.came_to, Unproved)
    assert whole.came_to.said.endswith(f"With {EXPANDABLE} the soak did not end within 99 s.")

    ended = gone_on(slow, soaks=whole.soaks, notes=[whole.came_to.said])
    assert (ended.came_to, ended.soaks, ended.ran) == (whole.came_to, [], (0, 0))


def test_in_one_process_the_setting_cannot_be_tried_and_that_is_said() -> None:
    came_to, ended, _ = on_card(on_a_gpu(reserved=78.0), again=None, has_other=False)

    assert isinstance(came_to, AccumulationPlan)
    (note,) = came_to.notes
    assert note.startswith(
        f"the allocator held 19 GiB that nothing used; whether {EXPANDABLE} would help cannot be tried"
    )
    assert ended.again is None


def test_allocator_retries_are_a_failure() -> None:
    came_to, _, _ = on_card(replace(on_a_gpu(reserved=62.0), allocator_retries=2), again=None)

    assert isinstance(came_to, Unproved)
    assert came_to.said == "The plan 2 × 8 failed its soak: it ran only by 2 allocator retries."


def test_sizes_are_counted_in_words() -> None:
    assert in_words((171, 171, 170)) == "2 × 171 + 1 × 170"
