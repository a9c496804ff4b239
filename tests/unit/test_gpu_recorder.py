"""The recorder with a plain allocator in the place of a GPU's, and training on fake tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sample_recordings import Traced
from torch import nn

from benchmarks.gpu_recorder import NotReadable, Readings, record
from profiler.outcomes import Strategy
from profiler.schedules import Schedule, sizing_schedule
from profiler.simulation.recordings import first_difference
from profiler.simulation.snapshots import Reading
from profiler.switches import Switches
from profiler.targets import LiveSource
from profiler.trial import Setting
from profiler.units import KIB
from profiler.workload import Workload

SETTING = Setting(
    source=LiveSource.of(
        Workload.supervised(
            lambda: nn.Linear(8, 4),
            nn.CrossEntropyLoss(),
            lambda size: (torch.rand(size, 8), torch.zeros(size, dtype=torch.long)),
            name="linear",
            precision="fp32",
        )
    ),
    device="sim:24GiB",
    limit_bytes=None,
    switches=Switches.of_caller(),
)


class Gpu(Traced):
    """Whoever reads the counters finds one block more, so that something happens between readings."""

    begun = False

    def counters(self, index: int) -> dict[str, Any]:
        counted = self.events, self.allocator.allocated_bytes
        if self.begun:
            self.allocate(len(self.requested), 300 * KIB)
            counted = self.events, self.allocator.allocated_bytes
        blocks = {"allocated": counted[0], "freed": 0}
        return {"active": {"all": blocks}, "active_bytes": {"all": {"current": counted[1]}}}

    def begin(self, **settings: Any) -> None:
        self.begun = settings["enabled"] == "all"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    gpu = Gpu()
    properties = type("Properties", (), {"total_memory": gpu.capacity_bytes, "name": "a card"})
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    for name, stand_in in {
        "init": lambda: None,
        "memory_stats_as_nested_dict": gpu.counters,
        "get_device_properties": lambda index: properties,
        "get_per_process_memory_fraction": lambda index: 1.0,
        "max_memory_allocated": lambda index: gpu.allocator.peak_allocated_bytes,
        "max_memory_reserved": lambda index: gpu.allocator.peak_reserved_bytes,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", gpu.begin)
    monkeypatch.setattr(torch.cuda.memory, "_snapshot", gpu.snapshot)
    # torch.cuda is this GPU, not the simulated card.
    monkeypatch.setattr("profiler.dry_run.standing_in._replacements", lambda: ())
    return gpu


def test_a_schedule_is_recorded_with_a_reading_after_every_operation(gpu: Gpu) -> None:
    recorded = record(SETTING, sizing_schedule(2))

    recording = recorded.recording
    assert recorded.ended == ""
    assert (recording.origin.workload, recording.origin.micro_batch_size) == ("linear", 2)
    assert recording.origin.capacity_bytes == gpu.capacity_bytes
    assert len(recording.steps) > 50
    assert all(step.active_bytes is not None for step in recording.steps)
    assert first_difference(recording) is None
    assert recorded.peak_reserved_bytes == recording.steps[-1].reserved_bytes


def test_a_trial_that_fails_is_recorded_up_to_there(gpu: Gpu) -> None:
    recorded = record(SETTING, Schedule(strategy=Strategy.ACCUMULATION, steps=((2,), (-1, -1))))

    assert "RuntimeError" in recorded.ended
    assert len(recorded.recording.steps) > 10


def test_an_allocator_with_a_past_is_refused(gpu: Gpu) -> None:
    gpu.allocate(0, 512)

    with pytest.raises(RuntimeError, match="has served 1 events already: record in a fresh process"):
        record(SETTING, sizing_schedule(1))


def test_settings_of_its_own_are_refused(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64")

    with pytest.raises(RuntimeError, match="unset PYTORCH_CUDA_ALLOC_CONF=max_split_size_mb:64"):
        record(SETTING, sizing_schedule(1))


def test_a_trace_that_cannot_be_read_is_kept(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_its_beginning() -> dict[str, Any]:
        del gpu.trace[1]
        return gpu.snapshot()

    monkeypatch.setattr(torch.cuda.memory, "_snapshot", without_its_beginning)

    with pytest.raises(NotReadable, match="lacks the allocation of a live block of 307200 bytes") as caught:
        record(SETTING, sizing_schedule(1))
    assert caught.value.raw["trace"][0][0] == "segment_alloc"
    assert len(caught.value.raw["readings"]) > 10


def test_backward_is_read_too() -> None:
    events = iter(range(1000))
    readings = Readings(lambda: Reading(next(events), 0))
    weights = torch.ones(3, requires_grad=True)
    with readings:
        loss = (weights * 2).sum()
        before = len(readings.taken)
        loss.backward()

    assert len(readings.taken) > before > 0
