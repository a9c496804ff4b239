"""One optimizer step on a batch of 32, in three ways: the whole batch, a summed loss, a backward for each part of 4.

Loss and parameters come out the same; the memory does not.

    python examples/three_ways.py
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from profiler import Options, Strategy, Workload, compare_strategies
from profiler.units import format_bytes

BATCH, PART = 32, 4
LEARNING_RATE = 0.001
criterion = nn.BCELoss()


class Net(nn.Module):
    """Convolution, max-pool, ReLU, linear, sigmoid: (n, 3, 10, 10) to (n, 5) probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 10, 3, 1, 1)
        self.linear = nn.Linear(10 * 5 * 5, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        """One probability for each class."""
        features = functional.relu(functional.max_pool2d(self.conv(inputs), 2))
        probabilities: Tensor = torch.sigmoid(self.linear(features.flatten(1)))
        return probabilities


def make_batch(samples: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets; the first 4 of 32 are not those of a batch of 4, which memory does not mind."""
    torch.manual_seed(1)
    return torch.randn(samples, 3, 10, 10), torch.randint(0, 2, (samples, 5)).float()


def whole_batch(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """One forward, one backward."""
    loss: Tensor = criterion(model(inputs), targets)
    loss.backward()
    return loss.detach()


def summed_loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """A forward for each part, and one backward: all graphs are alive at once."""
    parts = zip(inputs.split(PART), targets.split(PART), strict=True)
    loss = torch.stack([criterion(model(x), y) * (len(x) / len(inputs)) for x, y in parts]).sum()
    loss.backward()
    return loss.detach()


def accumulation(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """A forward and a backward for each part: its graph is freed, and its gradient is added to .grad."""
    total = torch.zeros(())
    for x, y in zip(inputs.split(PART), targets.split(PART), strict=True):
        loss: Tensor = criterion(model(x), y) * (len(x) / len(inputs))
        loss.backward()
        total += loss.detach()
    return total


WAYS: dict[Strategy, Callable[[nn.Module, Tensor, Tensor], Tensor]] = {
    Strategy.WHOLE_BATCH: whole_batch,
    Strategy.SUMMED_LOSS: summed_loss,
    Strategy.ACCUMULATION: accumulation,
}


@dataclass(frozen=True)
class Step:
    """What one step came to: its loss, and the sum of all parameters after it."""

    loss: float
    parameter_sum: float


def step(strategy: Strategy) -> Step:
    """One step of SGD from the same start."""
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    inputs, targets = make_batch(BATCH)
    optimizer.zero_grad()  # once, before the first part
    loss = WAYS[strategy](model, inputs, targets)
    optimizer.step()
    with torch.no_grad():
        total = sum(float(parameter.double().sum()) for parameter in model.parameters())
    return Step(loss=float(loss), parameter_sum=total)


def peaks() -> dict[Strategy, int | None]:
    """The measured peak of one step in each way, model and optimizer included."""
    workload = Workload.supervised(
        Net, criterion, make_batch, optimizer=lambda p: torch.optim.SGD(p, lr=LEARNING_RATE), name="three-ways"
    )
    compared = compare_strategies(workload, PART, Options(device="cpu"), most_steps=BATCH // PART)
    rows = [trial for trial in compared.comparison if trial.accumulation_steps == BATCH // PART]
    return {trial.strategy: trial.peak_bytes for trial in rows}


def main() -> None:
    """Print a row a way."""
    memory = peaks()
    print(f"{'way':<26}{'loss':<12}{'sum of parameters':<20}peak memory")
    for strategy, name in (
        (Strategy.WHOLE_BATCH, "whole batch of 32"),
        (Strategy.SUMMED_LOSS, "8 losses, one backward"),
        (Strategy.ACCUMULATION, "8 losses, a backward each"),
    ):
        taken = step(strategy)
        print(f"{name:<26}{taken.loss:<12.6f}{taken.parameter_sum:<20.6f}{format_bytes(memory[strategy] or 0)}")


if __name__ == "__main__":
    main()
