"""Which attention kernel CUDA takes, and what it keeps for backward (sdp_utils.cpp and attention.cpp of PyTorch 2.11 to 2.13)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

_aten = torch.ops.aten
_LARGEST_FLASH_HEAD = 256
# Rows of a mask are padded to so many elements for the memory-efficient kernel (pad_bias).
_MASK_ALIGNMENT = 16


def attention(
    compute_capability: tuple[int, int],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`scaled_dot_product_attention` by the kernel that CUDA would choose: flash, else memory-efficient, else math.

    query, key, value: (batch, heads, sequence, head size).
    """
    dtype = _dtype(query)
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    fused = query.dim() == 4 and query.numel() > 0 and key.numel() > 0
    if fused and attn_mask is None and _flash_takes(compute_capability, query, key, value):
        return _flash(query, key, value, dropout_p, is_causal, scale)
    mask = _as_bias(attn_mask, dtype)
    if fused and not enable_gqa and _efficient_takes(compute_capability, query, key, value):
        return _efficient(query, key, value, mask, dropout_p, is_causal, scale)
    return _math(query, key, value, mask, dropout_p, is_causal, scale, enable_gqa=enable_gqa)


def _dtype(query: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype


def _flash_takes(compute_capability: tuple[int, int], query: Tensor, key: Tensor, value: Tensor) -> bool:
    head = query.shape[-1]
    return (
        query.dtype in (torch.float16, torch.bfloat16)
        and compute_capability >= (8, 0)
        and head <= _LARGEST_FLASH_HEAD
        and head == key.shape[-1] == value.shape[-1]
    )


def _efficient_takes(compute_capability: tuple[int, int], query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether head sizes are aligned as the kernel needs (check_head_dim_size_mem_efficient) and the type is one of its own."""
    if query.dtype == torch.float64 or compute_capability < (5, 0):
        return False
    if query.dtype == torch.bfloat16 and compute_capability < (8, 0):
        return False
    tensor_cores = compute_capability >= (8, 0) or (compute_capability >= (7, 0) and query.dtype != torch.float32)
    alignment = 4
    if query.dtype != torch.float32 and tensor_cores:
        alignment = 8
    elif not tensor_cores:
        alignment = 1
    same_heads = query.shape[1] == key.shape[1] == value.shape[1]
    return same_heads and query.shape[-1] % alignment == 0 and value.shape[-1] % alignment == 0


def _as_bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask of bools as one of numbers (convert_boolean_attn_mask)."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask.logical_not(), -math.inf)


def _flash(query: Tensor, key: Tensor, value: Tensor, dropout_p: float, is_causal: bool, scale: float | None) -> Tensor:
    """Heads are padded to a multiple of 8 (pad_last_dim), and the output is cut to what it was."""
    head = query.shape[-1]
    scale = 1 / math.sqrt(head) if scale is None else scale
    missing = -head % 8
    if missing:
        query, key, value = (functional.pad(tensor, (0, missing)) for tensor in (query, key, value))
    output: Tensor = _aten._scaled_dot_product_flash_attention(
        query, key, value, dropout_p, is_causal, False, scale=scale
    )[0]
    return output[..., :head] if missing else output


def _efficient(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
) -> Tensor:
    """The mask is padded where its rows are not aligned, and expanded without memory."""
    if mask is not None:
        length = mask.shape[-1]
        missing = -length % _MASK_ALIGNMENT
        if missing:
            mask = functional.pad(mask, (0, missing))[..., :length]
        mask = mask.expand(*query.shape[:-1], key.shape[-2])
    needs_backward = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    output: Tensor = _aten._scaled_dot_product_efficient_attention(
        query, key, value, mask, needs_backward, dropout_p, is_causal, scale=scale
    )[0]
    return output


def _math(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout_p: float, is_causal: bool,
    scale: float | None, *, enable_gqa: bool,
) -> Tensor:  # fmt: skip
    """Every step an operation of its own, with the square matrix kept (_scaled_dot_product_attention_math).

    Half precision is computed in fp32 where reduction in it is not allowed, which is torch's default.
    """
    dtype = query.dtype
    if dtype in (torch.float16, torch.bfloat16):
        query, key, value = query.float(), key.float(), value.float()
    if is_causal:
        ones = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
        mask = _as_bias(ones, query.dtype)
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(repeats, -3), value.repeat_interleave(repeats, -3)
    factor = math.sqrt(1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    scores = torch.matmul(query * factor, key.transpose(-2, -1) * factor)
    if mask is not None:
        scores.add_(mask)
    weights = torch._safe_softmax(scores, -1) if mask is not None else torch.softmax(scores, -1)
    if dropout_p > 0:
        weights = _aten.native_dropout(weights, dropout_p, True)[0]
    return torch.matmul(weights, value).to(dtype)
