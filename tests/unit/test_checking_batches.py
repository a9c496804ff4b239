"""Batches, models and losses of unusual kinds."""

from __future__ import annotations

import random
from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from checking_models import (
    FEATURES,
    HIDDEN,
    IGNORED,
    SAMPLES,
    TOKENS,
    WORDS,
    TokenModel,
    advised_items,
    checked,
    count_labels,
    furthest,
    mlp,
    regression_batch,
    squared_error,
    token_batch,
    token_cross_entropy,
)
from torch import Tensor, nn
from torch.nn import functional

from profiler.equivalence import Decomposition


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@dataclass
class Texts:
    words: Tensor
    labels: Tensor
    source: str = "a book"


class Pair(NamedTuple):
    words: Tensor
    labels: Tensor


BATCHES: dict[str, tuple[Callable[[Tensor, Tensor], Any], Callable[[Any], dict[str, Tensor]], str]] = {
    "a dict": (
        lambda words, labels: {"words": words, "labels": labels},
        lambda batch: {"words": batch["words"], "labels": batch["labels"]},
        "(batch['labels'] != -100).sum()",
    ),
    "a mapping": (
        lambda words, labels: UserDict(words=words, labels=labels),
        lambda batch: {"words": batch["words"], "labels": batch["labels"]},
        "(batch['labels'] != -100).sum()",
    ),
    "a dataclass": (
        lambda words, labels: Texts(words=words, labels=labels),
        lambda batch: {"words": batch.words, "labels": batch.labels},
        "(batch.labels != -100).sum()",
    ),
    "a named tuple": (
        Pair,
        lambda batch: {"words": batch.words, "labels": batch.labels},
        "(batch.labels != -100).sum()",
    ),
    "a list": (
        lambda words, labels: [words, labels],
        lambda batch: {"words": batch[0], "labels": batch[1]},
        "(batch[1] != -100).sum()",
    ),
    "a nest": (
        lambda words, labels: {"inputs": (words,), "targets": [None, Texts(words=words, labels=labels)]},
        lambda batch: {"words": batch["inputs"][0], "labels": batch["targets"][1].labels},
        "(batch['targets'][1].labels != -100).sum()",
    ),
    "beside what all samples share": (
        lambda words, labels: {
            "scale": torch.tensor(2.0),
            "words": words,
            "labels": labels,
            "at": torch.arange(TOKENS),
        },
        lambda batch: {"words": (batch["words"] + batch["at"]) % WORDS, "labels": batch["labels"]},
        "(batch['labels'] != -100).sum()",
    ),
}


@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_of_any_kind_is_cut_and_counted(name: str) -> None:
    build, read, count = BATCHES[name]
    batch = build(*token_batch("labels").values())

    def loss(model: nn.Module, batch: Any) -> Any:
        return token_cross_entropy(model, read(batch))

    equivalence = checked(TokenModel(), batch, loss)

    assert equivalence.items == count
    assert checked(TokenModel(), batch, loss, loss_items=advised_items(equivalence)).verdict == "equal"


def test_a_batch_of_one_tensor_is_checked() -> None:
    equivalence = checked(mlp(1), torch.randn(SAMPLES, FEATURES), lambda model, batch: model(batch).square().mean())

    assert equivalence.verdict == "equal"


@pytest.mark.parametrize(
    "model",
    [
        lambda: nn.Sequential(nn.Embedding(WORDS, HIDDEN, sparse=True), nn.Linear(HIDDEN, WORDS)),
        lambda: nn.Sequential(nn.Embedding(WORDS, HIDDEN, padding_idx=0), nn.Linear(HIDDEN, WORDS)),
    ],
    ids=["sparse", "padded"],
)
def test_gradients_of_an_embedding_are_compared(model: Callable[[], nn.Module]) -> None:
    equivalence = checked(model(), token_batch("labels"), token_cross_entropy, loss_items=count_labels, thorough=True)

    assert all(way.equal for way in equivalence.ways)
    assert furthest(equivalence) < 1e-12


def test_a_sparse_gradient_that_differs_is_seen() -> None:
    model = nn.Sequential(nn.Embedding(WORDS, HIDDEN, sparse=True), nn.Linear(HIDDEN, WORDS).requires_grad_(False))

    assert furthest(checked(model, token_batch("labels"), token_cross_entropy)) > 1e-2


class Experts(nn.Module):
    """Each sample goes to one of the experts, so that in small parts most have no gradient."""

    def __init__(self, count: int = 4) -> None:
        super().__init__()
        self.gate = nn.Linear(FEATURES, count)
        self.experts = nn.ModuleList(nn.Linear(FEATURES, 1) for _ in range(count))

    def forward(self, inputs: Tensor) -> Any:
        shares = self.gate(inputs).softmax(1)
        outputs = inputs.new_zeros(len(inputs), 1)
        for number, expert in enumerate(self.experts):
            (mine,) = (shares.argmax(1) == number).nonzero(as_tuple=True)
            if len(mine):
                outputs = outputs.index_add(0, mine, expert(inputs[mine]) * shares[mine, number, None])
        return outputs


def test_experts_without_a_gradient_in_some_parts_are_equal() -> None:
    equivalence = checked(Experts(), regression_batch(), squared_error)

    assert equivalence.verdict == "equal"
    assert furthest(equivalence) < 1e-12


def test_a_parameter_without_a_gradient_in_any_part_is_equal() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(FEATURES, 1), nn.Linear(FEATURES, 1)

        def forward(self, inputs: Tensor) -> Any:
            return self.used(inputs)

    assert checked(Unused(), regression_batch(), squared_error).verdict == "equal"


class Filter(nn.Module):
    """A product in the frequency domain, by a complex parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.randn(FEATURES // 2 + 1, dtype=torch.complex64))

    def forward(self, inputs: Tensor) -> Any:
        return torch.fft.irfft(torch.fft.rfft(inputs) * self.factors, n=FEATURES)


class ComplexLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(FEATURES, 3, dtype=torch.complex64))

    def forward(self, inputs: Tensor) -> Any:
        return (inputs.to(torch.complex64) @ self.weight).abs()


@pytest.mark.parametrize("model", [Filter, ComplexLinear])
def test_complex_parameters_are_equal(model: Callable[[], nn.Module]) -> None:
    equivalence = checked(model(), regression_batch(), squared_error, thorough=True)

    assert equivalence.verdict == "equal"


@pytest.mark.parametrize("model", [Filter, ComplexLinear])
def test_complex_parameters_are_checked_in_fp64(model: Callable[[], nn.Module]) -> None:
    equivalence = checked(model(), regression_batch(), squared_error)

    assert equivalence.notes == ()
    assert furthest(equivalence) < 1e-12


def test_a_complex_gradient_that_differs_is_seen() -> None:
    def summed(model: nn.Module, batch: Any) -> Any:
        return squared_error(model, batch) * len(batch[0])

    assert checked(Filter(), regression_batch(), summed).decomposes is Decomposition.SUM


def test_tied_weights_are_equal() -> None:
    model = TokenModel()
    model.output.weight = model.embedding.weight
    equivalence = checked(model, token_batch("labels"), token_cross_entropy, loss_items=count_labels)

    assert equivalence.verdict == "equal"
    assert model.output.weight is model.embedding.weight


@pytest.mark.parametrize("loss", [lambda model, batch: 0 * squared_error(model, batch)])
def test_a_gradient_of_zeros_everywhere_is_equal(loss: Callable[[nn.Module, Any], Any]) -> None:
    equivalence = checked(mlp(1), regression_batch(), loss)

    assert equivalence.verdict == "equal"
    assert {way.gradient_difference for way in equivalence.ways} == {0.0}


def test_gradients_that_cancel_over_the_batch_are_equal() -> None:
    inputs = torch.randn(4, FEATURES)
    targets = torch.tensor([1.0, 2.0, 3.0, 4.0])

    def loss(model: nn.Module, batch: Any) -> Any:
        return (model(batch[0])[:, 0] * batch[1]).mean()

    equivalence = checked(
        nn.Linear(FEATURES, 1), (torch.cat([inputs, inputs]), torch.cat([targets, -targets])), loss, thorough=True
    )

    assert all(way.equal for way in equivalence.ways)


class Output(dict[str, Any]):
    """What models of a library return: a dict whose values are attributes too."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class WithLoss(nn.Module):
    """A causal model that computes its own loss from labels, which it shifts itself."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = TokenModel()

    def forward(self, words: Tensor, labels: Tensor) -> Output:
        scores = self.transformer(words)
        loss = functional.cross_entropy(scores[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        return Output(loss=loss, logits=scores)


def test_a_model_that_computes_its_own_loss_averages_over_shifted_labels() -> None:
    def loss(model: nn.Module, batch: Any) -> Any:
        return model(**batch).loss

    batch = token_batch("labels")
    equivalence = checked(WithLoss(), batch, loss)

    assert equivalence.items == "(batch['labels'][:, 1:] != -100).sum()"
    assert checked(WithLoss(), batch, loss, loss_items=advised_items(equivalence)).verdict == "equal"


@pytest.mark.parametrize("frozen", ["0", "2"])
def test_frozen_parameters_are_left_out(frozen: str) -> None:
    model = mlp(1)
    model.get_submodule(frozen).requires_grad_(False)
    equivalence = checked(model, regression_batch(), squared_error)

    assert equivalence.verdict == "equal"
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_frozen_teacher_in_the_model_is_equal() -> None:
    model = nn.ModuleDict({"student": mlp(), "teacher": nn.Sequential(mlp(), nn.Dropout(0.5)).requires_grad_(False)})

    def loss(model: Any, batch: Any) -> Any:
        targets = model["teacher"](batch[0]).softmax(1)
        return functional.kl_div(model["student"](batch[0]).log_softmax(1), targets, reduction="batchmean")

    equivalence = checked(model, regression_batch(), loss)

    assert (equivalence.verdict, equivalence.random_modules) == ("equal", ("teacher.1",))


def by_random(draw: Callable[[int], Tensor]) -> Callable[[nn.Module, Any], Any]:
    """A loss that weighs each sample by a draw from outside of torch."""

    def loss(model: nn.Module, batch: Any) -> Any:
        return (draw(len(batch[0])) * (model(batch[0])[:, 0] - batch[1]).square()).mean()

    return loss


OUTSIDE = {
    "Python's random": lambda count: torch.tensor([random.random() for _ in range(count)]),
    "NumPy's random": lambda count: torch.from_numpy(np.random.rand(count)),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_random_numbers_from_outside_of_torch_are_named_and_torchs_are_advised(name: str) -> None:
    equivalence = checked(mlp(1), regression_batch(), by_random(OUTSIDE[name]))

    assert equivalence.random_modules == (name,)
    assert equivalence.verdict.endswith(f"; or for random numbers from {name} alone")
    assert equivalence.advice.startswith("Draw random numbers with torch")
    assert any(f"numbers are drawn from {name}, which cannot be switched off" in why for why in equivalence.reasons)


@pytest.mark.parametrize("name", OUTSIDE)
def test_one_random_number_for_the_whole_batch_from_outside_of_torch_is_equal(name: str) -> None:
    def loss(model: nn.Module, batch: Any) -> Any:
        return squared_error(model, batch) * float(OUTSIDE[name](1))

    equivalence = checked(mlp(1), regression_batch(), loss)

    assert (equivalence.verdict, equivalence.random_modules) == ("equal", (name,))


class Wrapped(nn.Module):
    """A wrapper that keeps the model under the name that torch.compile's has."""

    def __init__(self, model: nn.Module, *around: nn.Module) -> None:
        super().__init__()
        self._orig_mod = model
        self.around = nn.Sequential(*around)

    def forward(self, inputs: Tensor) -> Any:
        return self.around(self._orig_mod(inputs))


def test_a_wrapper_that_passes_everything_on_is_equal() -> None:
    assert checked(Wrapped(mlp(1)), regression_batch(), squared_error).verdict == "equal"


def test_what_a_wrapper_does_beside_is_checked_too() -> None:
    equivalence = checked(Wrapped(mlp(1), nn.BatchNorm1d(1)), regression_batch(), squared_error)

    assert not equivalence.equal
    assert equivalence.modules == ("around.0",)


def test_a_compiled_model_is_checked_as_the_model_that_it_was_compiled_from() -> None:
    model = torch.compile(nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.BatchNorm1d(HIDDEN)), backend="eager")
    assert isinstance(model, nn.Module)

    assert checked(model, regression_batch(), squared_error).modules == ("1",)


def test_a_module_that_is_used_twice_is_named_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.last = nn.Softmax(dim=0), nn.Linear(FEATURES, 1)

        def forward(self, inputs: Tensor) -> Any:
            return self.last(self.norm(self.norm(inputs) + inputs))

    assert checked(Twice(), regression_batch(), squared_error).modules == ("norm",)


def test_a_module_that_draws_with_numpy_is_not_said_to_mix_samples_for_certain() -> None:
    class Masking(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            kept = torch.from_numpy(np.random.rand(*inputs.shape) < 0.7)
            return inputs * kept

    equivalence = checked(nn.Sequential(Masking(), mlp(1)), regression_batch(), squared_error)

    assert equivalence.random_modules == ("NumPy's random",)
    assert equivalence.verdict.endswith("; or for random numbers from NumPy's random alone")
    assert equivalence.advice.startswith("Draw random numbers with torch")
