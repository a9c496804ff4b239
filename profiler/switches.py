"""torch's global switches: taken over from the caller into the worker that measures for it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType

# name -> (read, write), each given the torch module. The fp32_precision names are torch's since 2.9; the older
# allow_tf32 and set_float32_matmul_precision write through to them.
_SWITCHES: dict[str, tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]] = {
    "threads": (lambda t: t.get_num_threads(), lambda t, v: t.set_num_threads(v)),
    "default_dtype": (
        lambda t: str(t.get_default_dtype()),
        lambda t, v: t.set_default_dtype(getattr(t, v.split(".")[1])),
    ),
    "deterministic": (
        lambda t: t.are_deterministic_algorithms_enabled(),
        lambda t, v: t.use_deterministic_algorithms(v),
    ),
    "cudnn_benchmark": (lambda t: t.backends.cudnn.benchmark, lambda t, v: setattr(t.backends.cudnn, "benchmark", v)),
    "cudnn_deterministic": (
        lambda t: t.backends.cudnn.deterministic,
        lambda t, v: setattr(t.backends.cudnn, "deterministic", v),
    ),
    "matmul_precision": (
        lambda t: t.backends.cuda.matmul.fp32_precision,
        lambda t, v: setattr(t.backends.cuda.matmul, "fp32_precision", v),
    ),
    "convolution_precision": (
        lambda t: t.backends.cudnn.conv.fp32_precision,
        lambda t, v: setattr(t.backends.cudnn.conv, "fp32_precision", v),
    ),
    "rnn_precision": (
        lambda t: t.backends.cudnn.rnn.fp32_precision,
        lambda t, v: setattr(t.backends.cudnn.rnn, "fp32_precision", v),
    ),
    "cpu_matmul_precision": (
        lambda t: t.backends.mkldnn.matmul.fp32_precision,
        lambda t, v: setattr(t.backends.mkldnn.matmul, "fp32_precision", v),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Switches:
    """The caller's settings by name; empty where the caller never imported torch, so that nothing can differ."""

    values: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_caller(cls) -> Switches:
        """The switches of this process as they are now."""
        torch: ModuleType | None = sys.modules.get("torch")
        if torch is None:
            return cls()
        return cls(values={name: read(torch) for name, (read, _) in _SWITCHES.items()})

    def apply(self) -> None:
        """Set what differs in this process."""
        import torch

        for name, value in self.values.items():
            read, write = _SWITCHES[name]
            if read(torch) != value:
                write(torch, value)


def use_tf32() -> None:
    """Let fp32 matrix products, convolutions and recurrent layers on the GPU round to TF32."""
    Switches(values={"matmul_precision": "tf32", "convolution_precision": "tf32", "rnn_precision": "tf32"}).apply()
