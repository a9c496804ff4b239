from __future__ import annotations

import pytest

from profiler.outcomes import Fits, Outcome, OutOfMemory, Trial
from profiler.surprise import after_another_try
from profiler.units import MIB

FITS = Fits(peak_bytes=90 * MIB, seconds=1.0)
FULL = OutOfMemory(phase="forward", message="refused", evidence="it said so", seconds=1.0)


def said(outcome: Outcome, *, own_heap: bool) -> str:
    again = Trial(micro_batch_size=7, outcome=outcome, why="a test")
    text = after_another_try(again, 50 * MIB, 100 * MIB, own_heap=own_heap)
    assert text is not None
    return text


@pytest.mark.parametrize("outcome", [FITS, FULL], ids=["fits now", "fails again"])
def test_another_process_is_named_where_trials_have_processes_of_their_own(outcome: Outcome) -> None:
    assert "another process" in said(outcome, own_heap=False)
    assert "this process" not in said(outcome, own_heap=False)


@pytest.mark.parametrize("outcome", [FITS, FULL], ids=["fits now", "fails again"])
def test_the_own_process_is_named_where_trials_share_its_memory(outcome: Outcome) -> None:
    assert "this process, in which it ran" in said(outcome, own_heap=True)
    assert "another process" not in said(outcome, own_heap=True)
    assert "stop them" not in said(outcome, own_heap=True)
