"""What a check costs: forwards and backwards of the checked batch, for each way that it compares."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checking_models import CLASSES, checked, class_batch, mlp
from torch import nn
from torch.nn import functional

SAMPLES, MOST_PASSES = 16, 4
WEIGHTS = torch.linspace(1, 2, CLASSES)


def with_batch_norm() -> nn.Module:
    inputs = class_batch()[0].shape[1]
    return nn.Sequential(nn.BatchNorm1d(inputs), mlp())


def comparing(scores: Any, classes: Any) -> Any:
    return functional.cross_entropy(scores @ scores.T, torch.arange(len(classes)))


def weighted(scores: Any, classes: Any) -> Any:
    return functional.cross_entropy(scores, classes, weight=WEIGHTS)


@pytest.mark.parametrize("criterion", [functional.cross_entropy, weighted, comparing])
@pytest.mark.parametrize("build", [mlp, with_batch_norm])
def test_a_check_costs_at_most_four_passes_of_its_batch_for_each_way(build: Any, criterion: Any) -> None:
    samples = 0

    def counting(model: nn.Module, batch: Any) -> Any:
        nonlocal samples
        samples += len(batch[1])
        return criterion(model(batch[0]), batch[1])

    equivalence = checked(build(), class_batch(SAMPLES), counting, thorough=True)

    assert len(equivalence.ways) == 14
    assert samples <= MOST_PASSES * SAMPLES * len(equivalence.ways)
