"""Batches on a simulated card: without memory for numbers that nobody looks at, and with those that somebody does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from profiler.dry_run.placement import SimulatedPlacement
from profiler.errors import ShortBatch
from profiler.simulation.cards import card_of
from profiler.units import GIB

SIZE = 2**14
BATCH_BYTES = SIZE * 64 * 4
# In no machine's memory.
HUGE = 2**40


def batch_of(maker: Callable[[int], Any], size: int = SIZE) -> Any:
    return SimulatedPlacement(card_of("rtx3090"), None).made(maker, size)


@pytest.mark.parametrize(
    "maker",
    [
        pytest.param(lambda size: torch.randn(size, 64), id="numbers"),
        pytest.param(lambda size: torch.ones(size, 64, device="cuda"), id="on the card"),
        pytest.param(lambda size: torch.empty(size, 64, pin_memory=True).normal_(), id="pinned"),
        pytest.param(lambda size: torch.rand(size, 64, generator=torch.Generator()), id="by a generator"),
        pytest.param(lambda size: torch.zeros(64, size).half().T * 2, id="computed"),
        pytest.param(lambda size: torch.randint(10, (size, 64)), id="more whole numbers than are carried"),
    ],
)
def test_numbers_that_nobody_looks_at_take_no_memory(maker: Callable[[int], Tensor]) -> None:
    batch = batch_of(maker, HUGE)

    assert batch.shape == (HUGE, 64)
    assert batch.is_meta


def test_the_card_is_asked_for_as_much_as_for_real_numbers() -> None:
    def taken(maker: Callable[[int], Any]) -> int:
        placement = SimulatedPlacement(card_of("rtx3090"), 4 * GIB)
        kept = placement.batch(placement.made(maker, SIZE))
        assert kept.shape == (SIZE, 64)
        return placement.ledger.allocator.allocated_bytes

    real = torch.randn(SIZE, 64)
    assert taken(lambda size: torch.randn(size, 64)) == taken(lambda size: real[:size]) == BATCH_BYTES


@pytest.mark.parametrize(
    "maker",
    [
        pytest.param(lambda size: (torch.randn(size, 64), torch.arange(size) % 10), id="labels"),
        pytest.param(lambda size: (torch.randn(size, 64), torch.randint(10, (size,))), id="drawn labels"),
        pytest.param(lambda size: (numbers := torch.randn(size, 64), numbers.argmax(1)), id="labels of the numbers"),
    ],
)
def test_labels_have_their_values(maker: Callable[[int], tuple[Tensor, Tensor]]) -> None:
    _, labels = batch_of(maker)

    assert not labels.is_meta
    assert 0 <= labels.min() <= labels.max() < 64


@pytest.mark.parametrize(
    "maker",
    [
        pytest.param(lambda size: torch.from_numpy(np.ones((size, 64), np.float32)), id="numpy"),
        pytest.param(lambda size: torch.from_numpy(torch.randn(size, 64).numpy() * 2), id="through numpy"),
        pytest.param(
            lambda size: torch.randn(size, 64) / torch.randn(size, 64).abs().max().item(), id="a number asked for"
        ),
        pytest.param(
            lambda size: torch.randn(size, 64) + torch.from_numpy(np.ones(64, np.float32)), id="beside real ones"
        ),
    ],
)
def test_a_maker_that_needs_numbers_has_them(maker: Callable[[int], Any]) -> None:
    batch = batch_of(maker)

    assert not batch.is_meta
    assert batch.isfinite().all()


def test_a_makers_own_error_is_its_own() -> None:
    def failing(size: int) -> Tensor:
        raise KeyError("learning_rate")

    with pytest.raises(KeyError, match="learning_rate"):
        batch_of(failing)


def test_data_that_end_are_asked_once() -> None:
    asked = []

    def ending(size: int) -> Tensor:
        asked.append(size)
        raise StopIteration

    with pytest.raises(ShortBatch):
        batch_of(ending)
    assert asked == [SIZE]
