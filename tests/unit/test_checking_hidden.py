"""What a batch, or numbers drawn inside the model or the loss, could hide from a check."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from checking_models import checked, cross_entropy, mlp
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from profiler.checking.draws import FixedDraws
from profiler.checking.fields import Fields
from profiler.equivalence import Decomposition, Equivalence

SAMPLES, WIDTH, CLASSES = 8, 5, 3
# One of a hundred steps counts much more than another.
STEP_WEIGHTS = torch.linspace(0.1, 5.0, 100)


def numbers(samples: int = SAMPLES) -> Tensor:
    return torch.randn(samples, WIDTH, generator=torch.Generator().manual_seed(1))


def classes(samples: int = SAMPLES) -> Tensor:
    return torch.arange(samples) % CLASSES


class Deviation(nn.Module):
    """The mean deviation over the batch, as one more feature of each sample."""

    def forward(self, features: Tensor) -> Tensor:
        spread = features.sub(features.mean(0)).square().mean()
        return torch.cat([features, spread.expand(len(features), 1)], 1)


def on_noise(*layers: nn.Module) -> Equivalence:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, 8), *layers)
    return checked(model, numbers(), lambda m, b: functional.softplus(m(torch.randn(len(b), WIDTH))).mean())


def test_batch_norm_on_noise_that_the_loss_draws_is_measured() -> None:
    equivalence = on_noise(nn.BatchNorm1d(8), nn.Linear(8, 2))

    assert equivalence.modules == ("1",)
    assert not any(way.equal for way in equivalence.ways if len(way.split) > 1)


def test_a_minibatch_deviation_of_noise_is_named() -> None:
    equivalence = on_noise(Deviation(), nn.Linear(9, 1))

    assert (equivalence.equal, equivalence.modules) == (False, ("1",))
    assert equivalence.decomposes is Decomposition.SAMPLES


def drawn_coins(shape: torch.Size) -> Tensor:
    return torch.bernoulli(torch.full(shape, 0.6)).bool()


def drawn_numbers(shape: torch.Size) -> Tensor:
    return torch.rand(shape) < 0.6


@pytest.mark.parametrize("draw", [drawn_coins, drawn_numbers])
def test_a_mean_over_a_mask_that_the_loss_draws_is_no_mean_over_samples(draw: Callable[[torch.Size], Tensor]) -> None:
    torch.manual_seed(0)

    def loss(model: nn.Module, batch: Tensor) -> Any:
        return (model(batch) - batch).square()[draw(batch.shape)].mean()

    equivalence = checked(mlp(WIDTH), numbers(), loss)

    assert (equivalence.equal, equivalence.decomposes) == (False, Decomposition.WEIGHTED)
    assert equivalence.random_modules == ("the loss",)


@pytest.mark.parametrize(("weighted", "equal"), [(True, False), (False, True)])
def test_a_diffusion_loss_is_equal_unless_steps_are_weighted(weighted: bool, equal: bool) -> None:
    torch.manual_seed(0)

    def loss(model: nn.Module, batch: Tensor) -> Any:
        step, noise = torch.randint(0, 100, (len(batch),)), torch.randn_like(batch)
        errors = (model(batch + noise * step[:, None] / 100) - noise).square().mean(1)
        weights = STEP_WEIGHTS[step] if weighted else torch.ones(len(batch))
        return (weights * errors).sum() / weights.sum()

    equivalence = checked(mlp(WIDTH), numbers(), loss)

    assert equivalence.equal is equal
    assert equivalence.decomposes is (Decomposition.WEIGHTED if weighted else Decomposition.SAMPLES)


class Noisy(nn.Module):
    """Noise inside of what is computed again in the backward."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Sequential(nn.Linear(WIDTH, 8), nn.Dropout(0.3), nn.ReLU()), nn.Linear(8, CLASSES)

    def forward(self, inputs: Tensor) -> Any:
        return self.last(checkpoint(self.noise, inputs, use_reentrant=False))

    def noise(self, inputs: Tensor) -> Tensor:
        features: Tensor = self.first(inputs)
        return features * torch.randn_like(features)


def test_noise_under_activation_checkpointing_is_the_same_again_in_the_backward() -> None:
    torch.manual_seed(0)

    assert checked(Noisy(), (numbers(), classes()), cross_entropy).equal


def test_a_draw_follows_its_sample_into_every_part() -> None:
    fields = Fields(samples=6)

    def drawn(places: range) -> list[Tensor]:
        fields.begin(places)
        with FixedDraws(fields=fields):
            return [torch.randn(len(places), 2), torch.rand(3, len(places)), torch.rand(2)]

    shapes: list[dict[int, tuple[int, ...]]] = []
    for places in (range(6), range(2)):
        fields.seen = {}
        drawn(places)
        shapes.append(fields.seen)
    fields.learn(shapes[0], shapes[1], 2)
    whole, part = drawn(range(6)), drawn(range(3, 5))

    assert torch.equal(part[0], whole[0][3:5])
    assert torch.equal(part[1], whole[1][:, 3:5])
    assert torch.equal(part[2], whole[2])
    assert whole[0].unique().numel() == 12


def test_samples_that_are_alike_hide_nothing_of_batch_norm_and_are_noted() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES))
    equivalence = checked(model, (torch.zeros(SAMPLES, WIDTH), classes()), cross_entropy)

    assert (equivalence.equal, equivalence.modules) == (False, ("1",))
    assert any("hold the same numbers" in note for note in equivalence.notes)


def test_batch_norm_in_a_module_that_the_loss_holds_is_named() -> None:
    torch.manual_seed(0)
    judge = nn.Sequential(nn.Linear(CLASSES, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    equivalence = checked(mlp(CLASSES), numbers(), lambda model, batch: judge(model(batch)).square().mean())

    assert (equivalence.equal, equivalence.modules) == (False, ("loss.1",))
    assert equivalence.decomposes is Decomposition.SAMPLES


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = nn.Linear(WIDTH, 4), nn.Linear(WIDTH, 4)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        return self.large(inputs), self.small(inputs)


def test_a_large_gradient_does_not_hide_a_small_one() -> None:
    torch.manual_seed(0)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        predicted, embedded = model(batch[0])
        similar = functional.normalize(embedded) @ functional.normalize(embedded).T
        return functional.mse_loss(predicted, batch[1]) + functional.cross_entropy(
            similar, torch.arange(len(similar)).roll(1)
        )

    assert not checked(Heads(), (numbers(), 1e6 * torch.rand(SAMPLES, 4)), loss).equal


def test_a_model_that_writes_into_its_inputs_is_equal() -> None:
    torch.manual_seed(0)
    inner = mlp(CLASSES)

    class Normalising(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, inputs: Tensor) -> Any:
            return self.inner(inputs.sub_(0.5).div_(0.25))

    batch = (numbers(), classes())
    equivalence = checked(Normalising(), batch, cross_entropy, thorough=True)

    assert equivalence.equal
    assert torch.equal(batch[0], numbers())


def test_counts_are_those_of_the_batch_before_a_loss_writes_into_it() -> None:
    torch.manual_seed(0)

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        targets = batch["y"]
        targets[targets == 0] = -100
        return functional.cross_entropy(model(batch["x"]), targets)

    batch = {"x": numbers(), "y": classes()}
    equivalence = checked(mlp(CLASSES), batch, loss, loss_items=lambda b: int((b["y"] != 0).sum()))

    assert (equivalence.equal, equivalence.items) == (True, "loss_items(batch)")


class NormEval(nn.Sequential):
    """Keeps its norm frozen in its own `train`, as detection models do."""

    def train(self, mode: bool = True) -> NormEval:
        super().train(mode)
        self[1].eval()
        return self


def test_a_norm_that_the_models_own_train_freezes_is_frozen() -> None:
    torch.manual_seed(0)
    model = NormEval(nn.Linear(WIDTH, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES))

    assert checked(model, (numbers(), classes()), cross_entropy).equal


@pytest.mark.parametrize(
    "build",
    [
        lambda: torch.jit.trace(mlp(CLASSES), numbers()),
        lambda: nn.Sequential(nn.LazyLinear(6), nn.ReLU(), nn.Linear(6, CLASSES)),
    ],
    ids=["TorchScript", "lazy"],
)
@pytest.mark.filterwarnings(
    "ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning", "ignore::UserWarning"
)
def test_unusual_modules_are_checked(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)

    assert checked(build(), (numbers(), classes()), cross_entropy).equal


def test_a_hook_on_the_loss_is_advised_on_though_it_cannot_be_named() -> None:
    torch.manual_seed(0)

    def loss(model: nn.Module, batch: Any) -> Any:
        value = cross_entropy(model, batch)
        value.register_hook(lambda gradient: gradient.clamp(max=0.05))
        return value

    equivalence = checked(mlp(CLASSES), (numbers(), classes()), loss)

    assert not equivalence.equal
    assert "hooks on the loss" in equivalence.advice
