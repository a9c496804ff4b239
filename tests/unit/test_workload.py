from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from profiler.batches import DatasetBatches
from profiler.errors import UsageError, WorkloadError
from profiler.workload import PRECISIONS, Workload


def build() -> nn.Module:
    return nn.Linear(3, 2)


def make_batch(size: int) -> tuple[Tensor, Tensor]:
    return torch.ones(size, 3), torch.zeros(size, 2)


def supervised(**changes: Any) -> Workload:
    arguments: dict[str, Any] = {"model": build, "criterion": nn.MSELoss(), "data": make_batch}
    return Workload.supervised(**{**arguments, **changes})


class Rows:
    """What a Dataset of another library looks like: indexed, with a length, and not torch's class."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.full((3,), index), torch.zeros(2)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_is_accepted(precision: Any) -> None:
    assert supervised(precision=precision).precision == precision


def test_an_unknown_precision_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="precision 'fp8' is unknown: use one of fp32, tf32, bf16, fp16"):
        supervised(precision="fp8")


@pytest.mark.parametrize(
    ("field", "value"),
    [("model", 3), ("make_batch", [1, 2]), ("loss", "mse"), ("optimizer", 0.1), ("loss_items", 5)],
)
def test_a_field_that_cannot_be_called_is_refused(field: str, value: object) -> None:
    fields: dict[str, Any] = {"model": build, "make_batch": make_batch, "loss": lambda model, batch: batch}
    with pytest.raises(UsageError, match=rf"Workload\.{field} is a {type(value).__name__}"):
        Workload(**{**fields, field: value})


def test_a_builder_gives_a_new_model_each_time() -> None:
    workload = supervised()

    assert not workload.model_is_live
    assert workload.build_model() is not workload.build_model()


def test_a_live_model_is_given_as_it_is() -> None:
    model = build()
    workload = supervised(model=model)

    assert workload.model_is_live
    assert workload.build_model() is model


def test_a_builder_that_gives_no_module_is_refused() -> None:
    with pytest.raises(UsageError, match=r"the model builder returned dict, which is no torch\.nn\.Module"):
        supervised(model=dict).build_model()


def test_the_optimizer_is_adamw_unless_the_user_has_one() -> None:
    parameters = list(build().parameters())
    given = supervised(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5))

    assert type(supervised().build_optimizer(parameters)) is torch.optim.AdamW
    assert type(given.build_optimizer(parameters)) is torch.optim.SGD


def test_items_are_samples_unless_the_workload_counts_them() -> None:
    assert supervised().count_items(make_batch(4)) == 4
    assert supervised(loss_items=lambda batch: batch[1].numel()).count_items(make_batch(4)) == 8


def test_the_supervised_loss_is_the_criterion_of_outputs_and_targets() -> None:
    model = build()
    inputs, targets = make_batch(4)

    loss = supervised().loss(model, (inputs, targets))

    assert loss.item() == pytest.approx(model(inputs).square().mean().item())


def test_the_criterions_own_tensors_go_where_the_model_is() -> None:
    weighted = supervised(criterion=nn.CrossEntropyLoss(weight=torch.ones(2)))
    batch = (torch.ones(4, 3, device="meta"), torch.ones(4, 2, device="meta"))

    assert weighted.loss(build().to("meta"), batch).device.type == "meta"


@pytest.mark.parametrize(
    ("batch", "described"), [(torch.ones(2, 3), "a Tensor"), ((torch.ones(2),), "a tuple of 1"), ({"x": 1}, "a dict")]
)
def test_a_batch_that_is_no_pair_is_refused(batch: Any, described: str) -> None:
    with pytest.raises(WorkloadError, match=rf"the batch is {described}, and a supervised workload needs a pair"):
        supervised().loss(build(), batch)


def test_a_dataset_becomes_batches_of_its_samples() -> None:
    dataset: Dataset[Any] = TensorDataset(torch.arange(6.0).reshape(2, 3), torch.zeros(2, 2))
    workload = supervised(data=dataset)

    assert isinstance(workload.make_batch, DatasetBatches)
    assert workload.make_batch(3)[0].tolist() == [[0, 1, 2], [3, 4, 5], [0, 1, 2]]


def test_a_dataset_that_is_not_torchs_is_one_too() -> None:
    assert supervised(data=Rows()).make_batch(2)[0].tolist() == [[0, 0, 0], [1, 1, 1]]


@pytest.mark.parametrize("option", [{"collate": list}, {"worst_case": True}])
def test_options_of_a_dataset_are_refused_for_a_batch_maker(option: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="collate and worst_case choose samples of a Dataset"):
        supervised(**option)


def test_a_workload_of_module_level_parts_can_be_pickled() -> None:
    copy = pickle.loads(pickle.dumps(supervised(name="copied", precision="bf16")))

    assert (copy.name, copy.precision) == ("copied", "bf16")
    assert copy.loss(copy.build_model(), copy.make_batch(2)).dim() == 0
