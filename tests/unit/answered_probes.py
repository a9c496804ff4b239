"""Whole probes without a worker: every job is answered by rule, so that two runs of one probe come to the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from sample_checks import equal_check

from profiler.checking.job import CheckRequest, check
from profiler.devices import DeviceFacts, Usage
from profiler.devices.out_of_memory import Failure
from profiler.options import Options
from profiler.outcomes import Fits, Strategy, Throughput
from profiler.schedules import Schedule
from profiler.soak import Soak
from profiler.soaking import Soaked, SoakRequest, soak
from profiler.targets import TargetSource
from profiler.trial import Completed, Failed, Inspection, Setting, inspect, run_schedule
from profiler.units import MIB
from profiler.workers.protocol import Died, TimedOut
from profiler.workers.runner import ProcessRunner

CAPACITY = 64 * MIB
ENVIRONMENT = {"torch": "2.13.0", "threads": "2", "device_name": "a processor"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a workload needs, in MiB, and which of its jobs fail."""

    fixed: int = 4
    a_sample: int = 3
    wide_at: int | None = None
    untimed_size: int | None = None
    untimed_plan: bool = False
    slow_plan: tuple[int, ...] | None = None
    fails_check: bool = False
    crashes_at: tuple[Strategy, int] | None = None
    samples_vary: bool = False
    largest_lasting: int | None = None
    slow_soak: bool = False


@dataclass(slots=True)
class Answering(ProcessRunner):
    """Answers every job by the rules, and remembers what was asked."""

    rules: Rules
    jobs: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=lambda: dict(ENVIRONMENT))
    workload: str = "answered"

    def close(self) -> None:
        """Nothing was started."""

    def size(self, function: Callable[..., Any], *arguments: Any, timeout_seconds: float, fresh: bool) -> Any:
        setting: Setting = arguments[0]
        if function is inspect:
            return self._inspection(setting.limit_bytes or CAPACITY)
        self.jobs.append(f"{function.__name__} {arguments[1:]}")
        if function is check:
            return self._check(arguments[1])
        if function is soak:
            return self._soaked(arguments[1])
        assert function is run_schedule
        return self._ran(setting, arguments[1])

    def time(self, function: Callable[..., Any], *arguments: Any, timeout_seconds: float, fresh: bool) -> Any:
        self.jobs.append(f"time {function.__name__} {arguments[1:]}")
        if function is run_schedule:
            return (
                TimedOut(seconds=9.0, output="") if self.rules.untimed_plan else self._ran(arguments[0], arguments[1])
            )
        size: int = arguments[1]
        if size == self.rules.untimed_size:
            return TimedOut(seconds=9.0, output="")
        wobble = 0.3 if size == self.rules.wide_at else 0.01
        seconds = 0.01 + size / 1000
        return Throughput(
            micro_batch_size=size,
            micro_step_seconds=tuple(seconds * (1 + wobble * part) for part in (-1, 0, 1, 2)),
            optimizer_seconds=(0.002,),
        )

    def _inspection(self, limit_bytes: int) -> Inspection:
        return Inspection(
            workload=self.workload,
            optimizer_is_default=True,
            compile=False,
            samples_vary=self.rules.samples_vary,
            facts=DeviceFacts(
                description="a device", total_bytes=2**40, available_bytes=2**40, environment=self.environment
            ),
            capacity_bytes=limit_bytes,
        )

    def _check(self, request: CheckRequest) -> Any:
        if self.rules.fails_check:
            return Died(exit_status=-11, output="")
        return replace(equal_check(), batch_size=request.batch_size)

    def _soaked(self, request: SoakRequest) -> Any:
        if self.rules.slow_soak:
            return TimedOut(seconds=9.0, output="")
        largest = self.rules.largest_lasting
        lasts = largest is None or max(request.sizes) <= largest
        ran = Soak(
            micro_batch_sizes=request.sizes,
            steps=request.steps,
            steps_run=request.steps if lasts else 2,
            seconds=1.0,
            peak_bytes=CAPACITY // 2,
            verified_elements=100,
        )
        return Soaked(soak=ran, failed=None if lasts else _full(MIB), elements=300, at_failure=Usage())

    def _ran(self, setting: Setting, schedule: Schedule) -> Any:
        sizes = schedule.steps[-1]
        if schedule.steps.count(sizes) == 5 and sizes == self.rules.slow_plan:
            return TimedOut(seconds=9.0, output="")
        if (schedule.strategy, len(sizes)) == self.rules.crashes_at:
            return Died(exit_status=-11, output="")
        alive = max(sizes) if schedule.strategy is Strategy.ACCUMULATION else sum(sizes)
        needed = (self.rules.fixed + self.rules.a_sample * alive) * MIB
        if setting.limit_bytes is not None and needed > setting.limit_bytes:
            return _full(setting.limit_bytes - MIB)
        seconds = tuple(0.1 + sum(step) / 100 for step in schedule.steps)
        return Completed(fits=Fits(peak_bytes=needed, seconds=0.5), step_seconds=seconds)


def _full(peak_bytes: int) -> Failed:
    return Failed(
        failure=Failure.of(MemoryError("no room")),
        phase="forward",
        message="MemoryError: no room",
        user_traceback=None,
        refusal=None,
        peak_bytes=peak_bytes,
        seconds=0.25,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A probe: by which rules, and with which options."""

    rules: Rules = field(default_factory=Rules)
    options: Options = field(default_factory=lambda: options_of(effective_batch_size=40))


def options_of(**changes: Any) -> Options:
    return Options(device="cpu", memory_limit=CAPACITY, command="microbatch probe answered", **changes)


CASES = {
    "everything": Case(rules=Rules(samples_vary=True, wide_at=8)),
    "no effective batch": Case(options=options_of(ceiling=7)),
    "nothing fits": Case(rules=Rules(fixed=70)),
    "no plan leaves the headroom": Case(options=options_of(effective_batch_size=40, headroom=0.99)),
    "a size and the plan untimed": Case(rules=Rules(untimed_size=4, untimed_plan=True)),
    "a plan too slow, and no check": Case(rules=Rules(slow_plan=(14, 13, 13), fails_check=True)),
    "a strategy that crashes": Case(rules=Rules(crashes_at=(Strategy.SUMMED_LOSS, 2))),
    "a plan that lasts": Case(options=options_of(effective_batch_size=40, soak_steps=20)),
    "soaks that fail": Case(rules=Rules(largest_lasting=3), options=options_of(effective_batch_size=40, soak_steps=20)),
    "soaks that fail, untimed": Case(
        rules=Rules(largest_lasting=3, untimed_plan=True), options=options_of(effective_batch_size=40, soak_steps=20)
    ),
    "no plan lasts": Case(rules=Rules(largest_lasting=0), options=options_of(effective_batch_size=40, soak_steps=20)),
    "a soak too slow": Case(rules=Rules(slow_soak=True), options=options_of(effective_batch_size=40, soak_steps=20)),
}


def answered_by(runner: Answering) -> Callable[..., Any]:
    """Stands for `profiler.opening._runner`."""
    return lambda *arguments, exact: (runner, TargetSource(target="answered", directory="/"))
