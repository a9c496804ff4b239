"""Arithmetic on gradients, a tensor or None for each parameter: their norm, their distance, and a short sketch."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

Gradients: TypeAlias = Sequence[Tensor | None]

# Each parameter's gradient is sketched by so many sums of its numbers with random signs.
SKETCH_LENGTH = 256


def norm(gradients: Gradients) -> float:
    """The Euclidean norm over all parameters."""
    return sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients if gradient is not None))


def norms(gradients: Gradients) -> Tensor:
    """The Euclidean norm for each parameter, in fp64 on the host; 0 where it has no gradient."""
    return torch.tensor([norm([gradient]) for gradient in gradients], dtype=torch.float64)


def distances(one: Gradients, other: Gradients) -> Tensor:
    """The norm of the difference for each parameter; a parameter without a gradient has zeros for one."""
    pairs = zip(one, other, strict=True)
    return torch.tensor([_difference(a, b) for a, b in pairs], dtype=torch.float64)


def distance(one: Gradients, other: Gradients) -> float:
    """The norm of the difference over all parameters."""
    return float(distances(one, other).norm())


def _difference(one: Tensor | None, other: Tensor | None) -> float:
    if one is None or other is None:
        return norm([one, other])
    return norm([one.double() - other.double()])


def is_same(differences: Tensor, scales: Tensor, exact: float, tolerance: float) -> bool:
    """Whether gradients are the same to training: within `exact` of all that is contributed, or parameter by parameter.

    differences, scales: for each parameter, the norm of the difference and the summed norms of what parts contribute. Under
    `exact` of the whole nothing counts: one parameter's gradient may be pure rounding, such as a bias's before a norm. Above
    it each parameter may be off by `tolerance` of its own scale, so that a large gradient does not hide a small one.
    """
    rounding = exact * float(scales.norm())
    if not bool(torch.isfinite(differences).all()):
        return False
    return float(differences.norm()) <= rounding or bool(
        (differences <= (tolerance * scales).clamp(min=rounding)).all()
    )


def gradients_of(model: nn.Module) -> list[Tensor | None]:
    """The gradient of each parameter as a dense real tensor, None where it has none."""
    return [None if parameter.grad is None else _plain(parameter.grad.detach()) for parameter in model.parameters()]


def _plain(gradient: Tensor) -> Tensor:
    dense = gradient.to_dense() if gradient.layout is not torch.strided else gradient
    return torch.view_as_real(dense) if dense.is_complex() else dense


def sketch(gradients: Gradients, parameters: Sequence[Tensor]) -> Tensor:
    """A linear map of a gradient to SKETCH_LENGTH numbers for each parameter: shape (parameters, SKETCH_LENGTH), fp64, host.

    Each number is a sum of the gradient's with random signs that are the same in every call (Charikar et al. 2002,
    "Finding frequent items in data streams"), so that sketches add up as gradients do and norms are nearly kept.
    """
    generator = torch.Generator().manual_seed(0)
    rows = [_sketched(*pair, generator) for pair in zip(gradients, parameters, strict=True)]
    return torch.stack(rows) if rows else torch.zeros(0, SKETCH_LENGTH, dtype=torch.float64)


def _sketched(gradient: Tensor | None, parameter: Tensor, generator: torch.Generator) -> Tensor:
    length = parameter.numel() * (2 if parameter.is_complex() else 1)
    count = -(-length // SKETCH_LENGTH)
    # Drawn whether there is a gradient or not, so that the next parameter's are the same.
    signs = torch.randint(2, (count,), generator=generator).mul(2).sub(1).double()
    if gradient is None:
        return torch.zeros(SKETCH_LENGTH, dtype=torch.float64)
    padded = functional.pad(gradient.double().flatten(), (0, count * SKETCH_LENGTH - length))
    return (signs.to(gradient.device) @ padded.reshape(count, SKETCH_LENGTH)).cpu()
