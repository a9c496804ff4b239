"""Nests: the containers that batches are made of, and the arrays in them; torch's and NumPy's alike, importing neither."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any


def map_leaves(function: Callable[[Any], Any], nest: Any) -> Any:
    """`nest` with `function` applied to everything that is no container: in its dicts, lists, (named) tuples, dataclasses.

    Containers keep their types: a Mapping is made again from a dict, a dataclass by `dataclasses.replace`.
    """
    if isinstance(nest, Mapping):
        mapped = {key: map_leaves(function, value) for key, value in nest.items()}
        if isinstance(nest, defaultdict):
            return defaultdict(nest.default_factory, mapped)
        return mapped if type(nest) is dict else type(nest)(mapped)  # type: ignore[call-arg]  # any Mapping that can be built from a dict
    if isinstance(nest, tuple) and hasattr(nest, "_fields"):
        return type(nest)(*(map_leaves(function, value) for value in nest))
    if isinstance(nest, list | tuple):
        # From a list, since torch.Size takes no generator.
        return type(nest)([map_leaves(function, value) for value in nest])
    if dataclasses.is_dataclass(nest) and not isinstance(nest, type):
        return dataclasses.replace(nest, **{name: map_leaves(function, getattr(nest, name)) for name in _fields(nest)})
    return function(nest)


def leaves_of(nest: Any) -> Iterator[Any]:
    """Everything in the nest that is no container, in order; nothing is built, as mapping would."""
    if isinstance(nest, Mapping):
        inner: Any = nest.values()
    elif isinstance(nest, list | tuple):
        inner = nest
    elif dataclasses.is_dataclass(nest) and not isinstance(nest, type):
        inner = (getattr(nest, name) for name in _fields(nest))
    else:
        yield nest
        return
    for value in inner:
        yield from leaves_of(value)


def _fields(nest: Any) -> list[str]:
    # The others are made from these when the dataclass is made again.
    return [field.name for field in dataclasses.fields(nest) if field.init]


def length_of(leaf: Any) -> int | None:
    """The length of an array's dimension 0; None for what is no array, or has no dimensions.

    An array is whatever has a shape and can be indexed: a tensor, a NumPy array.
    """
    shape = getattr(leaf, "shape", None)
    if isinstance(shape, tuple) and shape and hasattr(leaf, "__getitem__"):
        return int(shape[0])
    return None


def samples_in(nest: Any) -> int | None:
    """How many samples a batch holds: dimension 0 of its first array that has one; None where no array has."""
    return next((length for leaf in leaves_of(nest) if (length := length_of(leaf)) is not None), None)


def slice_nest(nest: Any, start: int, stop: int, samples: int) -> Any:
    """Samples `start` to `stop`, exclusive, of a batch that holds `samples`; of tensors and NumPy arrays, views.

    Arrays whose dimension 0 has length `samples` are sliced. All else is passed on as it is: what is no array, scalars, and
    arrays of another length, such as positions or a mask that all samples share.
    """
    return map_leaves(lambda leaf: leaf[start:stop] if length_of(leaf) == samples else leaf, nest)
