"""Evaluation as a training loop runs it between two optimizer steps: without gradients, in evaluation mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from profiler.steps import Training


def evaluate(training: Training, sizes: Sequence[int], after_first: Callable[[], None]) -> None:
    """The losses of one or more batches of `sizes`, one after the other, under `torch.no_grad`, in the training precision.

    The optimizer's state and the gradients of the last step stay where they are: many loops let go of gradients only when
    the next step begins. Each batch is made while the one before it and its loss are alive, as in a loop over a loader.
    What the loss gives is not looked at: without a gradient or not finite, it takes the same memory.
    after_first: called after the first batch, for what its operations have loaded.
    """
    assert sizes, "an evaluation has a batch"
    with _evaluating(training.model), torch.no_grad():
        for number, size in enumerate(sizes):
            batch = training.batch(size)
            loss = training.passes.evaluate(batch)
            if number == 0:
                after_first()
    del batch, loss


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode by the model's own `eval`, which may be the user's; at the end every module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        if was_training:
            model.train()
        for module, mode in modes:
            module.training = mode
