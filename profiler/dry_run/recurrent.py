"""RNNs as cuDNN runs them (RNN.cpp and cudnn/RNN.cpp of PyTorch 2.11 to 2.13), and sequences of different lengths packed for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from profiler.dry_run.unknown import ValueOf, needed_values

_aten = torch.ops.aten
_MODES = {"rnn_relu": 0, "rnn_tanh": 1, "lstm": 2, "gru": 3}
_functions: Any = torch._C._VariableFunctions


class Recurrent:
    """What torch's RNN functions are on a GPU."""

    def __init__(self, value_of: ValueOf) -> None:
        self._value_of = value_of

    def rewrites(self) -> dict[Any, Callable[..., Any]]:
        """By function of torch's, what runs for it."""
        networks = {getattr(_functions, kind): self._network(kind) for kind in _MODES}
        return {**networks, _functions._pack_padded_sequence: self._pack, _functions._pad_packed_sequence: self._pad}

    def _network(self, kind: str) -> Callable[..., Any]:
        def run(input: Tensor, *rest: Any) -> Any:
            if isinstance(rest[2], bool):  # hx, params, has_biases, ...
                hidden, weights, _, layers, dropout, train, bidirectional, batch_first = rest
                return _cudnn_rnn(kind, input, hidden, weights, layers, dropout, train, bidirectional, batch_first, [])
            batch_sizes, hidden, weights, _, layers, dropout, train, bidirectional = rest
            sizes = self._numbers(batch_sizes, kind)
            return _cudnn_rnn(kind, input, hidden, weights, layers, dropout, train, bidirectional, False, sizes)

        return run

    def _numbers(self, tensor: Tensor, name: str) -> list[int]:
        return [int(number) for number in needed_values(self._value_of, tensor, name).tolist()]

    def _pack(self, input: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
        """The steps of all sequences one after the other, and how many sequences have each step."""
        numbers = self._numbers(lengths, "pack_padded_sequence")
        sizes = [sum(step < number for number in numbers) for step in range(max(numbers))]
        packed: Tensor = _Packed.apply(input, sum(numbers))  # type: ignore[no-untyped-call]  # torch's
        return packed, torch.tensor(sizes)

    def _pad(
        self, data: Tensor, batch_sizes: Tensor, batch_first: bool, padding_value: float, total_length: int
    ) -> tuple[Tensor, Tensor]:
        sizes = self._numbers(batch_sizes, "pad_packed_sequence")
        steps, samples = max(len(sizes), total_length), sizes[0]
        padded: Tensor = _Padded.apply(data, (samples, steps) if batch_first else (steps, samples))  # type: ignore[no-untyped-call]  # torch's
        return padded, torch.tensor([sum(sample < size for size in sizes) for sample in range(samples)])


class _Packed(torch.autograd.Function):
    """One new tensor, and a gradient of the whole padded batch."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, steps: int) -> Tensor:
        ctx.shape = input.shape
        return input.new_empty((steps, *input.shape[2:]))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0].new_zeros(ctx.shape), None


class _Padded(torch.autograd.Function):
    """One new tensor that is filled step by step, which copies its gradient in backward."""

    @staticmethod
    def forward(ctx: Any, data: Tensor, leading: tuple[int, int]) -> Tensor:
        ctx.shape = data.shape
        return data.new_empty((*leading, *data.shape[1:]))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        copied = gradients[0].clone()
        return copied.new_zeros(ctx.shape), None


def _cudnn_rnn(
    kind: str, input: Tensor, hidden: Any, weights: list[Tensor], layers: int, dropout: float, train: bool,
    bidirectional: bool, batch_first: bool, batch_sizes: list[int],
) -> Any:  # fmt: skip
    """As torch calls `_cudnn_rnn`: outputs, the states, a reserve space that backward needs, and the weights in one buffer.

    On a GPU the weights lie in that buffer already; under autocast they are copied into one of the lower precision.
    """
    states = [_cast(state) for state in (hidden if kind == "lstm" else (hidden,))]
    weights = [_cast(weight) for weight in weights]
    hx = states[0]
    hidden_size = states[-1].shape[-1]
    projection = hx.shape[-1] if hx.shape[-1] != hidden_size else 0
    dropout_state = input.new_empty((0,), dtype=torch.uint8) if dropout > 0 and train else None
    turned = batch_first and not batch_sizes
    per_layer = len(weights) // (layers * (2 if bidirectional else 1))
    output, new_hx, new_cx, _, _ = _aten._cudnn_rnn(
        _cast(input.transpose(0, 1) if turned else input), weights, per_layer, weights[0].detach(), hx,
        states[1] if kind == "lstm" else None, _MODES[kind], hidden_size, projection, layers, False, dropout, train,
        bidirectional, batch_sizes, dropout_state,
    )  # fmt: skip
    output = output.transpose(0, 1) if turned else output
    return (output, new_hx, new_cx) if kind == "lstm" else (output, new_hx)


def _cast(tensor: Tensor) -> Tensor:
    return tensor.to(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else tensor


def backward(
    input: Tensor, weights: list[Tensor], stride: int, buffer: Tensor, hx: Tensor, cx: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor | None, list[Tensor]]:
    """The gradients that `_cudnn_rnn_backward` gives, which has no meta kernel: those of the weights are views of one buffer."""
    together = input.new_empty((sum(weight.numel() for weight in weights),))
    parts = together.split([weight.numel() for weight in weights])
    of_weights = [part.view(weight.shape) for part, weight in zip(parts, weights, strict=True)]
    return torch.empty_like(input), torch.empty_like(hx), None if cx is None else torch.empty_like(cx), of_weights
