"""Modules that mix samples, held at what they give for the whole batch, so that what comes after them can be measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from profiler.batches import map_tensors, tensors_of
from profiler.checking.subject import Subject


@contextmanager
def held(subject: Subject, names: Sequence[str]) -> Iterator[Subject]:
    """A subject whose parts see, after the modules of those names, what the whole batch would have shown them.

    No gradient passes these modules, so that the gradient that is left is that of the parameters behind them.
    """
    everything = range(subject.samples)
    now: list[Sequence[int]] = [everything]
    kept: dict[tuple[str, int], list[Tensor]] = {}
    calls: Counter[str] = Counter()

    def hold(name: str) -> Callable[..., Any]:
        def hook(_: nn.Module, args: Any, output: Any) -> Any:
            call = (name, calls[name])
            calls[name] += 1
            if call not in kept:
                kept[call] = [tensor.detach() for tensor in tensors_of(output)]
                return map_tensors(Tensor.detach, output)
            whole = iter(kept[call])
            return map_tensors(lambda live: _of_samples(next(whole), live, now[0], subject.samples), output)

        return hook

    def prepare(places: Sequence[int]) -> None:
        now[0] = places
        calls.clear()

    modules = dict(subject.model.named_modules())
    hooks = [modules[name].register_forward_hook(hold(name)) for name in names]
    try:
        subject.forward(everything)
        yield subject.altered(before_part=prepare)
    finally:
        for hook in hooks:
            hook.remove()


def _of_samples(whole: Tensor, live: Tensor, places: Sequence[int], samples: int) -> Tensor:
    """The part of `whole` that belongs to those samples: along the dimension by which it has the shape of `live`."""
    for dimension, length in enumerate(whole.shape):
        each = length // samples
        if length == each * samples and live.shape[dimension : dimension + 1] == (each * len(places),):
            index = torch.tensor([place * each + step for place in places for step in range(each)], device=whole.device)
            cut = whole.index_select(dimension, index)
            if cut.shape == live.shape:
                return cut
    return live.detach()
