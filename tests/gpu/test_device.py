from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gpu import jobs
from gpu.jobs import in_worker
from gpu.workloads import prober_of, setting_of, sizing, small
from profiler.devices import default_device_name
from profiler.trial import Inspection, inspect, run_schedule
from profiler.units import GIB, MIB
from profiler.workers.runner import ProcessRunner

pytestmark = pytest.mark.gpu

NEIGHBOUR = """
import torch
held = torch.empty(2 * 2**30, dtype=torch.uint8, device="cuda")
print("here", flush=True)
input()
"""


@contextmanager
def neighbour() -> Iterator[None]:
    """Another process with a context of its own and 2 GiB on the GPU."""
    with subprocess.Popen([sys.executable, "-c", NEIGHBOUR], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"here\n"
            yield
        finally:
            process.kill()


def capacity(runner: ProcessRunner) -> int:
    inspection = in_worker(runner, inspect, setting_of(small(), None))
    assert isinstance(inspection, Inspection), inspection
    return inspection.capacity_bytes


def test_the_first_gpu_is_the_default() -> None:
    assert default_device_name() == "cuda:0"


def test_nvml_s_gpu_is_torch_s_whatever_is_visible(runner: ProcessRunner) -> None:
    by_nvml, by_torch = in_worker(runner, jobs.uuids, None)
    assert by_torch in by_nvml

    for visible in ("0", by_nvml):
        assert in_worker(runner, jobs.uuids, visible) == (by_nvml, by_torch)


def test_a_context_is_made_by_settling_and_not_before(runner: ProcessRunner) -> None:
    before, after, overhead = in_worker(runner, jobs.context_before_and_after)

    assert (before, after) == (False, True)
    assert 50 * MIB < overhead < 1 * GIB


def test_the_survey_knows_the_gpu(runner: ProcessRunner) -> None:
    found = in_worker(runner, jobs.surveyed)["cuda:0"]

    assert found.why_not is None
    assert found.facts.description
    assert found.facts.available_bytes <= found.facts.total_bytes
    assert found.facts.environment["driver"] != "unknown"


def test_energy_is_positive_and_a_power_that_a_gpu_can_have(runner: ProcessRunner) -> None:
    throughput = prober_of(small(), runner).time(64, "to read the energy")

    assert throughput is not None
    if throughput.energy_note is not None:
        pytest.skip(throughput.energy_note)
    assert throughput.joules_per_sample is not None
    assert 20 < throughput.joules_per_sample * throughput.samples_per_second < 2000


def test_what_another_process_holds_counts_as_taken_and_not_as_ours(runner: ProcessRunner) -> None:
    setting, alone = setting_of(small()), capacity(runner)
    peak = in_worker(runner, run_schedule, setting, sizing(8)).fits.peak_bytes
    with neighbour():
        assert capacity(runner) < alone - 2 * GIB
        assert in_worker(runner, run_schedule, setting, sizing(8)).fits.peak_bytes == pytest.approx(peak, abs=32 * MIB)


def test_what_an_ended_worker_held_is_free_again(runner: ProcessRunner) -> None:
    before = capacity(runner)
    in_worker(runner, run_schedule, setting_of(small(), None), sizing(4096))

    assert capacity(runner) == pytest.approx(before, abs=32 * MIB)
