from __future__ import annotations

import pytest

from gpu import jobs
from gpu.jobs import in_worker
from profiler.units import MIB
from profiler.workers.runner import ProcessRunner

pytestmark = pytest.mark.gpu


def test_the_model_is_the_real_allocator_to_the_byte_over_a_training_step(runner: ProcessRunner) -> None:
    recorded, difference = in_worker(runner, jobs.recorded_and_replayed)

    assert recorded.ended == ""
    steps = recorded.recording.steps
    assert sum(step.active_bytes is not None for step in steps) > 50
    assert max(step.reserved_bytes for step in steps) > 100 * MIB
    assert difference is None
