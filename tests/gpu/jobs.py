"""What workers are told to do, so that the tests' own process makes no CUDA context."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pynvml
import torch
from torch import Tensor, nn

from benchmarks.gpu_recorder import record
from gpu.workloads import setting_of, sizing, small
from profiler.api import probe
from profiler.devices import survey
from profiler.devices.cuda import CudaDevice
from profiler.options import Options
from profiler.simulation.recordings import first_difference
from profiler.trial import Done, Failed, run_schedule
from profiler.workers.protocol import Died, TimedOut
from profiler.workers.runner import ProcessRunner
from profiler.workload import Workload

SECONDS = 90.0


def in_worker(runner: ProcessRunner, job: Callable[..., Done[Any]], *arguments: Any, fresh: bool = True) -> Any:
    reply = runner.size(job, *arguments, timeout_seconds=SECONDS, fresh=fresh)
    assert not isinstance(reply, Died | TimedOut), reply.output
    return reply


def ended(result: Any) -> Done[Any]:
    return Done(result=result, worker_is_clean=False)


def process_id() -> Done[Any]:
    return Done(result=os.getpid(), worker_is_clean=True)


def uuids(visible: str | None) -> Done[Any]:
    """The GPU's UUID as NVML and as torch write it, under CUDA_VISIBLE_DEVICES."""
    if visible is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible
    handle = CudaDevice(0)._driver().handle
    return ended((pynvml.nvmlDeviceGetUUID(handle), str(torch.cuda.get_device_properties(0).uuid)))


def surveyed() -> Done[Any]:
    return ended({device.name: device for device in survey()})


def context_before_and_after() -> Done[Any]:
    """Whether the UUID and NVML's numbers can be had without a context, which would count as another's."""
    device = CudaDevice(0)
    device._driver().device_used_bytes()
    before = torch._C._cuda_hasPrimaryContext(0)  # type: ignore[attr-defined]
    device.settle()
    return ended((before, torch._C._cuda_hasPrimaryContext(0), device._overhead_now()))  # type: ignore[attr-defined]


def memory_after(changes: dict[str, Any]) -> Done[Any]:
    """The phase in which a trial failed, and allocated and reserved bytes before and after it."""
    assert run_schedule(setting_of(small()), sizing(2)).worker_is_clean
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    failed = run_schedule(setting_of(small(**changes)), sizing(1)).result
    assert isinstance(failed, Failed), failed
    return ended((failed.phase, before, (torch.cuda.memory_allocated(), torch.cuda.memory_reserved())))


def recorded_and_replayed() -> Done[Any]:
    """A sizing trial's recording, and where the model of the allocator first does otherwise."""
    recorded = record(setting_of(small(), None), sizing(8))
    return ended((recorded, first_difference(recorded.recording)))


def images(size: int) -> tuple[Tensor, Tensor]:
    return torch.rand(size, 3, 8, 8), torch.zeros(size, dtype=torch.long)


def probe_live_model() -> Done[Any]:
    """What differs after a model that lives on the GPU was probed; the plan; allocated bytes before and after."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout(), nn.Flatten(), nn.Linear(8 * 64, 4)
    ).cuda()
    model[4].bias.requires_grad_(False)
    model(images(2)[0].cuda()).square().mean().backward()
    model[1].eval()
    workload = Workload.supervised(model, nn.CrossEntropyLoss(), images, name="live")
    before = _everything(model)
    allocated = torch.cuda.memory_allocated()
    report = probe(workload, Options(effective_batch_size=4, ceiling="target", memory_limit="4GiB"), comparison=False)
    after = _everything(model)
    different = [name for name in before if not _same(before[name], after[name])]
    return ended((different, report.plan, report.notes, allocated, torch.cuda.memory_allocated()))


def _everything(model: nn.Module) -> dict[str, Any]:
    state: dict[str, Any] = {"random": torch.get_rng_state(), "cuda random": torch.cuda.get_rng_state()}
    for name, tensor in model.state_dict().items():
        state[name] = tensor.clone()
        state[f"address of {name}"] = tensor.data_ptr()
    for name, parameter in model.named_parameters():
        state[f"gradient of {name}"] = None if parameter.grad is None else parameter.grad.clone()
        state[f"requires_grad of {name}"] = parameter.requires_grad
    for name, module in model.named_modules():
        state[f"mode of {name}"] = module.training
    state["fraction"] = torch.cuda.get_per_process_memory_fraction()
    return state


def _same(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, Tensor) and isinstance(other, Tensor) else one == other
