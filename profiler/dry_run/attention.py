"""Attention as CUDA computes it: the kernel it takes, what that keeps for backward, and what it takes there for itself.

Sources: aten/src/ATen/native/transformers/attention.cpp, cuda/attention.cu, cuda/attention_backward.cu, cuda/flash_attn/flash_api.cpp
and aten/src/ATen/native/cudnn/MHA.cpp of PyTorch 2.11 to 2.14.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from profiler.dry_run.attention_choice import Call, Kernel, Target, chosen

_aten = torch.ops.aten
# Strides of a mask are multiples of so many elements for the memory-efficient kernel (preprocess_mask).
_MASK_ALIGNMENT = 8


def attention(
    target: Target,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`scaled_dot_product_attention` by the kernel that CUDA would choose.

    query, key, value: (batch, heads, sequence, head size). Raises RuntimeError as torch does: where no kernel is left, and
    where a mask comes with is_causal and the kernel, or any since 2.14, does not take both.
    """
    query, key, value = _cast(query), _cast(key), _cast(value)
    mask = None if attn_mask is None else _cast(attn_mask)
    # Since 2.14 one sample without a batch is a batch of one.
    single = target.torch_version >= (2, 14) and query.dim() == key.dim() == value.dim() == 3
    if single:
        query, key, value = query[None], key[None], value[None]
        mask = None if mask is None else mask[(None,) * (4 - mask.dim())]
    call = Call(
        query=query, key=key, value=value, mask=mask, dropout_p=dropout_p, is_causal=is_causal, enable_gqa=enable_gqa
    )
    kernel = chosen(call, target)
    if is_causal and mask is not None and (kernel is Kernel.MATH or target.torch_version >= (2, 14)):
        raise RuntimeError("_scaled_dot_product_attention: Explicit attn_mask should not be set when is_causal=True")
    output = _RUN[kernel](call, scale)
    return output[0] if single else output


def _cast(tensor: Tensor) -> Tensor:
    """As autocast does it for this operation (autocast_mode.h, AT_FORALL_LOWER_PRECISION_FP): masks of numbers too."""
    if not torch.is_autocast_enabled("cpu") or not tensor.is_floating_point() or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype("cpu"))


def _bias(call: Call) -> Tensor | None:
    """A mask of bools as one of numbers (convert_boolean_attn_mask)."""
    mask, dtype = call.mask, call.query.dtype
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.where(mask, torch.scalar_tensor(0.0, dtype=dtype), torch.scalar_tensor(-math.inf, dtype=dtype))


def _flash(call: Call, scale: float | None) -> Tensor:
    """Heads are padded to a multiple of 8 (pad_last_dim), and the output is cut to what it was."""
    query, key, value = call.query, call.key, call.value
    head = query.shape[-1]
    scale = 1 / math.sqrt(head) if scale is None else scale
    missing = -head % 8
    if missing:
        query, key, value = (functional.pad(tensor, (0, missing)) for tensor in (query, key, value))
    output: Tensor = _aten._scaled_dot_product_flash_attention(
        query, key, value, call.dropout_p, call.is_causal, False, scale=scale
    )[0]
    return output[..., :head] if missing else output


def _efficient(call: Call, scale: float | None) -> Tensor:
    """The mask is padded where its rows are not aligned, and expanded without memory."""
    mask = _bias(call)
    if mask is not None:
        mask = _aligned(mask).expand(*call.query.shape[:-1], call.key.shape[-2])
    output: Tensor = _aten._scaled_dot_product_efficient_attention(
        call.query, call.key, call.value, mask, call.needs_backward, call.dropout_p, call.is_causal, scale=scale
    )[0]
    return output


def _aligned(mask: Tensor) -> Tensor:
    """`mask`, or a copy with longer rows (aligned_tensor, pad_bias): longer by a whole alignment where only strides were off."""
    if mask.stride(-1) == 1 and all(stride % _MASK_ALIGNMENT == 0 for stride in mask.stride()[:-1]):
        return mask
    length = mask.shape[-1]
    return functional.pad(mask, (0, _MASK_ALIGNMENT - length % _MASK_ALIGNMENT))[..., :length]


def _cudnn(call: Call, scale: float | None) -> Tensor:
    """Keeps its inputs, the mask as numbers, the output and one number a row in fp32; grouped heads are not expanded.

    The output lies in memory as the query does (alloc_with_matching_layout), gradients as what they are of (empty_like). Without
    a backward cuDNN leaves the numbers of the rows out, which here are given back at once. Its workspaces are not known.
    """
    output: Tensor = _aten._scaled_dot_product_cudnn_attention(
        call.query, call.key, call.value, _bias(call), call.needs_backward, call.dropout_p, call.is_causal, False,
        scale=scale,
    )[0]  # fmt: skip
    return output


def _math(call: Call, scale: float | None) -> Tensor:
    """Every step an operation of its own, with the square matrix kept (_scaled_dot_product_attention_math).

    Half precision is computed in fp32 unless the user allowed reduction in it.
    """
    query, key, value, mask = call.query, call.key, call.value, _bias(call)
    dtype = query.dtype
    if dtype in (torch.float16, torch.bfloat16) and not torch._C._get_math_sdp_allow_fp16_bf16_reduction():
        query, key, value = query.float(), key.float(), value.float()
    if call.is_causal:
        ones = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
        mask = _bias(Call(query=query, key=key, value=value, mask=ones))
    if call.enable_gqa:
        key, value = _repeated(key, query.shape[-3]), _repeated(value, query.shape[-3])
    factor = math.sqrt(1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    scores = torch.matmul(query * factor, key.transpose(-2, -1) * factor)
    if mask is not None:
        scores.add_(mask)
    weights = torch._safe_softmax(scores, -1)
    if call.dropout_p > 0:
        weights = _aten.native_dropout(weights, call.dropout_p, True)[0]
    return torch.matmul(weights, value).to(dtype)


def _repeated(tensor: Tensor, heads: int) -> Tensor:
    """Keys or values once for each head of the queries (pre_process_group_query_attention_input)."""
    groups = tensor.shape[-3]
    if groups == heads:
        return tensor
    if groups == 0 or heads % groups:
        raise RuntimeError("Number of heads in key and value must divide the number of heads in query")
    return tensor.repeat_interleave(heads // groups, -3)


_RUN = {Kernel.FLASH: _flash, Kernel.EFFICIENT: _efficient, Kernel.CUDNN: _cudnn, Kernel.MATH: _math}
