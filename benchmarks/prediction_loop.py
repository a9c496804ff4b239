"""The training loops of the measured runs, on a simulated card.

Four steps, in the order of the authors' loops, with what they leave alive: the logits of a step until the next forward
has ended, its batch until the next one is on the card, and gradients until `zero_grad`.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.prediction_models import build, cache_of, is_cnn, vocabulary
from benchmarks.prediction_rows import Run, Simulated
from profiler.dry_run.placement import SimulatedPlacement
from profiler.simulation.cards import Card, catalogue
from profiler.simulation.replay import replay
from profiler.units import MIB

STEPS = 4
# The release that was measured, so far as it is known.
TORCH = (2, 6)
IMAGE, TOKENS = 86, 128
# Where gradients are set to None: first of all, between forward and backward, last of all.
FIRST, BETWEEN, LAST = 0, 1, 2
# What those machines used for other purposes all the time, by constants in the authors' code: a display on the RTX 4060's.
_OTHERS_BYTES = {"NVIDIA GeForce RTX 4060": 280 * MIB, "NVIDIA GeForce RTX 3060": 15 * MIB}
Optimizer = torch.optim.Optimizer


def simulate(run: Run, mode: int) -> Simulated:
    """The run without a limit, and its requests once more within the card's memory."""
    start = time.perf_counter()
    card = card_of(run)
    placement = SimulatedPlacement(card, None, torch_version=TORCH)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (train_cnn if is_cnn(run.model) else train_language_model)(run, mode, placement)
    capacity_bytes = card.total_bytes - card.context_bytes - _OTHERS_BYTES.get(run.gpu, 0)
    allocator = placement.ledger.allocator
    within = replay(placement.ledger.events, capacity_bytes=capacity_bytes)
    return Simulated(
        reserved_bytes=allocator.peak_reserved_bytes,
        allocated_bytes=allocator.peak_allocated_bytes,
        capacity_bytes=capacity_bytes,
        within_bytes=None if within.ran_out else within.peak_reserved_bytes,
        seconds=time.perf_counter() - start,
    )


def card_of(run: Run) -> Card:
    """The card of that run, of the catalogue."""
    return next(card for card in catalogue().values() if card.description == run.gpu)


def train_cnn(run: Run, mode: int, placement: SimulatedPlacement) -> None:
    """Images in classes; the best classes are looked up after each step."""
    model = placement.model(lambda: build(run.model))
    criterion = nn.CrossEntropyLoss()
    with placement.training():
        optimizer = placement.optimizer(optimizer_of(run.optimizer, model))
        for images, targets in image_batches(run.batch_size):
            if mode == FIRST:
                optimizer.zero_grad()
            inputs = placement.batch(images)
            labels = placement.batch(targets)
            outputs = model(inputs)
            loss = criterion(outputs, labels)
            if mode == BETWEEN:
                optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            _, preds = torch.max(outputs, 1)
            if mode == LAST:
                optimizer.zero_grad()
        del inputs, labels, preds  # named up to here, as in that loop


def train_language_model(run: Run, mode: int, placement: SimulatedPlacement) -> None:
    """Texts, by the model's own loss."""
    model = placement.model(lambda: build(run.model))
    with placement.training():
        optimizer = placement.optimizer(optimizer_of(run.optimizer, model))
        for texts in text_batches(run.batch_size, vocabulary(run.model)):
            if mode == FIRST:
                optimizer.zero_grad()
            batch = {name: placement.batch(tensor) for name, tensor in texts.items()}
            outputs = model(**batch, past_key_values=cache_of(run.model))
            if mode == BETWEEN:
                optimizer.zero_grad()
            loss = outputs.loss
            loss.backward()
            optimizer.step()
            if mode == LAST:
                optimizer.zero_grad()


def image_batches(batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images without memory, and their classes."""
    for _ in range(STEPS):
        yield torch.empty(batch_size, 3, IMAGE, IMAGE, device="meta"), torch.zeros(batch_size, dtype=torch.int64)


def text_batches(batch_size: int, tokens: int) -> Iterator[dict[str, Tensor]]:
    """Token numbers with padding: the first text of a batch is long enough to be cut, the others have half its length."""
    mask = torch.ones(batch_size, TOKENS, dtype=torch.int64)
    mask[1:, TOKENS // 2 :] = 0
    ids = torch.arange(batch_size * TOKENS).reshape(batch_size, TOKENS) % tokens
    for _ in range(STEPS):
        yield {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def optimizer_of(name: str, model: nn.Module) -> Optimizer:
    """That optimizer as the runs made it: torch's with its defaults, or Adafactor of `transformers`."""
    make: Callable[..., Any]
    if name == "Adafactor":
        from transformers.optimization import Adafactor

        make = partial(Adafactor, relative_step=False)
    else:
        make = getattr(torch.optim, name)
    optimizer: Optimizer = make(params=model.parameters(), lr=0.001)
    return optimizer
