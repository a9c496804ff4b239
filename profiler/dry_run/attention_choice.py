"""Which attention kernel CUDA takes: aten/src/ATen/native/transformers/cuda/sdp_utils.cpp and sdp_utils_cpp.h, PyTorch 2.11 to 2.14.

Where releases differ, what holds was asked of each release's own CUDA build (tests/unit/test_attention_choice.py). Older ones
are given the rules of 2.11, newer ones those of 2.14. cuDNN is the one that the default CUDA 13 wheel of each release requires:
9.19 for 2.11, 9.20 for 2.12 and 2.13, 9.24 for 2.14.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

_HALF = (torch.float16, torch.bfloat16)
_LARGEST_FLASH_HEAD = 256
# Flash and cuDNN know cards from the first of these to the last, the memory-efficient kernel from 5.0 on.
_FIRST, _LAST = (8, 0), (12, 1)
_LARGEST_CUDNN_DIMENSION = 65_535
# at::Context's, of every build (Context.h): flash, memory-efficient, math, cuDNN, and one of other vendors.
_BUILT_IN_ORDER = (1, 2, 0, 3, 4)
_OVERRIDEABLE = 4


class Kernel(IntEnum):
    """The kernels, by their numbers in SDPBackend.h."""

    MATH = 0
    FLASH = 1
    EFFICIENT = 2
    CUDNN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The card and the torch that are simulated. prefers_cudnn: as long as TORCH_CUDNN_SDPA_DEPRIORITIZED is not set."""

    compute_capability: tuple[int, int]
    torch_version: tuple[int, int]
    prefers_cudnn: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call of `scaled_dot_product_attention`: query, key, value as (batch, heads, sequence, head size)."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None = None
    dropout_p: float = 0.0
    is_causal: bool = False
    enable_gqa: bool = False

    @property
    def needs_backward(self) -> bool:
        """Whether gradients flow to the query, key or value (input_requires_grad)."""
        return torch.is_grad_enabled() and any(t.requires_grad for t in (self.query, self.key, self.value))


def chosen(call: Call, target: Target) -> Kernel:
    """The first kernel in order that the user left enabled and that takes the call (select_sdp_backend).

    The user's switches are the process's own: `sdpa_kernel`, `torch.backends.cuda.enable_flash_sdp` and the like.
    Raises RuntimeError as torch does where no kernel is left.
    """
    enabled = {kernel for kernel, is_enabled in _ENABLED.items() if is_enabled()}
    if not enabled:
        raise RuntimeError(
            "No viable backend for scaled_dot_product_attention was found. "
            "This is likely due to turning off both the math kernel and the fused kernels."
        )
    for number in _order(target):
        if number == _OVERRIDEABLE:
            # Left on by the single switches, off by sdpa_kernel, which gets the other error.
            if torch._C._get_overrideable_sdp_enabled():
                raise RuntimeError("Invalid backend")
        elif Kernel(number) in enabled and _TAKES[Kernel(number)](call, target):
            return Kernel(number)
    raise RuntimeError("No available kernel. Aborting execution.")


def _order(target: Target) -> Sequence[int]:
    """With cuDNN first on Hopper and datacenter Blackwell (check_prefer_cudnn_attention), unless the user set an order.

    An order that the user set is known by its being another than the built-in one. AMD's 9.4 has no cuDNN.
    """
    order = tuple(torch._C._get_sdp_priority_order())
    major, minor = target.compute_capability
    prefers = target.prefers_cudnn and ((major, minor) == (9, 0) or major == 10)
    if order != _BUILT_IN_ORDER or not prefers:
        return order
    return (Kernel.CUDNN, *(number for number in order if number != Kernel.CUDNN))


def _is_dense(call: Call, target: Target, *, one_number_heads: bool) -> bool:
    """What every fused kernel needs (check_tensor_shapes, check_nonzero_sequence_lengths_dense, check_last_dim_stride_equals_1_dense).

    one_number_heads: whether the stride within heads of one number does not matter.
    """
    query, key, value, mask = call.query, call.key, call.value, call.mask
    if not query.dim() == key.dim() == value.dim() == 4 or not len(query) == len(key) == len(value):
        return False
    # 2.11 looks at sequences alone; since then no size may be zero.
    sizes = (query.shape[-2], key.shape[-2]) if target.torch_version < (2, 12) else (*query.shape, *key.shape)
    if 0 in sizes or (mask is not None and mask.stride(-1) != 1):
        return False
    one = one_number_heads and query.shape[-1] == 1
    return one or query.stride(-1) == key.stride(-1) == value.stride(-1) == 1


def _takes_heads(call: Call, target: Target, *, grouped: bool, same: bool = True) -> bool:
    """check_batch_size_and_num_heads_dense. grouped: whether the kernel knows grouped heads; same: as many keys' as values'.

    Since 2.14 one head of keys and values serves all queries without enable_gqa too (supports_mqa).
    """
    queries, keys, values = (tensor.shape[1] for tensor in (call.query, call.key, call.value))
    if call.enable_gqa and grouped:
        return (keys == values or not same) and queries % keys == 0 and queries % values == 0
    return queries == keys == values or (target.torch_version >= (2, 14) and keys == values == 1)


def _flash_takes(call: Call, target: Target) -> bool:
    head = call.query.shape[-1]
    return (
        call.mask is None
        and call.query.dtype in _HALF
        and _FIRST <= target.compute_capability <= _LAST
        and _is_dense(call, target, one_number_heads=True)
        and _takes_heads(call, target, grouped=True)
        and head == call.key.shape[-1] == call.value.shape[-1]
        and head <= _LARGEST_FLASH_HEAD
        and _flash_backward_takes(call, target)
        and (not call.is_causal or call.query.shape[-2] == call.key.shape[-2])
    )


def _flash_backward_takes(call: Call, target: Target) -> bool:
    """check_requires_grad_and_head_dim_gt192_constraints_on_sm86_89_or_120: heads of 193 to 224, and larger ones with dropout."""
    small_memory = (8, 6) <= target.compute_capability <= (8, 9) or target.compute_capability in ((12, 0), (12, 1))
    head = call.query.shape[-1]
    return not (small_memory and call.needs_backward and head > 192 and (head <= 224 or call.dropout_p > 0))


def _efficient_takes(call: Call, target: Target) -> bool:
    """can_use_mem_efficient_attention; grouped heads since 2.14, without copies of keys and values."""
    capability, dtype = target.compute_capability, call.query.dtype
    if not (5, 0) <= capability <= _LAST or dtype not in (torch.float32, *_HALF):
        return False
    if dtype == torch.bfloat16 and capability < (8, 0):
        return False
    alignment = _gemm_alignment(dtype, capability)
    return (
        _is_dense(call, target, one_number_heads=False)
        and _takes_heads(call, target, grouped=target.torch_version >= (2, 14))
        and all(t.shape[-1] > 0 and t.shape[-1] % alignment == 0 for t in (call.query, call.value))
        and (target.torch_version < (2, 13) or capability < (8, 0) or _starts_aligned(call, alignment))
    )


def _gemm_alignment(dtype: torch.dtype, capability: tuple[int, int]) -> int:
    """Numbers to which heads are aligned (minimum_gemm_alignment)."""
    if dtype in _HALF:
        return 8 if capability >= (7, 0) else 1
    return 4 if capability >= (8, 0) else 1


def _starts_aligned(call: Call, alignment: int) -> bool:
    """check_data_ptr_alignment_mem_efficient, since 2.13."""
    return all(tensor.storage_offset() % alignment == 0 for tensor in (call.query, call.key, call.value))


def _cudnn_takes(call: Call, target: Target) -> bool:
    """can_use_cudnn_attention."""
    refused = torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    return (
        not refused
        and call.query.dtype in _HALF
        and _FIRST <= target.compute_capability <= _LAST
        and _is_dense(call, target, one_number_heads=True)
        and _takes_heads(call, target, grouped=True, same=False)
        and _cudnn_takes_mask(call)
        # Since 2.12 the probability has to be a multiple of 1/16 (check_cudnn_dropout).
        and (target.torch_version < (2, 12) or call.dropout_p * 16 % 1 == 0)
        and _cudnn_takes_sizes(call, target)
    )


def _cudnn_takes_mask(call: Call) -> bool:
    """check_attn_mask_shape."""
    mask, query = call.mask, call.query
    if mask is None:
        return True
    if mask.requires_grad or mask.dim() not in (2, 4):
        return False
    full = (*query.shape[:-1], call.key.shape[-2])
    return all(size in (1, whole) for size, whole in zip(mask.shape[::-1], full[::-1], strict=False))


def _cudnn_takes_sizes(call: Call, target: Target) -> bool:
    """check_cudnn_tensor_shapes, and since 2.14 check_cudnn_d256_bprop_head_dim."""
    batch, heads, queries, _ = call.query.shape
    if target.torch_version >= (2, 13) and max(batch, heads) > _LARGEST_CUDNN_DIMENSION:
        return False
    # One query is not taken with dropout, nor since 2.14 on datacenter Blackwell at all.
    not_one_query = call.dropout_p > 0 or (target.torch_version >= (2, 14) and target.compute_capability[0] == 10)
    if call.key.shape[-2] == 1 or (queries == 1 and not_one_query):
        return False
    head, of_value = call.query.shape[-1], call.value.shape[-1]
    if head % 8 or of_value % 8:
        return False
    return max(head, of_value) <= 128 or _cudnn_takes_large_heads(head, of_value, call, target)


def _cudnn_takes_large_heads(head: int, of_value: int, call: Call, target: Target) -> bool:
    """Beyond 128 numbers: with cuDNN 9.19 and 9.20 up to 256 on Hopper, with 9.24 on datacenter Blackwell too, but not in every backward."""
    hopper, blackwell = target.compute_capability == (9, 0), target.compute_capability[0] == 10
    if target.torch_version < (2, 14):
        return (hopper and max(head, of_value) <= 256) or (blackwell and (head, of_value) == (192, 128))
    if not (hopper or blackwell) or max(head, of_value) > 256:
        return False
    return not call.needs_backward or (head, of_value) in ((192, 128), (256, 256))


_ENABLED: dict[Kernel, Callable[[], bool]] = {
    Kernel.MATH: torch.backends.cuda.math_sdp_enabled,
    Kernel.FLASH: torch.backends.cuda.flash_sdp_enabled,
    Kernel.EFFICIENT: torch.backends.cuda.mem_efficient_sdp_enabled,
    Kernel.CUDNN: torch.backends.cuda.cudnn_sdp_enabled,
}
_TAKES: dict[Kernel, Callable[[Call, Target], bool]] = {
    Kernel.MATH: lambda call, target: True,
    Kernel.FLASH: _flash_takes,
    Kernel.EFFICIENT: _efficient_takes,
    Kernel.CUDNN: _cudnn_takes,
}
