"""RMSNorm on a GPU: one kernel, which keeps one number a row, where the CPU runs each step as an operation of its own.

Sources: aten/src/ATen/native/layer_norm.cpp (rms_norm_symint) and cuda/layer_norm_kernel.cu of PyTorch 2.11 to 2.14.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from profiler.dry_run.autocast import in_fp32


def rms_norm(
    input: Tensor, normalized_shape: list[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """As torch puts it together: by steps where the weight has another type than the input, or channels come last."""
    source, scale = in_fp32((input, weight)) if torch.is_autocast_enabled("cpu") else (input, weight)
    normed: Tensor
    if (scale is not None and scale.dtype != source.dtype) or _channels_last(source) or source.is_complex():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch says that this is slower
            normed = torch.rms_norm(source, normalized_shape, scale, eps)
    else:
        normed = _Fused.apply(source, len(normalized_shape), scale)  # type: ignore[no-untyped-call]  # torch's
    return normed


def _channels_last(tensor: Tensor) -> bool:
    if tensor.is_contiguous() or tensor.dim() not in (4, 5):
        return False
    return tensor.is_contiguous(memory_format=torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d)


class _Fused(torch.autograd.Function):
    """Numbers of rows are in fp32 for half precision."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, dimensions: int, weight: Tensor | None) -> Tensor:
        rows = input.shape[: input.dim() - dimensions] + (1,) * dimensions
        output = input.new_empty(input.shape)
        number = input.new_empty(rows, dtype=torch.float64 if input.dtype == torch.float64 else torch.float32)
        ctx.save_for_backward(input, number, weight)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        source, _, weight = ctx.saved_tensors
        needs_input, _, needs_weight = ctx.needs_input_grad
        of_input = source.new_empty(source.shape) if needs_input else None
        return of_input, None, torch.empty_like(weight) if needs_weight else None
