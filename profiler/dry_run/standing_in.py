"""torch.cuda answers for a simulated card while this lasts, so that code which asks for a GPU runs as it would with one.

torch's own code, and ours, still sees a machine without a GPU and tensors on the CPU, which is what it has: told otherwise,
it goes on to CUDA itself. Whoever calls decides, so that the model's code sees the card, also in libraries.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from profiler.dry_run.answers import ANSWERS, ANSWERS_BUT_FOR_TORCH, GPU, STANDING, StandIn
from profiler.dry_run.named_devices import REROUTED, NoGpu, is_gpu
from profiler.dry_run.unfollowed import unfollowed
from profiler.dry_run.unknown import is_ours_or_torchs

# Those that stand in, the last one for the others. Names that a module imported from torch.cuda meanwhile ask here too.
_STANDING: list[StandIn] = []
_Generator = torch.Generator
_ABSENT = object()


@contextmanager
def standing_in(card: StandIn) -> Iterator[None]:
    """`card` is torch's only GPU, cuda:0; at the end torch is as it was, error or not."""
    with ExitStack() as restore:
        _STANDING.append(card)
        restore.callback(_STANDING.pop)
        if len(_STANDING) == 1:
            for owner, name, value in _replacements():
                restore.callback(_replaced(owner, name, value))
        # Each time anew, since the user's file may have been imported meanwhile.
        for owner, name, value in unfollowed():
            restore.callback(_replaced(owner, name, value))
        yield


@contextmanager
def at_load(card: StandIn) -> Iterator[None]:
    """The same where no other mode is: tensors that name the card are made in host memory."""
    with standing_in(card), NoGpu():
        yield


def _replacements() -> Iterator[tuple[Any, str, Any]]:
    for owner, name, answer in ANSWERS:
        if hasattr(owner, name):
            yield owner, name, _answered(getattr(owner, name), answer)
    for owner, name, answer in ANSWERS_BUT_FOR_TORCH:
        yield owner, name, _answered(getattr(owner, name), answer, but_for_torch=True)
    for owner, name, route in REROUTED:
        yield owner, name, _rerouted(getattr(owner, name), route)
    yield from STANDING
    yield torch, "Generator", Generator
    yield FakeTensor, "device", property(_seen(vars(FakeTensor)["device"].fget, GPU))
    yield FakeTensor, "is_cuda", property(_seen(_on_host(torch.Tensor.is_cuda), True))
    yield FakeTensor, "is_cpu", property(_seen(_on_host(torch.Tensor.is_cpu), False))
    yield FakeTensor, "get_device", _seen(torch.Tensor.get_device, 0)


def _replaced(owner: Any, name: str, value: Any) -> Callable[[], None]:
    """A function that puts back what `value` now stands for."""
    before = vars(owner).get(name, _ABSENT)
    setattr(owner, name, value)

    def restore() -> None:
        if before is _ABSENT:
            delattr(owner, name)
        else:
            setattr(owner, name, before)

    return restore


def _answered(original: Any, answer: Callable[..., Any], *, but_for_torch: bool = False) -> Callable[..., Any]:
    @wraps(original)
    def asked(*args: Any, **kwargs: Any) -> Any:
        if not _STANDING or (but_for_torch and is_ours_or_torchs(sys._getframe(1).f_code.co_filename)):
            return original(*args, **kwargs)
        return answer(_STANDING[-1], *args, **kwargs)

    return asked


def _rerouted(original: Any, route: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def called(*args: Any, **kwargs: Any) -> Any:
        return route(original, *args, **kwargs) if _STANDING else original(*args, **kwargs)

    return called


def _seen(original: Any, on_card: Any) -> Callable[[FakeTensor], Any]:
    """`on_card` of a tensor that counts as the card's, for whoever is neither torch nor we; else what `original` gives."""

    def seen(tensor: FakeTensor) -> Any:
        if tensor.fake_device.type != "cpu" or is_ours_or_torchs(sys._getframe(1).f_code.co_filename):
            return original(tensor)
        return on_card

    return seen


def _on_host(getter: Any) -> Callable[[FakeTensor], Any]:
    return lambda tensor: getter.__get__(tensor)


class _GeneratorType(type(_Generator)):  # type: ignore[misc]  # of torch's, whose class is no constant to mypy
    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, _Generator)


class Generator(_Generator, metaclass=_GeneratorType):
    """Makes the host's generator where a GPU's is asked for; every generator is one of these."""

    def __new__(cls, device: Any = "cpu") -> Any:
        return _Generator("cpu" if _STANDING and is_gpu(device, numbers=True) else device)
