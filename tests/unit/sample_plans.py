"""Plans, batches and losses that the tests of parts, windows and the loop share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from profiler.plan import AccumulationPlan

IGNORED = -100
LENGTH = 3


def plan_of(*replicas: tuple[int, ...]) -> AccumulationPlan:
    return AccumulationPlan(effective_batch_size=sum(map(sum, replicas)), replicas=replicas, reason="It is a test's.")


@st.composite
def plans(draw: st.DrawFn) -> AccumulationPlan:
    """Of one replica: equal sizes, or any of which the first is the largest."""
    largest = draw(st.integers(1, 6))
    others = draw(st.lists(st.integers(1, largest), max_size=4))
    return plan_of((largest, *others)) if draw(st.booleans()) else plan_of((largest,) * (1 + len(others)))


def count_rows(batch: Tensor) -> int:
    """The items of a vector of counts: its sum."""
    return int(batch.sum())


@dataclass
class Recorded:
    """A function that remembers what it was called with."""

    function: Callable[..., Any]
    calls: list[Any] = field(default_factory=list)

    def __call__(self, *arguments: Any) -> Any:
        self.calls.append(arguments[-1])
        return self.function(*arguments)


class TinyModel(nn.Module):
    """(n, length) tokens to (n, length, 5) logits; in fp64 by default, and not linear."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(5, 4, dtype=dtype)
        self.layer = nn.Linear(4, 5, dtype=dtype)

    def forward(self, tokens: Tensor) -> Tensor:
        # No view: FSDP2 warns of those.
        logits: Tensor = 2 * self.layer(torch.tanh(self.embedding(tokens)))
        return logits


def token_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Averaged over the targets that are not ignored; NaN where all are."""
    logits = model(batch["tokens"])
    return functional.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), ignore_index=IGNORED)


def sample_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Averaged over the samples."""
    losses: Tensor = model(batch["tokens"]).square().mean(dim=(1, 2))
    return (losses.sqrt() * batch["tokens"].sum(dim=1)).mean()


def count_targets(batch: dict[str, Tensor]) -> int:
    return int((batch["targets"] != IGNORED).sum())


def tokens_of(tokens: list[list[int]], kept: list[list[bool]]) -> dict[str, Tensor]:
    """A batch in which each token's target is the one before it, where that is kept."""
    inputs = torch.tensor(tokens)
    return {"tokens": inputs, "targets": inputs.roll(1, dims=1).where(torch.tensor(kept), IGNORED)}


@st.composite
def token_batches(draw: st.DrawFn, samples: int) -> dict[str, Tensor]:
    """Tokens of which any may be ignored, so that parts may have no items."""
    seed = draw(st.integers(0, 1000))
    tokens = torch.randint(5, (samples, LENGTH), generator=torch.Generator().manual_seed(seed))
    kept = draw(st.lists(st.integers(0, 2**LENGTH - 1), min_size=samples, max_size=samples))
    return tokens_of(tokens.tolist(), [[bool(bits >> place & 1) for place in range(LENGTH)] for bits in kept])


def gradients(model: nn.Module) -> list[Tensor]:
    """Copies of all gradients."""
    found = [parameter.grad for parameter in model.parameters()]
    return [gradient.clone() for gradient in found if gradient is not None]


def whole_gradients(model: nn.Module, loss: Any, batch: Any) -> tuple[Tensor, list[Tensor]]:
    """The whole batch's loss and gradients, at once; the model has none afterwards."""
    model.zero_grad()
    value: Tensor = loss(model, batch)
    value.backward()
    found = gradients(model)
    model.zero_grad()
    return value.detach(), found


def assert_close(actual: list[Tensor], expected: list[Tensor], *, tolerance: float = 1e-10) -> None:
    assert len(actual) == len(expected) > 0
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
