"""Whole searches on a card whose memory is arithmetic: out of memory in every phase, neighbours, drift, disappearance."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from faults.fake_device import FIXED_BYTES, SAMPLE_BYTES, TOTAL_BYTES, Card, FakeDevice, workload
from profiler import Options, probe
from profiler.errors import DeviceUnavailable, MicrobatchError, TrialError, UsageError, WorkloadError
from profiler.events import Event, Noted, SizeTried, unobserved
from profiler.finder import find_largest
from profiler.opening import DRIFT, open_prober
from profiler.outcomes import Finding, OutOfMemory
from profiler.smallest import why_nothing_fits

PHASES = ("forward", "backward", "optimizer step", "moving")


def largest_in(capacity_bytes: int) -> int:
    return (capacity_bytes - FIXED_BYTES) // SAMPLE_BYTES


LARGEST = largest_in(int(TOTAL_BYTES * (1 - DRIFT)))


@dataclass(frozen=True, slots=True)
class Searched:
    finding: Finding
    notes: list[str]

    @property
    def answer(self) -> tuple[int, int | None]:
        return self.finding.largest_fit, self.finding.smallest_misfit


@pytest.fixture(autouse=True)
def few_collections(quick_collection: None) -> None:
    """Every trial here runs in this process."""


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Searched]:
    def run(card: Card, observe: Callable[[Event], None] = unobserved, limit: int | None = None) -> Searched:
        plug_in(card, monkeypatch)
        notes = list[str]()

        def watch(event: Event) -> None:
            notes.extend([event.text] if isinstance(event, Noted) else [])
            observe(event)

        options = Options(device="cuda:0", isolation="none", memory_limit=limit)
        with open_prober(workload(card), options, watch) as (prober, _):
            return Searched(find_largest(prober), notes)

    return run


def plug_in(card: Card, patch: pytest.MonkeyPatch) -> None:
    for module in ("opening", "trial", "workers.in_process"):
        patch.setattr(f"profiler.{module}.open_device", lambda name, assumptions=(): FakeDevice(card))


@pytest.mark.parametrize("phase", PHASES)
def test_out_of_memory_in_any_phase_gives_the_exact_answer(search: Callable[..., Searched], phase: str) -> None:
    searched = search(Card(phase=phase))
    misfit = searched.finding.trial_of(LARGEST + 1)

    assert searched.answer == (LARGEST, LARGEST + 1)
    assert searched.notes == []
    assert misfit is not None
    assert isinstance(misfit.outcome, OutOfMemory)
    assert misfit.outcome.phase == ("batch" if phase == "moving" else phase)
    assert "CUDA out of memory. Tried to allocate" in misfit.outcome.message


@pytest.mark.parametrize("limit", [150_000_000, 777_777_777, TOTAL_BYTES])
def test_a_limit_is_the_capacity_to_the_sample(search: Callable[..., Searched], limit: int) -> None:
    assert search(Card(), limit=limit).answer == (largest_in(limit), largest_in(limit) + 1)


def test_a_model_that_does_not_fit_fits_at_no_size(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(phase="model")
    plug_in(card, monkeypatch)
    options = Options(device="cuda:0", isolation="none", memory_limit=FIXED_BYTES // 2)
    with open_prober(workload(card), options, unobserved) as (prober, _):
        finding = find_largest(prober)

        assert (finding.largest_fit, finding.smallest_misfit) == (0, 1)
        assert "size 1, the smallest, does not fit: it needs about 95.4 MiB, the limit is 47.7 MiB" in why_nothing_fits(
            prober, finding
        )


def test_host_memory_that_a_batch_maker_lacks_is_no_limit_of_the_gpu(search: Callable[..., Searched]) -> None:
    with pytest.raises(TrialError, match="ran out of host memory outside what is measured on cuda:0"):
        search(Card(phase="making", full=MemoryError))


def visiting(trial: int, bytes_taken: int) -> Callable[[Card, int], None]:
    """A neighbour that comes when a trial has begun and goes with it."""

    def at_trial(card: Card, number: int) -> None:
        card.visitors_bytes = bytes_taken if number == trial else 0

    return at_trial


@pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
@pytest.mark.parametrize("trial", range(2, 9))
def test_a_neighbour_that_takes_memory_for_a_moment_changes_no_answer(
    search: Callable[..., Searched], trial: int, share: float
) -> None:
    card = Card(at_trial=visiting(trial, int(share * TOTAL_BYTES)))
    searched = search(card)

    assert searched.answer == (LARGEST, LARGEST + 1)
    fooled = [size for size in card.refused if size <= LARGEST]
    assert len(searched.notes) == len(fooled)
    assert all("something else took the memory for a moment" in note for note in searched.notes)


def test_a_neighbour_is_met_in_these_trials(search: Callable[..., Searched]) -> None:
    cards = [Card(at_trial=visiting(trial, TOTAL_BYTES)) for trial in range(2, 9)]

    assert sum(bool(search(card).notes) for card in cards) >= 3


def test_a_neighbour_that_stays_is_said_with_the_numbers(search: Callable[..., Searched]) -> None:
    def move_in(card: Card, trial: int) -> None:
        card.others_bytes = 300_000_000 if trial >= 4 else 0

    with pytest.raises(UsageError, match="the memory limit of 997500000 is more than the 700000000 that are free"):
        search(Card(at_trial=move_in))


def test_a_neighbour_beside_a_limit_that_leaves_it_room_changes_nothing(search: Callable[..., Searched]) -> None:
    def come_and_go(card: Card, trial: int) -> None:
        card.others_bytes = 400_000_000 * (trial % 2)  # and 600 are left

    searched = search(Card(at_trial=come_and_go), limit=600_000_000)

    assert searched.answer == (largest_in(600_000_000), largest_in(600_000_000) + 1)
    assert searched.notes == []


def test_a_neighbour_that_takes_memory_in_every_trial_is_named_with_the_answer(search: Callable[..., Searched]) -> None:
    """It holds half of the card whenever a trial of more than 30 samples runs, and nobody sees it in between."""

    class Nervous(Card):
        def hold(self, phase: str, samples: int) -> None:
            self.others_bytes = TOTAL_BYTES // 2 if samples > 30 else 0
            try:
                Card.hold(self, phase, samples)
            finally:
                self.others_bytes = 0

    searched = search(Nervous())

    assert searched.answer == (56, 57)
    (note,) = searched.notes
    assert note.startswith("micro-batch size 57 ran out of memory twice, though smaller ones put it at ")
    assert "another process takes memory" in note


def test_memory_that_drifts_by_less_than_the_reserve_changes_nothing(search: Callable[..., Searched]) -> None:
    drift = random.Random(3)

    def wander(card: Card, trial: int) -> None:
        card.others_bytes = drift.randrange(int(TOTAL_BYTES * DRIFT))

    searched = search(Card(at_trial=wander, others_bytes=0))

    assert searched.answer == (LARGEST, LARGEST + 1)
    assert searched.notes == []


LOST: dict[str, Callable[[], Exception]] = {
    "no device": lambda: torch.AcceleratorError("CUDA error: no CUDA-capable device is detected"),
    "busy": lambda: torch.AcceleratorError("CUDA error: CUDA-capable device(s) is/are busy or unavailable"),
    "lost": lambda: RuntimeError("NVML: GPU is lost"),
    "no GPUs": lambda: RuntimeError("No CUDA GPUs are available"),
    "broken memory": lambda: torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"),
}


def losing(trial: int, lost: Callable[[], Exception]) -> Callable[[Card, int], None]:
    def at_trial(card: Card, number: int) -> None:
        card.lost = lost if number >= trial else None

    return at_trial


@pytest.mark.parametrize("trial", [2, 4, 6])
@pytest.mark.parametrize("kind", LOST)
def test_a_device_that_disappears_ends_the_search_in_words(
    search: Callable[..., Searched], kind: str, trial: int
) -> None:
    tried = list[int]()
    card = Card(at_trial=losing(trial, LOST[kind]))
    with pytest.raises(DeviceUnavailable) as caught:
        search(card, lambda event: tried.extend([event.trial.micro_batch_size] if isinstance(event, SizeTried) else []))

    assert str(LOST[kind]()) in str(caught.value)
    assert "cuda:0 was lost at micro-batch size" in str(caught.value)
    assert "nvidia-smi" in str(caught.value)
    assert len(tried) == trial - 2  # the first that began was the inspection
    assert card.trials == trial


def test_a_device_that_is_gone_before_the_search_is_unavailable(search: Callable[..., Searched]) -> None:
    with pytest.raises(DeviceUnavailable, match="cuda:0 cannot be used: AcceleratorError: CUDA error: no CUDA-capable"):
        search(Card(lost=LOST["no device"]))


def test_a_device_that_disappears_in_the_rest_of_a_probe_keeps_what_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = list[Any]()
    card = Card(at_trial=losing(14, LOST["no device"]))
    plug_in(card, monkeypatch)
    options = Options(device="cuda:0", isolation="none", effective_batch_size=300)
    with pytest.raises(MicrobatchError, match="CUDA-capable"):
        probe(workload(card), options, check=False, observe=tried.append)

    assert sum(isinstance(event, SizeTried) for event in tried) >= 6


def test_a_bug_of_the_workload_is_not_taken_for_a_lost_device(search: Callable[..., Searched]) -> None:
    with pytest.raises(WorkloadError, match="device-side assert"):
        search(Card(full=lambda: RuntimeError("CUDA error: device-side assert triggered")))
