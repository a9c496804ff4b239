"""What takes numbers out of torch: lists, NumPy arrays and texts, of values that are known and of those that are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from profiler.dry_run.unknown import ValueOf


def leaving(value_of: ValueOf, assumed: Callable[[Tensor, str], Tensor]) -> dict[Any, Callable[..., Any]]:
    """By method of Tensor's, what runs for it.

    assumed: gives the values that the user assumes for a name, and raises WorkloadError, which names the line, where that is
    nothing.
    """

    def as_text(tensor: Tensor, form: str) -> str:
        """A number as `item` has it, which may be assumed."""
        return format(tensor.detach().item() if tensor.dim() == 0 else str(tensor), form)

    def as_array(tensor: Tensor, dtype: Any = None) -> Any:
        value = value_of(tensor)
        if value is None:
            value = assumed(tensor, "numpy")
        with _disable_current_modes():
            array = value.clone().numpy()
        return array if dtype is None else array.astype(dtype)

    return {
        Tensor.numpy: lambda tensor, **_: as_array(tensor),
        Tensor.__array__: as_array,
        Tensor.__format__: as_text,
    }
