"""What attention takes for a moment beside what it gives, and what a backward gives where torch's meta kernel says something else.

Sources: aten/src/ATen/native/transformers/attention.cpp (_safe_softmax), cuda/attention_backward.cu and
cuda/flash_attn/flash_api.cpp (mha_bwd).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_aten = torch.ops.aten
# mha_bwd rounds sequences up to its largest block.
_FLASH_ROWS = 128
_FP32 = 4


def temporaries(func: Any, args: tuple[Any, ...], result: Any) -> tuple[int, ...]:
    """The bytes of the blocks that `func` takes and gives back while its outputs are there; none for what is not attention's.

    Not known, and left out: those of cuDNN, of the memory-efficient kernel's backward, and of flash's forward where it splits
    long keys over an otherwise idle card.
    """
    if func is _aten._scaled_dot_product_flash_attention_backward.default:
        return _of_flash_backward(args[1], args[2])
    if func is _aten._safe_softmax.default:
        # The softmax before rows that are masked throughout get zeros, and the mask of what is masked.
        return result.numel() * result.element_size(), result.numel()
    return ()


def _of_flash_backward(query: Tensor, key: Tensor) -> tuple[int, ...]:
    """In the order of mha_bwd.

    One number a row, the gradient of the queries in fp32, and with grouped heads the gradients of keys and values once for each
    head of the queries, before they are summed. With deterministic algorithms the second is several times as large, by the
    card's multiprocessors, which is left out.
    """
    batch, heads, queries, head = query.shape
    groups, keys = key.shape[1:3]
    rows = batch * heads * _rounded(queries, _FLASH_ROWS)
    head_rounded = _rounded(head, 32 if head <= 128 else 64)
    blocks = (rows * _FP32, rows * head_rounded * _FP32)
    if groups == heads:
        return blocks
    expanded = batch * keys * heads * head * key.element_size()
    return (*blocks, expanded, expanded)


def _rounded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def efficient_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, *rest: Any, **_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The gradients that the memory-efficient kernel gives, each with the heads of what it is of.

    torch before 2.14 says the queries' heads for all, since its kernel knew no groups.
    """
    needed: list[bool] = rest[5]
    of_inputs = (_by_sequence(query), _by_sequence(key), _by_sequence(value))
    if bias is None or not needed[3]:
        return (*of_inputs, None)
    length = bias.shape[-1]
    return (*of_inputs, bias.new_empty((*bias.shape[:-1], _rounded(length, 16)))[..., :length])


def _by_sequence(tensor: Tensor) -> Tensor:
    batch, heads, sequence, head = tensor.shape
    return tensor.new_empty((batch, sequence, heads, head)).transpose(1, 2)
