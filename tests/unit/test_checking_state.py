"""What the check leaves behind, and how it ends where a workload does not run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from checking_models import (
    CLASSES,
    FEATURES,
    HIDDEN,
    TokenModel,
    advised_items,
    checked,
    class_batch,
    cross_entropy,
    mlp,
    regression_batch,
    squared_error,
    token_batch,
    token_cross_entropy,
)
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from profiler.equivalence import Decomposition
from profiler.errors import WorkloadError


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@dataclass(frozen=True, slots=True)
class State:
    """Everything about a model, and about torch, that a check may touch and must put back."""

    parameters: list[tuple[str, int, torch.dtype, bool, list[float]]]
    buffers: list[tuple[str, torch.dtype, list[float]]]
    modes: list[bool]
    hooks: list[dict[Any, Any]]
    statistics: list[Any]
    default_dtype: torch.dtype
    dispatch_modes: int

    @classmethod
    def of(cls, model: nn.Module) -> State:
        return cls(
            parameters=[
                (name, id(tensor), tensor.dtype, tensor.requires_grad, tensor.flatten().tolist())
                for name, tensor in model.named_parameters()
            ],
            buffers=[(name, tensor.dtype, tensor.flatten().tolist()) for name, tensor in model.named_buffers()],
            modes=[module.training for module in model.modules()],
            hooks=[
                *(dict(hooks) for module in model.modules() for hooks in _hooks_of(module)),
                *(dict(tensor._backward_hooks or {}) for tensor in model.parameters()),
                *(dict(getattr(tensor, "_post_accumulate_grad_hooks", None) or {}) for tensor in model.parameters()),
            ],
            statistics=[
                (module.momentum, module.track_running_stats)
                for module in model.modules()
                if isinstance(module, nn.BatchNorm1d)
            ],
            default_dtype=torch.get_default_dtype(),
            dispatch_modes=len(_get_current_dispatch_mode_stack()),
        )


def _hooks_of(module: nn.Module) -> tuple[dict[Any, Any], ...]:
    return (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)


def everything() -> nn.Sequential:
    """A model with something of each kind that the check switches off, changes or looks at."""
    model = nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(FEATURES, HIDDEN)),
        nn.BatchNorm1d(HIDDEN),
        nn.BatchNorm1d(HIDDEN, track_running_stats=False),
        nn.BatchNorm1d(HIDDEN),
        nn.Dropout(0.5),
        nn.Linear(HIDDEN, HIDDEN),
        nn.Softmax(dim=0),
        nn.Linear(HIDDEN, 1),
    )
    model.train()
    model[3].eval()
    model[5].requires_grad_(False)
    next(model[7].parameters()).register_hook(lambda gradient: gradient.clamp(-0.01, 0.01))
    model[7].register_forward_hook(lambda module, inputs, output: 2 * output)
    return model


class Stopped(BaseException):
    """As an interrupt is, which no code catches."""


def raising_at(call: int, error: BaseException) -> Callable[[nn.Module, Any], Any]:
    """A loss that raises in that call of it."""
    calls: list[int] = []

    def loss(model: nn.Module, batch: Any) -> Any:
        calls.append(call)
        outputs = squared_error(model, batch)
        if len(calls) == call:
            raise error
        return outputs

    return loss


@pytest.mark.parametrize("thorough", [False, True])
def test_a_check_leaves_the_model_as_it_was(thorough: bool) -> None:
    model = everything()
    before = State.of(model)
    equivalence = checked(model, regression_batch(), squared_error, thorough=thorough)

    assert not equivalence.equal
    assert State.of(model) == before


def test_a_check_leaves_the_model_as_it_was_where_it_refuses_fp64() -> None:
    model = everything()
    model.register_forward_pre_hook(lambda module, inputs: 1 / int(inputs[0].dtype is torch.float32) and None)
    before = State.of(model)
    equivalence = checked(model, regression_batch(), squared_error)

    assert any("ZeroDivisionError" in note for note in equivalence.notes)
    assert State.of(model) == before


@pytest.mark.parametrize("call", [1, 2, 5, 13, 34])
@pytest.mark.parametrize("error", [KeyError("no such label"), Stopped()], ids=["an error", "an interrupt"])
def test_a_model_is_left_as_it_was_where_the_workload_raises_midway(call: int, error: BaseException) -> None:
    model = everything()
    before = State.of(model)
    with suppress(KeyError, Stopped):
        checked(model, regression_batch(), raising_at(call, error))

    assert State.of(model) == before


def test_an_optimizer_that_steps_in_the_backward_leaves_the_parameters_as_they_were() -> None:
    model = mlp(1)

    def step(parameter: Tensor) -> None:
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    optimizers: dict[Tensor, torch.optim.Optimizer] = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    before = State.of(model)
    equivalence = checked(model, regression_batch(), squared_error)

    assert set(equivalence.modules) == {name for name, _ in model.named_parameters()}
    assert State.of(model) == before


class MovingCodes(nn.Module):
    """Adds a parameter that is not trained but moved towards what each forward saw, as codebooks are."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, 1)
        self.code = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, inputs: Tensor) -> Any:
        outputs = self.first(inputs) * self.code.clone()
        with torch.no_grad():
            self.code.lerp_(outputs.mean(), 0.1)
        return outputs


def test_a_parameter_that_the_forward_moves_is_left_as_it_was() -> None:
    model = MovingCodes()
    before = State.of(model)
    checked(model, regression_batch(), squared_error)

    assert State.of(model) == before


def test_a_parameter_that_the_forward_moves_is_named_as_state() -> None:
    equivalence = checked(MovingCodes(), regression_batch(), squared_error)

    assert equivalence.verdict == (
        "not equal: 'MovingCodes' changes state at every forward, so that later parts see another model"
    )


def test_a_buffer_that_the_forward_replaces_is_left_as_it_was() -> None:
    class Replacing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(FEATURES, 1)
            self.mean: Tensor
            self.register_buffer("mean", torch.zeros(()))

        def forward(self, inputs: Tensor) -> Any:
            outputs = self.first(inputs) - self.mean
            self.mean = 0.9 * self.mean + 0.1 * outputs.detach().mean()
            return outputs

    model = Replacing()
    before = State.of(model)
    equivalence = checked(model, regression_batch(), squared_error)

    assert equivalence.modules == ("Replacing",)
    assert State.of(model) == before


def test_a_model_with_a_table_of_its_own_type_trains_on_after_a_check() -> None:
    """As rotary embeddings are, computed once and kept."""

    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(FEATURES, HIDDEN)
            self.last = nn.Linear(HIDDEN, 1)
            self.table: Tensor | None = None

        def forward(self, inputs: Tensor) -> Any:
            hidden = self.first(inputs)
            if self.table is None:
                self.table = torch.arange(HIDDEN, dtype=hidden.dtype).cos()
            return self.last(hidden * self.table)

    model, batch = Cached(), regression_batch()

    assert checked(model, batch, squared_error).equal
    assert squared_error(model, batch).dtype is torch.float32


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (-1, "loss_items counted -1 items"),
        (float("nan"), "loss_items counted nan items"),
        (float("inf"), "loss_items counted inf items"),
        (0, "loss_items counts nothing in a batch of 8 samples"),
        (torch.tensor(0), "loss_items counts nothing in a batch of 8 samples"),
    ],
)
def test_loss_items_that_are_no_count_are_refused(items: Any, message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        checked(mlp(1), regression_batch(), squared_error, loss_items=lambda batch: items)


def test_loss_items_that_are_no_count_for_a_part_are_refused() -> None:
    with pytest.raises(WorkloadError, match=r"loss_items counted -3 items"):
        checked(mlp(1), regression_batch(), squared_error, loss_items=lambda batch: 8 if len(batch[0]) == 8 else -3)


@pytest.mark.parametrize("items", [None, [1, 2], torch.ones(8)], ids=lambda items: type(items).__name__)
def test_loss_items_that_are_no_number_are_refused(items: Any) -> None:
    with pytest.raises(WorkloadError, match="loss_items"):
        checked(mlp(1), regression_batch(), squared_error, loss_items=lambda batch: items)


def test_a_part_without_items_is_left_out() -> None:
    batch = token_batch("labels")
    batch["labels"][3] = -100
    equivalence = checked(
        TokenModel(), batch, token_cross_entropy, loss_items=lambda batch: (batch["labels"] != -100).sum()
    )

    assert equivalence.verdict == "equal"
    assert any(len(way.split) == 8 and way.equal for way in equivalence.ways)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_refused(number: float) -> None:
    with pytest.raises(WorkloadError, match=f"the loss of the first step is {number}"):
        checked(mlp(1), regression_batch(), lambda model, batch: squared_error(model, batch) * number)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda model, batch: model(batch[0])[:, 0], r"loss returned a tensor of shape \(8,\)"),
        (lambda model, batch: 3.0, "loss returned a float"),
        (lambda model, batch: squared_error(model, batch).detach(), "the loss has no gradient"),
    ],
    ids=["a vector", "a number", "detached"],
)
def test_a_loss_that_cannot_be_trained_is_refused(loss: Callable[[nn.Module, Any], Any], message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        checked(mlp(1), regression_batch(), loss)


def test_an_error_of_the_users_passes_unchanged() -> None:
    error = LookupError("no such label")

    with pytest.raises(LookupError) as raised:
        checked(mlp(1), regression_batch(), raising_at(1, error))

    assert raised.value is error


def test_an_error_in_loss_items_passes_unchanged() -> None:
    def loss_items(batch: Any) -> int:
        raise LookupError("no such mask")

    with pytest.raises(LookupError, match="no such mask"):
        checked(mlp(1), regression_batch(), squared_error, loss_items=loss_items)


def test_a_model_that_cannot_run_one_sample_is_noted_and_judged_by_parts_of_two() -> None:
    model = nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.BatchNorm1d(HIDDEN))
    equivalence = checked(model, regression_batch(), squared_error)

    assert equivalence.modules == ("1",)
    assert min(size for way in equivalence.ways for size in way.split) == 2
    assert [note for note in equivalence.notes if "micro-batches of 1: ValueError: Expected more than 1 value" in note]
    assert all(way.loss is not None for way in equivalence.ways)


def squeezing(model: nn.Module, batch: Any) -> Any:
    return functional.cross_entropy(model(batch[0]).squeeze(), batch[1])


def test_a_squeeze_that_breaks_on_one_sample_is_noted_and_the_rest_is_equal() -> None:
    equivalence = checked(mlp(), class_batch(), squeezing)

    assert equivalence.verdict == "equal"
    assert len(equivalence.notes) == 1
    assert equivalence.notes[0].startswith("not every micro-batch size runs; micro-batches of 1: ")


def needing(least: int) -> Callable[[nn.Module, Any], Any]:
    def loss(model: nn.Module, batch: Any) -> Any:
        if len(batch[0]) < least:
            raise ValueError(f"{len(batch[0])} samples are too few")
        return squared_error(model, batch)

    return loss


@pytest.mark.parametrize(("samples", "least"), [(5, 2), (8, 4), (9, 4), (16, 5), (17, 8)])
@pytest.mark.parametrize("thorough", [False, True])
def test_parts_are_never_smaller_than_what_runs(samples: int, least: int, thorough: bool) -> None:
    equivalence = checked(mlp(1), regression_batch(samples), needing(least), thorough=thorough)

    assert equivalence.verdict == "equal"
    assert min(size for way in equivalence.ways for size in way.split) >= least


def test_a_batch_of_which_no_part_runs_is_refused_with_why() -> None:
    with pytest.raises(WorkloadError, match=r"a batch of 8 samples runs, .*: ValueError: 1 samples are too few"):
        checked(mlp(1), regression_batch(), needing(8))


@pytest.mark.parametrize("samples", [2, 3, 5, 7, 17])
def test_batches_of_any_size_are_checked(samples: int) -> None:
    equivalence = checked(mlp(1), regression_batch(samples), squared_error, thorough=True)

    assert (equivalence.verdict, equivalence.batch_size) == ("equal", samples)
    assert all(sum(way.split) == samples for way in equivalence.ways)
    assert any(len(set(way.split)) > 1 for way in equivalence.ways) or samples == 2


@pytest.mark.parametrize("samples", [2, 3, 5])
def test_a_mean_over_tokens_is_found_in_batches_of_any_size(samples: int) -> None:
    batch = {name: tensor[:samples] for name, tensor in token_batch("labels").items()}
    equivalence = checked(TokenModel(), batch, token_cross_entropy)

    assert equivalence.decomposes is Decomposition.ITEMS
    assert checked(TokenModel(), batch, token_cross_entropy, loss_items=advised_items(equivalence)).equal


@pytest.mark.parametrize("samples", [2, 3, 5])
def test_a_contrastive_loss_is_found_in_batches_of_any_size(samples: int) -> None:
    def loss(model: nn.Module, batch: Any) -> Any:
        scores = model(batch[0]) @ model(batch[0].flip(1)).T
        return functional.cross_entropy(scores, torch.arange(len(scores)))

    assert checked(mlp(), class_batch(samples), loss).decomposes is Decomposition.NO


@pytest.mark.parametrize("samples", [4, 5, 7])
def test_batch_norm_is_found_in_batches_of_any_size_that_has_two_parts(samples: int) -> None:
    model = nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.Linear(HIDDEN, CLASSES))

    assert checked(model, class_batch(samples), cross_entropy).modules == ("1",)


@pytest.mark.parametrize("samples", [2, 3])
def test_batch_norm_in_a_batch_too_small_for_two_parts_asks_for_more_samples(samples: int) -> None:
    model = nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.BatchNorm1d(HIDDEN))

    with pytest.raises(WorkloadError, match=f"a batch of {samples} samples runs, .*Expected more than 1 value"):
        checked(model, regression_batch(samples), squared_error)
