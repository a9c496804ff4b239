"""Code that names a GPU itself, such as `torch.zeros(4, device="cuda")`, where there is none: fake tensors are on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_CPU = torch.device("cpu")
# By method, what runs for it where tensors are on the simulated card already.
MOVES: dict[Any, Callable[..., Any]] = {Tensor.cuda: lambda tensor, *_, **__: tensor}


def on_host(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a function of torch's with the CPU in the place of a GPU."""
    if any(_is_gpu(value) for value in (*args, *kwargs.values())):
        return tuple(map(_moved, args)), {name: _moved(value) for name, value in kwargs.items()}
    return args, kwargs


class NoGpu(TorchFunctionMode):
    """Runs every function of torch as if the GPU that it names were the device that tensors are made on anyway."""

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in MOVES:
            return MOVES[func](*args)
        if _is_gpu(kwargs.get("device")):
            kwargs = {**kwargs, "device": torch.get_default_device()}
        # A tensor on the meta device stays where it is: it is a weight to be.
        if func is Tensor.to and any(_is_gpu(value) for value in (*args[1:], *kwargs.values())):
            kwargs = {**kwargs, "device": args[0].device} if "device" in kwargs else kwargs
            args = (args[0], *(args[0].device if _is_gpu(value) else value for value in args[1:]))
        return func(*args, **kwargs)


@contextmanager
def autocast_on_host() -> Iterator[None]:
    """`torch.autocast("cuda")` is the CPU's while it lasts, where it would do nothing without a GPU."""
    original = torch.autocast.__init__

    def init(
        self: torch.autocast, device_type: str, dtype: torch.dtype | None = None, *args: Any, **kwargs: Any
    ) -> None:
        if _is_gpu(device_type):
            device_type, dtype = "cpu", dtype or torch.get_autocast_dtype("cuda")
        original(self, device_type, dtype, *args, **kwargs)

    torch.autocast.__init__ = init  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.autocast.__init__ = original  # type: ignore[method-assign]


def _is_gpu(value: Any) -> bool:
    return (isinstance(value, torch.device) and value.type == "cuda") or (
        isinstance(value, str) and value.split(":")[0] == "cuda"
    )


def _moved(value: Any) -> Any:
    return _CPU if _is_gpu(value) else value
