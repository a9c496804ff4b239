"""An NVIDIA GPU: torch's caching allocator for what training uses, NVML for what lies outside it."""

from __future__ import annotations

import gc
import os
import platform
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

from profiler.devices.base import Device, DeviceFacts, Peaks, Usage
from profiler.devices.nvml import Nvml
from profiler.errors import DeviceUnavailable, UsageError
from profiler.units import format_bytes

if TYPE_CHECKING:
    import torch

# What was in use on a GPU before this process had its context there, by index. It is the process's and not the device
# object's: the context stays as long as the process, and the driver does not say whose memory is whose (a container
# sees no other process, and its own under another number).
_USED_BY_OTHERS_BYTES: dict[int, int] = {}
# torch's settings of its caching allocator: the name, and the older one.
_SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


class CudaDevice(Device):
    """One GPU, `cuda:N` as torch counts.

    A budget smaller than the card is a real one: `set_per_process_memory_fraction` caps the caching allocator, and what
    lies outside it (context, kernels, libraries: the overhead) is measured and taken off first. Kernels are loaded when
    they are first used, so it is measured again after the first step. A fraction is always set, since some drivers
    spill into host memory instead of failing.
    """

    measures_host_memory = False
    keeps_workers = True

    def __init__(self, index: int) -> None:
        self.name = f"cuda:{index}"
        self._index = index
        self._overhead_bytes = 0
        self._capacity_bytes: int | None = None  # None while it is not open
        self._fraction_before = 1.0
        self._first_step_peaks = (0, 0)
        self._allocated_at_settle_bytes = 0
        self._retries_at_open = 0
        self._nvml: Nvml | None = None

    @property
    def type(self) -> str:
        return "cuda"

    @property
    def torch_device(self) -> torch.device:
        import torch

        return torch.device(self.name)

    def why_not(self) -> str | None:
        import torch

        if not torch.backends.cuda.is_built():
            return f"this torch ({torch.__version__}) is built without CUDA: install a CUDA build of torch."
        if not torch.cuda.is_available():
            return f"torch {torch.__version__} (CUDA {torch.version.cuda}) finds no usable GPU or driver."
        if self._index >= torch.cuda.device_count():
            count = torch.cuda.device_count()
            return f"there is no {self.name}: torch sees {count} GPU(s), cuda:0 to cuda:{count - 1}."
        return None

    def facts(self) -> DeviceFacts:
        import torch

        properties = torch.cuda.get_device_properties(self._index)
        free, total = torch.cuda.mem_get_info(self._index)
        return DeviceFacts(
            description=properties.name,
            total_bytes=total,
            available_bytes=free,
            environment={
                "python": platform.python_version(),
                "torch": str(torch.__version__),
                "system": f"{platform.system()} {platform.release()}",
                "device_name": properties.name,
                "compute_capability": f"{properties.major}.{properties.minor}",
                "cuda": str(torch.version.cuda),
                "cudnn": str(torch.backends.cudnn.version()),
                "driver": self._driver().driver_version() or "unknown",
            },
        )

    def sizing_environment(self) -> dict[str, str]:
        return {}

    def exact_here(self) -> AbstractContextManager[None]:
        return nullcontext()

    def default_limit_bytes(self) -> int | None:
        return None

    def settle(self) -> None:
        import torch

        try:
            self._note_others()
            _train_layer(self.torch_device)
            self.release()
        except RuntimeError as error:  # no memory left, a GPU that is another's alone, kernels for other GPUs only
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DeviceUnavailable(
                f"{self.name} cannot be used: not even one small layer can be trained on it ({said}). Free memory on "
                "the GPU, or name another device with --device."
            ) from error
        self._overhead_bytes = self._overhead_now()
        self._allocated_at_settle_bytes = torch.cuda.memory_allocated(self._index)

    def open(self, limit_bytes: int | None, *, live_bytes: int = 0) -> int:
        import torch

        # What is live already lies in the allocator and counts, whether or not it is the model's.
        free, total = torch.cuda.mem_get_info(self._index)
        available = min(free + torch.cuda.memory_reserved(self._index) + self._overhead_bytes, total)
        if limit_bytes is not None and limit_bytes > available:
            raise UsageError(
                f"the memory limit of {format_bytes(limit_bytes)} is more than the {format_bytes(available)} of "
                f"{self.name} that this process can have: ask for less, or free memory on the GPU."
            )
        capacity = available if limit_bytes is None else limit_bytes
        if capacity <= self._overhead_bytes:
            raise UsageError(
                f"the memory limit of {format_bytes(capacity)} does not even hold the CUDA context and kernels, "
                f"{format_bytes(self._overhead_bytes)}: ask for more."
            )
        if self._capacity_bytes is None:
            self._fraction_before = torch.cuda.get_per_process_memory_fraction(self._index)
        self._capacity_bytes = capacity
        self._first_step_peaks = (0, 0)
        self._enforce(capacity)
        self._retries_at_open = int(self._stats()["num_alloc_retries"])
        torch.cuda.reset_peak_memory_stats(self._index)
        return capacity

    def close(self) -> None:
        import torch

        if self._capacity_bytes is None:
            return
        self._capacity_bytes = None
        with suppress(RuntimeError):  # after a device-side assert the context answers nothing any more
            torch.cuda.set_per_process_memory_fraction(self._fraction_before, self._index)

    def synchronize(self) -> None:
        import torch

        torch.cuda.synchronize(self._index)

    def charge_loaded(self) -> None:
        """On a card of the budget's size, the kernels that the first step loaded would be there as well.

        That step was held to a budget without them. A card of that size would have made the allocator give back what it
        merely kept, so of the first step's reserved peak that much does not count; what tensors needed does.
        """
        import torch

        assert self._capacity_bytes is not None, "a device is opened before it is trained on"
        self.synchronize()
        self._overhead_bytes = max(self._overhead_bytes, self._overhead_now())
        allocated, reserved = _peaks_of(self._stats())
        room = self._capacity_bytes - self._overhead_bytes
        before = self._first_step_peaks
        self._first_step_peaks = max(before[0], allocated), max(before[1], allocated, min(reserved, room))
        self._enforce(self._capacity_bytes)
        torch.cuda.reset_peak_memory_stats(self._index)

    def read_peaks(self) -> Peaks:
        stats = self._stats()
        allocated, reserved = map(max, self._first_step_peaks, _peaks_of(stats))
        return Peaks(
            peak_bytes=reserved + self._overhead_bytes,
            allocated_bytes=allocated,
            reserved_bytes=reserved,
            device_used_bytes=self._driver().device_used_bytes(),
            allocator_retries=int(stats["num_alloc_retries"]) - self._retries_at_open,
        )

    def usage(self) -> Usage:
        stats = self._stats()
        return Usage(
            allocated_bytes=int(stats["allocated_bytes.all.current"]),
            reserved_bytes=int(stats["reserved_bytes.all.current"]),
            inactive_split_bytes=int(stats["inactive_split_bytes.all.current"]),
        )

    def defragmenting_environment(self) -> dict[str, str]:
        """Expandable segments grow where others would be added, so that a block for a longer batch needs no new one.

        torch reads PYTORCH_ALLOC_CONF from 2.9 on and PYTORCH_CUDA_ALLOC_CONF before; of a release between, only the
        second had an effect on expandable segments, so both are set. Nothing where the user decided on them, or on
        another allocator (backend:cudaMallocAsync), which has none.
        """
        own = os.environ.get(_SETTINGS[0]) or os.environ.get(_SETTINGS[1]) or ""
        if "expandable_segments" in own or "backend:" in own.replace(" ", ""):
            return {}
        value = ",".join(filter(None, (own.strip().strip(","), "expandable_segments:True")))
        return dict.fromkeys(_SETTINGS, value)

    def release(self) -> bool:
        import torch

        gc.collect()
        if not torch.cuda.is_initialized():
            return True
        # cuBLAS keeps its workspaces in the caching allocator; they would look like memory that did not come back.
        clear_workspaces = getattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None)  # torch's own, so it may go
        try:
            torch.cuda.synchronize(self._index)
            clear_workspaces()
            torch.cuda.empty_cache()
        except RuntimeError:  # a device-side assert, which nothing in this process survives
            return False
        return torch.cuda.memory_allocated(self._index) <= self._allocated_at_settle_bytes

    def energy_joules(self) -> float | None:
        return self._driver().energy_joules()

    def energy_why_not(self) -> str | None:
        return self._driver().energy_why_not()

    def _driver(self) -> Nvml:
        """NVML's view of this GPU; asking torch for the UUID makes no context."""
        if self._nvml is None:
            import torch

            self._nvml = Nvml.for_uuid(str(torch.cuda.get_device_properties(self._index).uuid))
        return self._nvml

    def _note_others(self) -> None:
        """Remember what is in use before this process's context is: once, since later it cannot be told apart.

        Where the context is older (a caller who trains already), all that is not in torch's allocator counts as this
        process's: too much on a GPU that others use, but never too little.
        """
        if self._index not in _USED_BY_OTHERS_BYTES:
            used = self._driver().device_used_bytes_at_rest()
            _USED_BY_OTHERS_BYTES[self._index] = 0 if used is None or _has_context(self._index) else used

    def _overhead_now(self) -> int:
        """Bytes of this process outside the caching allocator: context, kernels, libraries."""
        import torch

        used = self._driver().device_used_bytes()
        if used is None:  # no NVML here: the runtime's own numbers, which count the whole device as well
            free, total = torch.cuda.mem_get_info(self._index)
            used = total - free
        others = _USED_BY_OTHERS_BYTES.get(self._index, 0)
        return max(used - torch.cuda.memory_reserved(self._index) - others, 0)

    def _enforce(self, capacity: int) -> None:
        """Let the caching allocator hold what the capacity leaves beside the overhead, and no more."""
        import torch

        allowed = max(capacity - self._overhead_bytes, 0)
        if torch.cuda.memory_reserved(self._index) > allowed:
            torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(self._index).total_memory  # what torch multiplies the fraction by
        torch.cuda.set_per_process_memory_fraction(min(allowed / total, 1.0), self._index)

    def _stats(self) -> dict[str, Any]:
        import torch

        return torch.cuda.memory_stats(self._index)


def _train_layer(device: torch.device) -> None:
    """One step of a small network: loads the context, cuDNN, a cuBLAS handle for each direction, and common kernels."""
    from torch import nn, ones, optim

    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 8)).to(device)
    model(ones(2, 3, 16, 16, device=device)).sum().backward()
    optim.AdamW(model.parameters()).step()


def _has_context(index: int) -> bool:
    """Whether this process has a context on that GPU; True where torch does not tell."""
    import torch

    ask = getattr(torch._C, "_cuda_hasPrimaryContext", None)
    return ask is None or bool(ask(index))


def _peaks_of(stats: dict[str, Any]) -> tuple[int, int]:
    """Peaks of allocated and of reserved bytes."""
    return int(stats["allocated_bytes.all.peak"]), int(stats["reserved_bytes.all.peak"])
