from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from checking_models import (
    CLASSES,
    IGNORED,
    SAMPLES,
    TOKENS,
    WORDS,
    Count,
    Loss,
    TokenModel,
    advised_items,
    checked,
    class_batch,
    count_labels,
    cross_entropy,
    furthest,
    mlp,
    regression_batch,
    squared_error,
    token_batch,
    token_cross_entropy,
)
from torch import Tensor, nn
from torch.nn import functional

from profiler.equivalence import Decomposition, Equivalence

CLASS_WEIGHTS = torch.tensor([0.3, 0.6, 1.5])  # no sum of which is exact
WORD_WEIGHTS = torch.tensor([1.0, 0.5, 2.0, 1.0, 3.5, 0.5, 2.0])


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A loss over something else than samples. count: what the check should find. names: what its advice refers to."""

    loss: Loss
    batch: Callable[[], Any]
    count: str
    model: Callable[[], nn.Module] = TokenModel
    names: dict[str, Any] = field(default_factory=dict)


def by(mask_of: Callable[[Any], Tensor]) -> Loss:
    """The mean cross-entropy of the words where the mask is True."""

    def loss(model: nn.Module, batch: Any) -> Any:
        mask = mask_of(batch)
        return functional.cross_entropy(model(batch["words"])[mask], batch["words"][mask])

    return loss


def by_float_mask(model: nn.Module, batch: Any) -> Any:
    scores, weights = model(batch["words"]).flatten(0, 1), batch["weights"].flatten()
    return (
        functional.cross_entropy(scores, batch["words"].flatten(), reduction="none") * weights
    ).sum() / weights.sum()


def next_word(model: nn.Module, batch: Any) -> Any:
    return functional.cross_entropy(model(batch["words"])[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())


def next_word_by_lengths(model: nn.Module, batch: Any) -> Any:
    kept = torch.arange(1, TOKENS) < batch["lengths"][:, None]
    return functional.cross_entropy(model(batch["words"])[:, :-1][kept], batch["words"][:, 1:][kept])


def segmentation_batch() -> tuple[Tensor, Tensor]:
    classes = torch.randint(CLASSES, (SAMPLES, 4, 4))
    void = torch.rand(SAMPLES, 4, 4) < torch.linspace(0.1, 0.7, SAMPLES)[:, None, None]
    return torch.randn(SAMPLES, 2, 4, 4), classes.masked_fill(void, 255)


def segmentation(model: nn.Module, batch: Any) -> Any:
    return functional.cross_entropy(model(batch[0]), batch[1], ignore_index=255)


def positives_only(model: nn.Module, batch: Any) -> Any:
    found = batch["words"] != 0
    return -model(batch["words"]).log_softmax(2)[..., 1][found].sum() / found.sum()


def missing_targets_batch() -> tuple[Tensor, Tensor]:
    targets = torch.randn(SAMPLES, CLASSES)
    targets[torch.arange(SAMPLES) % 3 == 0, 0] = float("nan")
    targets[::4, 1] = float("nan")
    return torch.randn(SAMPLES, 5), targets


def of_known_targets(model: nn.Module, batch: Any) -> Any:
    known = ~batch[1].isnan()
    return (model(batch[0])[known] - batch[1][known]).square().mean()


ITEMS = {
    "ignored labels": Case(
        loss=token_cross_entropy, batch=lambda: token_batch("labels"), count="(batch['labels'] != -100).sum()"
    ),
    "a mask": Case(
        loss=by(lambda batch: batch["mask"]), batch=lambda: token_batch("mask"), count="batch['mask'].sum()"
    ),
    "a mask of padding": Case(
        loss=by(lambda batch: ~batch["padding"]),
        batch=lambda: token_batch("padding"),
        count="(~batch['padding']).sum()",
    ),
    "a mask of floats": Case(loss=by_float_mask, batch=lambda: token_batch("weights"), count="batch['weights'].sum()"),
    "lengths": Case(
        loss=by(lambda batch: torch.arange(TOKENS) < batch["lengths"][:, None]),
        batch=lambda: token_batch("lengths"),
        count="batch['lengths'].sum()",
    ),
    "shifted labels": Case(
        loss=next_word, batch=lambda: token_batch("labels"), count="(batch['labels'][:, 1:] != -100).sum()"
    ),
    "lengths of shifted words": Case(
        loss=next_word_by_lengths, batch=lambda: token_batch("lengths"), count="(batch['lengths'] - 1).sum()"
    ),
    "void pixels": Case(
        loss=segmentation,
        batch=segmentation_batch,
        count="(batch[1] != 255).sum()",
        model=lambda: nn.Conv2d(2, CLASSES, 3, padding=1),
    ),
    "positives": Case(loss=positives_only, batch=token_batch, count="(batch['words'] != 0).sum()"),
    "missing targets": Case(
        loss=of_known_targets, batch=missing_targets_batch, count="(~batch[1].isnan()).sum()", model=mlp
    ),
}


def by_sample_weights(model: nn.Module, batch: Any) -> Any:
    losses = functional.cross_entropy(model(batch[0]), batch[1], reduction="none")
    return (losses * batch[2]).sum() / batch[2].sum()


def by_class_weights(model: nn.Module, batch: Any) -> Any:
    return functional.cross_entropy(model(batch[0]), batch[1], weight=CLASS_WEIGHTS)


def by_word_weights(model: nn.Module, batch: Any) -> Any:
    scores, words = model(batch["words"]).flatten(0, 1), batch["words"].flatten()
    return functional.cross_entropy(scores, words, weight=WORD_WEIGHTS)


def by_tag_weights(model: nn.Module, batch: Any) -> Any:
    scores, tags = model(batch["words"])[..., :CLASSES].flatten(0, 1), batch["tags"].flatten()
    return functional.cross_entropy(scores, tags, weight=CLASS_WEIGHTS)


def tag_batch() -> dict[str, Tensor]:
    batch = token_batch("labels")
    return {"words": batch["words"], "tags": torch.where(batch["labels"] == IGNORED, IGNORED, batch["words"] % CLASSES)}


def partly_labelled_batch() -> tuple[Tensor, Tensor]:
    inputs, classes = class_batch()
    return inputs, classes.masked_fill(torch.arange(SAMPLES) == 5, IGNORED)


WEIGHTED = {
    "weights of samples": Case(
        loss=by_sample_weights,
        batch=lambda: (*class_batch(), torch.rand(SAMPLES) + 0.1),
        count="batch[2].sum()",
        model=mlp,
    ),
    "weights of classes": Case(
        loss=by_class_weights,
        batch=class_batch,
        count="class_weights[batch[1]].sum(), with the class weights 0: 1, 1: 2, 2: 5 (relative to the smallest)",
        model=mlp,
        names={"class_weights": CLASS_WEIGHTS},
    ),
    "weights of classes, some ignored": Case(
        loss=by_class_weights,
        batch=partly_labelled_batch,
        count="class_weights[batch[1][(batch[1] != -100)]].sum(), "
        "with the class weights -100: 0, 0: 1, 1: 2, 2: 5 (relative to the smallest)",
        model=mlp,
        names={"class_weights": CLASS_WEIGHTS},
    ),
    "weights of words": Case(
        loss=by_word_weights,
        batch=token_batch,
        count="class_weights[batch['words']].sum(), "
        "with the class weights 0: 2, 1: 1, 2: 4, 3: 2, 4: 7, 5: 1, 6: 4 (relative to the smallest)",
        names={"class_weights": WORD_WEIGHTS},
    ),
    "weights of tags, some ignored": Case(
        loss=by_tag_weights,
        batch=tag_batch,
        count="class_weights[batch['tags'][(batch['tags'] != -100)]].sum(), "
        "with the class weights -100: 0, 0: 1, 1: 2, 2: 5 (relative to the smallest)",
        names={"class_weights": CLASS_WEIGHTS},
    ),
}
COUNTED = ITEMS | WEIGHTED


def check_case(name: str, seed: int = 0, loss_items: Count | None = None) -> Equivalence:
    case = COUNTED[name]
    torch.manual_seed(seed)
    return checked(case.model(), case.batch(), case.loss, loss_items=loss_items)


@cache
def without_items(name: str) -> Equivalence:
    """What the check says of a case that declares no `loss_items`."""
    return check_case(name)


def advised_for(name: str) -> Count:
    return advised_items(without_items(name), **COUNTED[name].names)


@pytest.mark.parametrize("name", COUNTED)
def test_a_mean_over_something_else_than_samples_is_not_equal(name: str) -> None:
    equivalence = without_items(name)

    assert not equivalence.equal
    assert equivalence.verdict.startswith("not equal: the loss is ")
    assert equivalence.modules == ()


@pytest.mark.parametrize("name", ITEMS)
def test_what_a_loss_averages_over_is_found_in_the_batch(name: str) -> None:
    equivalence = without_items(name)

    assert (equivalence.decomposes, equivalence.items) == (Decomposition.ITEMS, ITEMS[name].count)


@pytest.mark.parametrize("name", WEIGHTED)
def test_the_weights_of_a_weighted_mean_are_measured(name: str) -> None:
    equivalence = without_items(name)

    assert (equivalence.decomposes, equivalence.items) == (Decomposition.WEIGHTED, WEIGHTED[name].count)


@pytest.mark.parametrize("seed", [0, 1], ids=["its batch", "another batch"])
@pytest.mark.parametrize("name", COUNTED)
def test_the_advised_loss_items_make_it_equal(name: str, seed: int) -> None:
    equivalence = check_case(name, seed, advised_for(name))

    assert equivalence.verdict == "equal"
    # Weights are summed in the type that they have, fp32.
    assert furthest(equivalence) < (1e-12 if name in ITEMS else 1e-6)


@pytest.mark.parametrize(("name", "kind"), [("ignored labels", "items"), ("weights of words", "weighted")])
def test_right_loss_items_are_of_the_kind_that_they_count(name: str, kind: str) -> None:
    assert check_case(name, loss_items=advised_for(name)).decomposes == kind


@pytest.mark.parametrize(
    "wrong",
    [
        lambda batch: len(batch["words"]),
        lambda batch: batch["labels"].numel(),
        lambda batch: (batch["labels"] != 3).sum(),
        lambda batch: (batch["labels"][:, 1:] != IGNORED).sum(),
        lambda batch: 1,
        lambda batch: 1.0 / len(batch["words"]),
    ],
    ids=["samples", "all tokens", "other tokens", "shifted", "a constant", "a share"],
)
def test_wrong_loss_items_are_not_equal_and_the_right_ones_are_named(wrong: Count) -> None:
    model, batch = TokenModel(), token_batch("labels")
    equivalence = checked(model, batch, token_cross_entropy, loss_items=wrong)

    assert equivalence.verdict == (
        "not equal: the loss is averaged over items, counted by (batch['labels'] != -100).sum(), not over loss_items"
    )
    assert checked(model, batch, token_cross_entropy, loss_items=advised_items(equivalence)).equal


@pytest.mark.parametrize("wrong", [lambda batch: (batch[1] != 0).sum(), lambda batch: batch[1].sum()])
def test_loss_items_of_a_mean_over_samples_are_to_be_left_out(wrong: Count) -> None:
    equivalence = checked(mlp(), class_batch(), cross_entropy, loss_items=wrong)

    assert equivalence.decomposes is Decomposition.SAMPLES
    assert equivalence.verdict == "not equal: the loss is averaged over samples, not over loss_items"
    assert equivalence.advice == "Leave loss_items out: the share of samples is the right weight."


def test_loss_items_that_do_not_add_up_are_called_no_count() -> None:
    equivalence = checked(TokenModel(), token_batch("labels"), token_cross_entropy, loss_items=lambda batch: 1)

    assert any(
        "1 for the whole batch, and 8 for its samples one by one: it is no count" in reason
        for reason in equivalence.reasons
    )


def kl_divergence(model: nn.Module, batch: Any) -> Any:
    return functional.kl_div(model(batch[0]).log_softmax(1), batch[0][:, :CLASSES].softmax(1), reduction="batchmean")


def weights_over_samples(model: nn.Module, batch: Any) -> Any:
    losses = functional.cross_entropy(model(batch[0]), batch[1], reduction="none")
    return (losses * (1 + batch[1])).mean()


def dice_of_each(model: nn.Module, batch: Any) -> Any:
    scores, targets = model(batch[0]).sigmoid(), functional.one_hot(batch[1], CLASSES).double()
    return (1 - 2 * (scores * targets).sum(1) / (scores.sum(1) + targets.sum(1))).mean()


def gradient_penalty(model: nn.Module, batch: Any) -> Any:
    inputs = batch[0].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(inputs).sum(), inputs, create_graph=True)
    return (gradient.norm(dim=1) - 1).square().mean()


def penalised(loss: Loss) -> Loss:
    """With an L2 term, which no sample has a part in."""
    return lambda model, batch: loss(model, batch) + 0.1 * sum(p.square().sum() for p in model.parameters())


@pytest.mark.parametrize(
    "loss",
    [
        cross_entropy,
        kl_divergence,
        weights_over_samples,
        dice_of_each,
        gradient_penalty,
        penalised(cross_entropy),
        lambda model, batch: 3 * cross_entropy(model, batch) + kl_divergence(model, batch),
        lambda model, batch: 1 - cross_entropy(model, batch),
    ],
    ids=["cross-entropy", "KL", "weights over samples", "dice", "gradient penalty", "L2", "two terms", "negative"],
)
def test_a_mean_over_samples_is_equal(loss: Loss) -> None:
    equivalence = checked(mlp(), class_batch(), loss)

    assert (equivalence.verdict, equivalence.decomposes, equivalence.items) == ("equal", "samples", None)
    assert furthest(equivalence) < 1e-12


@pytest.mark.parametrize("name", ["ignored labels", "weights of samples", "weights of classes"])
def test_an_l2_term_does_not_hide_what_the_rest_averages_over(name: str) -> None:
    case = COUNTED[name]
    equivalence = checked(case.model(), case.batch(), penalised(case.loss))

    assert equivalence.items == case.count


def summed(model: nn.Module, batch: Any) -> Any:
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")


def test_a_summed_loss_is_named() -> None:
    equivalence = checked(mlp(), class_batch(), summed)

    assert equivalence.decomposes is Decomposition.SUM
    assert equivalence.verdict == "not equal: the loss is summed, not averaged over samples"


def test_a_summed_loss_divided_by_its_samples_is_equal() -> None:
    assert checked(mlp(), class_batch(), lambda model, batch: summed(model, batch) / len(batch[0])).equal


def info_nce(model: nn.Module, batch: Any) -> Any:
    one, other = (functional.normalize(model(view), dim=1) for view in (batch[0], batch[0].flip(1)))
    return functional.cross_entropy(one @ other.T / 0.1, torch.arange(len(one)))


def two_views(model: nn.Module, batch: Any) -> Any:
    views = functional.normalize(model(torch.cat([batch[0], batch[0].flip(1)])), dim=1)
    count = len(batch[0])
    scores = (views @ views.T / 0.5).fill_diagonal_(-1e9)
    return functional.cross_entropy(scores, (torch.arange(2 * count) + count) % (2 * count))


def in_batch_negatives(model: nn.Module, batch: Any) -> Any:
    scores = model(batch[0]) @ batch[0].flip(1)[:, :CLASSES].T
    return functional.cross_entropy(scores, torch.arange(len(scores)))


def batch_hard_triplet(model: nn.Module, batch: Any) -> Any:
    embedded = model(batch[0])
    distances = torch.cdist(embedded, embedded)
    same = batch[1][:, None] == batch[1]
    furthest_same = distances.masked_fill(~same, 0).amax(1)
    nearest_other = distances.masked_fill(same, 1e3).amin(1)
    return functional.relu(furthest_same - nearest_other + 1).mean()


def cross_correlation(model: nn.Module, batch: Any) -> Any:
    one, other = (view - view.mean(0) for view in (model(batch[0]), model(batch[0].flip(1))))
    return (one.T @ other / len(one) - torch.eye(CLASSES)).square().sum()


def variance_hinge(model: nn.Module, batch: Any) -> Any:
    return functional.relu(1 - (model(batch[0]).var(0, unbiased=False) + 1e-4).sqrt()).mean()


def covariance(model: nn.Module, batch: Any) -> Any:
    centred = model(batch[0]) - model(batch[0]).mean(0)
    table = centred.T @ centred / len(centred)
    return (table - table.diag().diag()).square().sum()


def pairwise_ranking(model: nn.Module, batch: Any) -> Any:
    scores = model(batch[0])[:, 0]
    above = batch[1][:, None] > batch[1]
    return functional.softplus(scores - scores[:, None])[above].mean()


def listwise_ranking(model: nn.Module, batch: Any) -> Any:
    return -(model(batch[0])[:, 0].log_softmax(0) * batch[1].double().softmax(0)).sum()


def correlation(model: nn.Module, batch: Any) -> Any:
    scores, targets = (values - values.mean() for values in (model(batch[0])[:, 0], batch[0][:, 0]))
    return 1 - (scores @ targets) / (scores.norm() * targets.norm() + 1e-8)


def dice_of_all(model: nn.Module, batch: Any) -> Any:
    scores, targets = model(batch[0]).sigmoid(), functional.one_hot(batch[1], CLASSES).double()
    return 1 - 2 * (scores * targets).sum() / (scores.sum() + targets.sum())


def load_balancing(model: nn.Module, batch: Any) -> Any:
    shares = model(batch[0]).softmax(1)
    chosen = functional.one_hot(shares.argmax(1), CLASSES).to(shares.dtype)
    return cross_entropy(model, batch) + 0.1 * CLASSES * (chosen.mean(0) * shares.mean(0)).sum()


def hardest_half(model: nn.Module, batch: Any) -> Any:
    losses = functional.cross_entropy(model(batch[0]), batch[1], reduction="none")
    return losses.topk(max(1, len(losses) // 2)).values.mean()


@pytest.mark.parametrize(
    "loss",
    [
        info_nce,
        two_views,
        in_batch_negatives,
        batch_hard_triplet,
        cross_correlation,
        variance_hinge,
        covariance,
        pairwise_ranking,
        listwise_ranking,
        correlation,
        dice_of_all,
        load_balancing,
        hardest_half,
        lambda model, batch: cross_entropy(model, batch).sqrt(),
        penalised(summed),
    ],
    ids=lambda loss: loss.__name__ if loss.__name__ != "<lambda>" else None,
)
def test_a_loss_that_compares_samples_does_not_decompose(loss: Loss) -> None:
    equivalence = checked(mlp(), class_batch(), loss)

    assert (equivalence.equal, equivalence.decomposes, equivalence.items) == (False, Decomposition.NO, None)
    assert equivalence.verdict == "not equal: the loss is not averaged over samples, nor over anything else"
    assert equivalence.modules == ()


def other_labels(batch: dict[str, Tensor]) -> Tensor:
    """Labels of the first half of the words, and as many more as the first word says."""
    places = torch.arange(TOKENS) < 2 + batch["words"][:, :1] % 3
    return torch.where(places, (batch["words"] + 1) % WORDS, IGNORED)


def test_two_terms_averaged_over_different_counts_do_not_decompose() -> None:
    def loss(model: nn.Module, batch: Any) -> Any:
        second = {"words": batch["words"], "labels": other_labels(batch)}
        return token_cross_entropy(model, batch) + 0.01 * token_cross_entropy(model, second)

    assert checked(TokenModel(), token_batch("labels"), loss).decomposes is Decomposition.NO


def test_a_term_over_tokens_and_one_over_samples_do_not_decompose() -> None:
    def loss(model: nn.Module, batch: Any) -> Any:
        return token_cross_entropy(model, batch) + model(batch["words"]).square().mean()

    equivalence = checked(TokenModel(), token_batch("labels"), loss, loss_items=count_labels)

    assert equivalence.verdict == "not equal: the loss is not averaged over loss_items, nor over anything else"


def test_two_terms_averaged_over_the_same_count_decompose() -> None:
    def loss(model: nn.Module, batch: Any) -> Any:
        second = model(batch["words"]).square().mean(2)[batch["labels"] != IGNORED].mean()
        return token_cross_entropy(model, batch) + 0.1 * second

    assert checked(TokenModel(), token_batch("labels"), loss, loss_items=count_labels).equal


def test_a_batch_of_one_length_has_samples_for_a_count() -> None:
    equivalence = checked(
        TokenModel(), {"words": torch.randint(WORDS, (SAMPLES, TOKENS))}, by(lambda batch: batch["words"] >= 0)
    )

    assert (equivalence.equal, equivalence.decomposes) == (True, Decomposition.SAMPLES)


def test_a_weight_of_each_samples_own_is_measured_where_the_batch_does_not_name_it() -> None:
    def loss(model: nn.Module, batch: Any) -> Any:
        weights = 1 + batch[0][:, 0].square()
        return ((model(batch[0])[:, 0] - batch[1]).square() * weights).sum() / weights.sum()

    inputs, targets = regression_batch()
    weights = 1 + inputs[:, 0].square()
    equivalence = checked(mlp(1), (inputs, targets), loss)

    assert equivalence.decomposes is Decomposition.WEIGHTED
    assert equivalence.items == (
        f"a weight of each sample's own, the largest {float(weights.max() / weights.min()):.4g} times the smallest"
    )


def test_a_batch_held_in_numpy_is_weighed_too() -> None:
    def loss(model: nn.Module, batch: Any) -> Any:
        return by_class_weights(model, (batch[0], torch.from_numpy(batch[1])))

    inputs, classes = class_batch()

    assert checked(mlp(), (inputs, classes.numpy()), loss).decomposes is Decomposition.WEIGHTED


def test_a_loss_that_refuses_some_sizes_is_checked_all_the_same() -> None:
    def loss(model: nn.Module, batch: Any) -> Any:
        if len(batch[0]) == 2:
            raise ValueError("two is a crowd")
        return by_class_weights(model, batch)

    assert not checked(mlp(), class_batch(), loss).equal


def test_the_squared_error_of_a_model_is_equal_in_every_way() -> None:
    equivalence = checked(mlp(1), regression_batch(), squared_error, thorough=True)

    assert [way.equal for way in equivalence.ways] == [True] * len(equivalence.ways)
