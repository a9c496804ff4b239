"""The check as a job of a worker: a workload in, an `Equivalence` out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from profiler.trial import Done, Setting, guarded, loaded

if TYPE_CHECKING:
    from profiler.devices import Device
    from profiler.equivalence import Equivalence
    from profiler.steps import Phase, Training


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRequest:
    """What to check: batch_size samples, two at least; thorough: in every way and also in the training precision."""

    batch_size: int
    thorough: bool


def check(setting: Setting, request: CheckRequest) -> Done[Equivalence]:
    """Compare accumulation with the whole batch for the setting's workload; memory and time are not measured."""

    def job(device: Device, phase: Phase) -> Equivalence:
        from profiler.checking.check import equivalence_of

        device.settle()
        return equivalence_of(_start(setting, device, phase), request.batch_size, thorough=request.thorough)

    return guarded(setting, job)


def _start(setting: Setting, device: Device, phase: Phase) -> Training:
    """The workload on the device, not compiled: what is compared is arithmetic, and every size would be compiled anew."""
    from dataclasses import replace

    from profiler.steps import Training

    workload = replace(loaded(setting), compile=False)
    device.open(setting.limit_bytes)
    return Training.start(workload, device.placement(), phase)
