from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from checking_models import (
    CLASSES,
    FEATURES,
    HIDDEN,
    IGNORED,
    SAMPLES,
    Loss,
    TokenModel,
    checked,
    class_batch,
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

from profiler.equivalence import Decomposition, Equivalence, Way
from profiler.outcomes import Strategy
from profiler.workload import Precision

CLASS_WEIGHTS = torch.tensor([0.3, 0.6, 1.5])


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def precisions(equivalence: Equivalence) -> list[str]:
    """Of the ways, each once, in their order."""
    return list(dict.fromkeys(way.precision for way in equivalence.ways))


def error_in_fp32(model: nn.Module, batch: Any) -> Any:
    """The squared error, taken in fp32 at least, as losses are under autocast."""
    difference = model(batch[0]).float().mean(1) - batch[1].float()
    return difference.square().mean()


def ways_of(equivalence: Equivalence, precision: str) -> list[tuple[Strategy, tuple[int, ...]]]:
    return [(way.strategy, way.split) for way in equivalence.ways if way.precision == precision]


def test_a_thorough_check_has_every_way_in_fp64_and_as_it_is_trained() -> None:
    equivalence = checked(mlp(1), regression_batch(16), squared_error, thorough=True)
    parts = ((4, 4, 4, 4), (5, 5, 5, 1), (1,) * 16)
    expected = {
        (Strategy.WHOLE_BATCH, (16,)),
        *((strategy, split) for strategy in (Strategy.SUMMED_LOSS, Strategy.ACCUMULATION) for split in parts),
    }

    assert precisions(equivalence) == ["fp64", "fp32"]
    for precision in ("fp64", "fp32"):
        assert len(ways_of(equivalence, precision)) == len(expected)
        assert set(ways_of(equivalence, precision)) == expected


def test_a_quick_check_accumulates_in_fp64_alone() -> None:
    equivalence = checked(mlp(1), regression_batch(), squared_error)

    assert precisions(equivalence) == ["fp64"]
    assert {way.strategy for way in equivalence.ways} == {Strategy.WHOLE_BATCH, Strategy.ACCUMULATION}


@pytest.mark.parametrize(("precision", "least"), [("fp32", 1e-9), ("tf32", 1e-9), ("fp16", 1e-6), ("bf16", 1e-5)])
def test_what_is_trained_in_any_precision_is_exact_in_fp64_and_within_rounding_in_its_own(
    precision: Precision, least: float
) -> None:
    equivalence = checked(mlp(1), regression_batch(), error_in_fp32, precision=precision, thorough=True)

    assert equivalence.verdict == "equal"
    assert precisions(equivalence) == ["fp64", precision]
    assert furthest(equivalence) < 1e-12
    assert least < furthest(equivalence, precision) < equivalence.ways[-1].bound
    assert all(way.equal for way in equivalence.ways)


@pytest.mark.parametrize(
    ("dtype", "rows"),
    [(torch.float64, ["fp64"]), (torch.bfloat16, ["fp64", "bf16"]), (torch.float16, ["fp64", "fp16"])],
    ids=["fp64", "bf16", "fp16"],
)
def test_a_model_of_another_type_is_checked_in_it_and_in_fp64(dtype: torch.dtype, rows: list[str]) -> None:
    inputs, targets = regression_batch()
    equivalence = checked(mlp(1).to(dtype), (inputs.to(dtype), targets.to(dtype)), squared_error, thorough=True)

    assert (equivalence.verdict, equivalence.notes) == ("equal", ())
    assert precisions(equivalence) == rows
    assert furthest(equivalence) < 1e-12
    assert all(way.equal for way in equivalence.ways)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_not_equal_is_not_equal_in_either_precision(precision: Precision) -> None:
    def loss(model: nn.Module, batch: Any) -> Any:
        return error_in_fp32(model, batch) * len(batch[0])

    equivalence = checked(mlp(1), regression_batch(), loss, precision=precision, thorough=True)
    parts = [way for way in equivalence.ways if len(way.split) > 1]

    assert equivalence.decomposes is Decomposition.SUM
    assert {way.precision for way in parts if not way.equal} == {"fp64", precision}
    assert all(way.why == "the loss is summed, not averaged over samples" for way in parts if not way.equal)


def of_casts(cast: Callable[[Tensor], Tensor]) -> nn.Module:
    class Casting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(FEATURES, HIDDEN)
            self.last = nn.Linear(HIDDEN, 1)

        def forward(self, inputs: Tensor) -> Any:
            hidden = cast(self.first(inputs))
            return self.last(functional.layer_norm(hidden, (HIDDEN,)).to(inputs.dtype))

    return Casting()


@pytest.mark.parametrize(
    "cast",
    [
        lambda hidden: hidden.float(),
        lambda hidden: hidden.to(torch.float32),
        lambda hidden: hidden.type(torch.float32),
        lambda hidden: hidden.half(),
        lambda hidden: hidden.bfloat16(),
        lambda hidden: hidden.softmax(1, dtype=torch.float32),
        lambda hidden: hidden * torch.linspace(0, 1, HIDDEN, dtype=torch.float32),
        lambda hidden: hidden + torch.zeros_like(hidden, dtype=torch.float32).copy_(hidden),
        lambda hidden: hidden * torch.tensor(0.1),
        lambda hidden: hidden * torch.from_numpy(torch.linspace(0.1, 1, HIDDEN).numpy()),
    ],
    ids=["float", "to", "type", "half", "bfloat16", "dtype", "a constant", "a copy", "a number", "NumPy"],
)
def test_a_model_that_casts_to_a_coarser_type_stays_exact(cast: Callable[[Tensor], Tensor]) -> None:
    equivalence = checked(of_casts(cast), regression_batch(), squared_error)

    assert (equivalence.verdict, equivalence.notes) == ("equal", ())
    assert furthest(equivalence) < 1e-12


def test_a_model_that_opens_autocast_itself_stays_exact_and_its_rounding_is_noted() -> None:
    class Autocast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp(1)

        def forward(self, inputs: Tensor) -> Any:
            with torch.autocast("cpu", torch.bfloat16):
                return self.inner(inputs)

    equivalence = checked(Autocast(), regression_batch(), error_in_fp32, thorough=True)
    coarse = [way for way in equivalence.ways if not way.equal]

    assert equivalence.verdict == "equal"
    assert furthest(equivalence) < 1e-12
    assert {way.precision for way in coarse} == {"fp32"}
    assert {way.why for way in coarse} == {"the rounding of fp32: equal in fp64"}
    assert equivalence.notes == (
        "in the training precision some ways differ by more than the bound; in fp64 they are equal, so it is rounding.",
    )


def test_constants_of_a_loss_in_fp32_stay_exact() -> None:
    def loss(model: nn.Module, batch: Any) -> Any:
        return functional.cross_entropy(model(batch[0]), batch[1], weight=CLASS_WEIGHTS, reduction="none").mean()

    assert furthest(checked(mlp(), class_batch(), loss)) < 1e-12


class Learned(nn.Module):
    """A criterion with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(CLASSES))

    def forward(self, scores: Tensor, classes: Tensor) -> Tensor:
        return functional.cross_entropy(self.scale * scores, classes)


def test_parameters_of_a_loss_in_fp32_stay_exact() -> None:
    criterion = Learned()
    equivalence = checked(mlp(), class_batch(), lambda model, batch: criterion(model(batch[0]), batch[1]))

    assert (equivalence.verdict, equivalence.notes) == ("equal", ())


def test_inputs_that_require_gradients_stay_exact() -> None:
    inputs, targets = regression_batch()
    equivalence = checked(mlp(1), (inputs.requires_grad_(), targets), squared_error)

    assert (equivalence.verdict, equivalence.notes) == ("equal", ())


class Refusing(nn.Module):
    """A model that runs in fp32 alone, as one with a kernel of its own may."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, inputs: Tensor) -> Any:
        if torch.get_default_dtype() is torch.float64:
            raise TypeError("there is a kernel for float32 only")
        return self.inner(inputs)


class Kernel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        if inputs.dtype is not torch.float32:
            raise TypeError("there is a kernel for float32 only\nand this is another line")
        ctx.save_for_backward(inputs)
        return inputs.exp()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient * ctx.saved_tensors[0].exp()


class WithKernel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, 1)

    def forward(self, inputs: Tensor) -> Any:
        return Kernel.apply(self.first(inputs))  # type: ignore[no-untyped-call]  # torch's has no types


@pytest.mark.parametrize("thorough", [False, True])
@pytest.mark.parametrize("model", [lambda: Refusing(mlp(1)), WithKernel], ids=["a check", "an autograd function"])
def test_a_model_that_refuses_fp64_is_judged_in_fp32_and_the_note_says_why(
    model: Callable[[], nn.Module], thorough: bool
) -> None:
    equivalence = checked(model(), regression_batch(), squared_error, thorough=thorough)

    assert equivalence.verdict == "equal"
    assert precisions(equivalence) == ["fp32"]
    assert equivalence.notes == (
        "fp64 could not be used, so fp32 decides: TypeError: there is a kernel for float32 only.",
    )


def test_a_loss_that_is_no_number_in_fp64_leaves_the_verdict_to_fp32() -> None:
    def loss(model: nn.Module, batch: Any) -> Any:
        return squared_error(model, batch) * (float("nan") if batch[0].dtype is torch.float64 else 1)

    equivalence = checked(mlp(1), regression_batch(), loss)

    assert equivalence.verdict == "equal"
    assert equivalence.notes == ("fp64 could not be used, so fp32 decides: its loss is not a number there.",)


def summed(model: nn.Module, batch: Any) -> Any:
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")


def by_class_weights(model: nn.Module, batch: Any) -> Any:
    return functional.cross_entropy(model(batch[0]), batch[1], weight=CLASS_WEIGHTS)


def contrastive(model: nn.Module, batch: Any) -> Any:
    scores = model(batch[0]) @ model(batch[0].flip(1)).T
    return functional.cross_entropy(scores, torch.arange(len(scores)))


@pytest.mark.parametrize(
    ("model", "batch", "loss", "decomposes", "items"),
    [
        (mlp, class_batch, cross_entropy, "samples", None),
        (mlp, class_batch, summed, "sum", None),
        (mlp, class_batch, contrastive, "no", None),
        (TokenModel, lambda: token_batch("labels"), token_cross_entropy, "items", "(batch['labels'] != -100).sum()"),
        (
            mlp,
            class_batch,
            by_class_weights,
            "weighted",
            "class_weights[batch[1]].sum(), with the class weights 0: 1, 1: 2, 2: 5 (relative to the smallest)",
        ),
    ],
    ids=["samples", "sum", "no", "items", "weighted"],
)
def test_in_fp32_alone_the_loss_is_seen_to_decompose_as_in_fp64(
    model: Callable[[], nn.Module], batch: Callable[[], Any], loss: Loss, decomposes: str, items: str | None
) -> None:
    equivalence = checked(Refusing(model()), batch(), loss)

    assert (equivalence.decomposes, equivalence.items) == (decomposes, items)


def with_load_balancing(model: nn.Module, batch: Any) -> Any:
    """As routers of experts have: shares of the whole batch times each other, with a small factor."""
    shares = model(batch[0]).softmax(1)
    chosen = functional.one_hot(shares.argmax(1), CLASSES).to(shares.dtype)
    return cross_entropy(model, batch) + 0.01 * CLASSES * (chosen.mean(0) * shares.mean(0)).sum()


@pytest.mark.parametrize("model", [mlp, lambda: Refusing(mlp())], ids=["fp64", "fp32"])
def test_a_small_term_that_compares_samples_is_seen(model: Callable[[], nn.Module]) -> None:
    equivalence = checked(model(), class_batch(), with_load_balancing)

    assert (equivalence.equal, equivalence.decomposes) == (False, Decomposition.NO)


def test_in_fp32_alone_batch_norm_is_still_named() -> None:
    model = Refusing(nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.BatchNorm1d(HIDDEN)))
    equivalence = checked(model, regression_batch(), squared_error)

    assert equivalence.modules == ("inner.1",)
    assert "equal with its statistics frozen" in equivalence.verdict


def test_right_loss_items_are_equal_in_every_precision() -> None:
    def loss(model: nn.Module, batch: Any) -> Any:
        scores = model(batch["words"]).flatten(0, 1).float()
        return functional.cross_entropy(scores, batch["labels"].flatten())

    equivalence = checked(
        TokenModel(),
        token_batch("labels"),
        loss,
        loss_items=lambda batch: (batch["labels"] != IGNORED).sum(),
        precision="bf16",
        thorough=True,
    )

    assert all(way.equal for way in equivalence.ways)


def test_the_bound_is_far_above_rounding_and_far_below_what_breaks_the_identity() -> None:
    def bounds(ways: tuple[Way, ...]) -> dict[str, float]:
        return {way.precision: way.bound for way in ways}

    found = bounds(checked(mlp(1), regression_batch(SAMPLES), squared_error, thorough=True).ways)

    assert 1e-13 < found["fp64"] < 1e-5
    assert 1e-6 < found["fp32"] < 1e-2
