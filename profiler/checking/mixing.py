"""Modules whose output for a sample changes with the other samples in the batch, found by running it alone and among them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from profiler.checking.counts import named_tensors
from profiler.checking.draws import hookable
from profiler.checking.subject import Subject

# What rounding may change in a module's output, relative to its norm: batches of other sizes meet other kernels.
TOLERANCE = {"fp64": 1e-9, "fp32": 1e-4, "tf32": 2e-2, "fp16": 2e-2, "bf16": 1e-1}

Shape = tuple[int, ...]
Cut = Callable[[Tensor], Iterator[Tensor]]
# A module by its qualified name, and which of its calls in the forward it is.
Call = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Two numbers that tell tensors apart, in fp64: the norm, and the sum of all elements times a fixed wave."""

    norm: float
    wave: float

    @classmethod
    def of(cls, tensor: Tensor) -> Fingerprint:
        """That of a tensor of any type and shape; infinities, as in masks, are large numbers."""
        flat = torch.nan_to_num(tensor.detach().double().flatten(), posinf=1e9, neginf=-1e9)
        wave = torch.arange(flat.numel(), dtype=torch.float64, device=flat.device).mul_(0.7).cos_()
        return cls(float(flat.norm()), float(flat @ wave))

    def is_near(self, other: Fingerprint, tolerance: float) -> bool:
        """Whether rounding explains the difference."""
        allowed = tolerance * max(self.norm, other.norm)
        return abs(self.norm - other.norm) <= allowed and abs(self.wave - other.wave) <= allowed


# The cuts of one tensor: fingerprints by the shape that is left.
Prints = dict[Shape, list[Fingerprint]]


@dataclass(frozen=True, slots=True)
class Seen:
    """What went into one call of a module and what came out of it."""

    inputs: list[Prints]
    outputs: list[Prints]


def mixing_modules(subject: Subject, alone: int) -> tuple[str, ...]:
    """The innermost modules whose output for some samples changes with the others, though their input does not.

    The first and the last `alone` samples are run by themselves and among all others. The model itself is "".
    """
    found: dict[str, None] = {}
    for places in (range(alone), range(subject.samples - alone, subject.samples)):
        among = _observed(subject, range(subject.samples), _cuts(subject.samples, places))
        by_itself = _observed(subject, places, lambda tensor: iter((tensor,)))
        for call, seen in by_itself.items():
            if call in among and _mixes(among[call], seen, TOLERANCE[subject.precision]):
                found[call[0]] = None
    return tuple(name for name in found if not any(_is_inside(other, name) for other in found))


def _is_inside(inner: str, outer: str) -> bool:
    return inner != outer and (not outer or inner.startswith(f"{outer}."))


def _mixes(among: Seen, alone: Seen, tolerance: float) -> bool:
    if len(among.inputs) != len(alone.inputs) or len(among.outputs) != len(alone.outputs):
        return False
    same = [_is_same(*pair, tolerance) for pair in zip(among.inputs, alone.inputs, strict=True)]
    changed = [_is_same(*pair, tolerance) is False for pair in zip(among.outputs, alone.outputs, strict=True)]
    return all(same) and any(changed)


def _is_same(cuts: Prints, alone: Prints, tolerance: float) -> bool | None:
    """Whether some cut of the one is the other; None where no cut has its shape, as of a mean over the batch."""
    ((shape, (print_alone,)),) = alone.items()
    if shape not in cuts:
        return None
    return any(cut.is_near(print_alone, tolerance) for cut in cuts[shape])


def _cuts(samples: int, places: Sequence[int]) -> Cut:
    """Every part of a tensor that may be those samples': of any dimension that the number of samples divides."""
    start, count = places[0], len(places)

    def cut(tensor: Tensor) -> Iterator[Tensor]:
        yield tensor
        for dimension, length in enumerate(tensor.shape):
            if length and length % samples == 0:
                each = length // samples
                yield tensor.narrow(dimension, start * each, count * each)
                if each > 1:  # samples and something else in one dimension, the samples running faster
                    apart = tensor.unflatten(dimension, (each, samples))
                    yield apart.narrow(dimension + 1, start, count).flatten(dimension, dimension + 1)

    return cut


def _observed(subject: Subject, places: Sequence[int], cut: Cut) -> dict[Call, Seen]:
    seen: dict[Call, Seen] = {}
    with _watched(subject.model, seen, cut):
        subject.forward(places)
    return seen


@contextmanager
def _watched(model: nn.Module, seen: dict[Call, Seen], cut: Cut) -> Iterator[None]:
    """Inside the block every call of a module is written into `seen`; only fingerprints are kept, no tensors."""
    calls: Counter[str] = Counter()
    running: dict[str, list[list[Prints]]] = {}

    def entered(name: str) -> Callable[..., None]:
        return lambda _, args, kwargs: running.setdefault(name, []).append(_prints((args, kwargs), cut))

    def left(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            seen[name, calls[name]] = Seen(running[name].pop(), _prints(output, cut))
            calls[name] += 1

        return hook

    hooks = []
    for name, module in hookable(model):
        hooks.append(module.register_forward_pre_hook(entered(name), with_kwargs=True))
        hooks.append(module.register_forward_hook(left(name), with_kwargs=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _prints(nest: Any, cut: Cut) -> list[Prints]:
    prints: list[Prints] = []
    for _, tensor in named_tensors(nest):
        of_tensor: Prints = {}
        for part in cut(tensor):
            of_tensor.setdefault(tuple(part.shape), []).append(Fingerprint.of(part))
        prints.append(of_tensor)
    return prints
