"""Settings of torch's allocator, of cuBLAS and of attention that a simulated card follows, from the variables that set them; standard library only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from profiler.errors import UsageError
from profiler.units import KIB

# The newer name, which comes first, and the older one.
_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_ATTENTION = "TORCH_CUDNN_SDPA_DEPRIORITIZED"
# What changes a prediction, for records to name.
FOLLOWED = (*_ALLOCATOR, _CUBLAS, _ATTENTION)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """expandable_segments: of the allocator. cublas_workspace_bytes: of each handle, None where the card's default holds.

    prefers_cudnn_attention: whether cuDNN's attention comes first on the cards where torch prefers it.
    """

    expandable_segments: bool = False
    cublas_workspace_bytes: int | None = None
    prefers_cudnn_attention: bool = True


def settings_of(environment: Mapping[str, str]) -> Settings:
    """What those variables set; UsageError for one that the simulated allocator does not follow."""
    expandable = False
    name = next((name for name in _ALLOCATOR if environment.get(name)), None)
    for part in filter(None, (environment[name] if name else "").replace(" ", "").split(",")):
        key, _, value = part.partition(":")
        if (key, value) == ("backend", "native"):
            continue
        if key != "expandable_segments":
            raise UsageError(
                f"{name} sets {part}, which the simulated allocator does not follow: it knows expandable_segments alone. "
                "Unset it for the prediction, or probe on the card itself."
            )
        expandable = value.lower() == "true"
    return Settings(
        expandable_segments=expandable,
        cublas_workspace_bytes=_cublas_bytes(environment.get(_CUBLAS)),
        prefers_cudnn_attention=environment.get(_ATTENTION) != "1",  # as torch reads its switches
    )


def _cublas_bytes(text: str | None) -> int | None:
    """Of one or more `:SIZE:COUNT`, in KiB, as cuBLAS reads them; None without any."""
    if not text:
        return None
    pairs = re.findall(r":(\d+):(\d+)", text)
    if "".join(f":{size}:{count}" for size, count in pairs) != text:
        raise UsageError(f"{_CUBLAS} is {text!r}: cuBLAS reads one or more of :SIZE:COUNT, such as :4096:8.")
    return sum(int(size) * int(count) for size, count in pairs) * KIB
