"""Operations of which torch does not know what they give without running them, or not for each release, and what that is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from profiler.dry_run.attention_memory import efficient_backward
from profiler.dry_run.ctc import losses_and_alphas
from profiler.dry_run.recurrent import backward

_aten = torch.ops.aten


def _histogram(numbers: Tensor, bins: int = 100, *_: Any, **__: Any) -> Tensor:
    """Of whole numbers too, which CUDA counts and the CPU does not: how mixtures of experts count their tokens."""
    return numbers.new_empty((bins,))


def _grouped_product(
    left: Tensor,
    right: Tensor,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """The products of groups of rows or columns, which end at `offs`: of every type, where torch's meta kernel takes bfloat16 alone."""
    shape = [left.shape[-2], right.shape[-1]]
    if (
        left.dim() == right.dim()
    ):  # a product for each group, which are columns of the left where that has no dimension for them
        assert left.dim() == 3 or offs is not None, "torch asks for offs there"
        shape = [len(left) if offs is None else len(offs), *shape]
    return left.new_empty(shape, dtype=out_dtype)


WITHOUT_SHAPES: dict[Any, Callable[..., Any]] = {
    _aten._cudnn_rnn_backward.default: backward,
    _aten.histc.default: _histogram,
    _aten._grouped_mm.default: _grouped_product,
    _aten._ctc_loss.default: losses_and_alphas,
    _aten._scaled_dot_product_efficient_attention_backward.default: efficient_backward,
}
