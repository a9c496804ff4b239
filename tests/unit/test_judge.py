from __future__ import annotations

import pytest

from profiler.judge import Circumstances, outcome_of
from profiler.outcomes import Fits, OutOfMemory
from profiler.trial import Completed
from profiler.units import MIB


def ran(peak_bytes: int) -> Completed:
    return Completed(fits=Fits(peak_bytes=peak_bytes, seconds=2.5), step_seconds=(1.0, 1.5))


def circumstances(device: str) -> Circumstances:
    return Circumstances(
        micro_batch_size=685, device=device, capacity_bytes=200 * MIB, predicted_bytes=None, smaller_fits=False
    )


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_what_took_the_whole_capacity_fits_and_a_byte_more_does_not(device: str) -> None:
    assert outcome_of(ran(200 * MIB), circumstances(device)) == ran(200 * MIB).fits
    assert isinstance(outcome_of(ran(200 * MIB + 1), circumstances(device)), OutOfMemory)


def test_a_peak_above_the_capacity_is_out_of_memory_with_the_numbers() -> None:
    assert outcome_of(ran(304 * MIB), circumstances("cpu")) == OutOfMemory(
        phase="worker",
        message="it ran to its end and took 304 MiB of 200 MiB",
        evidence="its peak of 304 MiB exceeds the capacity",
        peak_bytes=304 * MIB,
        seconds=2.5,
    )
