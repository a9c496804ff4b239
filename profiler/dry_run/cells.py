"""Cells of LSTMs and GRUs on a GPU: one kernel, which keeps the gates that it was given and a workspace for backward.

Sources: aten/src/ATen/native/RNN.cpp (LSTMCell, GRUCell), cuda/RNN.cu and tools/autograd/derivatives.yaml of PyTorch 2.11 to 2.14.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from profiler.dry_run.autocast import lowered

_functions: Any = torch._C._VariableFunctions
# Numbers that a GRU's kernel keeps of each hidden one.
_GRU_KEEPS = 5


def cells() -> dict[Any, Callable[..., Any]]:
    """By function of torch's, what runs for it."""
    return {_functions.lstm_cell: _lstm_cell, _functions.gru_cell: _gru_cell}


def _lstm_cell(
    source: Tensor,
    hx: Sequence[Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    source, hidden, cell, w_ih, w_hh, b_ih, b_hh = _at_autocast((source, *hx, w_ih, w_hh, b_ih, b_hh))
    output: tuple[Tensor, Tensor] = _Lstm.apply(  # type: ignore[no-untyped-call]  # torch's
        functional.linear(source, w_ih), functional.linear(hidden, w_hh), cell, b_ih, b_hh
    )
    return output


def _gru_cell(
    source: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
) -> Tensor:
    source, hx, w_ih, w_hh, b_ih, b_hh = _at_autocast((source, hx, w_ih, w_hh, b_ih, b_hh))
    output: Tensor = _Gru.apply(  # type: ignore[no-untyped-call]  # torch's
        functional.linear(source, w_ih), functional.linear(hx, w_hh), hx, b_ih, b_hh
    )
    return output


def _at_autocast(tensors: tuple[Any, ...]) -> tuple[Any, ...]:
    lower: tuple[Any, ...] = lowered(tensors) if torch.is_autocast_enabled("cpu") else tensors
    return lower


class _Lstm(torch.autograd.Function):
    """Gives the hidden state and the cell's; the gradient of all four gates is that of both inputs."""

    @staticmethod
    def forward(
        ctx: Any, of_input: Tensor, of_hidden: Tensor, cell: Tensor, b_ih: Tensor | None, b_hh: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)  # of a state that nobody uses
        hidden, following = torch.empty_like(cell), torch.empty_like(cell)
        ctx.save_for_backward(of_input, of_hidden, cell, following, torch.empty_like(of_input), b_ih, b_hh)
        return hidden, following

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        of_input, _, cell, *_, b_ih, _ = ctx.saved_tensors
        of_gates = torch.empty_like(of_input)
        of_bias = None if b_ih is None else torch.empty_like(b_ih)
        return of_gates, of_gates, torch.empty_like(cell), of_bias, of_bias


class _Gru(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, of_input: Tensor, of_hidden: Tensor, hx: Tensor, b_ih: Tensor | None, b_hh: Tensor | None
    ) -> Tensor:
        kept = hx.new_empty((hx.shape[0], _GRU_KEEPS * hx.shape[1]))
        ctx.save_for_backward(of_input, of_hidden, hx, kept, b_ih, b_hh)
        return torch.empty_like(hx)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        of_input, of_hidden, hx, _, b_ih, b_hh = ctx.saved_tensors
        of_biases = (None if bias is None else torch.empty_like(bias) for bias in (b_ih, b_hh))
        return torch.empty_like(of_input), torch.empty_like(of_hidden), torch.empty_like(hx), *of_biases
