"""What the NVIDIA driver knows of a GPU, through nvidia-ml-py; the only module that imports it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

# Memory of a process that was killed comes back piece by piece, and its children can hold it a little longer.
RETURNING_SECONDS = 3.0
BETWEEN_READINGS_SECONDS = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Nvml:
    """The driver's view of one GPU, or the reason why there is none in `why_not`.

    The GPU is matched by its UUID: torch's index honours CUDA_VISIBLE_DEVICES and NVML's does not.
    """

    handle: Any
    why_not: str | None

    @classmethod
    def for_uuid(cls, uuid: str) -> Nvml:
        """The GPU, or slice of one, of that UUID, with or without the "GPU-" or "MIG-" that NVML writes before it."""
        try:
            import pynvml
        except ImportError as error:
            return cls(handle=None, why_not=f"nvidia-ml-py is not installed ({error}).")
        why_not = ""
        for name in (uuid,) if uuid.startswith(("GPU-", "MIG-")) else (f"GPU-{uuid}", f"MIG-{uuid}"):
            try:
                pynvml.nvmlInit()
                return cls(handle=pynvml.nvmlDeviceGetHandleByUUID(name), why_not=None)
            except pynvml.NVMLError as error:
                why_not = f"NVML says: {error}."
        return cls(handle=None, why_not=why_not)

    def device_used_bytes(self) -> int | None:
        """Bytes in use on the whole device by every process, as nvidia-smi counts; None where NVML does not say.

        The first version of the question adds what the driver keeps for itself, up to a GiB; only older drivers, and
        WSL, are asked that.
        """
        if self.handle is None:
            return None
        import pynvml

        memory = self._ask("nvmlDeviceGetMemoryInfo", pynvml.nvmlMemory_v2)
        if memory is None:
            memory = self._ask("nvmlDeviceGetMemoryInfo")
        return None if memory is None else int(memory.used)

    def device_used_bytes_at_rest(self) -> int | None:
        """The same, once it falls no more: what the last process held may still be on its way back."""
        used = self.device_used_bytes()
        deadline = time.monotonic() + RETURNING_SECONDS
        while used is not None and time.monotonic() < deadline:
            time.sleep(BETWEEN_READINGS_SECONDS)
            before, used = used, self.device_used_bytes()
            if used is None or used >= before:
                break
        return used

    def energy_joules(self) -> float | None:
        """The energy counter since the driver was loaded (Volta and newer); None where NVML does not say."""
        millijoules = self._ask("nvmlDeviceGetTotalEnergyConsumption")
        return None if millijoules is None else float(millijoules) / 1000

    def energy_why_not(self) -> str | None:
        """None, or a sentence that says why the energy counter cannot be read."""
        if self.why_not is not None:
            return self.why_not
        return None if self.energy_joules() is not None else "this GPU's driver does not count energy (NotSupported)."

    def driver_version(self) -> str | None:
        """The driver's version, None where NVML does not say."""
        try:
            import pynvml
        except ImportError:
            return None
        try:
            return str(pynvml.nvmlSystemGetDriverVersion())
        except pynvml.NVMLError:
            return None

    def _ask(self, name: str, *arguments: Any) -> Any:
        """NVML's answer; None where this GPU, MIG slice or driver does not support the question."""
        if self.handle is None:
            return None
        import pynvml

        try:
            return getattr(pynvml, name)(self.handle, *arguments)
        except pynvml.NVMLError:
            return None


def gpus_are_visible() -> bool:
    """Whether the driver sees a GPU that this process may use; creates no CUDA context."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    try:
        import pynvml
    except ImportError:
        return False
    try:
        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetCount()) > 0
    except pynvml.NVMLError:  # no driver
        return False
