"""What a loss may average over: counts that a batch holds, found without knowing what the batch means."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# What libraries leave out of a loss by default: cross-entropy, masks of segmentations, padding.
USUALLY_IGNORED = (-100, 255, -1, 0)
MOST_VALUES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """A number of items, or a sum of weights, for each sample of a batch.

    expression: Python that gives it for a `batch`. per_sample: one number a sample, fp64 on the host.
    is_weight: whether it sums weights that the batch brings, rather than counting.
    """

    expression: str
    per_sample: Tensor
    is_weight: bool = False


def counts_in(batch: Any, samples: int) -> Iterator[Count]:
    """Every count that differs between samples by more than a factor, the usual ones first, each only once."""
    seen: list[Tensor] = []
    for count in _all_counts(batch, samples):
        if bool((count.per_sample < 0).any()) or not bool((count.per_sample > 0).any()):
            continue
        share = count.per_sample / count.per_sample.sum()
        if bool((share - share[0]).abs().max() < 1e-12) or any(torch.allclose(share, other) for other in seen):
            continue
        seen.append(share)
        yield count


def _all_counts(batch: Any, samples: int) -> Iterator[Count]:
    tensors = [
        (path, tensor.detach().cpu())
        for path, tensor in named_tensors(batch)
        if tensor.dim() and tensor.shape[0] == samples
    ]
    integers = [(path, tensor) for path, tensor in tensors if _is_integer(tensor)]
    # The usual values first, whichever tensor holds them: -100 in the labels rather than 0 in the tokens.
    for value in USUALLY_IGNORED:
        for path, tensor in integers:
            yield from _without(path, tensor, value)
    for path, tensor in integers:
        yield from _of_integers(path, tensor)
    for path, tensor in tensors:
        if tensor.dtype == torch.bool:
            yield Count(expression=f"{path}.sum()", per_sample=_per_sample(tensor))
            yield Count(expression=f"(~{path}).sum()", per_sample=_per_sample(~tensor))
        elif tensor.is_floating_point():
            yield from _of_floats(path, tensor)


def _is_integer(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _without(path: str, tensor: Tensor, value: int) -> Iterator[Count]:
    """How many elements are not that value, if any is; of rows, also without their first or last element."""
    if bool((tensor == value).any()):
        for shown, view in _views(path, tensor):
            yield Count(expression=f"({shown} != {value}).sum()", per_sample=_per_sample(view != value))


def _views(path: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    yield path, tensor
    if tensor.dim() > 1 and tensor.shape[1] > 1:  # causal models predict the next token, so that one falls out
        yield f"{path}[:, 1:]", tensor[:, 1:]
        yield f"{path}[:, :-1]", tensor[:, :-1]


def _of_integers(path: str, tensor: Tensor) -> Iterator[Count]:
    values = [int(value) for value in tensor.unique()]
    for value in dict.fromkeys((*values[:MOST_VALUES], *values[-1:])):
        if value not in USUALLY_IGNORED:
            yield from _without(path, tensor, value)
    for shown, view in _views(path, tensor):
        yield Count(expression=f"({shown} >= 0).sum()", per_sample=_per_sample(view >= 0))
        yield Count(expression=f"{shown}.sum()", per_sample=_per_sample(view))
    if tensor.dim() == 1:
        yield Count(expression=f"({path} - 1).sum()", per_sample=_per_sample(tensor - 1))


def _of_floats(path: str, tensor: Tensor) -> Iterator[Count]:
    is_mask = bool(((tensor == 0) | (tensor == 1)).all())
    yield Count(expression=f"{path}.sum()", per_sample=_per_sample(tensor), is_weight=not is_mask)
    yield Count(expression=f"({path} != 0).sum()", per_sample=_per_sample(tensor != 0))
    yield Count(expression=f"(~{path}.isnan()).sum()", per_sample=_per_sample(~tensor.isnan()))


def _per_sample(tensor: Tensor) -> Tensor:
    return tensor.double().flatten(1).sum(dim=1) if tensor.dim() > 1 else tensor.double()


def named_tensors(nest: Any, path: str = "batch") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the nest with the Python expression that reaches it from `path`."""
    if isinstance(nest, Tensor):
        yield path, nest
    for step, value in _children(nest):
        yield from named_tensors(value, f"{path}{step}")


def _children(nest: Any) -> Iterator[tuple[str, Any]]:
    named: Callable[[str], str] = ".{}".format
    if isinstance(nest, Mapping):
        yield from ((f"[{key!r}]", value) for key, value in nest.items())
    elif isinstance(nest, tuple) and hasattr(nest, "_fields"):
        yield from ((named(name), getattr(nest, name)) for name in nest._fields)
    elif isinstance(nest, list | tuple):
        yield from ((f"[{place}]", value) for place, value in enumerate(nest))
    elif dataclasses.is_dataclass(nest) and not isinstance(nest, type):
        yield from ((named(field.name), getattr(nest, field.name)) for field in dataclasses.fields(nest))


def shows_no_padding(batch: Any, samples: int) -> bool:
    """Whether the batch has rows of integers, such as tokens, and nothing that is usually left out differs between them.

    A loss that averages over tokens then looks like one that averages over samples.
    """
    rows = [
        tensor
        for _, tensor in named_tensors(batch)
        if tensor.dim() > 1 and len(tensor) == samples and _is_integer(tensor)
    ]
    left_out = (_per_sample(tensor == value) for tensor in rows for value in USUALLY_IGNORED)
    return bool(rows) and all(bool((count == count[0]).all()) for count in left_out)


def samples_are_alike(batch: Any, samples: int) -> bool:
    """Whether the inputs of all samples are the same numbers, such as the zeros of a placeholder."""
    floats = [tensor for _, tensor in named_tensors(batch) if tensor.is_floating_point() and tensor.dim()]
    return bool(floats) and all(bool((tensor == tensor[:1]).all()) for tensor in floats if len(tensor) == samples)
