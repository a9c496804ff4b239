"""The ways to the whole batch's gradient, run and compared with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite

import torch
from torch import Tensor

from profiler.checking.decomposition import places_of
from profiler.checking.gradients import Gradients, distances, is_same, norms
from profiler.checking.subject import Part, Piece, Subject, Total
from profiler.equivalence import Way
from profiler.outcomes import Strategy
from profiler.plan import least_steps, split

SGD_LEARNING_RATE = 0.001
Split = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The whole batch in one backward, the norm of its gradient, and what its parts contribute.

    loss_scale, gradient_scales: the summed sizes of the parts' losses and, for each parameter, gradients, which rounding is
    relative to: where parts cancel, the whole is small and its rounding is not.
    """

    total: Total
    norm: float
    loss_scale: float
    gradient_scales: Tensor

    def relative(self, length: float) -> float:
        """A difference of gradients, over the norm of the whole one; over what parts contribute where that is 0."""
        return _over(length, self.norm or float(self.gradient_scales.norm()))

    def bound(self, subject: Subject) -> float:
        """What a gradient may differ by, likewise."""
        return self.relative(subject.tolerance * float(self.gradient_scales.norm()))


def splits_of(samples: int, least: int, *, thorough: bool = True) -> tuple[Split, ...]:
    """Equal parts (if thorough), unequal ones, and the smallest that run, of `least` samples; no split stands twice.

    16 samples are split as 4 x 4, 3 x 5 + 1 and 16 x 1.
    """
    steps = least_steps(samples, max(4, samples // 8))
    equal = split(samples, min(max(2, steps), samples // least))[0]
    third = (samples - 1) // 3
    unequal: Split = (third, third, third, samples - 3 * third)
    if min(unequal) < least or len(set(unequal)) == 1:
        unequal = (samples - least, least)
    smallest = split(samples, max(2, samples // least))[0]
    wanted = ((equal,) if thorough else ()) + (unequal, smallest)
    return tuple(dict.fromkeys(sizes for sizes in wanted if len(sizes) > 1))


def reference_of(subject: Subject, parts: Split, weights: Sequence[float]) -> Reference:
    """The whole batch's loss and gradient; scales by the weighted parts, each run by itself."""
    total = subject.total(Strategy.WHOLE_BATCH, [(subject.piece(range(subject.samples)), 1.0)])
    whole, losses = norms(total.gradients), 0.0
    scales = torch.zeros_like(whole)
    for places, weight in zip(places_of(parts), weights, strict=True):
        part = subject.tried(partial(subject.part, places)) if weight else ""
        if isinstance(part, Part) and isfinite(part.loss) and isfinite(part.norm):
            losses, scales = losses + weight * abs(part.loss), scales + weight * part.norms
    return Reference(
        total=total,
        norm=float(whole.norm()),
        loss_scale=max(abs(total.loss), losses),
        gradient_scales=scales.maximum(whole),
    )


def whole_way(subject: Subject, reference: Reference) -> Way:
    """The whole batch as a way, with which the others are compared."""
    return Way(
        strategy=Strategy.WHOLE_BATCH,
        split=(subject.samples,),
        precision=subject.precision,
        loss=reference.total.loss,
        gradient_difference=0.0,
        bound=reference.bound(subject),
        parameter_sum=parameter_sum(subject, reference.total.gradients),
        equal=True,
    )


def way(subject: Subject, reference: Reference, strategy: Strategy, sizes: Split, weights: Sequence[float]) -> Way:
    """One way, run and compared; parts that count for nothing are left out, as in training."""
    counted = [(places, weight) for places, weight in zip(places_of(sizes), weights, strict=True) if weight]
    pieces = [(subject.piece(places), weight) for places, weight in counted]
    return way_of_parts(subject, reference, strategy, pieces, sizes)


def way_of_parts(
    subject: Subject, reference: Reference, strategy: Strategy, parts: Sequence[tuple[Piece, float]], sizes: Split
) -> Way:
    """The same for parts that are at hand, each with its weight."""
    got = subject.tried(lambda: subject.total(strategy, parts))
    bound = reference.bound(subject)
    if isinstance(got, str):
        return _failed(subject, strategy, sizes, bound, got)
    differences = distances(got.gradients, reference.total.gradients)
    length = float(differences.norm())
    is_number = isfinite(got.loss) and isfinite(length)
    return Way(
        strategy=strategy,
        split=sizes,
        precision=subject.precision,
        loss=got.loss if isfinite(got.loss) else None,
        gradient_difference=reference.relative(length) if is_number else None,
        bound=bound,
        parameter_sum=parameter_sum(subject, got.gradients) if is_number else None,
        equal=is_number
        and is_same(differences, reference.gradient_scales, subject.exact, subject.tolerance)
        and abs(got.loss - reference.total.loss) <= subject.tolerance * reference.loss_scale,
        why="" if is_number else "its loss or gradient is not a number",
    )


def _failed(subject: Subject, strategy: Strategy, sizes: Split, bound: float, why: str) -> Way:
    return Way(
        strategy=strategy,
        split=sizes,
        precision=subject.precision,
        loss=None,
        gradient_difference=None,
        bound=bound,
        parameter_sum=None,
        equal=False,
        why=f"could not be run: {why}",
    )


def deviation(subject: Subject, sizes: Split, weights: Sequence[float]) -> Way:
    """Accumulation with those weights compared with the whole batch."""
    return way(subject, reference_of(subject, sizes, weights), Strategy.ACCUMULATION, sizes, weights)


def _over(difference: float, scale: float) -> float:
    """`difference` over `scale`; of nothing, nothing is 0 and anything is infinite."""
    if scale:
        return difference / scale
    return 0.0 if difference == 0 else float("inf")


def parameter_sum(subject: Subject, gradients: Gradients) -> float:
    """The sum of all parameters after one step of SGD with those gradients; the sum is taken in fp64."""
    total = 0.0
    for parameter, gradient in zip(subject.model.parameters(), gradients, strict=True):
        start = torch.view_as_real(parameter.detach()) if parameter.is_complex() else parameter.detach()
        stepped = start if gradient is None else start - SGD_LEARNING_RATE * gradient
        total += float(stepped.double().sum())
    return total
