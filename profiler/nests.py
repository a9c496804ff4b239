"""Nests: the containers that batches are made of, and the arrays in them; torch's and NumPy's alike, importing neither."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any


def map_leaves(function: Callable[[Any], Any], nest: Any) -> Any:
    """`nest` with `function` applied to everything that is no container: in its dicts, lists, (named) tuples, dataclasses.

    Containers keep their types: a Mapping is made again from a dict, a dataclass by `dataclasses.replace`.
    """
    if _values_of(nest) is None:
        return function(nest)
    return _made_again(lambda value: map_leaves(function, value), nest)


def _made_again(function: Callable[[Any], Any], container: Any) -> Any:
    """The container with `function` applied to what it holds itself."""
    if isinstance(container, Mapping):
        mapped = {key: function(value) for key, value in container.items()}
        if isinstance(container, defaultdict):
            return defaultdict(container.default_factory, mapped)
        return mapped if type(container) is dict else type(container)(mapped)  # type: ignore[call-arg]  # any Mapping that can be built from a dict
    if isinstance(container, tuple) and hasattr(container, "_fields"):
        return type(container)(*(function(value) for value in container))
    if isinstance(container, list | tuple):
        # From a list, since torch.Size takes no generator.
        return type(container)([function(value) for value in container])
    return dataclasses.replace(container, **{name: function(getattr(container, name)) for name in _fields(container)})


def leaves_of(nest: Any) -> Iterator[Any]:
    """Everything in the nest that is no container, in order; nothing is built, as mapping would."""
    values = _values_of(nest)
    if values is None:
        yield nest
        return
    for value in values:
        yield from leaves_of(value)


def _values_of(nest: Any) -> Iterable[Any] | None:
    """What a container holds itself; None of what is no container."""
    if isinstance(nest, Mapping):
        return nest.values()
    if isinstance(nest, list | tuple):
        return nest
    if dataclasses.is_dataclass(nest) and not isinstance(nest, type):
        return [getattr(nest, name) for name in _fields(nest)]
    return None


def _fields(nest: Any) -> list[str]:
    # The others are made from these when the dataclass is made again.
    return [field.name for field in dataclasses.fields(nest) if field.init]


def length_of(leaf: Any) -> int | None:
    """The length of an array's dimension 0; None for what is no array, or has no dimensions.

    An array is whatever has a shape and can be indexed: a tensor, a NumPy array.
    """
    return int(leaf.shape[0]) if _is_array(leaf) and leaf.shape else None


def _is_array(leaf: Any) -> bool:
    return isinstance(getattr(leaf, "shape", None), tuple) and hasattr(leaf, "__getitem__")


def samples_in(nest: Any) -> int | None:
    """How many samples a batch holds: dimension 0 of its first array that has one; None where no array has."""
    return next((length for leaf in leaves_of(nest) if (length := length_of(leaf)) is not None), None)


def slice_nest(nest: Any, start: int, stop: int, samples: int) -> Any:
    """Samples `start` to `stop`, exclusive, of a batch that holds `samples`; of tensors and NumPy arrays, views.

    Arrays whose dimension 0 has length `samples` are sliced, and so are lists of samples: a list or plain tuple of that
    length, not the batch itself, whose elements are of one type, unless all arrays in them have that length too (then it
    is a list of arrays, each with all samples). Nothing inside the elements of a list of samples is sliced. All else is
    passed on as it is: what is neither, scalars, and arrays of another length, such as positions or a mask that all
    samples share.
    """
    return map_samples(lambda held: held[start:stop], nest, samples)


def map_samples(function: Callable[[Any], Any], nest: Any, samples: int) -> Any:
    """`nest` with `function` applied to what holds an element for each of `samples`: arrays and lists, as in `slice_nest`.

    Of a list of samples it may return any iterable of samples; the list's type is kept.
    """

    def mapped(value: Any) -> Any:
        if _is_list_of_samples(value, samples):
            return type(value)(function(value))
        if _values_of(value) is not None:
            return _made_again(mapped, value)
        return function(value) if length_of(value) == samples else value

    return mapped(nest) if _values_of(nest) is None else _made_again(mapped, nest)


def can_be_sliced(nest: Any, samples: int) -> bool:
    """Whether the nest holds an array or a list that `slice_nest` slices."""

    def holds(value: Any) -> bool:
        return _is_list_of_samples(value, samples) or can_be_sliced(value, samples)

    values = _values_of(nest)
    return length_of(nest) == samples if values is None else any(map(holds, values))


def _is_list_of_samples(value: Any, samples: int) -> bool:
    # Tuples of other types are records and shapes.
    if not (isinstance(value, list) or type(value) is tuple) or len(value) != samples:
        return False
    arrays = [leaf for leaf in leaves_of(value) if _is_array(leaf)]
    holds_all_samples = bool(arrays) and all(length_of(array) == samples for array in arrays)
    return len({type(element) for element in value}) == 1 and not holds_all_samples
