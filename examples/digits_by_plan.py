"""Training by a plan is training by the whole batch: the same model, twice, and the largest difference of their losses.

    python examples/digits_by_plan.py

The plan is made by hand here; `profiler.find_accumulation_plan` finds one that fits a device.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from profiler import AccumulationPlan, accumulate
from profiler.examples.digits import load_digits

STEPS = 50
WHOLE = AccumulationPlan(effective_batch_size=100, replicas=((100,),), reason="the whole batch")
PARTS = AccumulationPlan(effective_batch_size=100, replicas=((34, 33, 33),), reason="as if 40 samples fitted")


def bce_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Averaged over the samples; `sigmoid` and `BCELoss` are not linear, and need not be."""
    images, targets = batch
    loss: Tensor = nn.BCELoss()(model(images), targets)
    return loss


def train(plan: AccumulationPlan) -> list[float]:
    """The loss of each optimizer step."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 10, kernel_size=3, padding=1),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(10 * 4 * 4, 10),
        nn.Sigmoid(),
    ).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    images, classes = load_digits()
    targets = functional.one_hot(classes, 10)
    losses = []
    for step in range(STEPS):
        # Every epoch's last batch is a short one, of 97 digits.
        start = step % 18 * 100
        batch = images[start : start + 100].double(), targets[start : start + 100].double()
        optimizer.zero_grad()
        losses.append(accumulate(model, batch, bce_loss, plan))
        optimizer.step()
    return torch.stack(losses).tolist()


def curves() -> tuple[list[float], list[float]]:
    """The losses of training by the whole batch, and of training by parts of 34, 33 and 33 samples."""
    return train(WHOLE), train(PARTS)


def main() -> None:
    """Print both curves, and by how much they differ."""
    by_whole, by_parts = curves()
    print("step  whole batch         34 + 33 + 33")
    for step, (one, other) in enumerate(zip(by_whole, by_parts, strict=True), start=1):
        print(f"{step:4}  {one:.16f}  {other:.16f}")
    differences = [abs(one - other) for one, other in zip(by_whole, by_parts, strict=True)]
    print(f"largest difference: {max(differences):.1e}")


if __name__ == "__main__":
    main()
