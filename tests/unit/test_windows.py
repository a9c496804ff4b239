from __future__ import annotations

import pickle
import weakref
from collections import UserDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sample_plans import Recorded, count_rows, plan_of, plans
from torch import Tensor
from torch.utils.data import DataLoader, SequentialSampler, TensorDataset

from profiler.errors import UsageError
from profiler.plan import AccumulationPlan


@dataclass
class Reading:
    """A loader that says how many micro-batches were read."""

    micro_batches: list[Tensor]
    read: int = 0

    def __iter__(self) -> Iterator[Tensor]:
        for micro_batch in self.micro_batches:
            self.read += 1
            yield micro_batch


def test_a_window_is_read_and_counted_before_its_first_part_and_no_further() -> None:
    loader = Reading([torch.full((2,), number) for number in range(5)])
    count = Recorded(len)
    parts = plan_of((2, 2)).windows(loader, count)

    assert (loader.read, count.calls) == (0, [])
    steps = [(int(part[0]), weight, is_last, loader.read, len(count.calls)) for part, weight, is_last in parts]
    assert steps == [
        (0, 0.5, False, 2, 2),
        (1, 0.5, True, 2, 2),
        (2, 0.5, False, 4, 4),
        (3, 0.5, True, 4, 4),
        (4, 1.0, True, 5, 5),
    ]


def test_the_short_window_at_the_end_has_weights_of_its_own() -> None:
    loader = DataLoader(TensorDataset(torch.arange(10)), batch_size=4)
    steps = [(len(part[0]), weight, is_last) for part, weight, is_last in plan_of((4, 4)).windows(loader)]

    assert steps == [(4, 0.5, False), (4, 0.5, True), (2, 1.0, True)]


def test_the_last_part_with_items_is_the_last() -> None:
    loader = [torch.tensor([3]), torch.tensor([1]), torch.tensor([0])]
    steps = [(int(part), weight, is_last) for part, weight, is_last in plan_of((1, 1, 1)).windows(loader, count_rows)]

    assert steps == [(3, 0.75, False), (1, 0.25, True)]


def test_a_window_without_items_gives_nothing_and_the_next_one_goes_on() -> None:
    loader = [torch.tensor([0])] * 2 + [torch.tensor([5])] * 2
    steps = [(int(part), is_last) for part, _, is_last in plan_of((1, 1)).windows(loader, count_rows)]

    assert steps == [(5, False), (5, True)]


class Batch(UserDict[str, Tensor]):
    """A container that can be referred to weakly."""


def test_a_part_can_be_freed_as_soon_as_it_is_done() -> None:
    alive: list[weakref.ref[Batch]] = []

    def loader() -> Iterator[Batch]:
        for _ in range(4):
            batch = Batch(x=torch.ones(2))
            alive.append(weakref.ref(batch))
            yield batch
            del batch

    left = []
    for part, _, _ in plan_of((2, 2, 2)).windows(loader()):
        left.append((len(part["x"]), sum(each() is not None for each in alive)))
        del part

    assert left == [(2, 3), (2, 2), (2, 1), (2, 1)]


def test_a_micro_batch_larger_than_the_plans_is_refused() -> None:
    plan = plan_of((3, 2))

    with pytest.raises(
        UsageError, match=r"a micro-batch of 4 samples, and the plan was proved for up to 3.*batch_sampler"
    ):
        next(plan.windows([torch.ones(2), torch.ones(4)]))


def test_a_window_larger_than_the_plans_effective_batch_is_refused() -> None:
    loader = DataLoader(TensorDataset(torch.arange(6)), batch_size=3)

    with pytest.raises(
        UsageError, match=r"2 micro-batches of the loader have 6 samples, and the plan has 5 per optimizer"
    ):
        next(plan_of((3, 2)).windows(loader))


def test_a_loader_whose_windows_never_reach_the_effective_batch_is_refused_when_the_second_begins() -> None:
    loader = DataLoader(TensorDataset(torch.arange(19)), batch_size=2)
    parts = plan_of((3, 3, 2)).windows(loader)

    assert [len(next(parts)[0][0]) for _ in range(3)] == [2, 2, 2]
    with pytest.raises(
        UsageError, match=r"3 micro-batches of the loader had 6 samples and more .* the plan has 8 per .*batch_sampler"
    ):
        next(parts)


def test_a_short_window_is_refused_when_another_follows_even_if_it_had_no_items() -> None:
    loader = [torch.tensor([0]), torch.tensor([0]), torch.tensor([1, 1])]

    with pytest.raises(
        UsageError, match=r"2 micro-batches of the loader had 2 samples .* the plan has 4 per optimizer"
    ):
        list(plan_of((2, 2)).windows(loader, count_rows))


def test_a_short_window_of_as_many_micro_batches_may_be_the_last() -> None:
    loader = Reading([torch.ones(2), torch.ones(2), torch.ones(2), torch.ones(1)])
    steps = [(weight, is_last, loader.read) for _, weight, is_last in plan_of((2, 2)).windows(loader)]

    assert steps == [(0.5, False, 2), (0.5, True, 2), (2 / 3, False, 4), (1 / 3, True, 4)]


@pytest.mark.parametrize("loader", [5, None, len])
def test_a_loader_that_cannot_be_iterated_is_refused_by_the_call(loader: Any) -> None:
    with pytest.raises(
        UsageError, match=rf"the loader is a {type(loader).__name__}, which cannot be iterated: pass a Data"
    ):
        plan_of((2, 2)).windows(loader)


def test_a_loader_may_be_whatever_python_iterates() -> None:
    class Indexed:
        def __getitem__(self, index: int) -> Tensor:
            return (torch.ones(2), torch.ones(2))[index]

    loader: Any = Indexed()

    assert [weight for _, weight, _ in plan_of((2, 2)).windows(loader)] == [0.5, 0.5]


def test_micro_batches_that_cannot_be_counted_are_refused_unless_a_function_counts_them() -> None:
    plan = plan_of((2, 2))

    with pytest.raises(UsageError, match="pass samples"):
        next(plan.windows([["a", "b"], ["c"]]))
    assert [weight for _, weight, _ in plan.windows([["a", "b"], ["c"]], samples=len)] == [2 / 3, 1 / 3]


def test_an_empty_loader_gives_nothing() -> None:
    assert list(plan_of((2, 2)).windows([])) == []


@given(st.data(), plans())
def test_every_window_has_weights_that_add_up_to_one(data: st.DataObject, plan: AccumulationPlan) -> None:
    samples = data.draw(st.integers(0, 3 * plan.effective_batch_size))
    counts = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=samples, max_size=samples)), dtype=torch.long)
    loader = [counts[indices] for indices in plan.batch_sampler(range(samples))]
    wholes = counts.split(plan.effective_batch_size)

    sums = [0.0]
    for _, weight, is_last in plan.windows(loader, count_rows):
        sums[-1] += weight
        sums += [0.0] * is_last

    assert sums == [pytest.approx(1)] * sum(bool(whole.any()) for whole in wholes) + [0.0]


# A sampler of batches


def test_the_sampler_gives_the_plans_sizes_over_and_over() -> None:
    batches = plan_of((171, 171, 170)).batch_sampler(range(600))

    assert [len(batch) for batch in batches] == [171, 171, 170, 88]
    assert len(batches) == 4


@given(plans(), st.integers(0, 60))
def test_the_sampler_keeps_the_order_and_knows_its_length(plan: AccumulationPlan, samples: int) -> None:
    batches = plan.batch_sampler(range(samples))

    assert [index for batch in batches for index in batch] == list(range(samples))
    assert len(list(batches)) == len(batches)
    assert list(batches) == list(batches)


def test_each_replica_samples_its_own_sizes() -> None:
    assert [len(batch) for batch in plan_of((4, 3), (3, 3)).batch_sampler(range(6), replica=1)] == [3, 3]


def test_a_data_loader_of_the_sampler_gives_windows_of_the_whole_effective_batch() -> None:
    plan = plan_of((3, 2, 2))
    dataset = TensorDataset(torch.arange(17))
    loader = DataLoader(dataset, batch_sampler=plan.batch_sampler(SequentialSampler(dataset)))

    for _ in range(2):
        steps = [(part[0].tolist(), is_last) for part, _, is_last in plan.windows(loader)]
        assert [len(part) for part, _ in steps] == [3, 2, 2, 3, 2, 2, 3]
        assert [is_last for _, is_last in steps] == [False, False, True] * 2 + [True]
        assert [index for part, _ in steps for index in part] == list(range(17))
    assert len(loader) == 7


def test_the_sampler_travels_to_a_loaders_workers() -> None:
    batches = plan_of((2, 1)).batch_sampler([4, 5, 6, 7])

    assert list(pickle.loads(pickle.dumps(batches))) == [[4, 5], [6], [7]]


@pytest.mark.parametrize("sampler", [iter([1, 2]), 5])
def test_a_sampler_that_cannot_be_iterated_each_epoch_is_refused(sampler: Any) -> None:
    with pytest.raises(UsageError, match="cannot be iterated once an epoch: pass a sampler"):
        plan_of((2, 1)).batch_sampler(sampler)


def test_the_length_over_a_sampler_without_one_is_a_type_error_as_of_any_sampler() -> None:
    class Endless:
        def __iter__(self) -> Iterator[int]:
            yield from iter(int, 1)

    batches = plan_of((2, 1)).batch_sampler(Endless())

    assert len(next(iter(batches))) == 2
    with pytest.raises(TypeError, match="len"):
        len(batches)
