"""Kernels that only a GPU runs and whose memory nobody tells: Triton's, and FlexAttention, which is compiled to one.

Without this torch and Triton stop with errors of their own, which speak of the CPU and of drivers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from profiler.dry_run.unknown import users_place
from profiler.errors import WorkloadError

_FLEX = "torch.nn.attention.flex_attention"
# By module, the class in it or "", and the function that is reached on the way to the kernel.
_REACHED = (
    (_FLEX, "", "_validate_device", "flex_attention", "use scaled_dot_product_attention for the prediction"),
    ("triton.runtime.jit", "JITFunction", "run", "a Triton kernel", "use torch's own operations for the prediction"),
)


def unfollowed() -> Iterator[tuple[Any, str, Callable[..., NoReturn]]]:
    """Of each kind that is imported by now: the owner and name of a function, and what raises a WorkloadError in its place."""
    for module, kind, name, what, instead in _REACHED:
        owner = sys.modules.get(module)
        owner = getattr(owner, kind, None) if kind else owner
        if hasattr(owner, name):
            yield owner, name, _raising(what, instead)


def _raising(what: str, instead: str) -> Callable[..., NoReturn]:
    def raising(*_: Any, **__: Any) -> NoReturn:
        raise WorkloadError(
            f"{users_place()} runs {what}, which needs a GPU, and on a simulated card nothing tells what memory it takes: "
            f"{instead}, or probe on a real device."
        )

    return raising
