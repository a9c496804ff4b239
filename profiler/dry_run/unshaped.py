"""Operations of which torch does not know what they give on a GPU, or not for each release, and what that is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from profiler.dry_run.attention_memory import efficient_backward
from profiler.dry_run.ctc import losses_and_alphas
from profiler.dry_run.recurrent import backward

_aten = torch.ops.aten
_MAX = 2  # mode of an embedding bag


def _log_sigmoid(input: Tensor) -> tuple[Tensor, Tensor]:
    """Only the CPU's kernel fills a buffer for backward (Activation.cpp, log_sigmoid_forward_cuda)."""
    return torch.empty_like(input), input.new_empty((0,))


def _batch_norm(input: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Statistics of half precision are in fp32 (batch_norm_cuda)."""
    output, *statistics = _aten.native_batch_norm.default(input, *rest)
    mean, deviation = (each.float() for each in statistics)
    return output, mean, deviation


def _embedding_bag(
    weight: Tensor, indices: Tensor, offsets: Tensor, _frequency: bool = False, mode: int = 0, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The bag of each index and the size of each bag; where the maximum is taken, of which row (embedding_bag.cu)."""
    includes_last = len(rest) > 2 and rest[2]
    bags = offsets.shape[0] - (1 if includes_last else 0)
    rows = indices.new_empty((bags, weight.shape[1]) if mode == _MAX else (0,))
    output = weight.new_empty((bags, weight.shape[1]))
    return output, indices.new_empty((indices.shape[0],)), indices.new_empty(offsets.shape), rows


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
    _aten.native_batch_norm.default: _batch_norm,
    _aten._embedding_bag.default: _embedding_bag,
    _aten._embedding_bag_forward_only.default: _embedding_bag,
    _aten.log_sigmoid_forward.default: _log_sigmoid,
    _aten._ctc_loss.default: losses_and_alphas,
    _aten._scaled_dot_product_efficient_attention_backward.default: efficient_backward,
}
