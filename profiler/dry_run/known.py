"""Values that fake tensors keep: of token numbers, masks, counters, and what is computed from them alone.

A fake tensor has a shape and no numbers. But batches of whole numbers are small and their values are there, so that
`mask.all()` or `lengths.max().item()` can be answered as in training, where a real value decides what the model does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map_only

from profiler.units import MIB

# Larger tensors are not carried along, nor floating-point ones of more numbers than a mask has for each sample: what a model
# may ask for at one size it may ask for at another.
_LARGEST_BYTES = 16 * MIB
_LARGEST_FLOATS = 4096
_aten = torch.ops.aten
# GradScaler's check. Gradients count as finite, so that what it was told stays as it is.
_FINITE = _aten._amp_foreach_non_finite_check_and_unscale_.default
_VALUE = "_microbatch_value"
# Asked of numbers that nobody knows, by which code guards against such that are not finite.
_NEVER = frozenset({_aten.isnan.default, _aten.isinf.default})
_SAME, _OTHER = (_aten.eq.Tensor, _aten.eq.Scalar), (_aten.ne.Tensor, _aten.ne.Scalar)
_INDEX, _NONZERO = _aten.index.Tensor, _aten.nonzero.default


class Known:
    """Carries values beside the fake tensors of `mode`, as far as they follow from values that are known."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode
        self._stale: set[int] = set()

    def tell(self, fake: Tensor, real: Tensor) -> None:
        """`fake` has the values of `real`, which is copied: it may be the caller's."""
        if is_carried(real) and real.device.type != "meta":
            with _disable_current_modes():
                setattr(fake, _VALUE, real.detach().clone())

    def value_of(self, tensor: Tensor) -> Tensor | None:
        """The values of `tensor`, which are not to be changed; None where nobody has them."""
        if not isinstance(tensor, FakeTensor):
            return tensor
        value: Tensor | None = getattr(tensor, _VALUE, None)
        return None if value is None or value.untyped_storage()._cdata in self._stale else value

    def result_of(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What `func` gives where that is known, as fake tensors or a number, else None.

        A selection by a mask is known with the mask: from elements that nobody knows it takes as many.
        """
        if func is _INDEX:
            return self._indexed(*args)
        if any(self.value_of(tensor) is None for tensor in tensors_in((args, kwargs))):
            return None
        return tree_map_only(Tensor, self._twin, self._computed(func, args, kwargs))

    def _indexed(self, tensor: Tensor, indices: Sequence[Tensor | None]) -> Tensor | None:
        """`tensor[indices]` with each mask as the places where it is true; None where a mask is not known."""
        if any(_is_mask(index) and self.value_of(index) is None for index in tensors_in(indices)):
            return None
        return indexed(tensor, indices, lambda mask: self._twin(self._computed(_NONZERO, (mask,), {})))

    def _twin(self, real: Tensor) -> Tensor:
        fake = self._mode.from_tensor(real)
        self.tell(fake, real)
        return fake

    def follow(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Give the outputs their values where all inputs have theirs; what is overwritten with others loses its own."""
        if func is _FINITE:
            return
        inputs = list(tensors_in((args, kwargs)))
        outputs = list(tensors_in(result))
        known = all(self.value_of(tensor) is not None for tensor in inputs)
        written = _written(func, args, kwargs)
        if known and all(is_carried(tensor) for tensor in outputs) and (outputs or written):
            try:
                values = list(tensors_in(self._computed(func, args, kwargs)))
            except NotImplementedError:  # a kernel that only a GPU has
                pass
            else:
                for fake, real in zip(outputs, values, strict=True):
                    setattr(fake, _VALUE, real)
                return
        answer = None if known else _of_finite(func, args)
        if answer is not None and is_carried(result):
            with _disable_current_modes():
                setattr(result, _VALUE, torch.full(result.shape, answer, dtype=torch.bool))
        for tensor in written:
            value = self.value_of(tensor)
            if value is not None:
                self._stale.add(value.untyped_storage()._cdata)

    def _computed(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with _disable_current_modes(), torch.no_grad():
            real_args, real_kwargs = tree_map_only(Tensor, self.value_of, (args, kwargs))
            return func(*real_args, **real_kwargs)


def _of_finite(func: Any, args: tuple[Any, ...]) -> bool | None:
    """What `func` answers for every finite number, as those that training computes count; None where it asks for more.

    Whether a number is itself is the question for NaN, and isfinite also compares with infinity.
    """
    if func in _NEVER:
        return False
    if func not in _SAME + _OTHER:
        return None
    other = args[1]
    is_itself = other is args[0]
    is_infinity = isinstance(other, float) and math.isinf(other)
    return (func in _SAME) == is_itself if is_itself or is_infinity else None


def indexed(tensor: Tensor, indices: Sequence[Tensor | None], places_in: Callable[[Tensor], Tensor]) -> Tensor:
    """`tensor[indices]` with each mask as its places, a row of coordinates each, by `places_in`."""
    places: list[Tensor | None] = []
    for index in indices:
        if index is not None and _is_mask(index):
            places += places_in(index).unbind(1)
        else:
            places.append(index)
    result: Tensor = _INDEX(tensor, places)
    return result


def _is_mask(index: Tensor) -> bool:
    return index.dtype in (torch.bool, torch.uint8)


def is_carried(tensor: Tensor) -> bool:
    """Whether the values of such a tensor are kept, where they are there."""
    if tensor.dtype.is_floating_point or tensor.dtype.is_complex:
        samples = tensor.shape[0] if tensor.dim() > 0 else 1
        if tensor.numel() > _LARGEST_FLOATS * samples:
            return False
    return tensor.numel() * tensor.element_size() <= _LARGEST_BYTES


def tensors_in(nest: Any) -> Iterator[Tensor]:
    """The tensors in the tuples, lists and dicts of an operator's arguments or results, in order.

    `batches.tensors_of` knows more containers, and takes more than twice as long: every operation asks several times.
    """
    if isinstance(nest, Tensor):
        yield nest
    elif isinstance(nest, tuple | list):
        for part in nest:
            yield from tensors_in(part)
    elif isinstance(nest, dict):
        for part in nest.values():
            yield from tensors_in(part)


_WRITTEN: dict[Any, tuple[tuple[int, str], ...]] = {}


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that `func` changes."""
    places = _WRITTEN.get(func)
    if places is None:
        places = _WRITTEN[func] = tuple(
            (index, argument.name)
            for index, argument in enumerate(func._schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        )
    return [
        tensor
        for index, name in places
        for tensor in tensors_in(args[index] if index < len(args) else kwargs.get(name))
    ]
