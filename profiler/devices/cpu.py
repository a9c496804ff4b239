"""Host memory as a device with a real budget, so that a small card is rehearsed where there is none.

The budget is RLIMIT_DATA: the kernel refuses private writable memory beyond it, so the allocator itself says no, at the
same size every time. RLIMIT_AS is no substitute: it counts the address space of libraries. What decides and what is
reported is data size, the limit's own unit (VmData in /proc/self/status, see proc_pid_status(5)).

The peak of data size is exact without sampling: the kernel keeps the high-water mark of the whole address space (VmPeak),
and during training the rest of the address space hardly moves. A process that was larger before is first filled up to
its mark with address space that holds nothing and counts as nothing, so that the mark moves with the next byte.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from profiler.devices.addresses import are_addresses_fixed
from profiler.devices.base import Device, DeviceFacts, Peaks, Usage
from profiler.devices.cgroup import cgroup_available_bytes
from profiler.devices.glibc import exact, heap_usage, since
from profiler.errors import UsageError
from profiler.units import MIB, format_bytes

with suppress(ModuleNotFoundError):  # Windows, where `why_not` refuses before anything of it is called
    import resource

if TYPE_CHECKING:
    import torch

DEFAULT_LIMIT_BYTES = 512 * MIB


class CpuDevice(Device):
    """The host's memory under an enforced budget; Linux only."""

    name = "cpu"
    measures_host_memory = True
    keeps_workers = False

    def __init__(self) -> None:
        self._baseline_bytes = 0
        self._capacity_bytes = 0
        self._at_open = _AddressSpace(data_bytes=0, size_bytes=0, peak_bytes=0)
        self._soft_limit_before: int | None = None  # None while it is not open
        self._usage_at_open = Usage()
        self._filling: mmap.mmap | None = None  # given back with the device: peaks are read against it

    @property
    def type(self) -> str:
        return "cpu"

    @property
    def torch_device(self) -> torch.device:
        import torch

        return torch.device("cpu")

    def why_not(self) -> str | None:
        if sys.platform != "linux":
            return f"a memory budget on the CPU needs Linux (RLIMIT_DATA and /proc); this is {platform.system()}."
        status = Path("/proc/self/status").read_text()
        missing = [key for key in ("VmData", "VmSize", "VmPeak", "VmHWM") if f"{key}:" not in status]
        if missing:  # a sandbox's own kernel
            return (
                f"/proc/self/status has no {', '.join(missing)} here, so that a peak of memory cannot be read exactly."
            )
        return None

    def facts(self) -> DeviceFacts:
        import torch

        return DeviceFacts(
            description=_processor_name(),
            total_bytes=_meminfo_bytes("MemTotal"),
            available_bytes=available_bytes(),
            environment={
                "python": platform.python_version(),
                "torch": str(torch.__version__),  # its own class of text, which no process without torch could read
                "system": f"{platform.system()} {platform.release()}",
                "device_name": _processor_name(),
                "threads": str(torch.get_num_threads()),
                "libc": " ".join(platform.libc_ver()),
                "addresses": "fixed" if are_addresses_fixed() else "randomized",
            },
        )

    def sizing_environment(self) -> dict[str, str]:
        # glibc moves its mmap threshold with what was freed before, so that the same size fits once and fails once;
        # fixed thresholds and one arena make data size a function of the sizes asked for. Its caches of small blocks
        # (one for each thread, and the fast bins) make it depend on how threads take turns: 4 to 30 KiB, which is some
        # samples of a small model. All of that costs time, so timing runs without it. Hash order decides when Python
        # frees. Threads that wait by spinning make a trial tens of times slower where the cores are shared.
        tunables = "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"
        return {
            "MALLOC_MMAP_THRESHOLD_": "4096",
            "MALLOC_TRIM_THRESHOLD_": "131072",
            "MALLOC_ARENA_MAX": "1",
            "MALLOC_TOP_PAD_": "0",
            "GLIBC_TUNABLES": ":".join(filter(None, (os.environ.get("GLIBC_TUNABLES"), tunables))),
            "OMP_WAIT_POLICY": "PASSIVE",
            "PYTHONHASHSEED": "0",
        }

    @contextmanager
    def exact_here(self) -> Iterator[None]:
        _free_mkl_buffers()
        with exact():
            yield

    def default_limit_bytes(self) -> int | None:
        return DEFAULT_LIMIT_BYTES

    def settle(self) -> None:
        import torch
        import torch._dynamo  # an optimizer's constructor imports it: 69 MiB that are not the model's

        torch.ones(2**20).add_(1)  # starts the thread pool, whose stacks would count
        layer = torch.nn.Conv2d(3, 8, 3)
        layer(torch.ones(2, 3, 16, 16)).sum().backward()
        (torch.ones(256, 256) @ torch.ones(256, 256)).sum()
        torch.optim.AdamW(layer.parameters()).step()
        del layer
        self.release()

    def open(self, limit_bytes: int | None, *, live_bytes: int = 0) -> int:
        self.release()
        self._fill_to_mark()
        self._at_open = _AddressSpace.now()
        self._baseline_bytes = self._at_open.data_bytes - live_bytes
        self._usage_at_open = heap_usage()
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        available = available_bytes()
        if hard != resource.RLIM_INFINITY:
            available = min(available, hard - self._baseline_bytes)
        if limit_bytes is not None and limit_bytes > available:
            raise UsageError(
                f"the memory limit of {format_bytes(limit_bytes)} is more than the {format_bytes(available)} that are "
                "available here: ask for less with --memory-limit, or free memory."
            )
        capacity = available if limit_bytes is None else limit_bytes
        if self._soft_limit_before is None:
            self._soft_limit_before = soft
        resource.setrlimit(resource.RLIMIT_DATA, (self._baseline_bytes + capacity, hard))
        self._capacity_bytes = capacity
        return capacity

    def close(self) -> None:
        if self._soft_limit_before is not None:
            _, hard = resource.getrlimit(resource.RLIMIT_DATA)
            resource.setrlimit(resource.RLIMIT_DATA, (self._soft_limit_before, hard))
            self._soft_limit_before = None

    def synchronize(self) -> None:
        """Nothing to wait for: every operation has ended when it returns."""

    def charge_loaded(self) -> None:
        """Nothing lies outside: what libraries hold is data like everything else."""

    def read_peaks(self) -> Peaks:
        now = _AddressSpace.now()
        peak = max(self._at_open.data_bytes, now.data_bytes)
        if now.peak_bytes > self._at_open.peak_bytes:
            # What is not data grew by libraries loaded meanwhile; take it off, so that the mark is in data size. An arena,
            # which malloc makes for a thread and after a refusal, takes twice its address space for a moment. That is no
            # data, and the limit bounds what can be.
            marked = now.peak_bytes - (now.size_bytes - now.data_bytes)
            peak = max(peak, min(marked, self._baseline_bytes + self._capacity_bytes))
        return Peaks(peak_bytes=peak - self._baseline_bytes, resident_bytes=_status_bytes("VmHWM"))

    def usage(self) -> Usage:
        """What malloc holds beyond what it held at `open`; see `profiler.devices.glibc`.

        Under `sizing_environment` every block of a page or more is mapped by itself and given back when it is freed, so that
        little can be left unused; an ordinary allocator keeps more.
        """
        return since(self._usage_at_open, heap_usage())

    def defragmenting_environment(self) -> dict[str, str]:
        return {}

    def release(self) -> bool:
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's own
        if trim is not None:
            trim(0)
        return False

    def energy_joules(self) -> float | None:
        return None

    def energy_why_not(self) -> str | None:
        return "energy is read from NVML, which counts GPUs only."

    def _fill_to_mark(self) -> None:
        """Take address space up to its mark. Without access it is no data, and no memory stands behind it."""
        self._filling = None
        space = _AddressSpace.now()
        if space.peak_bytes > space.size_bytes:
            missing = space.peak_bytes - space.size_bytes
            self._filling = mmap.mmap(-1, missing, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=0)


def _free_mkl_buffers() -> None:
    """Give back what MKL keeps for the next product of matrices: the next trial's own need would lie in it unseen."""
    import torch

    with suppress(OSError, AttributeError):  # a torch that is built without MKL, or otherwise
        ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).mkl_serv_free_buffers()


@dataclass(frozen=True, slots=True, kw_only=True)
class _AddressSpace:
    """Data size, size and its high-water mark of this process, in bytes."""

    data_bytes: int
    size_bytes: int
    peak_bytes: int

    @classmethod
    def now(cls) -> _AddressSpace:
        status = Path("/proc/self/status").read_text()
        return cls(
            data_bytes=_status_bytes("VmData", status),
            size_bytes=_status_bytes("VmSize", status),
            peak_bytes=_status_bytes("VmPeak", status),
        )


def available_bytes() -> int:
    """Host memory that a new allocation can have without swapping, within the control groups' limits."""
    free = _meminfo_bytes("MemAvailable")
    granted = cgroup_available_bytes()
    return free if granted is None else min(free, granted)


def _status_bytes(key: str, status: str | None = None) -> int:
    text = Path("/proc/self/status").read_text() if status is None else status
    match = re.search(rf"^{key}:\s+(\d+) kB$", text, re.MULTILINE)
    assert match is not None, f"/proc/self/status has no {key}"
    return int(match[1]) * 1024


def _meminfo_bytes(key: str) -> int:
    match = re.search(rf"^{key}:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    assert match is not None, f"/proc/meminfo has no {key}"
    return int(match[1]) * 1024


def _processor_name() -> str:
    match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return match[1].strip() if match else platform.machine()
