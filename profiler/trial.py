"""What runs inside a worker: a job in, an outcome out.

Everything here runs in the process that trains, a forked worker or (isolation="none") the caller's own. Nothing raises
for what the workload does: failures are returned as data, and what they mean is decided by whoever asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from profiler.devices import Device, DeviceFacts, open_device
from profiler.devices.out_of_memory import Failure
from profiler.errors import DeviceUnavailable, MicrobatchError, UsageError, WorkloadError
from profiler.outcomes import Fits, Strategy, Throughput
from profiler.schedules import Schedule
from profiler.switches import Switches, use_tf32
from profiler.tracebacks import user_traceback

if TYPE_CHECKING:
    from torch import Tensor, nn

    from profiler.steps import Phase, Training
    from profiler.workload import Workload

SEED = 0
SAMPLES_LOOKED_AT = 32
T = TypeVar("T")


class Source(Protocol):
    """Where a worker gets the workload from."""

    def load(self) -> Workload:
        """The workload, in the process that calls this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What every job of one probe shares: the workload, the device, the budget, the caller's global switches.

    assumptions: as in `Options`.
    """

    source: Source
    device: str
    limit_bytes: int | None
    switches: Switches
    assumptions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """A schedule that ran to its end: its peaks, and the wall time of each optimizer step, none where nothing is computed."""

    fits: Fits
    step_seconds: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A job that raised: as data, so that it can be classified where the reasons to believe it are known.

    refusal: the error itself where it is one of this package's, which needs no classifying.
    user_traceback: the user's frames, as text.
    """

    failure: Failure
    phase: str
    message: str
    user_traceback: str | None
    refusal: MicrobatchError | None
    peak_bytes: int | None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Done(Generic[T]):
    """What a job came to, and whether the worker's memory is as it was, so that the worker may serve another."""

    result: T | Failed
    worker_is_clean: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What a workload and a device are, before anything is trained.

    samples_vary: whether samples of the Dataset, in the order in which batches take them, differ in size. dataset_samples: how many it
    has, None where batches come from elsewhere.
    """

    workload: str
    optimizer_is_default: bool
    compile: bool
    samples_vary: bool
    facts: DeviceFacts
    capacity_bytes: int
    dataset_samples: int | None = None


def inspect(setting: Setting) -> Done[Inspection]:
    """Load the workload and look at the device."""

    def job(device: Device, phase: Phase) -> Inspection:
        why_not = device.why_not()
        if why_not is not None:
            raise DeviceUnavailable(f"{device.name} cannot be used: {why_not}")
        workload = setting.source.load()
        _check_precision(workload, device)
        device.settle()
        return Inspection(
            workload=workload.name,
            optimizer_is_default=workload.optimizer is None,
            compile=workload.compile,
            samples_vary=_samples_vary(workload),
            facts=device.facts(),
            capacity_bytes=device.open(setting.limit_bytes),
            dataset_samples=_dataset_samples(workload),
        )

    return guarded(setting, job)


def run_schedule(setting: Setting, schedule: Schedule) -> Done[Completed]:
    """Run the schedule under the setting's budget and read its peaks."""
    from profiler.evaluation import evaluate
    from profiler.steps import run_step

    def job(device: Device, phase: Phase) -> Completed:
        start = time.perf_counter()
        device.settle()
        training = started(setting, device, phase, warm_up=schedule)
        seconds = []
        with training.placement.training():
            for sizes in schedule.steps:
                began = time.perf_counter()
                loss = run_step(training, schedule.strategy, sizes)
                device.synchronize()
                seconds.append(time.perf_counter() - began)
                if len(seconds) == 1:
                    device.charge_loaded()
                    if device.computes:
                        check_finite(float(loss))
                del loss
            if schedule.evaluations:
                evaluate(training, schedule.evaluations, device.charge_loaded)
                device.synchronize()
        peaks, needs = device.read_peaks(), device.needs()
        return Completed(
            fits=Fits(
                peak_bytes=peaks.peak_bytes,
                peak_allocated_bytes=peaks.allocated_bytes,
                peak_reserved_bytes=peaks.reserved_bytes,
                peak_device_used_bytes=peaks.device_used_bytes,
                peak_resident_bytes=peaks.resident_bytes,
                unlimited_reserved_bytes=needs.unlimited_reserved_bytes,
                least_capacity_bytes=needs.least_capacity_bytes,
                allocator_retries=peaks.allocator_retries,
                seconds=time.perf_counter() - start,
            ),
            step_seconds=tuple(seconds) if device.computes else (),
        )

    return guarded(setting, job)


def time_size(setting: Setting, size: int) -> Done[Throughput]:
    """Measure the throughput at `size`, without a budget where a budget would slow the allocator."""

    def job(device: Device, phase: Phase) -> Throughput:
        from profiler.measure import measure_throughput

        device.settle()
        return measure_throughput(started(setting, device, phase), device, size)

    return guarded(setting, job)


def guarded(setting: Setting, job: Callable[[Device, Phase], T]) -> Done[T]:
    """What `job` gives, or how it failed as data; the device is closed at its end, whatever happens."""
    from profiler.steps import Phase

    device, phase = open_device(setting.device, setting.assumptions), Phase(name="workload")
    start = time.perf_counter()
    result: T | Failed
    try:
        with device.standing_in():
            result = job(device, phase)
    except (Exception, SystemExit) as error:  # a script that ends itself is a bug in the workload
        _close(device)  # first: making a report needs memory too
        result = _failed(error, device, phase, time.perf_counter() - start)
    finally:  # an interrupt passes, and must not leave the caller's process under the budget
        _close(device)
    # The exception and its traceback, which hold the tensors of the frames, are gone from here on.
    return Done(result=result, worker_is_clean=release(device) and not isinstance(result, Failed))


def _close(device: Device) -> None:
    with suppress(RuntimeError):  # one that is lost answers nothing any more, and the job's own error says so
        device.close()


def release(device: Device) -> bool:
    """Give back what can be given back; whether memory is as it was, which it is not on a device that is lost."""
    try:
        return device.release()
    except RuntimeError:
        return False


def _failed(error: BaseException, device: Device, phase: Phase, seconds: float) -> Failed:
    try:
        peak_bytes = device.read_peaks().peak_bytes if phase.name != "workload" else None
    except RuntimeError:  # a device that an earlier error has made unusable cannot be asked
        peak_bytes = None
    failure = Failure.of(error)
    return Failed(
        failure=failure,
        phase=phase.name,
        message=f"{type(error).__name__}: {failure.errors[0].text}".removesuffix(": "),
        user_traceback=user_traceback(error),
        refusal=error if isinstance(error, MicrobatchError) else None,
        peak_bytes=peak_bytes,
        seconds=seconds,
    )


def loaded(setting: Setting) -> Workload:
    """The workload, with the caller's switches and a fixed seed in force."""
    import torch

    setting.switches.apply()
    torch.manual_seed(SEED)
    workload = setting.source.load()
    if workload.precision == "tf32":
        use_tf32()
    return workload


def started(
    setting: Setting,
    device: Device,
    phase: Phase,
    warm_up: Schedule | None = None,
    *,
    keep_batches: bool | None = None,
) -> Training:
    """The workload in training on the device, under the setting's budget, which counts from its first byte on.

    warm_up: what will be run; a compiled model on the CPU runs its first step and its evaluations once before the budget,
    because there the compiler's own memory is host memory too and would count as the model's. keep_batches: whether a batch
    of each size is made once; None where only host memory that is measured must not hold it.
    """
    from profiler.evaluation import evaluate
    from profiler.steps import Training, run_step

    workload = loaded(setting)
    if keep_batches is None:
        keep_batches = setting.limit_bytes is None or not device.measures_host_memory
    if workload.compile and device.type == "cpu" and warm_up is not None:
        training = Training.start(workload, device.placement(), phase, keep_batches=keep_batches)
        run_step(training, Strategy.ACCUMULATION, warm_up.steps[0])
        if warm_up.evaluations:
            evaluate(training, warm_up.evaluations[:1], device.synchronize)
        device.open(setting.limit_bytes, live_bytes=_bytes_of(_tensors_of(training)))
        return training
    # A live model's gradients are not training's: zero_grad lets go of them before the first byte.
    live = _model_tensors(workload.build_model()) if workload.model_is_live else []
    here = [tensor for tensor in live if tensor.device == device.torch_device]
    device.open(setting.limit_bytes, live_bytes=_bytes_of(here))
    return Training.start(workload, device.placement(), phase, keep_batches=keep_batches)


def _model_tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _tensors_of(training: Training) -> list[Tensor]:
    from profiler.batches import tensors_of

    gradients = [parameter.grad for parameter in training.model.parameters() if parameter.grad is not None]
    state = [tensor for entry in training.optimizer.state.values() for tensor in tensors_of(entry)]
    return [*_model_tensors(training.model), *gradients, *state]


def _bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind `tensors`, each counted once however many share it."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def _samples_vary(workload: Workload) -> bool:
    from profiler.batches import DatasetBatches, elements_of

    batches = workload.make_batch
    if not isinstance(batches, DatasetBatches) or batches.largest_first:
        return False
    return len({elements_of(batches.dataset[index]) for index in batches.order[:SAMPLES_LOOKED_AT]}) > 1


def _dataset_samples(workload: Workload) -> int | None:
    from profiler.batches import DatasetBatches

    batches = workload.make_batch
    return len(batches.order) if isinstance(batches, DatasetBatches) else None


def _check_precision(workload: Workload, device: Device) -> None:
    if workload.precision == "tf32" and device.type != "cuda":
        raise UsageError(f"tf32 is a mode of NVIDIA GPUs and {device.name} has none: use fp32 or bf16 here.")


def check_finite(loss: float) -> None:
    """Raise WorkloadError unless the loss is a number."""
    if not isfinite(loss):
        raise WorkloadError(
            f"the loss of the first step is {loss}: with it no gradient is worth measuring. Check the batch, the "
            "initialisation and the precision."
        )
