"""Clocks that jump by hours while a probe runs, in its own process and in the workers."""

from __future__ import annotations

import ast
import datetime
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from process.workloads import squares
from torch import Tensor, nn

import profiler
from faults.workloads import LARGEST, LIMIT, workload
from profiler import Options, probe
from profiler.events import Event, Timed
from profiler.limits import Limits

HOURS = 5 * 3600.0
_real = time.time


def jumping() -> float:
    return _real() + random.SystemRandom().choice((-HOURS, 0.0, HOURS))


def with_a_jumping_clock(model: nn.Module, batch: Tensor) -> Tensor:
    time.time = jumping
    time.time_ns = lambda: int(jumping() * 1e9)
    return squares(model, batch)


class JumpingDate(datetime.datetime):
    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return datetime.datetime.fromtimestamp(jumping(), tz)


@pytest.fixture
def jumping_clock() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", jumping)
        patch.setattr("profiler.opening.datetime", JumpingDate)
        yield


def test_a_probe_while_the_clocks_jump_by_hours(kept_servers: None, jumping_clock: None) -> None:
    events = list[Event]()
    start = time.monotonic()
    report = probe(
        workload(with_a_jumping_clock),
        Options(effective_batch_size=9, device="cpu", memory_limit=LIMIT, limits=Limits(trial_seconds=60.0)),
        comparison=False,
        check=False,
        observe=events.append,
    )
    took = time.monotonic() - start

    assert report.finding is not None
    assert (report.finding.largest_fit, report.finding.smallest_misfit) == (LARGEST, LARGEST + 1)
    assert report.plan is not None
    assert 0 < report.search_seconds <= took < HOURS / 2
    assert all(0 < trial.outcome.seconds <= took for trial in report.finding.trials)
    assert sum(isinstance(event, Timed) for event in events) == len(report.throughput) > 0
    assert all(0 < seconds <= took for timed in report.throughput for seconds in timed.micro_step_seconds)
    assert torch.isfinite(torch.tensor([timed.samples_per_second for timed in report.throughput])).all()


# What names a run and says when it began, and nothing that decides.
WALL_CLOCK = {"opening": {"datetime.now"}, "commands.recording": {"datetime.now"}}
CLOCKS = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "time.clock_gettime", "date.today"}


def test_no_decision_asks_the_wall_clock() -> None:
    root = Path(profiler.__file__).parent
    asked: dict[str, set[str]] = {}
    for path in root.rglob("*.py"):
        name = ".".join(path.relative_to(root).with_suffix("").parts)
        calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
        asked[name] = calls & CLOCKS

    assert {name: calls for name, calls in asked.items() if calls} == WALL_CLOCK
