"""Batches without the numbers that nobody looks at: for a card of 80 GiB they can be larger than the memory of this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode

from profiler.batches import tensors_of
from profiler.dry_run.known import is_carried
from profiler.errors import MicrobatchError

T = TypeVar("T")
_FACTORIES = frozenset(
    {torch.empty, torch.full, torch.normal, torch.ones, torch.rand, torch.randint, torch.randn, torch.zeros}
)
# What says where numbers are written or drawn from, and there are none.
_OF_NUMBERS = frozenset({"generator", "pin_memory"})


class _Weightless(TorchFunctionMode):
    """Makes tensors whose values are not carried along (`known`) on the meta device."""

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _FACTORIES and "out" not in kwargs:
            kept = {name: value for name, value in kwargs.items() if name not in _OF_NUMBERS}
            tensor = func(*args, **{**kept, "device": "meta"})
            if not is_carried(tensor):
                return tensor
        return func(*args, **kwargs)


def made(make: Callable[[], T]) -> T:
    """What `make` gives, with large tensors on the meta device; made once more, for real, where it needs numbers to make it.

    It does where it fails without them, and where small whole numbers or masks follow from them, which a model may ask for.
    """
    try:
        with _Weightless():
            batch = make()
    except MicrobatchError:
        raise
    except Exception:  # whatever it raises without numbers, it raises below too if it is its own
        return make()
    if any(tensor.is_meta and is_carried(tensor) for tensor in tensors_of(batch)):
        return make()
    return batch
