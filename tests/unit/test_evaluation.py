from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from profiler.evaluation import evaluate
from profiler.outcomes import Strategy
from profiler.placing import Placement
from profiler.steps import Phase, Training, run_step
from profiler.workload import Workload


class Dropping(nn.Module):
    """A layer, dropout, and a norm that its user keeps frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.dropout = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(4).eval()

    def forward(self, batch: Tensor) -> Tensor:
        outputs: Tensor = self.norm(self.dropout(self.layer(batch)))
        return outputs


@dataclass(frozen=True, slots=True)
class Watching:
    """A loss that remembers how it was called."""

    answer: Callable[[Tensor], Any] = Tensor.mean
    seen: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, model: nn.Module, batch: Tensor) -> Tensor:
        outputs: Tensor = model(batch)
        found = {
            "samples": len(batch),
            "training": {name: module.training for name, module in model.named_modules()},
            "recording": torch.is_grad_enabled(),
            "inference": torch.is_inference_mode_enabled(),
            "dtype": outputs.dtype,
            "graph": outputs.grad_fn is not None,
            "gradients": all(parameter.grad is not None for parameter in model.parameters()),
            "outputs": outputs.detach().clone(),
        }
        self.seen.append(found)
        return cast(Tensor, self.answer(outputs)) if not model.training else outputs.square().mean()


def ones(size: int) -> Tensor:
    return torch.ones(size, 4)


def nothing() -> None:
    """What is called after the first batch where that does not matter."""


def trained(workload: Workload) -> Training:
    training = Training.start(workload, Placement(torch.device("cpu")), Phase())
    run_step(training, Strategy.ACCUMULATION, (1,))
    return training


def evaluated(loss: Watching, *sizes: int, **changes: Any) -> Training:
    training = trained(Workload(model=Dropping, make_batch=ones, loss=loss, **changes))
    loss.seen.clear()
    evaluate(training, sizes, nothing)
    return training


def test_each_size_is_evaluated_in_evaluation_mode_without_recording_gradients() -> None:
    loss = Watching()
    evaluated(loss, 3, 5)

    assert [call["samples"] for call in loss.seen] == [3, 5]
    for call in loss.seen:
        assert not any(call["training"].values())
        assert (call["recording"], call["inference"], call["graph"]) == (False, False, False)
        # Dropout off: equal samples come out equal.
        assert (call["outputs"] == call["outputs"][0]).all()


def test_the_state_of_the_optimizer_and_the_last_gradients_are_alive_and_stay() -> None:
    loss = Watching()
    training = evaluated(loss, 2, 2)

    assert all(call["gradients"] for call in loss.seen)
    assert all(parameter.grad is not None for parameter in training.model.parameters())
    assert len(training.optimizer.state) == len(list(training.model.parameters()))


def test_every_module_is_afterwards_in_the_mode_it_was_in_and_gradients_are_recorded() -> None:
    training = evaluated(Watching(), 2)
    modes = {name: module.training for name, module in training.model.named_modules()}

    assert modes == {"": True, "layer": True, "dropout": True, "norm": False}
    assert torch.is_grad_enabled()


def test_modes_come_back_after_a_failure_too() -> None:
    def failing(outputs: Tensor) -> Any:
        raise KeyError("labels")

    training = trained(Workload(model=Dropping, make_batch=ones, loss=Watching(answer=failing)))
    with pytest.raises(KeyError):
        evaluate(training, (2,), nothing)

    assert training.model.training
    assert not training.model.get_submodule("norm").training
    assert training.phase.name == "evaluation forward"


@pytest.mark.parametrize(
    "answer", [lambda outputs: None, lambda outputs: outputs, lambda outputs: outputs * float("nan")]
)
def test_what_the_loss_gives_in_evaluation_is_not_looked_at(answer: Callable[[Tensor], Any]) -> None:
    loss = Watching(answer=answer)
    evaluated(loss, 2, 2)

    assert len(loss.seen) == 2


def test_evaluation_computes_in_the_precision_of_training() -> None:
    class Plain(Dropping):
        def forward(self, batch: Tensor) -> Tensor:
            outputs: Tensor = self.layer(batch)
            return outputs

    loss = Watching()
    training = Training.start(
        Workload(model=Plain, make_batch=ones, loss=loss, precision="bf16"), Placement(torch.device("cpu")), Phase()
    )
    evaluate(training, (2,), nothing)

    assert loss.seen[0]["dtype"] is torch.bfloat16


def test_the_users_own_train_and_eval_are_called() -> None:
    called: list[bool] = []

    class Merging(Dropping):
        def train(self, mode: bool = True) -> Merging:
            called.append(mode)
            super().train(mode)
            return self

    training = trained(Workload(model=Merging, make_batch=ones, loss=Watching()))
    called.clear()
    evaluate(training, (2, 2), nothing)

    assert called == [False, True]


def test_the_second_batch_is_made_while_the_first_and_its_loss_are_alive() -> None:
    made: list[Any] = []
    alive: list[tuple[bool, ...] | str] = []

    def make_batch(size: int) -> Tensor:
        alive.append(tuple(reference() is not None for reference in made))
        batch = ones(size)
        made.append(weakref.ref(batch))
        return batch

    def keeping(outputs: Tensor) -> Tensor:
        loss = outputs.mean()
        made.append(weakref.ref(loss))
        return loss

    training = trained(Workload(model=Dropping, make_batch=make_batch, loss=Watching(answer=keeping)))
    made.clear()
    alive.clear()
    evaluate(training, (2, 3), lambda: alive.append("after the first"))

    assert alive == [(), "after the first", (True, True)]
    assert [reference() for reference in made] == [None] * 4
