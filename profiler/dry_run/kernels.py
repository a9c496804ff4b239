"""The operations that CUDA runs where the CPU runs others: which attention, dropout, norm and RNN kernels.

Above autograd, since what is kept for backward follows from the operation. Sources: aten/src/ATen/native/Dropout.cpp,
transformers/cuda/sdp_utils.cpp, transformers/attention.cpp, RNN.cpp of PyTorch 2.11 to 2.14.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from profiler.dry_run.attention import attention
from profiler.dry_run.attention_choice import Target
from profiler.dry_run.autocast import softmax
from profiler.dry_run.cells import cells
from profiler.dry_run.ctc import ctc_loss
from profiler.dry_run.leaving import leaving
from profiler.dry_run.named_devices import MOVES, on_host
from profiler.dry_run.norms import rms_norm
from profiler.dry_run.recurrent import Recurrent
from profiler.dry_run.unknown import ValueOf

_aten = torch.ops.aten


class Kernels(TorchFunctionMode):
    """Runs, for each function of torch that is called, what CUDA would run for it.

    target: the card and torch, by which attention kernels are chosen. assumed: see `leaving`. rests: whether it leaves
    functions as they are, as while a batch is made of real tensors.
    """

    rests = False

    def __init__(self, target: Target, value_of: ValueOf, assumed: Callable[[Tensor, str], Tensor]) -> None:
        super().__init__()
        self._rewrites: dict[Any, Callable[..., Any]] = {
            functional.scaled_dot_product_attention: lambda *args, **kwargs: attention(target, *args, **kwargs),
            functional.dropout: _dropout,
            torch.dropout: _dropout,
            functional.rms_norm: rms_norm,
            torch.rms_norm: rms_norm,
            **{function: _softmax(function, operator) for function, operator in _SOFTMAXES.items()},
            torch.zeros: _zeros,
            **MOVES,
            functional.multi_head_attention_forward: self._seen(functional.multi_head_attention_forward),
            # Checkpoints run forwards within backward, and functions of the user's their own backward.
            Tensor.backward: self._backward,
            torch.autograd.backward: self._seen(torch.autograd.backward),
            torch.autograd.grad: self._seen(torch.autograd.grad),
            **Recurrent(value_of).rewrites(),
            **cells(),
            functional.ctc_loss: self._seen(functional.ctc_loss),
            torch.ctc_loss: lambda *args, **kwargs: ctc_loss(value_of, *args, **kwargs),
            **leaving(value_of, assumed),
        }

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.rests:
            return func(*args, **kwargs)
        args, kwargs = on_host(func, args, kwargs)
        rewrite = self._rewrites.get(func)
        return (rewrite or func)(*args, **kwargs)

    def _backward(
        self,
        tensor: Tensor,
        gradient: Any = None,
        retain_graph: Any = None,
        create_graph: bool = False,
        inputs: Any = None,
    ) -> None:
        self._rewrites[torch.autograd.backward](tensor, gradient, retain_graph, create_graph, inputs=inputs)

    def _seen(self, function: Any) -> Callable[..., Any]:
        """`function` with what it calls rewritten too: torch leaves the mode while a function of Python's runs."""
        body = FunctionType(
            function.__code__,
            {**function.__globals__, **_NO_MODES},
            argdefs=function.__defaults__,
        )
        body.__kwdefaults__ = function.__kwdefaults__

        def run(*args: Any, **kwargs: Any) -> Any:
            with self:
                return body(*args, **kwargs)

        return run


# A function of torch's asks for modes, which would lead back here.
_NO_MODES = dict.fromkeys(
    ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"), lambda *_: False
)


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


def _zeros(*size: Any, **options: Any) -> Tensor:
    """A number in host memory where no device is named: optimizers count their steps so."""
    if size in (((),), ([],)) and options.get("device") is None:
        return torch.tensor(0.0, dtype=options.get("dtype"), requires_grad=options.get("requires_grad", False))
    zeros: Tensor = torch.zeros(*size, **options)
    return zeros


def _softmax(function: Any, operator: Any) -> Callable[..., Tensor]:
    """`function`, which reads fp16 as it is where the user asks for fp32, as models do for attention."""

    def run(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        dim = kwargs.get("dim", args[0] if args else None)
        if dim is not None and kwargs.get("dtype") is not None:
            return softmax(operator, input, dim, kwargs["dtype"])
        result: Tensor = function(input, *args, **kwargs)
        return result

    return run


_SOFTMAXES = {
    getattr(place, name): operator
    for name, operator in (("softmax", _aten.softmax.int), ("log_softmax", _aten.log_softmax.int))
    for place in (torch, functional, Tensor, torch.special)
}
