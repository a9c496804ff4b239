"""What is answered where a model needs a number that no fake tensor has: the user's assumption, or a clear error."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from profiler.errors import WorkloadError
from profiler.simulation.assumption import Assumption

_aten = torch.ops.aten
_TORCH = str(Path(torch.__file__).parent)
_OURS = str(Path(__file__).parents[1])
_OPTIMIZER_STEP = str(Path(_TORCH, "optim", "optimizer.py"))


class Assumptions:
    """Answers by the user's assumptions; within an optimizer's step every number is 1, as counters are after a first step."""

    def __init__(self, assumptions: Sequence[Assumption] = ()) -> None:
        self._assumptions = tuple(assumptions)

    def result_of(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What `func` is assumed to give; WorkloadError, which names the line and what to do, where nothing is."""
        frames = list(_frames())
        if func in _NUMBERS and any(frame.f_code.co_filename == _OPTIMIZER_STEP for frame in frames):
            return _NUMBERS[func](args[0], 1.0)
        where = next((frame for frame in frames if not _is_ours_or_torchs(frame.f_code.co_filename)), None)
        file, line = ("", 0) if where is None else (where.f_code.co_filename, where.f_lineno)
        assumed = next((each for each in self._assumptions if each.is_of(file, line)), None)
        if assumed is None:
            raise WorkloadError(_unknown(func, file, line))
        if func in _NUMBERS:
            return _NUMBERS[func](args[0], assumed.value)
        select = _SELECTIONS.get(func)
        if select is None:
            raise WorkloadError(
                f"{func} at {file}:{line} depends on values, and no assumption can stand for what it gives: change the line, "
                "or probe on a real device."
            )
        return select(assumed, *args, **kwargs)


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_ours_or_torchs(file: str) -> bool:
    return file.startswith((_TORCH, _OURS, "<"))


def _unknown(func: Any, file: str, line: int) -> str:
    name = str(func).removeprefix("aten.").split(".")[0]
    place = f"{file}:{line}" if file else "an operation"
    hint = f"{Path(file).name}:{line}" if file else "FILE:LINE"
    gives = "=N for the number it gives" if func in _NUMBERS else "=N for how many elements it selects, or =P% of them"
    return (
        f"{place} needs the values of tensors ({name}), and on a simulated card nothing is computed: say what to assume "
        f"there with --assume {hint}{gives}, change the line, or probe on a real device."
    )


def _number(tensor: Tensor, value: float) -> Any:
    if tensor.dtype == torch.bool:
        return bool(value)
    return value if tensor.dtype.is_floating_point else int(value)


_NUMBERS: dict[Any, Any] = {
    _aten._local_scalar_dense.default: _number,
    _aten.item.default: _number,
    _aten.is_nonzero.default: lambda tensor, value: bool(value),
    _aten.equal.default: lambda tensor, value: bool(value),
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
    places: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype in (torch.bool, torch.uint8):
            places += list(_nonzero(assumed, index).unbind(1))
        else:
            places.append(index)
    result: Tensor = _aten.index.Tensor(tensor, places)
    return result


def _unique(assumed: Assumption, tensor: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor, Tensor]:
    count = _count(assumed, tensor.numel())
    counts = tensor.new_empty((count,), dtype=torch.int64)
    return tensor.new_empty((count,)), tensor.new_empty(tensor.shape, dtype=torch.int64), counts


_SELECTIONS: dict[Any, Any] = {
    _aten.nonzero.default: _nonzero,
    _aten.masked_select.default: _masked_select,
    _aten.index.Tensor: _index,
    _aten._unique2.default: _unique,
}
