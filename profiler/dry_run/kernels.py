"""The operations that CUDA runs where the CPU runs others: which attention, dropout, norm and RNN kernels, and autocast's list.

Above autograd, since what is kept for backward follows from the operation. Sources: aten/src/ATen/native/Dropout.cpp,
transformers/cuda/sdp_utils.cpp, transformers/attention.cpp, RNN.cpp, layer_norm.cpp, autocast_mode.h of PyTorch 2.11 to 2.13.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from profiler.dry_run.attention import attention

_aten = torch.ops.aten


class Kernels(TorchFunctionMode):
    """Runs, for each function of torch that is called, what CUDA would run for it.

    compute_capability: the card's, by which attention kernels are chosen.
    """

    def __init__(self, compute_capability: tuple[int, int]) -> None:
        super().__init__()
        self._rewrites: dict[Any, Callable[..., Any]] = {
            functional.scaled_dot_product_attention: lambda *args, **kwargs: attention(
                compute_capability, *args, **kwargs
            ),
            functional.dropout: _dropout,
            torch.dropout: _dropout,
            functional.rms_norm: _rms_norm,
            torch.rms_norm: _rms_norm,
            torch.lstm: _lstm,
            torch.gru: _gru,
            functional.multi_head_attention_forward: self._multi_head_attention,
        }

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.is_autocast_enabled("cpu") and func in _IN_FP32:
            args, kwargs = tree_map_only(Tensor, _widened, (args, kwargs))
        rewrite = self._rewrites.get(func)
        return (rewrite or func)(*args, **kwargs)

    def _multi_head_attention(self, *args: Any, **kwargs: Any) -> Any:
        """The function itself, with what it calls rewritten too: torch leaves the mode while a function of Python's runs."""
        with self:
            return _MULTI_HEAD_ATTENTION(*args, **kwargs)


# Without its question for modes, which would lead back here.
_MULTI_HEAD_ATTENTION = FunctionType(
    functional.multi_head_attention_forward.__code__,
    {**functional.multi_head_attention_forward.__globals__, "has_torch_function": lambda _: False},
    argdefs=functional.multi_head_attention_forward.__defaults__,
)


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _dropout(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, train: bool | None = None
) -> Tensor:
    """A mask of bools where the CPU keeps one of floats (is_fused_kernel_acceptable); in place it is floats on both."""
    active = training if train is None else train
    if inplace or not active or not 0 < p < 1 or input.numel() == 0:
        result: Tensor = torch.dropout_(input, p, active) if inplace else torch.dropout(input, p, active)
        return result
    dropped: Tensor = _aten.native_dropout(input, p, True)[0]
    return dropped


def _rms_norm(
    input: Tensor, normalized_shape: list[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """One kernel that keeps one number a row, from torch 2.9 on."""
    normed: Tensor = _aten._fused_rms_norm(input, list(normalized_shape), weight, eps)[0]
    return normed


_MODES = {"lstm": 2, "gru": 3}


def _lstm(*args: Any) -> Any:
    if isinstance(args[3], bool):  # input, hx, params, has_biases, ...
        return _rnn("lstm", *args)
    return _packed_rnn("lstm", *args)


def _gru(*args: Any) -> Any:
    if isinstance(args[3], bool):
        return _rnn("gru", *args)
    return _packed_rnn("gru", *args)


def _rnn(
    kind: str, input: Tensor, hidden: Any, weights: list[Tensor], has_biases: bool, layers: int, dropout: float,
    train: bool, bidirectional: bool, batch_first: bool,
) -> Any:  # fmt: skip
    return _cudnn_rnn(kind, input, hidden, weights, has_biases, layers, dropout, train, bidirectional, batch_first, [])


def _packed_rnn(
    kind: str, input: Tensor, batch_sizes: Tensor, hidden: Any, weights: list[Tensor], has_biases: bool, layers: int,
    dropout: float, train: bool, bidirectional: bool,
) -> Any:  # fmt: skip
    sizes = batch_sizes.tolist()
    return _cudnn_rnn(kind, input, hidden, weights, has_biases, layers, dropout, train, bidirectional, False, sizes)


def _cudnn_rnn(
    kind: str, input: Tensor, hidden: Any, weights: list[Tensor], has_biases: bool, layers: int, dropout: float,
    train: bool, bidirectional: bool, batch_first: bool, batch_sizes: list[int],
) -> Any:  # fmt: skip
    """As torch calls `_cudnn_rnn` (RNN.cpp): outputs, the states, a reserve space that backward needs, and the weights in one buffer."""
    states: tuple[Tensor, ...] = tuple(hidden) if kind == "lstm" else (hidden,)
    hx = states[0]
    hidden_size = weights[1].shape[1] if kind == "gru" else states[-1].shape[-1]
    projection = hx.shape[-1] if kind == "lstm" and hx.shape[-1] != hidden_size else 0
    dropout_state = input.new_empty((0,), dtype=torch.uint8) if dropout > 0 and train else None
    source = input.transpose(0, 1) if batch_first and not batch_sizes else input
    per_layer = len(weights) // (layers * (2 if bidirectional else 1))
    output, new_hx, new_cx, _, _ = _aten._cudnn_rnn(
        source, weights, per_layer, None, hx, states[1] if kind == "lstm" else None, _MODES[kind], hidden_size, projection,
        layers, False, dropout, train, bidirectional, batch_sizes, dropout_state,
    )  # fmt: skip
    output = output.transpose(0, 1) if batch_first and not batch_sizes else output
    return (output, new_hx, new_cx) if kind == "lstm" else (output, new_hx)


# autocast_mode.h, AT_FORALL_FP32, _FP32_SET_OPT_DTYPE and _DIFFERENT_REDISPATCH_SIGNATURE, as Python calls them.
_FP32_NAMES = (
    *("acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt"),
    *("sinh", "tan", "pow", "softplus", "layer_norm", "native_layer_norm", "rms_norm", "group_norm"),
    *("frobenius_norm", "nuclear_norm", "cosine_similarity", "poisson_nll_loss", "cosine_embedding_loss"),
    *("nll_loss", "hinge_embedding_loss", "kl_div", "l1_loss", "smooth_l1_loss", "huber_loss", "mse_loss"),
    *("margin_ranking_loss", "multilabel_margin_loss", "soft_margin_loss", "triplet_margin_loss"),
    *("multi_margin_loss", "binary_cross_entropy_with_logits", "dist", "pdist", "cdist", "renorm", "logsumexp"),
    *("interpolate", "prod", "softmax", "log_softmax", "cumprod", "cumsum", "sum", "norm", "cross_entropy"),
    *("softmin"),
)
_IN_FP32 = frozenset(
    getattr(place, name)
    for name in _FP32_NAMES
    for place in (torch, functional, Tensor, torch.special)
    if hasattr(place, name)
) | {torch.linalg.vector_norm, torch.linalg.matrix_norm, Tensor.__pow__, Tensor.__rpow__}
