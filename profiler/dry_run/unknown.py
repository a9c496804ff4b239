"""What is answered where a model needs a number that no fake tensor has: the user's assumption, or a clear error."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from profiler.dry_run.known import indexed
from profiler.errors import WorkloadError
from profiler.simulation.assumption import Assumption

_aten = torch.ops.aten
_TORCH = str(Path(torch.__file__).parent)
_OURS = str(Path(__file__).parents[1])
# With a separator: torchvision is not torch.
_NOT_USERS = (f"{_TORCH}{os.sep}", f"{Path(_TORCH).with_name('triton')}{os.sep}", f"{_OURS}{os.sep}", "<")
# Gives the values of a tensor, which are not to be changed; None where nobody has them.
ValueOf = Callable[[Tensor], Tensor | None]
_OPTIMIZER_STEP = str(Path(_TORCH, "optim", "optimizer.py"))


class Assumptions:
    """Answers by the user's assumptions; within an optimizer's step numbers are 1, as counters are after a first step, and no question is
    true, such as whether gradients are infinite.
    """

    def __init__(self, assumptions: Sequence[Assumption] = ()) -> None:
        self._assumptions = tuple(assumptions)

    def result_of(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What `func` is assumed to give; WorkloadError, which names the line and what to do, where nothing is."""
        # No frame is kept: one that knows itself would keep the locals of all, with their tensors, until the next collection.
        if func in _NUMBERS and any(frame.f_code.co_filename == _OPTIMIZER_STEP for frame in _frames()):
            return _NUMBERS[func](args[0], 0.0 if _is_truth(func, args[0]) else 1.0)
        if func not in _NUMBERS and func not in _SELECTIONS:
            raise values_missing(_name_of(func))
        assumed = self._assumed(_name_of(func), _gives(func, args[0]))
        if func in _NUMBERS:
            return _NUMBERS[func](args[0], assumed.value)
        return _SELECTIONS[func](assumed, *args, **kwargs)

    def filled(self, tensor: Tensor, name: str) -> Tensor:
        """A real tensor as large as `tensor`, for `name`, with the number assumed in every place; WorkloadError where none is."""
        assumed = self._assumed(name, "=N for the number in every place")
        with _disable_current_modes():
            return torch.full(tensor.shape, assumed.value, device="cpu").to(tensor.dtype)

    def _assumed(self, name: str, gives: str) -> Assumption:
        file, line = _users_line(_frames())
        assumed = next((each for each in self._assumptions if each.is_of(file, line)), None)
        if assumed is None:
            hint = f"{Path(file).name}:{line}" if file else "FILE:LINE"
            raise WorkloadError(
                f"{_place(file, line)} needs the values of tensors ({name}), and on a simulated card nothing is computed: say "
                f"what to assume there with --assume {hint}{gives}, change the line, or probe on a real device."
            )
        return assumed


def needed_values(value_of: ValueOf, tensor: Tensor, name: str) -> Tensor:
    """The values of `tensor`, which `name` needs; WorkloadError, which names the user's line, where nobody has them."""
    value = value_of(tensor)
    if value is None:
        raise values_missing(name)
    return value


def values_missing(name: str) -> WorkloadError:
    """The error that `name`, which no assumption can stand for, needs values; it names the user's line."""
    return WorkloadError(
        f"{users_place()} needs the values of tensors ({name}), on a simulated card nothing is computed, and no "
        "assumption can stand for them: change the line, or probe on a real device."
    )


def shapes_missing(func: Any) -> WorkloadError:
    """The error that nobody knows the shapes that `func` gives; it names the user's line."""
    return WorkloadError(
        f"{users_place()} runs {_name_of(func)}, of which torch cannot tell what it gives without computing "
        "it, and on a simulated card nothing is computed: change the line, or probe on a real device."
    )


def users_place() -> str:
    """The file and line of the user's that runs, for messages."""
    return _place(*_users_line(_frames()))


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        yield frame
        frame = frame.f_back


def _users_line(frames: Iterable[FrameType]) -> tuple[str, int]:
    """The file and line of the innermost frame that is neither ours nor torch's; "" and 0 where there is none."""
    where = next((frame for frame in frames if not is_ours_or_torchs(frame.f_code.co_filename)), None)
    return ("", 0) if where is None else (where.f_code.co_filename, where.f_lineno)


def _place(file: str, line: int) -> str:
    return f"{file}:{line}" if file else "an operation"


def _name_of(func: Any) -> str:
    return str(func).removeprefix("aten.").split(".")[0]


def is_ours_or_torchs(file: str) -> bool:
    """Whether code of that file is this package's, torch's or Triton's, or lies in no file."""
    return file.startswith(_NOT_USERS)


def _gives(func: Any, tensor: Tensor) -> str:
    """What may be assumed of `func`, for messages."""
    if func not in _NUMBERS:
        return "=N for how many elements it selects, or =P% of them"
    if _is_truth(func, tensor):
        return "=1 for true or =0 for false"
    return "=N for the number it gives"


def _is_truth(func: Any, tensor: Tensor) -> bool:
    return func in _TRUTHS or tensor.dtype == torch.bool


def _number(tensor: Tensor, value: float) -> Any:
    if tensor.dtype == torch.bool:
        return bool(value)
    return value if tensor.dtype.is_floating_point else int(value)


_TRUTHS = frozenset({_aten.is_nonzero.default, _aten.equal.default, _aten.allclose.default})
_NUMBERS: dict[Any, Any] = {
    _aten._local_scalar_dense.default: _number,
    _aten.item.default: _number,
    **dict.fromkeys(_TRUTHS, lambda _, value: bool(value)),
}


def _count(assumed: Assumption, elements: int) -> int:
    return min(round(assumed.value * elements) if assumed.share else int(assumed.value), elements)


def _nonzero(assumed: Assumption, tensor: Tensor) -> Tensor:
    return tensor.new_empty((_count(assumed, tensor.numel()), tensor.dim()), dtype=torch.int64)


def _masked_select(assumed: Assumption, tensor: Tensor, mask: Tensor) -> Tensor:
    elements = torch.broadcast_tensors(tensor, mask)[0].numel()
    return tensor.new_empty((_count(assumed, elements),))


def _index(assumed: Assumption, tensor: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    """`tensor[indices]`, where each mask stands for as many places as are assumed to be true in it."""
    return indexed(tensor, indices, lambda mask: _nonzero(assumed, mask))


def _unique(assumed: Assumption, tensor: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor, Tensor]:
    count = _count(assumed, tensor.numel())
    counts = tensor.new_empty((count,), dtype=torch.int64)
    return tensor.new_empty((count,)), tensor.new_empty(tensor.shape, dtype=torch.int64), counts


def _unique_consecutive(
    assumed: Assumption,
    tensor: Tensor,
    return_inverse: bool = False,
    return_counts: bool = False,
    dim: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    if dim is None:
        return _unique(assumed, tensor)
    return _unique_dim(assumed, tensor, dim)


def _unique_dim(assumed: Assumption, tensor: Tensor, dim: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor, Tensor]:
    shape = list(tensor.shape)
    inverse = tensor.new_empty((shape[dim],), dtype=torch.int64)
    shape[dim] = _count(assumed, shape[dim])
    return tensor.new_empty(shape), inverse, tensor.new_empty((shape[dim],), dtype=torch.int64)


def _bincount(assumed: Assumption, tensor: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    bins = max(minlength, int(assumed.value * (tensor.numel() if assumed.share else 1)))
    if weights is None:
        return tensor.new_empty((bins,), dtype=torch.int64)
    return tensor.new_empty((bins,), dtype=weights.dtype if weights.dtype == torch.float32 else torch.float64)


def _repeat_interleave(assumed: Assumption, repeats: Tensor, *, output_size: int | None = None) -> Tensor:
    """Places of which there may be more than repeats."""
    rows = int(assumed.value * (repeats.numel() if assumed.share else 1))
    return repeats.new_empty((rows if output_size is None else output_size,), dtype=torch.int64)


_SELECTIONS: dict[Any, Any] = {
    _aten.nonzero.default: _nonzero,
    _aten.masked_select.default: _masked_select,
    _aten.index.Tensor: _index,
    _aten._unique2.default: _unique,
    _aten.unique_dim.default: _unique_dim,
    _aten.unique_consecutive.default: _unique_consecutive,
    _aten.bincount.default: _bincount,
    _aten.repeat_interleave.Tensor: _repeat_interleave,
}
