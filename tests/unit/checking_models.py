"""Small models, batches and losses, and the check of them, for the tests of the check."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.threads import one_thread
from profiler.batches import count_samples
from profiler.checking.check import equivalence_of
from profiler.checking.subject import Subject
from profiler.equivalence import Equivalence
from profiler.outcomes import Strategy
from profiler.placing import Placement
from profiler.steps import Passes, Phase, Training
from profiler.workload import Precision, Workload

SAMPLES, FEATURES, HIDDEN, CLASSES = 8, 5, 6, 3
TOKENS, WORDS, IGNORED = 6, 7, -100
# Of 8 samples with up to 6 tokens; one has a single one.
LENGTHS = (6, 1, 3, 2, 5, 4, 2, 6)
CPU = torch.device("cpu")

Loss = Callable[[nn.Module, Any], Any]
Count = Callable[[Any], Any]


def checked(
    model: nn.Module | Callable[[], nn.Module],
    batch: Any,
    loss: Loss,
    *,
    loss_items: Count | None = None,
    precision: Precision = "fp32",
    thorough: bool = False,
) -> Equivalence:
    """The check of all samples of `batch`."""
    workload = Workload(
        model=model, make_batch=lambda samples: batch, loss=loss, loss_items=loss_items, precision=precision
    )
    with one_thread():
        return equivalence_of(
            Training.start(workload, Placement(CPU), Phase()), count_samples(batch), thorough=thorough
        )


def subject_of(model: nn.Module, batch: Any, loss: Loss, *, precision: str = "fp64") -> Subject:
    """What the check looks at, in one precision; the model and the batch must be of that type already."""
    passes = Passes(model=model, loss=loss, device=CPU)
    return Subject(passes=passes, model=model, batch=batch, samples=count_samples(batch), precision=precision)


def furthest(equivalence: Equivalence, precision: str = "fp64") -> float:
    """The largest difference of a way's gradient from the whole batch's, in that precision; every way must have run."""
    differences = [way.gradient_difference for way in equivalence.ways if way.precision == precision]
    assert len(differences) > 1
    return max(float("inf") if difference is None else difference for difference in differences)


def losses_by_split(equivalence: Equivalence) -> dict[tuple[int, ...], float | None]:
    """The loss in fp64 by each split, a backward a part."""
    return {
        way.split: way.loss
        for way in equivalence.ways
        if way.precision == "fp64" and way.strategy is not Strategy.SUMMED_LOSS
    }


def advised_items(equivalence: Equivalence, **names: Any) -> Count:
    """The `loss_items` that the advice spells out, made of its words; `names` are those that the user would have."""
    found = re.search(r"Pass loss_items=(lambda batch: .+), so that", equivalence.advice)
    assert found is not None, equivalence.advice
    count: Count = eval(found[1], names)
    return count


def mlp(outputs: int = CLASSES) -> nn.Sequential:
    return nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, outputs))


class TokenModel(nn.Module):
    """Scores of the words at each place."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, HIDDEN)
        self.output = nn.Linear(HIDDEN, WORDS)

    def forward(self, tokens: Tensor) -> Any:
        return self.output(torch.tanh(self.embedding(tokens)))


def regression_batch(samples: int = SAMPLES, *shape: int) -> tuple[Tensor, Tensor]:
    """Inputs, of FEATURES where no shape is given, and a number for each."""
    return torch.randn(samples, *(shape or (FEATURES,))), torch.randn(samples)


def class_batch(samples: int = SAMPLES) -> tuple[Tensor, Tensor]:
    """Inputs and classes; each class is there."""
    return torch.randn(samples, FEATURES), torch.randperm(samples) % CLASSES


def token_batch(*names: str) -> dict[str, Tensor]:
    """Texts of different LENGTHS, with the tensors of those names."""
    words = torch.randint(WORDS, (SAMPLES, TOKENS))
    lengths = torch.tensor(LENGTHS)[torch.randperm(SAMPLES)]
    mask = torch.arange(TOKENS) < lengths[:, None]
    everything = {
        "words": words,
        "labels": torch.where(mask, words, IGNORED),
        "mask": mask,
        "padding": ~mask,
        "weights": mask.float(),
        "lengths": lengths,
    }
    return {name: everything[name] for name in ("words", *names)}


def squared_error(model: nn.Module, batch: Any) -> Any:
    """The mean over samples of the squared error of the mean output."""
    outputs, targets = model(batch[0]), batch[1]
    return (outputs.flatten(1).mean(1) - targets).square().mean()


def cross_entropy(model: nn.Module, batch: Any) -> Any:
    return functional.cross_entropy(model(batch[0]), batch[1])


def token_cross_entropy(model: nn.Module, batch: Any) -> Any:
    """The mean over all tokens that are not ignored."""
    return functional.cross_entropy(model(batch["words"]).flatten(0, 1), batch["labels"].flatten())


def count_labels(batch: Any) -> int:
    """What `token_cross_entropy` averages over."""
    return int((batch["labels"] != IGNORED).sum())
