"""The check against numbers that were worked out by hand, where accumulation must differ and by how much."""

from __future__ import annotations

from math import log
from typing import Any

import pytest
import torch
from checking_models import IGNORED, checked, losses_by_split
from torch import Tensor, nn
from torch.nn import functional

from profiler.equivalence import Equivalence, Way


class Scale(nn.Module):
    """Inputs times one parameter, which begins at 1."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.scale * inputs


def smallest_parts(equivalence: Equivalence) -> Way:
    """The accumulation of the most parts, in fp64."""
    return max((way for way in equivalence.ways if way.precision == "fp64"), key=lambda way: len(way.split))


# Two samples, of one token and of three. Each token's loss is the parameter times its number, so the parameter's
# gradient is the loss. Whole: (6 + 1 + 2 + 3) / 4 = 3. Parts: 6 and 2; their mean is 4, and (1 * 6 + 3 * 2) / 4 = 3.
UNEQUAL_PADDING = {
    "numbers": torch.tensor([[6.0, 0.0, 0.0], [1.0, 2.0, 3.0]]),
    "labels": torch.tensor([[7, IGNORED, IGNORED], [7, 7, 7]]),
}


def token_mean(model: nn.Module, batch: Any) -> Any:
    return model(batch["numbers"])[batch["labels"] != IGNORED].mean()


def test_a_mean_of_means_over_tokens_is_4_where_the_mean_is_3() -> None:
    equivalence = checked(Scale(), UNEQUAL_PADDING, token_mean)

    assert losses_by_split(equivalence) == pytest.approx({(2,): 3.0, (1, 1): 4.0}, rel=1e-12)
    assert smallest_parts(equivalence).gradient_difference == pytest.approx((4 - 3) / 3, rel=1e-12)


def test_the_sum_of_parameters_is_that_after_a_step_against_the_gradient() -> None:
    whole, parts = checked(Scale(), UNEQUAL_PADDING, token_mean).ways

    assert whole.parameter_sum == pytest.approx(1 - 0.001 * 3, rel=1e-12)
    assert parts.parameter_sum == pytest.approx(1 - 0.001 * 4, rel=1e-12)


def test_with_tokens_counted_the_mean_of_means_is_3_too() -> None:
    equivalence = checked(
        Scale(), UNEQUAL_PADDING, token_mean, loss_items=lambda batch: int((batch["labels"] != IGNORED).sum())
    )

    assert equivalence.equal
    assert losses_by_split(equivalence) == pytest.approx({(2,): 3.0, (1, 1): 3.0}, rel=1e-12)


# A sum of 6 + 1 + 2 + 3 = 12; by shares of samples it comes out as half of each part: 3 + 3 = 6.
def test_a_sum_by_shares_is_half_of_it_for_two_parts() -> None:
    equivalence = checked(Scale(), UNEQUAL_PADDING, lambda model, batch: model(batch["numbers"]).sum())

    assert losses_by_split(equivalence) == pytest.approx({(2,): 12.0, (1, 1): 6.0}, rel=1e-12)
    assert smallest_parts(equivalence).gradient_difference == pytest.approx(1 / 2, rel=1e-12)


# Sample 0 has scores 0 and 0: its class has probability 1/2, a loss of ln 2. Sample 1 has scores ln 3 and 0, and the
# second class: probability 1/4, a loss of 2 ln 2. Classes weigh 1 and 3. Whole: (1 * ln 2 + 3 * 2 ln 2) / 4 = 7/4 ln 2.
# Parts: ln 2 and 2 ln 2 (a weight is divided out of a single sample), by shares of samples 3/2 ln 2.
# The gradient of the scale: of sample 0 nothing, of sample 1 3/4 ln 3. Whole: 3/4 of that; by samples 1/2 of it.
TWO_CLASSES = (torch.tensor([[0.0, 0.0], [log(3), 0.0]]), torch.tensor([0, 1]))
CLASS_WEIGHTS = torch.tensor([1.0, 3.0])


def weighted_cross_entropy(model: nn.Module, batch: Any) -> Any:
    return functional.cross_entropy(model(batch[0]), batch[1], weight=CLASS_WEIGHTS)


def test_class_weights_of_1_and_3_give_seven_quarters_where_samples_give_six() -> None:
    equivalence = checked(Scale(), TWO_CLASSES, weighted_cross_entropy)

    assert losses_by_split(equivalence) == pytest.approx({(2,): 7 / 4 * log(2), (1, 1): 6 / 4 * log(2)}, rel=1e-6)
    assert smallest_parts(equivalence).gradient_difference == pytest.approx(1 / 3, rel=1e-6)


def test_with_class_weights_counted_it_is_seven_quarters_in_parts_too() -> None:
    equivalence = checked(
        Scale(), TWO_CLASSES, weighted_cross_entropy, loss_items=lambda batch: float(CLASS_WEIGHTS[batch[1]].sum())
    )

    assert equivalence.equal
    assert losses_by_split(equivalence) == pytest.approx({(2,): 7 / 4 * log(2), (1, 1): 7 / 4 * log(2)}, rel=1e-6)


# Four samples of mean 0 and variance (49 + 1 + 1 + 49) / 4 = 25, normalised to -1.4, -0.2, 0.2 and 1.4; any two of them
# are normalised to -1 and 1. The loss is the mean of each times its factor.
# Whole: (-1.4 * 1 - 0.2 * 2 + 0.2 * 3 + 1.4 * 4) / 4 = 4.4 / 4 = 1.1. Parts: (-1 + 2) / 2 and (-3 + 4) / 2, so 0.5.
# The gradient of BatchNorm's weight is the loss, that of its bias the mean factor 2.5 whatever the parts.
FOUR_NUMBERS = (torch.tensor([[-7.0], [-1.0], [1.0], [7.0]]), torch.tensor([1.0, 2.0, 3.0, 4.0]))


def times_factors(model: nn.Module, batch: Any) -> Any:
    return (model(batch[0])[:, 0] * batch[1]).mean()


def test_batch_norm_by_two_samples_gives_a_half_where_four_give_eleven_tenths() -> None:
    equivalence = checked(nn.BatchNorm1d(1, eps=1e-12), FOUR_NUMBERS, times_factors)

    assert losses_by_split(equivalence) == pytest.approx({(4,): 1.1, (2, 2): 0.5}, rel=1e-9)
    assert smallest_parts(equivalence).gradient_difference == pytest.approx(0.6 / (1.1**2 + 2.5**2) ** 0.5, rel=1e-9)
    assert smallest_parts(equivalence).parameter_sum == pytest.approx(1 - 0.001 * (0.5 + 2.5), rel=1e-9)


# Two pairs, each vector's similarity with its own partner ln 3, with the other's 0: the partner's share is 3 / (3 + 1),
# a loss of ln 4/3 each. One pair alone has no negatives: its share is 1, its loss and its gradient are 0.
TWO_PAIRS = (log(3) * torch.eye(2), torch.eye(2))


def info_nce(model: nn.Module, batch: Any) -> Any:
    similarities = model(batch[0]) @ batch[1].T
    return functional.cross_entropy(similarities, torch.arange(len(similarities)))


def test_two_pairs_have_a_contrastive_loss_and_one_pair_has_none() -> None:
    equivalence = checked(Scale(), TWO_PAIRS, info_nce)

    assert losses_by_split(equivalence) == pytest.approx({(2,): log(4 / 3), (1, 1): 0.0}, rel=1e-6)
    assert smallest_parts(equivalence).gradient_difference == pytest.approx(1.0, rel=1e-12)
    assert smallest_parts(equivalence).parameter_sum == pytest.approx(1.0, rel=1e-12)


# The whole batch's gradient of the scale: 3/4 ln 3 - ln 3 = -1/4 ln 3 for both pairs.
def test_the_whole_batch_of_two_pairs_steps_by_a_quarter_of_their_similarity() -> None:
    whole = checked(Scale(), TWO_PAIRS, info_nce).ways[0]

    assert whole.parameter_sum == pytest.approx(1 + 0.001 * log(3) / 4, rel=1e-9)
