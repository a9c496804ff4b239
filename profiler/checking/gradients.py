"""Arithmetic on gradients, a tensor or None for each parameter: their norm, their distance, and a short sketch."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import TypeAlias

import torch
from torch import Tensor, nn

Gradients: TypeAlias = Sequence[Tensor | None]

# A gradient longer than this is sketched by so many sums of its numbers with random signs.
SKETCH_LENGTH = 4096


def norm(gradients: Gradients) -> float:
    """The Euclidean norm over all parameters."""
    return sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients if gradient is not None))


def distance(one: Gradients, other: Gradients) -> float:
    """The norm of the difference; a parameter without a gradient has zeros for one."""
    return sqrt(sum(_difference(a, b) ** 2 for a, b in zip(one, other, strict=True)))


def _difference(one: Tensor | None, other: Tensor | None) -> float:
    if one is None or other is None:
        return norm([one, other])
    return norm([one.double() - other.double()])


def gradients_of(model: nn.Module) -> list[Tensor | None]:
    """The gradient of each parameter as a dense real tensor, None where it has none."""
    return [None if parameter.grad is None else _plain(parameter.grad.detach()) for parameter in model.parameters()]


def _plain(gradient: Tensor) -> Tensor:
    dense = gradient.to_dense() if gradient.layout is not torch.strided else gradient
    return torch.view_as_real(dense) if dense.is_complex() else dense


def sketch(gradients: Gradients, lengths: Sequence[int]) -> Tensor:
    """A linear map of a gradient to at most SKETCH_LENGTH numbers, in fp64 on the host; `lengths` are the parameters'.

    Each number is a sum of the gradient's with random signs that are the same in every call (Charikar et al. 2002,
    "Finding frequent items in data streams"), so that sketches add up as gradients do and norms are nearly kept. A
    gradient that is no longer than that is kept as it is.
    """
    flat = [
        torch.zeros(length, dtype=torch.float64) if gradient is None else gradient.double().flatten()
        for gradient, length in zip(gradients, lengths, strict=True)
    ]
    if sum(lengths) <= SKETCH_LENGTH:
        return torch.cat([part.cpu() for part in flat])
    generator = torch.Generator().manual_seed(0)
    result = torch.zeros(SKETCH_LENGTH, dtype=torch.float64)
    for part in flat:
        result += _sketched(part, generator).cpu()
    return result


def _sketched(flat: Tensor, generator: torch.Generator) -> Tensor:
    rows = -(-flat.numel() // SKETCH_LENGTH)
    padded = torch.nn.functional.pad(flat, (0, rows * SKETCH_LENGTH - flat.numel()))
    signs = torch.randint(2, (rows,), generator=generator).mul(2).sub(1).double().to(flat.device)
    offset = int(torch.randint(SKETCH_LENGTH, (1,), generator=generator))
    # Small parameters, of one row each, must not all meet in the first places.
    return (signs @ padded.reshape(rows, SKETCH_LENGTH)).roll(offset)
