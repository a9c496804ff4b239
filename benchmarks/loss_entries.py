"""The losses that `benchmarks.losses` checks: every one of torch.nn, and some that people write, with what they average over.

How each decomposes is written by hand, from torch's documentation.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # what everybody calls it
from torch import Tensor, nn

from profiler.batches import count_samples
from profiler.equivalence import Decomposition
from profiler.workload import Workload

SAMPLES, SEED = 16, 0
FEATURES, HIDDEN, CLASSES, STEPS, TIMES = 6, 8, 5, 4, 12
IGNORED = -100

Criterion = Callable[..., Tensor]
Loss = Callable[[nn.Module, Any], Tensor]
Count = Callable[[Any], float]
# A loss by its reduction.
Reduced = Callable[[str], Criterion]
Expected = Mapping[str, Decomposition]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a loss is given: `model` builds a network, `batch` gives samples, whose first `inputs` tensors it is run on."""

    model: Callable[[], nn.Module]
    batch: Callable[[int], tuple[Tensor, ...]]
    inputs: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A loss in one reduction and variant.

    expected: how it decomposes, by hand. right: what the samples of a batch count in its mean, by hand; None for their
    number, or where nothing is right. class_weights: those that it was made with, for advice that names them.
    """

    loss: str
    reduction: str
    variant: str
    expected: Decomposition
    workload: Workload
    right: Count | None = None
    class_weights: Tensor | None = None

    @property
    def name(self) -> str:
        """The loss, its reduction and its variant in a line."""
        return ", ".join(filter(None, (self.loss, self.reduction, self.variant)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """`criterion` of the model's outputs and of what else the batch holds."""

    criterion: Criterion
    inputs: int

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        return self.criterion(*(model(part) for part in batch[: self.inputs]), *batch[self.inputs :])


@dataclass(frozen=True, slots=True, kw_only=True)
class Divided:
    """`loss`, which is a sum over a batch, as its mean over the samples."""

    loss: Loss

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        return self.loss(model, batch) / count_samples(batch)


class WithLoss(nn.Module):
    """A network that ends in a loss with parameters of its own."""

    def __init__(self, body: nn.Module, criterion: nn.Module) -> None:
        super().__init__()
        self.body, self.criterion = body, criterion

    def forward(self, inputs: Tensor, target: Tensor) -> Any:
        """What the loss gives."""
        return self.criterion(self.body(inputs), target)


# ---- networks and batches, the same in every run


def _seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return build()


def _network(*shape: int) -> nn.Module:
    last = (nn.Linear(HIDDEN, prod(shape)), nn.Unflatten(1, shape))
    return nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.Tanh(), *last)


class Draws:
    """Random tensors for `size` samples, one after the other from one seed."""

    def __init__(self, size: int) -> None:
        self.size, self.generator = size, torch.Generator().manual_seed(SEED)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(self.size, *shape, generator=self.generator)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(self.size, *shape, generator=self.generator)

    def labels(self, *shape: int, low: int = 0, high: int = CLASSES) -> Tensor:
        return torch.randint(low, high, (self.size, *shape), generator=self.generator)

    def binary(self, *shape: int) -> Tensor:
        return self.labels(*shape, high=2).float()

    def ignored_in_places(self, *shape: int) -> Tensor:
        return self.labels(*shape).masked_fill(self.uniform(*shape) < 0.3, IGNORED)


def _task(
    shape: tuple[int, ...], rest: Callable[[Draws], Sequence[Tensor]] = lambda draws: (), *, inputs: int = 1
) -> Task:
    def batch(size: int) -> tuple[Tensor, ...]:
        draws = Draws(size)
        return (*(draws.normal(FEATURES) for _ in range(inputs)), *rest(draws))

    return Task(model=partial(_seeded, partial(_network, *shape)), batch=batch, inputs=inputs)


def _label_indices(draws: Draws) -> tuple[Tensor]:
    """Zero to three labels a sample, filled up with -1."""
    order = draws.uniform(CLASSES).argsort(dim=1)
    return (order.masked_fill(torch.arange(CLASSES) >= draws.labels(1, high=4), -1),)


def _transcripts(draws: Draws, shortest: int) -> tuple[Tensor, ...]:
    """Padded targets of one to all labels, and lengths of inputs and targets."""
    lengths = draws.labels(low=1, high=STEPS + 1)
    return draws.labels(STEPS, low=1), draws.labels(low=shortest, high=TIMES + 1), lengths


def _some_positive(draws: Draws) -> tuple[Tensor]:
    """One to four positive labels a sample."""
    return ((torch.arange(CLASSES) < draws.labels(1, low=1)).float(),)


REGRESSION = _task((STEPS,), lambda draws: (draws.normal(STEPS),))
WEIGHTED_REGRESSION = _task((STEPS,), lambda draws: (draws.normal(STEPS), draws.uniform(STEPS)))
MASKED_REGRESSION = _task((STEPS,), lambda draws: (draws.normal(STEPS), draws.uniform(STEPS) < 0.6))
COUNTS = _task((STEPS,), lambda draws: (draws.labels(STEPS).float(),))
MEAN_AND_VARIANCE = _task((2, STEPS), lambda draws: (draws.normal(STEPS),))
LABELS = _task((CLASSES,), lambda draws: (draws.labels(),))
LABELS_IGNORED = _task((CLASSES,), lambda draws: (draws.ignored_in_places(),))
WEIGHTED_LABELS = _task((CLASSES,), lambda draws: (draws.labels(), draws.uniform()))
A_LABEL_EACH = _task((2 * SAMPLES,), lambda draws: (2 * torch.arange(draws.size),))
PIXELS = _task((CLASSES, 3, 3), lambda draws: (draws.labels(3, 3),))
PIXELS_IGNORED = _task((CLASSES, 3, 3), lambda draws: (draws.ignored_in_places(3, 3),))
TOKENS_IGNORED = _task((CLASSES, STEPS), lambda draws: (draws.ignored_in_places(STEPS),))
HIDDEN_AND_LABELS = _task((HIDDEN,), lambda draws: (draws.labels(),))
HIDDEN_AND_IGNORED = _task((HIDDEN,), lambda draws: (draws.ignored_in_places(),))
DISTRIBUTIONS = _task((CLASSES,), lambda draws: (draws.normal(CLASSES).softmax(1),))
LOG_DISTRIBUTIONS = _task((CLASSES,), lambda draws: (draws.normal(CLASSES).log_softmax(1),))
BINARY = _task((CLASSES,), lambda draws: (draws.binary(CLASSES),))
WEIGHTED_BINARY = _task((CLASSES,), lambda draws: (draws.binary(CLASSES), draws.uniform(1)))
BINARY_PIXELS = _task((1, 3, 3), lambda draws: (draws.binary(1, 3, 3),))
SOME_POSITIVE = _task((CLASSES,), _some_positive)
SIGNS = _task((STEPS,), lambda draws: (2 * draws.binary(STEPS) - 1,))
LABEL_INDICES = _task((CLASSES,), _label_indices)
VIEWS = _task((STEPS,), inputs=2)
PAIRS = _task((STEPS,), lambda draws: (2 * draws.binary() - 1,), inputs=2)
RANKED = _task((STEPS,), lambda draws: (2 * draws.binary(STEPS) - 1,), inputs=2)
TRIPLETS = _task((STEPS,), inputs=3)
SPEECH = _task((TIMES, CLASSES), lambda draws: _transcripts(draws, 2 * STEPS))
SHORT_SPEECH = _task((TIMES, CLASSES), lambda draws: _transcripts(draws, 1))


# ---- what samples count, by hand


CLASS_WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 3.5, 1.5])
ONE_IS_ZERO = torch.tensor([0.5, 1.0, 0.0, 3.5, 1.5])
MANY_WEIGHTS = torch.linspace(0.25, 4.0, 2 * SAMPLES)
# No sum of these is exact in fp32.
TENTHS = torch.tensor([0.1, 0.3, 0.7, 0.9, 0.2])

MEAN_OF_SAMPLES: Expected = {"mean": Decomposition.SAMPLES, "sum": Decomposition.SUM}
MEAN_OF_ITEMS: Expected = {"mean": Decomposition.ITEMS, "sum": Decomposition.SUM}
WEIGHTED_MEAN: Expected = {"mean": Decomposition.WEIGHTED, "sum": Decomposition.SUM}
NEITHER: Expected = {"mean": Decomposition.NO, "sum": Decomposition.NO}


def _targets(batch: Any) -> float:
    return float((batch[1] != IGNORED).sum())


def _next_tokens(batch: Any) -> float:
    return float((batch[1][:, 1:] != IGNORED).sum())


def _class_weights(weights: Tensor) -> Count:
    return lambda batch: float(weights[batch[1][batch[1] != IGNORED]].double().sum())


def _sum_of(place: int) -> Count:
    return lambda batch: float(batch[place].double().sum())


# ---- losses that people write, and those of torch.nn.functional


def _as_it_is(criterion: Criterion) -> Criterion:
    return criterion


def _log_softmax(criterion: Criterion) -> Criterion:
    return lambda x, target: criterion(x.log_softmax(1), target)


def _sigmoid(criterion: Criterion) -> Criterion:
    return lambda x, target: criterion(x.sigmoid(), target)


def _exp(criterion: Criterion) -> Criterion:
    return lambda x, target: criterion(x.exp(), target)


def _mean_and_variance(criterion: Criterion) -> Criterion:
    return lambda x, target: criterion(x[:, 0], target, x[:, 1].exp())


def _times_first(criterion: Criterion) -> Criterion:
    return lambda x, *rest: criterion(x.log_softmax(2).transpose(0, 1), *rest)


def _cosine_distance(one: Tensor, other: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(one, other)


def _with_weights(function: Criterion) -> Reduced:
    return lambda reduction: lambda x, target, weight: function(x, target, weight=weight, reduction=reduction)


def _reducing(losses: Criterion) -> Reduced:
    """The mean or the sum of what `losses` gives."""
    return lambda reduction: lambda *args: getattr(losses(*args), reduction)()


def _masked(reduction: str) -> Criterion:
    """The squares where a mask is set; "mean" over those, "mean + 1e-8" as people guard it against a division by 0."""
    guard = 1e-8 if "+" in reduction else 0.0

    def loss(x: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        return ((x - target).square() * mask).sum() / (1.0 if reduction == "sum" else mask.sum() + guard)

    return loss


def _next_token(reduction: str) -> Criterion:
    return lambda logits, tokens: F.cross_entropy(logits[..., :-1], tokens[:, 1:], reduction=reduction)


def _mean_of_token_means(logits: Tensor, tokens: Tensor) -> Tensor:
    losses = F.cross_entropy(logits, tokens, reduction="none")
    return losses.sum(1) / (tokens != IGNORED).sum(1).clamp(min=1)


def _weighted_cross_entropy(reduction: str) -> Criterion:
    def loss(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        weighted = weight * F.cross_entropy(logits, target, reduction="none")
        return weighted.sum() if reduction == "sum" else weighted.sum() / weight.sum()

    return loss


def _focal_over_positives(_: str) -> Criterion:
    def loss(logits: Tensor, target: Tensor) -> Tensor:
        losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return ((1 - (-losses).exp()).square() * losses).sum() / target.sum()

    return loss


def _ctc_over_labels(_: str) -> Criterion:
    def loss(x: Tensor, targets: Tensor, times: Tensor, lengths: Tensor) -> Tensor:
        log_probabilities = x.log_softmax(2).transpose(0, 1)
        return F.ctc_loss(log_probabilities, targets, times, lengths, reduction="sum") / lengths.sum()

    return loss


def _dice(x: Tensor, target: Tensor, *, dim: tuple[int, ...]) -> Tensor:
    found = x.sigmoid()
    return 1 - (2 * (found * target).sum(dim) + 1) / (found.sum(dim) + target.sum(dim) + 1)


def _info_nce(one: Tensor, other: Tensor) -> Tensor:
    similarity = F.normalize(one) @ F.normalize(other).T / 0.1
    return F.cross_entropy(similarity, torch.arange(len(one)), reduction="none")


def _batch_hard_triplet(embeddings: Tensor, labels: Tensor) -> Tensor:
    distances = torch.cdist(embeddings, embeddings)
    same = labels[:, None] == labels[None, :]
    farthest = distances.masked_fill(~same, 0.0).amax(1)
    nearest = distances.masked_fill(same, torch.inf).amin(1)
    return F.relu(farthest - nearest + 1.0)


def _barlow_twins(_: str) -> Criterion:
    def loss(one: Tensor, other: Tensor) -> Tensor:
        a, b = ((x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt() for x in (one, other))
        identity = torch.eye(a.shape[1])
        return ((a.T @ b / len(a) - identity).square() * (0.005 + 0.995 * identity)).sum()

    return loss


def _root_mean_square(_: str) -> Criterion:
    return lambda x, target: F.mse_loss(x, target).sqrt()


def _over_tokens_and_samples(_: str) -> Criterion:
    return lambda logits, tokens: F.cross_entropy(logits, tokens) + logits.mean(2).square().mean()


def _penalised(reduction: str) -> Loss:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        squares = sum((parameter.square().sum() for parameter in model.parameters()), torch.zeros(()))
        return F.cross_entropy(model(batch[0]), batch[1], reduction=reduction) + 0.01 * squares

    return loss


# ---- the entries


def _entries(
    loss: str,
    variant: str,
    expected: Expected,
    workload_of: Callable[[str], Workload],
    *,
    right: Count | None = None,
    class_weights: Tensor | None = None,
) -> Iterator[Entry]:
    """One for each reduction, with how it decomposes."""
    for reduction, decomposition in expected.items():
        yield Entry(
            loss=loss,
            reduction=reduction,
            variant=variant,
            expected=decomposition,
            workload=workload_of(reduction),
            right=right if decomposition in (Decomposition.ITEMS, Decomposition.WEIGHTED) else None,
            class_weights=class_weights,
        )


def _workload(task: Task, loss: Loss) -> Workload:
    return Workload(model=task.model, make_batch=task.batch, loss=loss)


def _written(
    loss: str,
    task: Task,
    reduced: Reduced,
    expected: Expected = MEAN_OF_SAMPLES,
    variant: str = "",
    *,
    right: Count | None = None,
    class_weights: Tensor | None = None,
) -> Iterator[Entry]:
    """A loss of the model's outputs and of what else the batch holds."""

    def workload_of(reduction: str) -> Workload:
        return _workload(task, Applied(criterion=reduced(reduction), inputs=task.inputs))

    return _entries(loss, variant, expected, workload_of, right=right, class_weights=class_weights)


def _of(
    loss: Callable[..., nn.Module],
    task: Task,
    variant: str = "",
    expected: Expected = MEAN_OF_SAMPLES,
    *,
    right: Count | None = None,
    called: Callable[[Criterion], Criterion] = _as_it_is,
    **options: Any,
) -> Iterator[Entry]:
    """A loss of torch.nn made with these options. called: how it is given the model's outputs."""

    def reduced(reduction: str) -> Criterion:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # NLLLoss2d says that it is NLLLoss
            return called(loss(reduction=reduction, **options))

    name = getattr(loss, "__name__", "")
    return _written(name, task, reduced, expected, variant, right=right, class_weights=options.get("weight"))


def _of_numbers() -> Iterator[Entry]:
    yield from _of(nn.L1Loss, REGRESSION)
    yield from _of(nn.MSELoss, REGRESSION)
    yield from _of(nn.SmoothL1Loss, REGRESSION, "beta 0.5", beta=0.5)
    yield from _of(nn.HuberLoss, REGRESSION, "delta 0.5", delta=0.5)
    yield from _of(nn.PoissonNLLLoss, COUNTS)
    yield from _of(nn.PoissonNLLLoss, COUNTS, "rates, full", called=_exp, log_input=False, full=True)
    yield from _of(nn.GaussianNLLLoss, MEAN_AND_VARIANCE, called=_mean_and_variance)


def _of_probabilities() -> Iterator[Entry]:
    batchmean = {"batchmean": Decomposition.SAMPLES, **MEAN_OF_SAMPLES}
    yield from _of(nn.KLDivLoss, DISTRIBUTIONS, "", batchmean, called=_log_softmax)
    yield from _of(nn.KLDivLoss, LOG_DISTRIBUTIONS, "log_target", batchmean, called=_log_softmax, log_target=True)
    yield from _of(nn.BCELoss, BINARY, called=_sigmoid)
    yield from _of(nn.BCELoss, BINARY, "weight of each output", called=_sigmoid, weight=CLASS_WEIGHTS)
    yield from _of(nn.BCEWithLogitsLoss, BINARY)
    yield from _of(nn.BCEWithLogitsLoss, BINARY, "weight of each output", weight=CLASS_WEIGHTS)
    yield from _of(nn.BCEWithLogitsLoss, BINARY, "pos_weight", pos_weight=CLASS_WEIGHTS)
    yield from _of(nn.BCEWithLogitsLoss, BINARY_PIXELS, "2-D targets, pos_weight", pos_weight=CLASS_WEIGHTS[3])


def _of_margins() -> Iterator[Entry]:
    yield from _of(nn.HingeEmbeddingLoss, SIGNS)
    yield from _of(nn.SoftMarginLoss, SIGNS)
    yield from _of(nn.MultiMarginLoss, LABELS)
    yield from _of(nn.MultiMarginLoss, LABELS, "class weights", weight=CLASS_WEIGHTS)
    yield from _of(nn.MultiLabelMarginLoss, LABEL_INDICES, "numbers of labels differ")
    yield from _of(nn.MultiLabelSoftMarginLoss, BINARY)
    yield from _of(nn.MultiLabelSoftMarginLoss, BINARY, "class weights", weight=CLASS_WEIGHTS)
    yield from _of(nn.CosineEmbeddingLoss, PAIRS, "margin 0.2", margin=0.2)
    yield from _of(nn.MarginRankingLoss, RANKED, "margin 0.2", margin=0.2)
    yield from _of(nn.TripletMarginLoss, TRIPLETS)
    yield from _of(nn.TripletMarginLoss, TRIPLETS, "swap", swap=True)
    yield from _of(nn.TripletMarginWithDistanceLoss, TRIPLETS, "cosine", distance_function=_cosine_distance)


def _of_sequences() -> Iterator[Entry]:
    yield from _of(nn.CTCLoss, SPEECH, "target lengths differ", called=_times_first)
    yield from _of(nn.CTCLoss, SHORT_SPEECH, "some inputs too short", called=_times_first, zero_infinity=True)


def _of_labels(loss: Callable[..., nn.Module], called: Callable[[Criterion], Criterion]) -> Iterator[Entry]:
    """NLLLoss and CrossEntropyLoss, with what both have."""
    entries = partial(_of, loss, called=called)
    weighted = partial(entries, expected=WEIGHTED_MEAN, right=_class_weights(CLASS_WEIGHTS), weight=CLASS_WEIGHTS)
    ignoring = partial(entries, expected=MEAN_OF_ITEMS, right=_targets)
    yield from entries(LABELS)
    yield from weighted(LABELS, "class weights")
    yield from ignoring(LABELS_IGNORED, "ignored targets")
    yield from entries(PIXELS, "2-D targets")
    yield from weighted(PIXELS_IGNORED, "2-D targets, ignored ones, class weights")


def _of_cross_entropy() -> Iterator[Entry]:
    """CrossEntropyLoss, with what it has alone, and more class weights."""
    entries = partial(_of, nn.CrossEntropyLoss)
    ignoring = partial(entries, expected=MEAN_OF_ITEMS, right=_targets)
    padded = partial(ignoring, right=lambda batch: float((batch[1] != 0).sum()), ignore_index=0)
    weighted = partial(entries, expected=WEIGHTED_MEAN, right=_class_weights(CLASS_WEIGHTS), weight=CLASS_WEIGHTS)
    yield from weighted(PIXELS, "2-D targets, class weights")
    yield from ignoring(PIXELS_IGNORED, "2-D targets, ignored ones")
    yield from padded(PIXELS, "2-D targets, ignore_index 0")
    yield from weighted(LABELS, "class weights of tenths", right=_class_weights(TENTHS), weight=TENTHS)
    yield from weighted(LABELS, "class weights, one of them 0", right=_class_weights(ONE_IS_ZERO), weight=ONE_IS_ZERO)
    many = _class_weights(MANY_WEIGHTS)
    yield from weighted(A_LABEL_EACH, "class weights, no class twice", right=many, weight=MANY_WEIGHTS)
    yield from weighted(LABELS_IGNORED, "ignored targets, class weights")
    yield from entries(LABELS, "label smoothing", label_smoothing=0.1)
    yield from weighted(LABELS, "label smoothing, class weights", label_smoothing=0.1)
    yield from ignoring(LABELS_IGNORED, "label smoothing, ignored targets", label_smoothing=0.1)
    yield from weighted(LABELS_IGNORED, "label smoothing, ignored targets, class weights", label_smoothing=0.1)
    yield from entries(DISTRIBUTIONS, "class probabilities")
    # By the documentation this mean is over N, not over the weights.
    yield from entries(DISTRIBUTIONS, "class probabilities, class weights", weight=CLASS_WEIGHTS)


def _of_the_last_layer() -> Iterator[Entry]:
    chunked = nn.LinearCrossEntropyOptions()
    weighted = _class_weights(CLASS_WEIGHTS)
    yield from _linear(HIDDEN_AND_LABELS)
    yield from _linear(HIDDEN_AND_LABELS, "class weights", WEIGHTED_MEAN, right=weighted, weight=CLASS_WEIGHTS)
    yield from _linear(HIDDEN_AND_LABELS, "label smoothing", label_smoothing=0.1)
    yield from _linear(HIDDEN_AND_IGNORED, "ignored targets", MEAN_OF_ITEMS, right=_targets)
    yield from _linear(HIDDEN_AND_IGNORED, "ignored targets, chunked", MEAN_OF_ITEMS, right=_targets, options=chunked)
    yield from _linear(
        HIDDEN_AND_IGNORED,
        "ignored targets, class weights, chunked",
        WEIGHTED_MEAN,
        right=weighted,
        weight=CLASS_WEIGHTS,
        options=chunked,
    )


def _linear(
    task: Task, variant: str = "", expected: Expected = MEAN_OF_SAMPLES, *, right: Count | None = None, **options: Any
) -> Iterator[Entry]:
    """LinearCrossEntropyLoss, which holds the last layer of the model."""

    def workload_of(reduction: str) -> Workload:
        def build() -> nn.Module:
            return WithLoss(task.model(), nn.LinearCrossEntropyLoss(HIDDEN, CLASSES, reduction=reduction, **options))

        return _workload(replace(task, model=partial(_seeded, build)), lambda model, batch: model(*batch))

    weight = options.get("weight")
    return _entries("LinearCrossEntropyLoss", variant, expected, workload_of, right=right, class_weights=weight)


def _adaptive() -> Iterator[Entry]:
    """AdaptiveLogSoftmaxWithLoss, whose own loss is a mean; the sum is of what it gives each sample."""

    def build() -> nn.Module:
        criterion = nn.AdaptiveLogSoftmaxWithLoss(HIDDEN, CLASSES, [2, 4], div_value=2.0)
        return WithLoss(HIDDEN_AND_LABELS.model(), criterion)

    task = replace(HIDDEN_AND_LABELS, model=partial(_seeded, build))
    losses: dict[str, Loss] = {
        "mean": lambda model, batch: model(*batch).loss,
        "sum": lambda model, batch: -model(*batch).output.sum(),
    }
    return _entries("AdaptiveLogSoftmaxWithLoss", "", MEAN_OF_SAMPLES, lambda name: _workload(task, losses[name]))


def _functional() -> Iterator[Entry]:
    """What functions of torch.nn.functional have and their modules do not: weights that the batch brings."""
    by_weights = partial(_written, task=WEIGHTED_REGRESSION, variant="weights in the batch")
    yield from by_weights("mse_loss", reduced=_with_weights(F.mse_loss), expected=WEIGHTED_MEAN, right=_sum_of(2))
    yield from by_weights("l1_loss", reduced=_with_weights(F.l1_loss), expected=WEIGHTED_MEAN, right=_sum_of(2))
    # This one averages over elements, unlike the two before it.
    yield from by_weights("huber_loss", reduced=_with_weights(F.huber_loss))
    name = "binary_cross_entropy_with_logits"
    yield from by_weights(name, task=WEIGHTED_BINARY, reduced=_with_weights(F.binary_cross_entropy_with_logits))


def _people_write() -> Iterator[Entry]:
    mean, total = "mean", "sum"
    samples, items, no = Decomposition.SAMPLES, Decomposition.ITEMS, Decomposition.NO
    masked = {"mean": items, "mean + 1e-8": items, "sum": Decomposition.SUM}
    yield from _written("masked mean", MASKED_REGRESSION, _masked, masked, right=_sum_of(2))
    yield from _written("token mean", TOKENS_IGNORED, _next_token, MEAN_OF_ITEMS, "next token", right=_next_tokens)
    yield from _written("mean of token means", TOKENS_IGNORED, _reducing(_mean_of_token_means))
    yield from _written("weighted mean", WEIGHTED_LABELS, _weighted_cross_entropy, WEIGHTED_MEAN, right=_sum_of(2))
    yield from _written(
        "focal", SOME_POSITIVE, _focal_over_positives, {mean: items}, "over positives", right=_sum_of(1)
    )
    yield from _written("CTC", SPEECH, _ctc_over_labels, {mean: items}, "over labels", right=_sum_of(3))
    yield from _entries(
        "cross-entropy + L2 penalty",
        "",
        {mean: samples, total: no},
        lambda reduction: _workload(LABELS, _penalised(reduction)),
    )
    yield from _written("soft Dice", BINARY_PIXELS, _reducing(partial(_dice, dim=(1, 2, 3))), variant="of each sample")
    yield from _written("soft Dice", BINARY_PIXELS, _reducing(partial(_dice, dim=(0, 2, 3))), NEITHER, "of the batch")
    yield from _written("root mean square", REGRESSION, _root_mean_square, {mean: no})
    yield from _written("token mean + sample mean", TOKENS_IGNORED, _over_tokens_and_samples, {mean: no})
    yield from _written("InfoNCE", VIEWS, _reducing(_info_nce), NEITHER)
    yield from _written("batch-hard triplet", LABELS, _reducing(_batch_hard_triplet), NEITHER)
    yield from _written("Barlow Twins", VIEWS, _barlow_twins, {total: no})


ENTRIES: tuple[Entry, ...] = (
    *_of_numbers(),
    *_of_probabilities(),
    *_of_margins(),
    *_of_sequences(),
    *_of_labels(nn.NLLLoss, _log_softmax),
    *_of(nn.NLLLoss2d, PIXELS_IGNORED, "ignored targets", MEAN_OF_ITEMS, right=_targets, called=_log_softmax),
    *_of_labels(nn.CrossEntropyLoss, _as_it_is),
    *_of_cross_entropy(),
    *(_of_the_last_layer() if hasattr(nn, "LinearCrossEntropyLoss") else ()),  # it came with torch 2.13
    *_adaptive(),
    *_functional(),
    *_people_write(),
)
