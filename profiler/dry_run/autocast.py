"""Autocast of a GPU for tensors that are on the CPU: its lists differ, and what is cast is kept for backward.

The CPU's kernels of autocast are replaced in torch's dispatcher while this lasts, so that operations that torch calls within others
are cast as well. Which operations the GPU's has is asked of torch; how it casts them is in aten/src/ATen/autocast_mode.h of
PyTorch 2.11 to 2.14.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from profiler.dry_run.known import tensors_in

_aten = torch.ops.aten
_C: Any = torch._C
_KEY = "AutocastCPU"
_HALF = (torch.float16, torch.bfloat16)
# AT_FORALL_LOWER_PRECISION_FP. Where the CPU lowers them too its own kernel stays, which keeps casts of weights.
_LOWERED = frozenset(
    f"aten::{name}"
    for name in (
        *("_convolution", "_convolution.deprecated", "convolution", "conv1d", "conv2d", "conv3d", "conv_tbc", "conv_transpose1d"),
        *("conv_transpose2d.input", "conv_transpose3d.input", "cudnn_convolution", "cudnn_convolution_transpose", "prelu"),
        *("addmm", "addmv", "addr", "matmul", "einsum", "mm", "mv", "linalg_vecdot", "linear", "addbmm", "baddbmm", "bmm"),
        *("chain_matmul", "linalg_multi_dot", "_thnn_fused_lstm_cell", "_thnn_fused_gru_cell", "lstm_cell", "gru_cell"),
        *("rnn_tanh_cell", "rnn_relu_cell", "_scaled_dot_product_flash_attention", "scaled_dot_product_attention"),
    )
)  # fmt: skip
# AT_FORALL_FP32_SET_OPT_DTYPE: what computes in fp32 without a copy of its input, unless a type is asked for.
_GIVEN_A_TYPE = frozenset(
    f"aten::{name}"
    for name in (
        *("prod", "prod.dim_int", "softmax.int", "log_softmax.int", "cumprod", "cumsum", "linalg_vector_norm"),
        *("linalg_matrix_norm", "linalg_matrix_norm.str_ord", "sum", "sum.dim_IntList"),
    )
)
# AT_FORALL_DIFFERENT_REDISPATCH_SIGNATURE: the same by an overload.
_NORMS: dict[str, Callable[..., Any]] = {
    "aten::norm.Scalar": lambda tensor, p=2: _aten.norm.ScalarOpt_dtype(tensor, p, dtype=torch.float32),
    "aten::norm.ScalarOpt_dim": lambda tensor, p, dim, keepdim=False: _aten.norm.ScalarOpt_dim_dtype(
        tensor, p, dim, keepdim, dtype=torch.float32
    ),
}
# AT_FORALL_PROMOTE: all inputs in the widest type among them.
_PROMOTED = frozenset(
    f"aten::{name}"
    for name in (
        *("addcdiv", "addcmul", "atan2", "bilinear", "cross", "dot", "vdot", "grid_sampler", "index_put", "tensordot"),
        "scatter_add",
    )
)
_REFUSED = "aten::binary_cross_entropy"
# What CUDA builds of torch cast beside these, and `recurrent` does here.
_CAST_ALREADY = "aten::_cudnn_rnn"
_SOFTMAX = {_aten.softmax.int: _aten._softmax.default, _aten.log_softmax.int: _aten._log_softmax.default}
_lasting = 0
# Weights that were lowered, each with what it was lowered to, until the outermost autocast ends.
_kept: dict[int, tuple[Tensor, Tensor]] = {}


@contextmanager
def autocast_of_gpu() -> Iterator[None]:
    """Autocast on the CPU casts as it would on a GPU; at the end torch is as it was."""
    global _lasting
    if _lasting:
        yield
        return
    library = torch.library.Library("aten", "IMPL")
    clear = torch.clear_autocast_cache

    def clear_all() -> None:
        _kept.clear()
        clear()

    _lasting += 1
    torch.clear_autocast_cache = clear_all
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch says that kernels are replaced
            for name, kernel in _kernels():
                library.impl(name.removeprefix("aten::"), kernel, _KEY, allow_override=True)
        yield
    finally:
        _lasting -= 1
        torch.clear_autocast_cache = clear
        _kept.clear()
        library._destroy()


def in_fp32(nest: Any) -> Any:
    """`nest` with its tensors of half precision in fp32."""
    return tree_map_only(Tensor, lambda tensor: _in(torch.float32, tensor) if tensor.dtype in _HALF else tensor, nest)


def lowered(nest: Any) -> Any:
    """`nest` with its tensors in the type of autocast."""
    return tree_map_only(Tensor, _low, nest)


def softmax(operator: Any, tensor: Tensor, dim: int, dtype: torch.dtype | None) -> Tensor:
    """A softmax of fp16 in fp32 reads its input as it is, and keeps no copy (SoftMax.cpp); one of bf16 is copied first."""
    if tensor.dtype == torch.float16 and dtype == torch.float32:
        result: Tensor = _SOFTMAX[operator](tensor, dim, True)
    else:
        result = operator(tensor, dim, dtype)
    return result


@cache
def _kernels() -> tuple[tuple[str, Any], ...]:
    names = [name for name in _C._dispatch_get_all_op_names() if name.startswith("aten::")]
    of_cpu, of_gpu = (
        {name for name in names if _C._dispatch_has_kernel_for_dispatch_key(name, key)}
        for key in (_KEY, "AutocastCUDA")
    )
    kept = (of_cpu & of_gpu & _LOWERED) | {_CAST_ALREADY}
    ours = [(name, _excluded(_operator(name), _rule(name))) for name in sorted(of_gpu - kept)]
    return *((name, torch.library.fallthrough_kernel) for name in sorted(of_cpu - of_gpu)), *ours


def _operator(name: str) -> Any:
    packet, _, overload = name.removeprefix("aten::").partition(".")
    return getattr(getattr(_aten, packet), overload or "default")


def _rule(name: str) -> Callable[..., Any]:
    """What runs for an operator, given it and its arguments."""
    if name in _LOWERED:
        return _lowered
    if name in _GIVEN_A_TYPE:
        return _given_a_type
    if name in _NORMS:
        return lambda operator, *args, **kwargs: _norm(_NORMS[name], operator, *args, **kwargs)
    if name in _PROMOTED:
        return _promoted
    return _refused if name == _REFUSED else _widened


def _excluded(operator: Any, rule: Callable[..., Any]) -> Callable[..., Any]:
    """`rule` with autocast off for what it calls."""

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with _C._ExcludeDispatchKeyGuard(_C.DispatchKeySet(_C.DispatchKey.AutocastCPU)):
            return rule(operator, *args, **kwargs)

    return kernel


def _is_eligible(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dtype != torch.float64


def _in(dtype: torch.dtype, tensor: Tensor) -> Tensor:
    cast: Tensor = _aten.to.dtype(tensor, dtype)
    return cast


def _cast(dtype: torch.dtype, nest: Any) -> Any:
    return tree_map_only(Tensor, lambda tensor: _in(dtype, tensor) if _is_eligible(tensor) else tensor, nest)


def _lowered(operator: Any, *args: Any, **kwargs: Any) -> Any:
    args, kwargs = lowered((args, kwargs))
    return operator(*args, **kwargs)


def _low(tensor: Tensor) -> Tensor:
    """A weight is lowered once, as each step of a cell that is called in a loop has it again (cached_cast)."""
    dtype = torch.get_autocast_dtype("cpu")
    if not _is_eligible(tensor):
        return tensor
    if not (tensor.dtype == torch.float32 and tensor.requires_grad and tensor.is_leaf and not tensor._is_view()):
        return _in(dtype, tensor)
    if not torch.is_autocast_cache_enabled():
        return _in(dtype, tensor)
    held = _kept.get(id(tensor))
    if held is None:
        held = _kept[id(tensor)] = tensor, _in(dtype, tensor)
    return held[1]


def _widened(operator: Any, *args: Any, **kwargs: Any) -> Any:
    args, kwargs = _cast(torch.float32, (args, kwargs))
    return operator(*args, **kwargs)


def _given_a_type(operator: Any, *args: Any, **kwargs: Any) -> Any:
    names = [argument.name for argument in operator._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    if _is_eligible(args[0]) and given.get("dtype") is None:
        given["dtype"] = torch.float32
    if operator in _SOFTMAX:
        return softmax(operator, given["self"], given["dim"], given.get("dtype"))
    return operator(args[0], **{name: value for name, value in given.items() if name != names[0]})


def _norm(typed: Callable[..., Any], operator: Any, *args: Any, **kwargs: Any) -> Any:
    return (typed if _is_eligible(args[0]) else operator)(*args, **kwargs)


def _promoted(operator: Any, *args: Any, **kwargs: Any) -> Any:
    dtype = torch.get_autocast_dtype("cpu")
    for tensor in filter(_is_eligible, tensors_in((args, kwargs))):
        dtype = torch.float32 if torch.float32 in (dtype, tensor.dtype) else torch.promote_types(dtype, tensor.dtype)
    args, kwargs = _cast(dtype, (args, kwargs))
    return operator(*args, **kwargs)


def _refused(operator: Any, *args: Any, **kwargs: Any) -> Any:
    """Raises torch's own error: a GPU's autocast does not take this loss."""
    return operator.redispatch(_C.DispatchKeySet(_C.DispatchKey.AutocastCUDA), *args, **kwargs)
