from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from checking_models import (
    FEATURES,
    HIDDEN,
    SAMPLES,
    TokenModel,
    advised_items,
    checked,
    class_batch,
    furthest,
    mlp,
    regression_batch,
    squared_error,
    subject_of,
    token_batch,
)
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.threads import one_thread
from profiler.equivalence import Decomposition, Equivalence
from profiler.outcomes import Strategy

CHANNELS, SIDE = 4, 4


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def named(**modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(modules))


def around(norm: nn.Module) -> nn.Sequential:
    """A model of vectors with `norm` in the middle."""
    return named(first=nn.Linear(FEATURES, HIDDEN), norm=norm, last=nn.Linear(HIDDEN, 1))


def around_images(norm: nn.Module) -> nn.Sequential:
    """A model of images with `norm` in the middle."""
    size = CHANNELS * (SIDE - 2) ** 2
    return named(first=nn.Conv2d(2, CHANNELS, 3), norm=norm, flat=nn.Flatten(), last=nn.Linear(size, 1))


def image_batch() -> tuple[Tensor, Tensor]:
    return regression_batch(SAMPLES, 2, SIDE, SIDE)


def frozen_deviation(equivalence: Equivalence) -> float:
    """How far the gradient is off without what breaks it, from the reason that says so."""
    (found,) = [found for reason in equivalence.reasons if (found := re.search(r"and by (\S+) with", reason))]
    return float(found[1])


class HandMadeBatchNorm(nn.Module):
    def __init__(self, features: int = HIDDEN) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.weight * (inputs - inputs.mean(0)) / (inputs.var(0, unbiased=False) + 1e-5).sqrt()


class MinibatchDeviation(nn.Module):
    """One more feature, the same for all samples: how much they differ."""

    def forward(self, inputs: Tensor) -> Tensor:
        deviation = (inputs.var(0, unbiased=False) + 1e-8).sqrt().mean()
        return torch.cat([inputs, deviation.expand(len(inputs), 1)], dim=1)


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, inputs: Tensor) -> Any:
        return inputs + self.inner(inputs)


class Memory(nn.Module):
    """Keeps what it saw last, as a buffer that plays no part in its output."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(FEATURES))

    def forward(self, inputs: Tensor) -> Tensor:
        self.seen: Tensor = inputs.mean(0)
        return inputs


class Queue(nn.Module):
    """Scores against a queue of earlier outputs, which it shifts by its own."""

    def __init__(self, length: int = 16) -> None:
        super().__init__()
        self.embed = nn.Linear(FEATURES, HIDDEN)
        self.queue: Tensor
        self.register_buffer("queue", torch.randn(length, HIDDEN))

    def forward(self, inputs: Tensor) -> Tensor:
        embedded = self.embed(inputs)
        scores: Tensor = embedded @ self.queue.clone().T
        self.queue.copy_(torch.cat([embedded.detach(), self.queue])[: len(self.queue)])
        return scores


BATCH_NORMS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "BatchNorm1d": (lambda: around(nn.BatchNorm1d(HIDDEN)), regression_batch),
    "BatchNorm2d": (lambda: around_images(nn.BatchNorm2d(CHANNELS)), image_batch),
    "SyncBatchNorm": (lambda: around(nn.SyncBatchNorm(HIDDEN)), regression_batch),
    "without weights": (lambda: around(nn.BatchNorm1d(HIDDEN, affine=False)), regression_batch),
    "without statistics": (lambda: around(nn.BatchNorm1d(HIDDEN, track_running_stats=False)), regression_batch),
    "without either": (
        lambda: around(nn.BatchNorm1d(HIDDEN, affine=False, track_running_stats=False)),
        regression_batch,
    ),
    "a cumulative average": (lambda: around(nn.BatchNorm1d(HIDDEN, momentum=None)), regression_batch),
}


@pytest.mark.parametrize("name", BATCH_NORMS)
def test_batch_norm_in_training_is_named_and_counted_and_equal_with_its_statistics_frozen(name: str) -> None:
    model, batch = BATCH_NORMS[name]
    equivalence = checked(model(), batch(), squared_error)
    title = "SyncBatchNorm" if name == "SyncBatchNorm" else "BatchNorm"

    assert equivalence.verdict == (
        f"not equal: {title} normalises each micro-batch by itself (1 layer); equal with its statistics frozen"
    )
    assert equivalence.modules == ("norm",)
    assert equivalence.decomposes is Decomposition.SAMPLES
    assert furthest(equivalence) > 1e-2
    assert frozen_deviation(equivalence) < 1e-12


def test_many_batch_norms_are_counted() -> None:
    layers = {f"norm{place}": nn.BatchNorm2d(2) for place in range(6)}
    equivalence = checked(named(first=nn.Conv2d(2, 2, 1), **layers), image_batch(), squared_error)

    assert "(6 layers); equal with their statistics frozen" in equivalence.verdict
    assert equivalence.modules == tuple(layers)
    assert any(
        "'norm0', 'norm1', 'norm2', 'norm3' and 2 more (BatchNorm2d)" in reason for reason in equivalence.reasons
    )


@pytest.mark.parametrize("name", BATCH_NORMS)
def test_freezing_batch_norm_as_advised_makes_it_equal(name: str) -> None:
    build, batch = BATCH_NORMS[name]
    model = build()
    model.train()
    equivalence = checked(model, batch(), squared_error)
    assert "GroupNorm" in equivalence.advice
    if "module.eval()" in equivalence.advice:
        for module in equivalence.modules:
            model.get_submodule(module).eval()

        assert checked(model, batch(), squared_error).verdict == "equal"


def test_replacing_batch_norm_as_advised_makes_it_equal() -> None:
    model = around_images(nn.BatchNorm2d(CHANNELS))
    (name,) = checked(model, image_batch(), squared_error).modules
    model.set_submodule(name, nn.GroupNorm(2, CHANNELS))

    assert checked(model, image_batch(), squared_error).verdict == "equal"


def test_sync_batch_norm_is_said_to_join_replicas_only() -> None:
    equivalence = checked(around(nn.SyncBatchNorm(HIDDEN)), regression_batch(), squared_error)

    assert "SyncBatchNorm joins replicas, not the micro-batches of one" in equivalence.advice


def test_batch_norm_and_a_mean_over_tokens_are_both_named() -> None:
    class NormedTokens(TokenModel):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(HIDDEN)

        def forward(self, tokens: Tensor) -> Any:
            return self.output(self.norm(self.embedding(tokens).transpose(1, 2)).transpose(1, 2))

    def loss(model: nn.Module, batch: Any) -> Any:
        return functional.cross_entropy(model(batch["words"]).flatten(0, 1), batch["labels"].flatten())

    model, batch = NormedTokens(), token_batch("labels")
    equivalence = checked(model, batch, loss)
    model.norm.eval()

    assert equivalence.modules == ("norm",)
    assert equivalence.items == "(batch['labels'] != -100).sum()"
    assert "normalises each micro-batch by itself (1 layer); the loss is averaged over" in equivalence.verdict
    assert checked(model, batch, loss, loss_items=advised_items(equivalence)).equal


def test_right_loss_items_are_not_blamed_for_batch_norm() -> None:
    def loss(model: nn.Module, batch: Any) -> Any:
        errors = (model(batch[0])[:, 0] - batch[1]).square()
        return (errors * batch[2]).sum() / batch[2].sum()

    batch = (*regression_batch(), torch.rand(SAMPLES) + 0.1)
    equivalence = checked(around(nn.BatchNorm1d(HIDDEN)), batch, loss, loss_items=lambda batch: float(batch[2].sum()))

    assert equivalence.verdict == (
        "not equal: BatchNorm normalises each micro-batch by itself (1 layer); equal with its statistics frozen"
    )
    assert "loss_items" not in equivalence.advice


def test_batch_norm_does_not_hide_a_contrastive_loss() -> None:
    def loss(model: Any, batch: Any) -> Any:
        scores = model[:2](batch[0]) @ model[:2](batch[0].flip(1)).T
        return functional.cross_entropy(scores, torch.arange(len(scores)))

    equivalence = checked(around(nn.BatchNorm1d(HIDDEN)), regression_batch(), loss)

    assert equivalence.decomposes is Decomposition.NO
    assert equivalence.modules == ("norm",)
    assert "the loss is not averaged over samples, nor over anything else" in equivalence.verdict


@pytest.mark.parametrize(
    ("model", "batch"),
    [
        (lambda: around(nn.LayerNorm(HIDDEN)), regression_batch),
        (lambda: around(nn.GroupNorm(2, HIDDEN)), regression_batch),
        (lambda: around(nn.RMSNorm(HIDDEN)), regression_batch),
        (lambda: around_images(nn.GroupNorm(2, CHANNELS)), image_batch),
        (lambda: around_images(nn.InstanceNorm2d(CHANNELS, affine=True)), image_batch),
        (lambda: around_images(nn.LocalResponseNorm(2)), image_batch),
        (lambda: named(first=nn.utils.parametrizations.weight_norm(nn.Linear(FEATURES, 1))), regression_batch),
    ],
    ids=[
        "LayerNorm",
        "GroupNorm",
        "RMSNorm",
        "GroupNorm of images",
        "InstanceNorm",
        "LocalResponseNorm",
        "weight_norm",
    ],
)
def test_what_normalises_each_sample_is_equal(model: Callable[[], nn.Module], batch: Callable[[], Any]) -> None:
    equivalence = checked(model(), batch(), squared_error)

    assert (equivalence.verdict, equivalence.modules, equivalence.notes) == ("equal", (), ())
    assert furthest(equivalence) < 1e-12


def test_instance_norm_with_running_statistics_is_equal_and_noted() -> None:
    norm = nn.InstanceNorm2d(CHANNELS, track_running_stats=True)
    equivalence = checked(around_images(norm), image_batch(), squared_error)

    assert (equivalence.verdict, equivalence.modules) == ("equal", ())
    assert equivalence.notes == ("'norm' keeps running state, which is updated once for every micro-batch.",)


def test_a_buffer_that_changes_no_output_is_equal_and_noted() -> None:
    equivalence = checked(named(memory=Memory(), last=nn.Linear(FEATURES, 1)), regression_batch(), squared_error)

    assert equivalence.verdict == "equal"
    assert equivalence.notes == ("'memory' keeps running state, which is updated once for every micro-batch.",)


MIXING: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "a batch norm made by hand": (lambda: around(HandMadeBatchNorm()), "norm", "HandMadeBatchNorm"),
    "minibatch deviation": (
        lambda: named(first=nn.Linear(FEATURES, HIDDEN), spread=MinibatchDeviation(), last=nn.Linear(HIDDEN + 1, 1)),
        "spread",
        "MinibatchDeviation",
    ),
    "a softmax over the batch": (lambda: around(nn.Softmax(dim=0)), "norm", "Softmax"),
    "inside of other modules": (
        lambda: around(Residual(nn.Sequential(nn.Linear(HIDDEN, HIDDEN), Residual(HandMadeBatchNorm())))),
        "norm.inner.1.inner",
        "HandMadeBatchNorm",
    ),
}


@pytest.mark.parametrize("name", MIXING)
def test_a_module_that_mixes_samples_is_named_and_only_the_innermost(name: str) -> None:
    build, module, class_name = MIXING[name]
    equivalence = checked(build(), regression_batch(), squared_error)

    assert equivalence.modules == (module,)
    assert equivalence.verdict == f"not equal: '{module}' lets the samples of a micro-batch see each other"
    assert f"'{module}' ({class_name}) lets the samples of a batch see each other." in equivalence.reasons
    assert equivalence.decomposes is Decomposition.SAMPLES


def test_two_modules_that_mix_samples_one_behind_the_other_are_both_named() -> None:
    model = named(first=nn.Linear(FEATURES, HIDDEN), one=HandMadeBatchNorm(), two=HandMadeBatchNorm())

    assert checked(model, regression_batch(), squared_error).modules == ("one", "two")


def test_a_model_that_mixes_samples_itself_is_named_by_its_class() -> None:
    equivalence = checked(HandMadeBatchNorm(FEATURES), regression_batch(), squared_error)

    assert equivalence.modules == ("HandMadeBatchNorm",)
    assert equivalence.decomposes is Decomposition.NO


def test_attention_along_the_batch_instead_of_the_sequence_is_named_in_every_layer() -> None:
    """Layers that expect the sequence first, given the batch first."""
    layers = {f"layer{place}": nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0) for place in range(2)}
    model = named(**layers, last=nn.Linear(8, 1))
    equivalence = checked(model, regression_batch(SAMPLES, 5, 8), squared_error)

    assert equivalence.modules == ("layer0.self_attn", "layer1.self_attn")
    assert equivalence.decomposes is Decomposition.SAMPLES


def test_attention_along_the_sequence_is_equal() -> None:
    layers = {f"layer{place}": nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0) for place in range(2)}
    model = named(**layers, last=nn.Linear(8, 1))

    def sequence_first(model: nn.Module, batch: Any) -> Any:
        outputs = model(batch[0].transpose(0, 1)).transpose(0, 1)
        return (outputs.flatten(1).mean(1) - batch[1]).square().mean()

    assert checked(model, regression_batch(SAMPLES, 5, 8), sequence_first).verdict == "equal"


def test_mixing_samples_does_not_hide_a_mean_over_tokens() -> None:
    class Mixed(TokenModel):
        def __init__(self) -> None:
            super().__init__()
            self.norm = HandMadeBatchNorm()

        def forward(self, tokens: Tensor) -> Any:
            return self.output(self.norm(self.embedding(tokens)))

    def loss(model: nn.Module, batch: Any) -> Any:
        return functional.cross_entropy(model(batch["words"]).flatten(0, 1), batch["labels"].flatten())

    equivalence = checked(Mixed(), token_batch("labels"), loss)

    assert equivalence.modules == ("norm",)
    assert (equivalence.decomposes, equivalence.items) == (Decomposition.ITEMS, "(batch['labels'] != -100).sum()")


def in_training_spectral_norm() -> nn.Module:
    """A layer whose weight has moved since its norm was estimated, as it has in training."""
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(FEATURES, HIDDEN))
    with torch.no_grad():
        next(parameter for parameter in layer.parameters() if parameter.dim() == 2).normal_()
    return layer


STATE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "spectral_norm": (lambda: named(first=nn.utils.spectral_norm(nn.Linear(FEATURES, HIDDEN))), "first"),
    "the newer spectral_norm": (lambda: named(first=in_training_spectral_norm()), "first.parametrizations.weight.0"),
    "a queue of negatives": (lambda: named(first=Queue()), "first"),
}


@pytest.mark.parametrize("name", STATE)
def test_a_module_whose_state_changes_at_every_forward_is_named(name: str) -> None:
    build, module = STATE[name]
    equivalence = checked(build(), regression_batch(), squared_error)

    assert equivalence.modules == (module,)
    assert equivalence.verdict == (
        f"not equal: '{module}' changes state at every forward, so that later parts see another model"
    )
    assert equivalence.decomposes is Decomposition.SAMPLES
    assert frozen_deviation(equivalence) < 1e-12


def test_spectral_norm_that_changes_once_a_step_as_advised_is_equal() -> None:
    def accumulated(sizes: list[int]) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.utils.parametrizations.spectral_norm(nn.Linear(FEATURES, HIDDEN)).double()
        inputs, targets = (tensor.double() for tensor in regression_batch())
        for place, part in enumerate(zip(inputs.split(sizes), targets.split(sizes), strict=True)):
            model.train(place == 0)
            (squared_error(model, part) * len(part[0]) / SAMPLES).backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    torch.testing.assert_close(accumulated([3, 3, 2]), accumulated([8]), rtol=1e-12, atol=1e-12)


def first_of(model: nn.Module) -> nn.Parameter:
    return next(model.parameters())


def clip(gradient: Tensor) -> Tensor:
    return gradient.clamp(-0.01, 0.01)


def clip_in_place(parameter: Tensor) -> None:
    assert parameter.grad is not None
    parameter.grad.clamp_(-0.01, 0.01)


@pytest.mark.parametrize("kind", ["register_hook", "register_post_accumulate_grad_hook"])
def test_a_hook_that_clips_each_gradient_is_named(kind: str) -> None:
    model = mlp(1)
    getattr(first_of(model), kind)(clip if kind == "register_hook" else clip_in_place)
    equivalence = checked(model, regression_batch(), squared_error)

    assert equivalence.modules == ("0.weight",)
    assert equivalence.verdict == (
        "not equal: hooks on 1 parameter change each micro-batch's gradient, as clipping per part does"
    )
    assert frozen_deviation(equivalence) < 1e-12


def test_a_model_with_its_hooks_removed_as_advised_is_equal() -> None:
    model = mlp(1)
    hook = first_of(model).register_hook(clip)
    batch = regression_batch()
    before = checked(model, batch, squared_error)
    hook.remove()

    assert (before.equal, checked(model, batch, squared_error).verdict) == (False, "equal")


def test_hooks_that_scale_gradients_are_equal() -> None:
    model = mlp(1)
    first_of(model).register_hook(lambda gradient: 2 * gradient)

    assert checked(model, regression_batch(), squared_error).verdict == "equal"


def test_hooks_and_batch_norm_are_both_named() -> None:
    model = around(nn.BatchNorm1d(HIDDEN))
    first_of(model).register_hook(clip)

    assert set(checked(model, regression_batch(), squared_error).modules) == {"norm", "first.weight"}


def test_what_changes_gradients_inside_of_the_backward_is_told_from_the_loss() -> None:
    class Clipped(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, inputs: Tensor) -> Tensor:
            return inputs.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Any:
            return gradient / gradient.norm()

    def loss(model: nn.Module, batch: Any) -> Any:
        outputs = Clipped.apply(model(batch[0]))  # type: ignore[no-untyped-call]  # torch's has no types
        return (outputs[:, 0] - batch[1]).square().mean()

    equivalence = checked(mlp(1), regression_batch(), loss)

    assert equivalence.verdict == (
        "not equal: the losses of the parts add up to the whole one, and their gradients do not"
    )


def test_a_gradient_that_is_all_rounding_does_not_make_a_model_unequal() -> None:
    """InstanceNorm takes the mean away, so the gradient of a bias before it is 0 but for rounding."""
    model, batch = around_images(nn.InstanceNorm2d(CHANNELS)), image_batch()
    subject = subject_of(model, batch, squared_error, precision="fp32")
    with one_thread():
        whole = subject.total(Strategy.WHOLE_BATCH, [(subject.piece(range(SAMPLES)), 1.0)]).gradients
        parts = [(subject.piece(range(place, place + 2)), 0.25) for place in range(0, SAMPLES, 2)]
        accumulated = subject.total(Strategy.ACCUMULATION, parts).gradients
    place = [name for name, _ in model.named_parameters()].index("first.bias")
    of_bias, again = whole[place], accumulated[place]
    assert of_bias is not None
    assert again is not None

    assert float((again - of_bias).norm()) > 1e-2 * float(of_bias.norm())
    assert all(way.equal for way in checked(model, batch, squared_error, thorough=True).ways)


def test_dropout_beside_batch_norm_is_no_cause() -> None:
    model = around(nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(HIDDEN)))
    equivalence = checked(model, class_batch(), squared_error)

    assert (equivalence.modules, equivalence.random_modules) == (("norm.1",), ("norm.0",))
