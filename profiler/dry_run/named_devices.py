"""Code that names a GPU itself, such as `torch.zeros(4, device="cuda")`, where there is none: fake tensors are on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._device import DeviceContext

from profiler.dry_run.unknown import users_place
from profiler.errors import WorkloadError

_CPU = torch.device("cpu")


def on_host(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], device: torch.device = _CPU
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a function of torch's with `device` in the place of a GPU, but for what only makes its name."""
    if func is torch.device:
        return (
            ((f"cuda:{args[0]}",), {})
            if args and is_gpu(args[0], numbers=True) and isinstance(args[0], int)
            else (args, kwargs)
        )
    if kwargs.get("pin_memory"):
        kwargs = {**kwargs, "pin_memory": False}
    if is_gpu(kwargs.get("device"), numbers=True):
        kwargs = {**kwargs, "device": device}
    if any(map(is_gpu, args)):
        args = tuple(device if is_gpu(value) else value for value in args)
    elif func is Tensor.to and is_gpu(args[1] if len(args) > 1 else None, numbers=True):
        args = (args[0], device, *args[2:])
    return args, kwargs


class NoGpu(TorchFunctionMode):
    """Runs every function of torch as if the GPU that it names were the device that tensors are made on anyway."""

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in MOVES:
            return MOVES[func](*args, **kwargs)
        # A tensor on the meta device stays where it is: it is a weight to be.
        device = args[0].device if func is Tensor.to else torch.get_default_device()
        args, kwargs = on_host(func, args, kwargs, device)
        return func(*args, **kwargs)


def is_gpu(value: Any, *, numbers: bool = False) -> bool:
    """Whether `value` names a GPU. numbers: whether a number does, as where nothing else than a device can stand.

    Raises WorkloadError for another GPU than the first: its memory is not the simulated card's.
    """
    index: int | None
    if isinstance(value, torch.device):
        found, index = value.type == "cuda", value.index
    elif isinstance(value, str):
        kind, _, number = value.partition(":")
        found, index = kind == "cuda", int(number) if number.isdecimal() else None
    else:
        found, index = numbers and isinstance(value, int) and not isinstance(value, bool), value
    if found and index is not None and index > 0:
        raise WorkloadError(
            f"{users_place()} chooses GPU {index}, and one card is simulated, cuda:0: take that one, as one replica would."
        )
    return found


def stays(moved: Any, device: Any = None, *_: Any, **__: Any) -> Any:
    """`moved`, which is on the card already; WorkloadError for another GPU than the first."""
    is_gpu(device, numbers=True)
    return moved


# By method, what runs for it where tensors are on the simulated card already, and nothing is copied beside it.
MOVES: dict[Any, Callable[..., Any]] = {
    Tensor.cuda: stays,
    Tensor.pin_memory: lambda tensor, *_, **__: tensor,
    Tensor.is_pinned: lambda tensor, *_, **__: False,
}


# What runs for functions that are no functions of tensors, and that no mode sees. Each is given the original first.


def _autocast(
    original: Any, self: Any, device_type: str, dtype: torch.dtype | None = None, *args: Any, **kwargs: Any
) -> None:
    """The CPU's, where a GPU's would do nothing without a GPU."""
    if is_gpu(device_type):
        device_type, dtype = "cpu", dtype or torch.get_autocast_dtype("cuda")
    original(self, device_type, dtype, *args, **kwargs)


def _is_autocast_enabled(original: Any, device_type: str = "cuda") -> Any:
    return original("cpu" if is_gpu(device_type) else device_type)


def _autocast_dtype(original: Any, device_type: str) -> Any:
    """The CPU's where a GPU's autocast stands for it, else the GPU's own default."""
    return original("cpu" if is_gpu(device_type) and torch.is_autocast_enabled("cpu") else device_type)


def _set_default_device(original: Any, device: Any) -> Any:
    """Nothing for the card: what names no device lies on it anyway, or on the meta device while a model is built."""
    return None if is_gpu(device, numbers=True) else original(device)


def _device_context(original: Any, self: Any, device: Any) -> None:
    original(self, torch.get_default_device() if is_gpu(device, numbers=True) else device)


def _module_to(original: Any, self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The module itself where the card is all that it names: torch would swap its tensors with themselves, and cannot."""
    if not (is_gpu(args[0] if args else None, numbers=True) or is_gpu(kwargs.get("device"), numbers=True)):
        return original(self, *args, **kwargs)
    rest = [value for value in args[1:] if isinstance(value, torch.dtype)]
    named = {name: value for name, value in kwargs.items() if name in ("dtype", "memory_format") and value is not None}
    return original(self, *rest, **named) if rest or named else self


def _apply(original: Any, self: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
    """Weights on the card that `function` leaves as they are, such as `.float()` in a forward, which torch cannot do to fake ones.

    Raises WorkloadError, which names the user's line, where it would give them another type, layout or place.
    """
    parameters = list(self.named_parameters(recurse=recurse))
    if not any(isinstance(parameter, FakeTensor) for _, parameter in parameters):
        return original(self, function, recurse)
    for name, parameter in parameters:
        with torch.no_grad():
            if function(parameter) is not parameter:
                raise WorkloadError(
                    f"{users_place()} gives {name} another type or layout while it trains, which is not followed on a "
                    "simulated card: do it where the model is built, or probe on a real device."
                )
    for module in self.modules() if recurse else (self,):
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else function(buffer)
    return self


def _load(original: Any, file: Any, map_location: Any = None, *args: Any, **kwargs: Any) -> Any:
    """What a GPU saved is read into host memory."""
    if map_location is None or is_gpu(map_location):
        map_location = _CPU
    return original(file, map_location, *args, **kwargs)


REROUTED: tuple[tuple[Any, str, Callable[..., Any]], ...] = (
    (torch.autocast, "__init__", _autocast),
    (torch, "is_autocast_enabled", _is_autocast_enabled),
    (torch, "get_autocast_dtype", _autocast_dtype),
    (torch, "set_default_device", _set_default_device),
    (torch, "load", _load),
    (DeviceContext, "__init__", _device_context),
    (Tensor, "record_stream", lambda *_, **__: None),
    (nn.Module, "cuda", lambda _, *args, **kwargs: stays(*args, **kwargs)),
    (nn.Module, "to", _module_to),
    (nn.Module, "_apply", _apply),
)
