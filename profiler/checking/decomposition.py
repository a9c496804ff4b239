"""How the loss of a batch follows from those of its parts, measured: f(batch) = sum of w_i f(part_i), with which w_i."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from math import isfinite

import torch
from torch import Tensor

from profiler.checking.counts import counts_in, named_tensors
from profiler.checking.gradients import is_same
from profiler.checking.subject import Part, Subject
from profiler.equivalence import Decomposition

# What the samples of a part, given by their places in the batch, count together.
Counter = Callable[[Sequence[int]], float]
# How what the workload declares is called where a loss averages over it.
DECLARED = "loss_items(batch)"
SOLVED = 16.0
# A weight this small beside the largest is the rounding of none.
NOTHING = 1e-9
# Samples that are tried as the one with which the others are compared.
MOST_REFERENCES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The whole batch and its parts, each run by itself with everything switched off that breaks the identity.

    divisions: the parts of each way to cut the batch, the smallest parts last. exact: what rounding moves a gradient by.
    """

    whole: Part
    divisions: tuple[tuple[Part, ...], ...]
    exact: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """How the loss decomposes.

    items: over which items or by which weights it averages, an expression of `batch` or words; None for samples.
    count: what samples count in it; where it does not decompose, samples. losses_add_up: whether the loss does, if not
    its gradient.
    """

    decomposes: Decomposition
    count: Counter = len
    items: str | None = None
    losses_add_up: bool = True

    def weights(self, split: Sequence[int]) -> list[float]:
        """The factor of each part's loss, for parts of those many samples in order."""
        if self.decomposes is Decomposition.SUM:
            return [1.0] * len(split)
        return shares(split, self.count)


def places_of(split: Sequence[int]) -> list[range]:
    """The places in the batch of each part's samples."""
    ends = list(accumulate(split))
    return [range(end - size, end) for end, size in zip(ends, split, strict=True)]


def shares(split: Sequence[int], count: Counter) -> list[float]:
    """Each part's share of what all count; zeros where none counts anything."""
    counts = [float(count(places)) for places in places_of(split)]
    total = sum(counts) or 1.0
    return [number / total for number in counts]


def decompose(subject: Subject, measured: Measured, declared: Counter | None, *, pairs: bool = True) -> Found:
    """How the loss decomposes. declared: the workload's own `loss_items`, None where it counts samples. pairs: whether to
    look for weights of samples in pairs of them, which takes some passes.

    What the workload declares is tried first, then samples, a sum, the counts that the batch holds, and last the weights
    that pairs of samples show; all of it to rounding first, and then to what is the same to training.
    """
    if declared is not None and follows(measured, declared, subject.tolerance):
        counts = [declared(part.samples) for part in measured.divisions[-1]]
        whole_numbers = all(float(count).is_integer() for count in counts)
        kind = Decomposition.ITEMS if whole_numbers else Decomposition.WEIGHTED
        return Found(decomposes=kind, count=declared, items=DECLARED)
    for tolerance in dict.fromkeys((subject.exact, subject.tolerance)):
        found = _known(subject, measured, tolerance) or (_by_pairs(subject, measured, tolerance) if pairs else None)
        if found is not None:
            return found
    return Found(decomposes=Decomposition.NO, losses_add_up=_only_losses_add_up(measured, declared or len, subject))


def _known(subject: Subject, measured: Measured, tolerance: float) -> Found | None:
    """By what is known of the batch."""
    if follows(measured, len, tolerance):
        return Found(decomposes=Decomposition.SAMPLES)
    sums = ([(1.0, part) for part in parts] for parts in measured.divisions)
    if measured.divisions and all(_adds_up(measured, parts, tolerance) for parts in sums):
        return Found(decomposes=Decomposition.SUM)
    for count in counts_in(subject.batch, subject.samples):
        counter = summing(count.per_sample)
        if follows(measured, counter, tolerance):
            kind = Decomposition.WEIGHTED if count.is_weight else Decomposition.ITEMS
            return Found(decomposes=kind, count=counter, items=count.expression)
    return None


def _by_pairs(subject: Subject, measured: Measured, tolerance: float) -> Found | None:
    """By the weights that pairs of samples show."""
    weights = _weights_by_pairs(subject, measured, tolerance)
    # What was solved for carries the rounding of what it was solved from.
    if weights is None or not follows(measured, summing(weights), SOLVED * tolerance):
        return None
    explained = _explained(weights, subject)
    return Found(decomposes=Decomposition.WEIGHTED, count=summing(weights), items=explained)


def _only_losses_add_up(measured: Measured, count: Counter, subject: Subject) -> bool:
    """Whether the losses of the parts make that of the whole, by what the workload declares."""

    def loss_alone(part: Part) -> Part:
        return replace(part, sketch=torch.zeros(0, 1), norms=torch.zeros(0))

    losses = Measured(
        whole=loss_alone(measured.whole),
        divisions=tuple(tuple(map(loss_alone, parts)) for parts in measured.divisions),
        exact=measured.exact,
    )
    return follows(losses, count, subject.tolerance)


def summing(per_sample: Tensor) -> Counter:
    """What samples count together, from a number for each."""
    return lambda samples: float(per_sample[list(samples)].sum())


def follows(measured: Measured, count: Counter, tolerance: float) -> bool:
    """Whether the whole batch's loss and gradient are those of its parts, weighted by their share of what they count."""
    if not measured.divisions:
        return False
    for parts in measured.divisions:
        counts = [float(count(part.samples)) for part in parts]
        total = sum(counts)
        if not total > 0 or not isfinite(total):
            return False
        weighted = zip((number / total for number in counts), parts, strict=True)
        if not _adds_up(measured, weighted, tolerance):
            return False
    return True


def _adds_up(measured: Measured, weighted: Iterable[tuple[float, Part]], tolerance: float) -> bool:
    whole = measured.whole
    counted = [(weight, part) for weight, part in weighted if weight]
    if not all(isfinite(part.loss) and isfinite(part.norm) for _, part in counted):
        return False
    loss = sum(weight * part.loss for weight, part in counted)
    size = sum(abs(weight * part.loss) for weight, part in counted) + abs(whole.loss)
    gradient = sum((weight * part.sketch for weight, part in counted), torch.zeros_like(whole.sketch))
    scales = sum((weight * part.norms for weight, part in counted), whole.norms)
    differences = (gradient - whole.sketch).norm(dim=1)
    return abs(loss - whole.loss) <= tolerance * size and is_same(differences, scales, measured.exact, tolerance)


def _weights_by_pairs(subject: Subject, measured: Measured, tolerance: float) -> Tensor | None:
    """Each sample's weight in the mean, relative to one of them; None where pairs are no weighted means."""
    singles = measured.divisions[-1]
    if any(len(part.samples) != 1 for part in singles):
        return None
    references = [part for part in singles if isfinite(part.loss) and isfinite(part.norm)]
    for reference in references[:MOST_REFERENCES]:
        weights = [_relative_weight(subject, reference, part, tolerance) for part in singles]
        if all(weight is not None for weight in weights):
            return torch.tensor(weights, dtype=torch.float64)
    return None


def _relative_weight(subject: Subject, reference: Part, other: Part, tolerance: float) -> float | None:
    """How much `other` counts for each that `reference` does, from the loss and gradient of both together.

    None where both together are no weighted mean of each, or `reference` counts for nothing.
    """
    if other is reference:
        return 1.0
    if not (isfinite(other.loss) and isfinite(other.norm)):
        return 0.0  # a part without items is 0 / 0
    places = sorted((*reference.samples, *other.samples))
    both = subject.tried(partial(subject.part, places))
    if isinstance(both, str):
        return None
    # The loss is one more equation beside the gradient's, brought to about its size.
    scale = (reference.norm + other.norm) / (abs(reference.loss) + abs(other.loss) or 1.0)
    start, end, middle = (
        torch.cat([part.sketch.flatten(), part.sketch.new_tensor([part.loss * scale])])
        for part in (reference, other, both)
    )
    way = end - start
    if float(way.norm()) <= tolerance * float(start.norm()):
        return 1.0  # two samples that are the same count the same
    share = float((middle - start) @ way / (way @ way))
    length = float(start.norm() + end.norm())
    if float((start + share * way - middle).norm()) > SOLVED * tolerance * length or not -1e-9 < share < 1 - 1e-9:
        return None
    return max(share, 0.0) / (1 - share)


def _explained(weights: Tensor, subject: Subject) -> str:
    """The weights in words: by the classes that decide them where they do, else by their range."""
    weights = torch.where(weights > NOTHING * weights.max(), weights, 0.0)
    least = float(weights[weights > 0].min())
    for path, tensor in named_tensors(subject.batch):
        if tensor.dim() and len(tensor) == len(weights) and not (tensor.is_floating_point() or tensor.is_complex()):
            by_class = _by_class(weights / least, tensor.detach().cpu())
            if by_class:
                smallest = min(weight for weight in by_class.values() if weight > 0)
                shown = ", ".join(f"{label}: {weight / smallest:.4g}" for label, weight in by_class.items())
                ignored = [label for label, weight in by_class.items() if weight <= 0]
                chosen = f"{path}[{' & '.join(f'({path} != {label})' for label in ignored)}]" if ignored else path
                return f"class_weights[{chosen}].sum(), with the class weights {shown} (relative to the smallest)"
    return f"a weight of each sample's own, the largest {float(weights.max()) / least:.4g} times the smallest"


def _by_class(weights: Tensor, classes: Tensor) -> dict[int, float]:
    """The weight of each class, if the weights of samples are sums of them; empty where they are not, or could be anyway."""
    labels = classes.unique()
    if len(labels) >= len(weights):
        return {}
    counts = torch.stack(
        [(classes == label).flatten(1).sum(1) if classes.dim() > 1 else classes == label for label in labels]
    )
    table = counts.T.double()
    solution = torch.linalg.lstsq(table, weights[:, None], driver="gelsd").solution[:, 0]
    if float((table @ solution - weights).abs().max()) > 1e-6 * float(weights.max()) or float(solution.min()) < -1e-6:
        return {}
    found = {int(label): round(float(weight), 6) + 0.0 for label, weight in zip(labels, solution, strict=True)}
    return found if any(weight > 0 for weight in found.values()) else {}
