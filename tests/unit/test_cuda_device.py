from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from profiler.devices import Usage, cuda
from profiler.devices.cuda import CudaDevice
from profiler.devices.nvml import Nvml
from profiler.errors import DeviceUnavailable, UsageError
from profiler.switches import Switches
from profiler.targets import TargetSource
from profiler.trial import Failed, Setting, inspect
from profiler.units import GIB, MIB

TOTAL = 80 * GIB
CONTEXT = 500 * MIB
KERNELS = 96 * MIB


class Card:
    """A GPU as torch.cuda and NVML tell of it: a context and kernels, a caching allocator under a fraction, others."""

    def __init__(self) -> None:
        self.others = 0
        self.outside = 0
        self.allocated = self.reserved = self.allocated_peak = self.reserved_peak = 0
        self.retries = self.inactive_split = 0
        self.fraction = 1.0
        self.has_nvml = True
        self.broken = False

    def start_context(self, *arguments: Any) -> None:
        self.outside = self.outside or CONTEXT

    def allocate(self, size: int) -> None:
        if self.reserved + size > self.allowed:
            self.retries += 1
            self.reserved = self.allocated
        if self.reserved + size > self.allowed:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        self.reserved += size
        self.allocated += size
        self._mark()

    def free(self) -> None:
        self.allocated = 0

    def empty_cache(self) -> None:
        self._answer()
        self.reserved = self.allocated

    @property
    def allowed(self) -> int:
        return round(self.fraction * TOTAL)

    @property
    def used(self) -> int:
        return self.others + self.outside + self.reserved

    def mem_get_info(self, index: int) -> tuple[int, int]:
        self._answer()
        return TOTAL - self.used, TOTAL

    def memory_stats(self, index: int) -> dict[str, int]:
        return {
            "allocated_bytes.all.peak": self.allocated_peak,
            "reserved_bytes.all.peak": self.reserved_peak,
            "allocated_bytes.all.current": self.allocated,
            "reserved_bytes.all.current": self.reserved,
            "inactive_split_bytes.all.current": self.inactive_split,
            "num_alloc_retries": self.retries,
        }

    def reset_peak_memory_stats(self, index: int) -> None:
        self.allocated_peak, self.reserved_peak = self.allocated, self.reserved

    def set_per_process_memory_fraction(self, fraction: float, index: int) -> None:
        self._answer()
        assert 0 <= fraction <= 1
        self.fraction = fraction

    def synchronize(self, index: int) -> None:
        self._answer()

    def device_used_bytes(self) -> int | None:
        return self.used if self.has_nvml else None

    def device_used_bytes_at_rest(self) -> int | None:
        return self.device_used_bytes()

    def _mark(self) -> None:
        self.allocated_peak = max(self.allocated_peak, self.allocated)
        self.reserved_peak = max(self.reserved_peak, self.reserved)

    def _answer(self) -> None:
        if self.broken:
            raise RuntimeError("CUDA error: device-side assert triggered")


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    card = Card()
    for name in (
        *("mem_get_info", "memory_stats", "reset_peak_memory_stats", "set_per_process_memory_fraction"),
        *("synchronize", "empty_cache"),
    ):
        monkeypatch.setattr(torch.cuda, name, getattr(card, name))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda index: card.reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda index: card.allocated)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda index: card.fraction)
    properties = SimpleNamespace(uuid="a-uuid", total_memory=TOTAL)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(Nvml, "for_uuid", lambda uuid: card)
    monkeypatch.setattr(cuda, "_USED_BY_OTHERS_BYTES", {})
    monkeypatch.setattr(cuda, "_has_context", lambda index: card.outside > 0)
    monkeypatch.setattr(cuda, "_train_layer", card.start_context)
    return card


def settled() -> CudaDevice:
    device = CudaDevice(0)
    device.settle()
    return device


def test_a_budget_is_enforced_less_the_context_and_counted_with_it(card: Card) -> None:
    device = settled()

    assert device.open(4 * GIB) == 4 * GIB
    assert card.allowed == 4 * GIB - CONTEXT
    card.allocate(GIB)
    assert device.read_peaks().peak_bytes == GIB + CONTEXT


def test_what_others_use_is_not_this_process_s(card: Card) -> None:
    card.others = 10 * GIB
    device = settled()

    assert device.open(4 * GIB) == 4 * GIB
    assert card.allowed == 4 * GIB - CONTEXT
    device.close()
    assert device.open(None) == TOTAL - 10 * GIB


def test_the_context_counts_in_every_job_of_a_worker_that_is_kept(card: Card) -> None:
    card.others = 10 * GIB
    for _ in range(3):
        device = settled()
        device.open(4 * GIB)
        assert card.allowed == 4 * GIB - CONTEXT
        card.allocate(GIB)
        card.free()
        device.close()
        assert device.release()


def test_kernels_that_the_first_step_loads_are_taken_off_the_budget(card: Card) -> None:
    device = settled()
    device.open(4 * GIB)
    card.allocate(GIB)
    card.outside += KERNELS
    device.charge_loaded()

    assert card.allowed == 4 * GIB - CONTEXT - KERNELS
    assert device.read_peaks().peak_bytes == GIB + CONTEXT + KERNELS


def test_a_neighbour_that_comes_later_is_not_charged(card: Card) -> None:
    device = settled()
    device.open(4 * GIB)
    device.charge_loaded()
    card.others += GIB
    device.synchronize()
    device.read_peaks()

    assert card.allowed == 4 * GIB - CONTEXT


def test_a_worker_that_has_loaded_the_kernels_and_a_fresh_one_leave_tensors_the_same_room(card: Card) -> None:
    rooms = []
    for _ in range(2):
        device = settled()
        device.open(4 * GIB)
        card.outside = CONTEXT + KERNELS
        device.charge_loaded()
        rooms.append(card.allowed)
        device.close()

    assert rooms == [4 * GIB - CONTEXT - KERNELS] * 2


def test_cache_that_the_first_step_held_in_the_room_of_kernels_is_given_back_and_does_not_count(card: Card) -> None:
    device = settled()
    device.open(4 * GIB)
    card.allocate(2 * GIB)
    card.free()
    card.allocate(4 * GIB - CONTEXT - 2 * GIB)
    card.outside += KERNELS
    device.charge_loaded()

    assert card.reserved == card.allocated
    assert device.read_peaks().peak_bytes == 4 * GIB


def test_tensors_in_the_room_of_kernels_do_count(card: Card) -> None:
    device = settled()
    device.open(4 * GIB)
    card.allocate(4 * GIB - CONTEXT)
    card.outside += KERNELS
    device.charge_loaded()

    assert device.read_peaks().peak_bytes == 4 * GIB + KERNELS
    with pytest.raises(torch.OutOfMemoryError):
        card.allocate(1)


def test_the_peak_is_the_larger_of_the_first_step_s_and_the_others(card: Card) -> None:
    device = settled()
    device.open(4 * GIB)
    card.allocate(2 * GIB)
    device.charge_loaded()
    card.free()
    card.empty_cache()
    card.allocate(GIB)
    peaks = device.read_peaks()

    assert (peaks.allocated_bytes, peaks.reserved_bytes) == (2 * GIB, 2 * GIB)


def test_kernels_of_evaluation_are_charged_too_and_the_first_step_s_peak_is_kept(card: Card) -> None:
    device = settled()
    device.open(4 * GIB)
    card.allocate(2 * GIB)
    device.charge_loaded()
    card.free()
    card.empty_cache()
    card.allocate(GIB)
    card.outside += KERNELS
    device.charge_loaded()
    peaks = device.read_peaks()

    assert card.allowed == 4 * GIB - CONTEXT - KERNELS
    assert (peaks.allocated_bytes, peaks.reserved_bytes) == (2 * GIB, 2 * GIB)


def test_peaks_and_retries_begin_with_open(card: Card) -> None:
    device = settled()
    card.allocate(8 * GIB)
    card.free()
    card.empty_cache()
    card.retries = 7
    device.open(4 * GIB)
    card.allocate(2 * GIB)
    card.free()
    card.allocate(3 * GIB)  # only after the cache was given back
    peaks = device.read_peaks()

    assert peaks.allocator_retries == 1
    assert peaks.peak_bytes == 3 * GIB + CONTEXT


def test_a_limit_above_what_can_be_had_is_refused_with_both_numbers(card: Card) -> None:
    card.others = 70 * GIB

    with pytest.raises(UsageError, match=r"limit of 12 GiB is more than the 10 GiB of cuda:0"):
        settled().open(12 * GIB)


def test_a_limit_that_does_not_hold_the_context_is_refused(card: Card) -> None:
    with pytest.raises(UsageError, match=r"400 MiB does not even hold the CUDA context and kernels, 500 MiB"):
        settled().open(400 * MIB)


def test_without_nvml_the_runtime_s_numbers_serve(card: Card) -> None:
    card.has_nvml = False
    device = settled()
    device.open(4 * GIB)

    assert card.allowed == 4 * GIB - CONTEXT
    assert device.read_peaks().device_used_bytes is None


def test_where_the_caller_has_a_context_already_all_that_is_not_torch_s_counts(card: Card) -> None:
    card.start_context()
    card.allocate(GIB)  # the caller's model
    card.others = 100 * MIB
    device = settled()
    device.open(4 * GIB)

    assert card.allowed == 4 * GIB - CONTEXT - 100 * MIB
    assert device.read_peaks().peak_bytes == GIB + CONTEXT + 100 * MIB


def test_the_caller_s_own_fraction_is_put_back(card: Card) -> None:
    card.fraction = 0.5
    device = settled()
    device.open(4 * GIB)
    device.open(2 * GIB)
    device.close()
    device.close()

    assert card.fraction == 0.5


def test_memory_that_did_not_come_back_is_seen(card: Card) -> None:
    card.allocate(GIB)
    device = settled()
    assert device.release()
    card.allocate(1)
    assert not device.release()


def test_a_context_that_an_error_has_broken_stops_neither_closing_nor_reading(card: Card) -> None:
    device = settled()
    device.open(4 * GIB)
    card.allocate(GIB)
    card.broken = True

    device.close()
    assert device.read_peaks().peak_bytes == GIB + CONTEXT
    assert not device.release()


def test_a_gpu_on_which_nothing_can_be_trained_says_why(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(device: torch.device) -> None:
        raise RuntimeError(
            "CUDA error: all CUDA-capable devices are busy or unavailable\nCompile with TORCH_USE_CUDA_DSA"
        )

    monkeypatch.setattr(cuda, "_train_layer", busy)

    with pytest.raises(DeviceUnavailable, match=r"cuda:0 cannot be used: .*are busy or unavailable\)\. Free memory"):
        settled()


def test_what_the_allocator_holds_now_is_told_apart_from_its_peaks(card: Card) -> None:
    device = settled()
    device.open(4 * GIB)
    card.allocate(GIB)
    card.free()
    card.allocate(100 * MIB)
    card.inactive_split = 7 * MIB

    assert device.usage() == Usage(
        allocated_bytes=100 * MIB, reserved_bytes=GIB + 100 * MIB, inactive_split_bytes=7 * MIB
    )
    assert device.usage().unused_bytes == GIB


NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, "expandable_segments:True"),
        ({NAMES[0]: ""}, "expandable_segments:True"),
        ({NAMES[0]: "max_split_size_mb:128"}, "max_split_size_mb:128,expandable_segments:True"),
        ({NAMES[1]: "max_split_size_mb:64,"}, "max_split_size_mb:64,expandable_segments:True"),
        ({NAMES[0]: "a:1", NAMES[1]: "b:2"}, "a:1,expandable_segments:True"),
        ({NAMES[0]: "expandable_segments:False"}, None),
        ({NAMES[1]: "expandable_segments:True"}, None),
        ({NAMES[0]: "backend:cudaMallocAsync"}, None),
    ],
)
def test_segments_are_made_expandable_beside_what_the_user_set(
    monkeypatch: pytest.MonkeyPatch, own: dict[str, str], expected: str | None
) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in own.items():
        monkeypatch.setenv(name, value)

    assert CudaDevice(0).defragmenting_environment() == (dict.fromkeys(NAMES, expected) if expected else {})


@pytest.mark.skipif(torch.backends.cuda.is_built(), reason="this torch has CUDA")
def test_with_a_torch_without_cuda_it_is_unavailable_and_nothing_else_fails() -> None:
    CudaDevice(0).close()
    setting = Setting(source=TargetSource("digits-cnn"), device="cuda:0", limit_bytes=None, switches=Switches())
    done = inspect(setting)

    assert isinstance(done.result, Failed)
    assert isinstance(done.result.refusal, DeviceUnavailable)
    assert "built without CUDA" in str(done.result.refusal)
