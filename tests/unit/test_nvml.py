from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from profiler.devices import nvml
from profiler.devices.nvml import Nvml, gpus_are_visible
from profiler.units import GIB, MIB

UUID = "ffc79498-8ff3-c2dc-3b0d-fafd804516ae"
V2 = 0x02000028


class NVMLError(Exception):
    pass


class Driver(SimpleNamespace):
    """A stand-in for the module pynvml: one GPU of that name, which answers what a test lets it."""

    NVMLError = NVMLError
    nvmlMemory_v2 = V2  # noqa: N815 - NVML's own name

    def nvmlInit(self) -> None:  # noqa: N802
        if self.why_not:
            raise NVMLError(self.why_not)

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid != self.uuid:
            raise NVMLError("Not Found")
        return "handle"


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Driver]:
    def install(uuid: str = f"GPU-{UUID}", why_not: str = "", **answers: Any) -> Driver:
        driver = Driver(uuid=uuid, why_not=why_not, **answers)
        monkeypatch.setitem(sys.modules, "pynvml", driver)
        return driver

    return install


def memory(used: int) -> SimpleNamespace:
    return SimpleNamespace(used=used)


def unsupported(*arguments: Any) -> Any:
    raise NVMLError("Not Supported")


@pytest.mark.parametrize("written", [f"GPU-{UUID}", f"MIG-{UUID}"])
@pytest.mark.parametrize("asked", ["bare", "as written"])
def test_a_gpu_or_a_slice_of_one_is_found_by_its_uuid(install: Callable[..., Driver], written: str, asked: str) -> None:
    install(uuid=written)

    assert Nvml.for_uuid(UUID if asked == "bare" else written) == Nvml(handle="handle", why_not=None)


def test_what_is_not_found_says_so(install: Callable[..., Driver]) -> None:
    install(uuid="GPU-another")
    found = Nvml.for_uuid(UUID)

    assert found == Nvml(handle=None, why_not="NVML says: Not Found.")
    assert found.device_used_bytes() is found.device_used_bytes_at_rest() is found.energy_joules() is None
    assert found.energy_why_not() == "NVML says: Not Found."


def test_without_a_driver_or_the_package_the_reason_is_said(
    install: Callable[..., Driver], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(why_not="NVML Shared Library Not Found", nvmlSystemGetDriverVersion=unsupported)
    assert Nvml.for_uuid(UUID).why_not == "NVML says: NVML Shared Library Not Found."
    assert Nvml.for_uuid(UUID).driver_version() is None

    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert (Nvml.for_uuid(UUID).why_not or "").startswith("nvidia-ml-py is not installed")
    assert Nvml.for_uuid(UUID).driver_version() is None


def test_what_the_driver_keeps_for_itself_is_not_in_use(install: Callable[..., Driver]) -> None:
    def answer(handle: str, version: int | None = None) -> SimpleNamespace:
        return memory(8 * MIB if version == V2 else 912 * MIB)

    install(nvmlDeviceGetMemoryInfo=answer)

    assert Nvml.for_uuid(UUID).device_used_bytes() == 8 * MIB


def test_a_driver_that_only_knows_the_older_question_is_asked_that(install: Callable[..., Driver]) -> None:
    def answer(handle: str, version: int | None = None) -> SimpleNamespace:
        return memory(912 * MIB) if version is None else unsupported()

    install(nvmlDeviceGetMemoryInfo=answer)

    assert Nvml.for_uuid(UUID).device_used_bytes() == 912 * MIB


@pytest.mark.parametrize(
    ("readings", "at_rest"),
    [
        ([5, 5], 5),
        ([70, 40, 3, 3], 3),
        ([3, 8], 8),  # another process began: that is not waited for
    ],
)
def test_memory_that_is_on_its_way_back_is_waited_for(
    install: Callable[..., Driver], monkeypatch: pytest.MonkeyPatch, readings: list[int], at_rest: int
) -> None:
    left: Iterator[int] = iter(readings)
    install(nvmlDeviceGetMemoryInfo=lambda *arguments: memory(next(left) * GIB))
    monkeypatch.setattr(nvml, "BETWEEN_READINGS_SECONDS", 0.0)

    assert Nvml.for_uuid(UUID).device_used_bytes_at_rest() == at_rest * GIB
    assert list(left) == []


def test_memory_that_falls_for_ever_is_not(install: Callable[..., Driver], monkeypatch: pytest.MonkeyPatch) -> None:
    left = iter(range(10**9, 0, -1))
    install(nvmlDeviceGetMemoryInfo=lambda *arguments: memory(next(left)))
    monkeypatch.setattr(nvml, "BETWEEN_READINGS_SECONDS", 0.001)
    monkeypatch.setattr(nvml, "RETURNING_SECONDS", 0.01)

    assert Nvml.for_uuid(UUID).device_used_bytes_at_rest() is not None


def test_energy_is_counted_in_joules(install: Callable[..., Driver]) -> None:
    install(nvmlDeviceGetTotalEnergyConsumption=lambda handle: 1_234_567)
    gpu = Nvml.for_uuid(UUID)

    assert gpu.energy_joules() == pytest.approx(1234.567)
    assert gpu.energy_why_not() is None


def test_a_gpu_that_counts_no_energy_says_so(install: Callable[..., Driver]) -> None:
    install(nvmlDeviceGetTotalEnergyConsumption=unsupported)
    gpu = Nvml.for_uuid(UUID)

    assert gpu.energy_joules() is None
    assert "does not count energy" in (gpu.energy_why_not() or "")


@pytest.mark.parametrize(
    ("visible", "count", "expected"),
    [(None, 1, True), (None, 0, False), ("0", 1, True), ("", 1, False), ("-1", 1, False)],
)
def test_gpus_are_visible_where_the_driver_sees_one_and_the_environment_hides_none(
    install: Callable[..., Driver],
    monkeypatch: pytest.MonkeyPatch,
    visible: str | None,
    count: int,
    expected: bool,
) -> None:
    install(nvmlDeviceGetCount=lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    assert gpus_are_visible() is expected


def test_no_driver_and_no_package_mean_no_gpu(install: Callable[..., Driver], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    install(why_not="NVML Shared Library Not Found")
    assert not gpus_are_visible()

    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert not gpus_are_visible()
