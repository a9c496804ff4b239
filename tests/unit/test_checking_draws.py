from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from checking_models import (
    FEATURES,
    HIDDEN,
    SAMPLES,
    checked,
    furthest,
    mlp,
    regression_batch,
    squared_error,
)
from torch import Tensor, nn
from torch.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    Dirichlet,
    Exponential,
    Gamma,
    NegativeBinomial,
    Normal,
    RelaxedBernoulli,
    StudentT,
    Uniform,
)
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from benchmarks.threads import one_thread
from profiler.checking.draws import _EXPECTED, FixedDraws
from profiler.checking.state import default_dtype
from profiler.equivalence import Decomposition

LENGTH, WIDTH = 5, 8


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    with one_thread():
        yield


class Recorder(TorchDispatchMode):
    """The names of the operators that run in it; it passes them on to the mode outside of it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's has no types
        self.seen: set[str] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.seen.add(function._schema.name.removeprefix("aten::"))
        return function(*args, **(kwargs or {}))


ops = torch.ops.aten
NUMBERS = torch.tensor([[-2.0, -1.0, 0.0], [1.0, 2.0, 3.0]])
SHARES = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3]])
SLOPE = (1 / 8 + 1 / 3) / 2
LEAKY = torch.where(NUMBERS <= 0, SLOPE * NUMBERS, NUMBERS)

# Each operator of the table with what it gives in expectation.
EXPECTED: dict[str, tuple[Callable[[], Tensor], Tensor]] = {
    "bernoulli": (lambda: torch.bernoulli(SHARES), SHARES),
    "bernoulli_": (lambda: torch.empty(2, 3).bernoulli_(0.3), torch.full((2, 3), 0.3)),
    "uniform": (lambda: ops.uniform(NUMBERS, 1.0, 4.0), torch.full((2, 3), 2.5)),
    "uniform_": (lambda: torch.empty(2, 3).uniform_(1.0, 4.0), torch.full((2, 3), 2.5)),
    "normal": (lambda: torch.normal(NUMBERS, 1.0), NUMBERS),
    "normal_": (lambda: torch.empty(2, 3).normal_(2.0, 5.0), torch.full((2, 3), 2.0)),
    "exponential": (lambda: ops.exponential(NUMBERS, 4.0), torch.full((2, 3), 0.25)),
    "exponential_": (lambda: torch.empty(2, 3).exponential_(4.0), torch.full((2, 3), 0.25)),
    "rand": (lambda: torch.rand(2, 3), torch.full((2, 3), 0.5)),
    "rand_like": (lambda: torch.rand_like(NUMBERS), torch.full((2, 3), 0.5)),
    "randn": (lambda: torch.randn(2, 3), torch.zeros(2, 3)),
    "randn_like": (lambda: torch.randn_like(NUMBERS), torch.zeros(2, 3)),
    "randint": (lambda: torch.randint(2, 9, (2, 3)), torch.full((2, 3), 5)),
    "randint_like": (lambda: torch.randint_like(NUMBERS, 9), torch.full((2, 3), 4.0)),
    "randperm": (lambda: torch.randperm(4), torch.tensor([3, 2, 1, 0])),
    "multinomial": (lambda: torch.multinomial(SHARES, 2), torch.tensor([[1, 2], [0, 2]])),
    "poisson": (lambda: torch.poisson(2 * SHARES), 2 * SHARES),
    "_standard_gamma": (lambda: ops._standard_gamma(SHARES), SHARES),
    "_sample_dirichlet": (lambda: ops._sample_dirichlet(3 * SHARES), SHARES),
    "binomial": (lambda: torch.binomial(torch.full((2, 3), 8.0), SHARES), 8 * SHARES),
    "native_dropout": (lambda: torch.native_dropout(NUMBERS, 0.5, True)[0], NUMBERS),
    "rrelu_with_noise": (lambda: functional.rrelu(NUMBERS, training=True), LEAKY),
    "rrelu_with_noise_": (lambda: functional.rrelu(NUMBERS.clone(), training=True, inplace=True), LEAKY),
}

# More ways to the same operators.
VARIANTS: dict[str, tuple[Callable[[], Tensor], Tensor]] = {
    "bernoulli of one probability": (lambda: torch.bernoulli(NUMBERS, 0.3), torch.full((2, 3), 0.3)),
    "bernoulli_ of a tensor": (lambda: torch.empty(2, 3).bernoulli_(SHARES), SHARES),
    "normal of two tensors": (lambda: torch.normal(NUMBERS, SHARES), NUMBERS),
    "normal of one mean": (lambda: torch.normal(2.0, SHARES), torch.full((2, 3), 2.0)),
    "normal of a shape": (lambda: torch.normal(2.0, 1.0, (2, 3)), torch.full((2, 3), 2.0)),
    "randint from 0": (lambda: torch.randint(9, (2, 3)), torch.full((2, 3), 4)),
    "rand of another type": (
        lambda: torch.rand(2, 3, dtype=torch.float64),
        torch.full((2, 3), 0.5, dtype=torch.float64),
    ),
    "a generator of its own": (lambda: torch.randn(2, 3, generator=torch.Generator()), torch.zeros(2, 3)),
    "multinomial with replacement": (
        lambda: torch.multinomial(SHARES, 2, replacement=True),
        torch.tensor([[1, 1], [0, 0]]),
    ),
    "dropout": (lambda: functional.dropout(NUMBERS), NUMBERS),
    "dropout in place": (lambda: functional.dropout(NUMBERS.clone(), inplace=True), NUMBERS),
    "dropout of channels": (lambda: functional.dropout1d(NUMBERS[None]), NUMBERS[None]),
}


def test_every_operator_of_the_table_is_tested() -> None:
    assert EXPECTED.keys() == _EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_a_draw_gives_its_expected_value(name: str) -> None:
    draw, expected = EXPECTED[name]
    with FixedDraws() as draws, Recorder() as recorder:
        drawn = draw()

    assert name in recorder.seen
    assert list(draws.drew) == ["the loss"]
    torch.testing.assert_close(drawn, expected)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_draw_gives_its_expected_value_whatever_it_is_called(name: str) -> None:
    draw, expected = VARIANTS[name]
    with FixedDraws():
        drawn = draw()

    torch.testing.assert_close(drawn, expected)


@pytest.mark.parametrize(
    "draw",
    [
        lambda shape: torch.empty(shape).geometric_(0.3),
        lambda shape: torch.empty(shape).log_normal_(),
        lambda shape: torch.empty(shape).cauchy_(),
        lambda shape: torch.empty(shape).random_(2, 99),
        lambda shape: torch.poisson(torch.full(shape, 3.0)),
    ],
    ids=["geometric_", "log_normal_", "cauchy_", "random_", "poisson"],
)
def test_a_draw_without_an_entry_gives_one_value_in_every_place_of_any_shape(
    draw: Callable[[tuple[int, ...]], Tensor],
) -> None:
    with FixedDraws() as draws:
        small, large = draw((2,)), draw((5, 40))

    assert list(draws.drew) == ["the loss"]
    assert {*small.tolist(), *large.flatten().tolist()} == {float(small[0])}


@pytest.mark.parametrize(
    "draw",
    [
        torch.bernoulli,
        torch.poisson,
        lambda shares: torch.binomial(torch.full_like(shares, 9.0), shares),
        lambda shares: torch.normal(shares, 1.0),
        lambda shares: torch.multinomial(shares, 2),
        torch._standard_gamma,
        torch._sample_dirichlet,
    ],
    ids=["bernoulli", "poisson", "binomial", "normal", "multinomial", "gamma", "dirichlet"],
)
def test_a_draw_from_a_distribution_of_each_samples_own_does_not_see_the_other_samples(
    draw: Callable[[Tensor], Tensor],
) -> None:
    shares = torch.cat([SHARES.flip(1), SHARES])
    with FixedDraws():
        among, alone = draw(shares)[2:], draw(shares[2:])

    torch.testing.assert_close(among, alone, rtol=0, atol=0)


LSTM = nn.LSTM(3, 2, num_layers=2)
EVALUATED_LSTM = nn.LSTM(3, 2, num_layers=2, dropout=0.5).eval()


@pytest.mark.parametrize(
    "draw",
    [
        lambda: functional.dropout(NUMBERS, training=False),
        lambda: functional.dropout(NUMBERS, p=0.0),
        lambda: torch.native_dropout(NUMBERS, 0.5, False)[0],
        lambda: functional.rrelu(NUMBERS, training=False),
        lambda: functional.scaled_dot_product_attention(NUMBERS[None], NUMBERS[None], NUMBERS[None]),
        lambda: LSTM(NUMBERS)[0],
        lambda: EVALUATED_LSTM(NUMBERS)[0],
    ],
    ids=["not training", "p = 0", "native", "rrelu", "attention", "LSTM", "LSTM in evaluation"],
)
def test_what_does_not_draw_is_left_alone(draw: Callable[[], Tensor]) -> None:
    plain = draw()
    with FixedDraws() as draws:
        fixed = draw()

    torch.testing.assert_close(fixed, plain, rtol=0, atol=0)
    assert draws.drew == {}


def outputs_and_gradients(model: nn.Module, *inputs: Any) -> list[Tensor]:
    """What the model gives, and the gradients of the sum of its squares."""
    model.zero_grad(set_to_none=True)
    outputs = model(*inputs)
    outputs = outputs[0] if isinstance(outputs, tuple) else outputs
    outputs.square().sum().backward()
    return [outputs.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    model.eval()
    try:
        yield model
    finally:
        model.train()


class Checkpointed(nn.Module):
    """Dropout whose forward is run again in the backward."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, HIDDEN)
        self.inner = nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.Dropout(0.4), nn.Tanh())
        self.last = nn.Linear(HIDDEN, 1)
        self.reentrant = reentrant

    def forward(self, inputs: Tensor) -> Any:
        return self.last(checkpoint(self.inner, self.first(inputs), use_reentrant=self.reentrant))


class Attention(nn.Module):
    """Self-attention with dropout, by the module or by the function that it uses."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, dropout=0.3, batch_first=True)
        self.last = nn.Linear(WIDTH, 1)
        self.options = options

    def forward(self, inputs: Tensor) -> Any:
        return self.last(self.attention(inputs, inputs, inputs, **self.options)[0])


class FusedAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Linear(WIDTH, WIDTH)
        self.last = nn.Linear(WIDTH, 1)

    def forward(self, inputs: Tensor) -> Any:
        heads = self.queries(inputs)[:, None]
        dropout = 0.3 if self.training else 0.0
        return self.last(functional.scaled_dot_product_attention(heads, heads, heads, dropout_p=dropout)[:, 0])


class Recurrent(nn.Module):
    def __init__(self, kind: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.recurrent = kind(WIDTH, HIDDEN, num_layers=2, dropout=0.3, batch_first=True)
        self.last = nn.Linear(HIDDEN, 1)

    def forward(self, inputs: Tensor) -> Any:
        return self.last(self.recurrent(inputs)[0])


# Layers that in evaluation mode are what they are in expectation.
INVERTED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Dropout": (lambda: nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.Dropout(0.3)), (SAMPLES, FEATURES)),
    "Dropout2d": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Dropout2d(0.3)), (SAMPLES, 2, 4, 4)),
    "RReLU": (lambda: nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.RReLU()), (SAMPLES, FEATURES)),
    "LSTM": (lambda: Recurrent(nn.LSTM), (SAMPLES, LENGTH, WIDTH)),
    "GRU": (lambda: Recurrent(nn.GRU), (SAMPLES, LENGTH, WIDTH)),
    "RNN": (lambda: Recurrent(nn.RNN), (SAMPLES, LENGTH, WIDTH)),
    "MultiheadAttention": (Attention, (SAMPLES, LENGTH, WIDTH)),
    "MultiheadAttention, fused": (lambda: Attention(need_weights=False), (SAMPLES, LENGTH, WIDTH)),
    "TransformerEncoderLayer": (
        lambda: nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True),
        (SAMPLES, LENGTH, WIDTH),
    ),
    "scaled_dot_product_attention": (FusedAttention, (SAMPLES, LENGTH, WIDTH)),
    "a checkpoint": (lambda: Checkpointed(reentrant=False), (SAMPLES, FEATURES)),
    "a reentrant checkpoint": (lambda: Checkpointed(reentrant=True), (SAMPLES, FEATURES)),
}


@pytest.mark.parametrize("name", INVERTED)
def test_with_fixed_draws_a_layer_and_its_gradients_are_those_of_evaluation(name: str) -> None:
    build, shape = INVERTED[name]
    model, inputs = build().double(), torch.randn(shape, dtype=torch.float64)
    with evaluating(model):
        plain = outputs_and_gradients(model, inputs)
    with default_dtype(torch.float64), FixedDraws():
        fixed = outputs_and_gradients(model, inputs)

    assert len(plain) > 1
    for ours, theirs in zip(fixed, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_dropout_without_a_module_is_the_identity_in_the_backward_too() -> None:
    inputs = torch.randn(4, 3, requires_grad=True)
    with FixedDraws():
        (gradient,) = torch.autograd.grad(functional.dropout(inputs, 0.9).sum(), inputs)

    torch.testing.assert_close(gradient, torch.ones(4, 3))


def test_a_permutation_comes_out_reversed_and_not_in_order() -> None:
    with FixedDraws():
        assert torch.randperm(5).tolist() == [4, 3, 2, 1, 0]


class Between(nn.Module):
    """Two layers with a function between them that draws random numbers."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, HIDDEN)
        self.function = function
        self.last = nn.Linear(HIDDEN, 1)

    def forward(self, inputs: Tensor) -> Any:
        return self.last(self.function(self.first(inputs)))


def around(layer: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(FEATURES, HIDDEN), layer, nn.Linear(HIDDEN, 1))


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[str, ...]]] = {
    "Dropout": (lambda: around(nn.Dropout(0.3)), (FEATURES,), ("1",)),
    "AlphaDropout": (lambda: around(nn.AlphaDropout(0.3)), (FEATURES,), ("1",)),
    "FeatureAlphaDropout": (lambda: around(nn.FeatureAlphaDropout(0.3)), (FEATURES,), ("1",)),
    "RReLU": (lambda: around(nn.RReLU()), (FEATURES,), ("1",)),
    "Dropout2d": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Dropout2d(0.3), nn.Flatten(), nn.Linear(16, 1)),
        (2, 4, 4),
        ("1",),
    ),
    "LSTM": (lambda: Recurrent(nn.LSTM), (LENGTH, WIDTH), ("recurrent",)),
    "GRU": (lambda: Recurrent(nn.GRU), (LENGTH, WIDTH), ("recurrent",)),
    "MultiheadAttention": (Attention, (LENGTH, WIDTH), ("attention",)),
    "MultiheadAttention, fused": (lambda: Attention(need_weights=False), (LENGTH, WIDTH), ("attention",)),
    "TransformerEncoderLayer": (
        lambda: nn.Sequential(nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True), nn.Linear(WIDTH, 1)),
        (LENGTH, WIDTH),
        ("0.self_attn", "0.dropout1", "0.dropout", "0.dropout2"),
    ),
    "scaled_dot_product_attention": (FusedAttention, (LENGTH, WIDTH), ("FusedAttention",)),
    "a checkpoint": (lambda: Checkpointed(reentrant=False), (FEATURES,), ("inner.1",)),
    "a reentrant checkpoint": (lambda: Checkpointed(reentrant=True), (FEATURES,), ("inner.1",)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_that_draws_is_named_and_equal(name: str) -> None:
    build, shape, modules = LAYERS[name]
    equivalence = checked(build(), regression_batch(SAMPLES, *shape), squared_error)

    assert (equivalence.verdict, equivalence.random_modules) == ("equal", modules)
    assert furthest(equivalence) < 1e-12


@pytest.mark.parametrize("name", ["Dropout", "GRU"])
def test_a_layer_that_draws_is_equal_in_the_training_precision_too(name: str) -> None:
    build, shape, _ = LAYERS[name]
    equivalence = checked(build(), regression_batch(SAMPLES, *shape), squared_error, thorough=True)

    assert all(way.equal for way in equivalence.ways)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda hidden: functional.dropout(hidden),
    "noise": lambda hidden: hidden + torch.randn_like(hidden),
    "stochastic depth": lambda hidden: hidden + hidden.tanh() * hidden.new_empty(len(hidden), 1).bernoulli_(0.8) / 0.8,
    "gumbel_softmax": lambda hidden: functional.gumbel_softmax(hidden),
    "gumbel_softmax, hard": lambda hidden: functional.gumbel_softmax(hidden, hard=True),
    "multinomial": lambda hidden: hidden.gather(1, torch.multinomial(hidden.softmax(1), HIDDEN)),
    "multinomial with replacement": lambda hidden: hidden.gather(1, torch.multinomial(hidden.softmax(1), HIDDEN, True)),
    "randint": lambda hidden: hidden * torch.randint(1, 9, (len(hidden), 1)),
    "rand": lambda hidden: hidden * (torch.rand(hidden.shape) < 0.7),
    "poisson": lambda hidden: hidden * torch.poisson(hidden.detach().exp()),
    "geometric_": lambda hidden: hidden * torch.empty_like(hidden).geometric_(0.4),
    "log_normal_": lambda hidden: hidden * torch.empty_like(hidden).log_normal_(),
    "Normal": lambda hidden: Normal(hidden, 1.0).rsample(),
    "Uniform": lambda hidden: hidden * Uniform(0.5, 1.0).sample(hidden.shape),
    "Bernoulli": lambda hidden: hidden * Bernoulli(logits=hidden).sample(),
    "Categorical": lambda hidden: hidden * Categorical(logits=hidden).sample()[:, None],
    "Exponential": lambda hidden: hidden * Exponential(hidden.exp()).rsample(),
    "RelaxedBernoulli": lambda hidden: RelaxedBernoulli(torch.tensor(0.5), logits=hidden).rsample(),
    "Gamma": lambda hidden: Gamma(hidden.exp(), 1.0).rsample(),
    "Beta": lambda hidden: Beta(hidden.exp(), 1 + hidden.exp()).rsample(),
    "Dirichlet": lambda hidden: Dirichlet(hidden.exp()).rsample(),
    "StudentT": lambda hidden: StudentT(2 + hidden.exp()).rsample(),
    "NegativeBinomial": lambda hidden: hidden * NegativeBinomial(5.0, logits=hidden.detach()).sample(),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_that_draws_is_named_by_its_module_and_equal(name: str) -> None:
    equivalence = checked(Between(FUNCTIONS[name]), regression_batch(), squared_error)

    assert (equivalence.verdict, equivalence.random_modules) == ("equal", ("Between",))
    assert furthest(equivalence) < 1e-12


def test_draws_outside_of_the_model_are_those_of_the_loss() -> None:
    def mixed_with_noise(model: nn.Module, batch: Any) -> Any:
        noise = torch.randn_like(batch[0])
        return squared_error(model, (batch[0] + Beta(0.4, 0.4).sample() * noise, batch[1]))

    equivalence = checked(mlp(1), regression_batch(), mixed_with_noise)

    assert (equivalence.verdict, equivalence.random_modules) == ("equal", ("the loss",))


def test_a_draw_that_decides_how_the_whole_batch_is_trained_is_equal() -> None:
    def sometimes_doubled(model: nn.Module, batch: Any) -> Any:
        return squared_error(model, batch) * (2 if torch.rand(()) < 0.4 else 1)

    assert checked(mlp(1), regression_batch(), sometimes_doubled).equal


def test_samples_that_are_mixed_at_random_still_see_each_other() -> None:
    def mixup(model: nn.Module, batch: Any) -> Any:
        other = torch.randperm(len(batch[0]))
        return squared_error(model, (0.7 * batch[0] + 0.3 * batch[0][other], batch[1]))

    equivalence = checked(mlp(1), regression_batch(), mixup)

    assert (equivalence.equal, equivalence.decomposes) == (False, Decomposition.NO)


def test_what_draws_is_said_to_be_switched_off() -> None:
    equivalence = checked(nn.Sequential(nn.Dropout(0.5), mlp(1)), regression_batch(), squared_error)

    assert any(
        reason.startswith(
            "random numbers are drawn in '0': each micro-batch draws its own. For the comparison dropout was"
        )
        for reason in equivalence.reasons
    )


def test_a_model_in_evaluation_mode_inside_draws_nothing() -> None:
    model = nn.Sequential(nn.Dropout(0.5), mlp(1))
    model.train()
    model[0].eval()

    assert checked(model, regression_batch(), squared_error).random_modules == ()
