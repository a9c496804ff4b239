from __future__ import annotations

from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from profiler.batches import (
    batches_of,
    check_batch,
    count_samples,
    elements_of,
    made_batch,
    map_tensors,
    tensors_of,
    to_device,
)
from profiler.errors import ShortBatch, UsageError, WorkloadError

Pair = namedtuple("Pair", ["first", "second"])

tensors = st.integers(0, 4).map(torch.ones)
leaves = tensors | st.none() | st.integers() | st.text(max_size=3)
nests = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=2), inner, max_size=3)
        | st.tuples(inner, inner).map(lambda parts: Pair(*parts))
    ),
    max_leaves=12,
)


@dataclass
class Sample:
    tokens: Tensor
    weight: float


class Texts(Dataset[Tensor]):
    """Sample i is a vector of `lengths[i]` numbers i."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Tensor:
        return torch.full((self.lengths[index],), index)


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


def collate_lengths(samples: list[Tensor]) -> list[int]:
    return [len(sample) for sample in samples]


def shape_of(nest: Any) -> Any:
    """The nest with every tensor replaced by its length, to be compared with ==."""
    return map_tensors(len, nest)


@given(nests)
def test_mapping_the_identity_changes_nothing(nest: Any) -> None:
    mapped = map_tensors(lambda tensor: tensor, nest)

    assert type(mapped) is type(nest)
    assert shape_of(mapped) == shape_of(nest)


@given(nests)
def test_each_tensor_is_mapped_once(nest: Any) -> None:
    doubled = map_tensors(lambda tensor: tensor * 2, nest)

    assert [tensor.tolist() for tensor in tensors_of(doubled)] == [(2 * tensor).tolist() for tensor in tensors_of(nest)]


@pytest.mark.parametrize(
    "nest",
    [
        OrderedDict(a=torch.ones(2), b=3),
        defaultdict(torch.Tensor, a=torch.ones(2)),
        Pair(torch.ones(2), "text"),
        [torch.ones(2), (torch.ones(1), None)],
    ],
    ids=lambda nest: type(nest).__name__,
)
def test_a_container_keeps_its_type(nest: Any) -> None:
    mapped = map_tensors(lambda tensor: tensor + 1, nest)

    assert type(mapped) is type(nest)
    assert next(tensors_of(mapped)).tolist() == [2.0, 2.0]


def test_a_dataclass_keeps_the_fields_that_are_no_tensors() -> None:
    mapped = map_tensors(lambda tensor: tensor + 1, Sample(tokens=torch.zeros(1), weight=0.5))

    assert (mapped.tokens.item(), mapped.weight) == (1.0, 0.5)


def test_moving_to_a_device_moves_every_tensor() -> None:
    moved = to_device({"a": torch.ones(2), "b": [torch.ones(1)]}, torch.device("meta"))

    assert {tensor.device.type for tensor in tensors_of(moved)} == {"meta"}


def test_samples_are_counted_on_the_first_tensor_that_has_a_dimension() -> None:
    assert count_samples({"scale": torch.tensor(1.0), "images": torch.ones(5, 3)}) == 5


@pytest.mark.parametrize("batch", [[], 7, {"scale": torch.tensor(1.0)}, "text"])
def test_a_batch_without_samples_is_refused(batch: Any) -> None:
    with pytest.raises(WorkloadError, match="without a tensor that has samples along dimension 0"):
        count_samples(batch)


def test_a_batch_maker_that_ignores_the_size_is_refused_with_both_numbers() -> None:
    check_batch(torch.ones(4, 2), 4)
    with pytest.raises(WorkloadError, match=r"make_batch\(5\) returned a batch of 4 samples"):
        check_batch(torch.ones(4, 2), 5)


@pytest.mark.parametrize(
    ("sample", "elements"),
    [
        (torch.ones(2, 3), 6),
        ((torch.ones(2, 3), torch.tensor(1)), 7),
        ({"tokens": [5, 6, 7], "label": 1}, 4),
        (([5, 6, 7], torch.tensor(1)), 4),
        ((1, [5, 6, 7]), 4),
        (([5, 6, 7], [1, 2]), 5),
        (np.zeros((2, 4)), 8),
        ("text", 4),
        (Sample(tokens=torch.ones(5), weight=1.0), 6),
        (None, 1),
        ([], 0),
    ],
)
def test_elements_of_a_sample(sample: Any, elements: int) -> None:
    assert elements_of(sample) == elements


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(1, 20))
def test_a_batch_takes_the_samples_in_order_and_repeats_them(lengths: list[int], size: int) -> None:
    batch = batches_of(Texts(lengths), collate=collate_lengths)(size)

    assert batch == [lengths[index % len(lengths)] for index in range(size)]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(1, 8))
def test_the_worst_case_has_the_longest_samples(lengths: list[int], size: int) -> None:
    size = min(size, len(lengths))
    batch = batches_of(Texts(lengths), collate=collate_lengths, worst_case=True)(size)

    assert batch == sorted(lengths, reverse=True)[:size]


def test_the_worst_case_by_a_size_function() -> None:
    batches = batches_of(Texts([3, 1, 2]), collate=collate_lengths, worst_case=lambda sample: -len(sample))

    assert batches(3) == [1, 2, 3]


def test_an_order_by_the_users_size_function_stays() -> None:
    batches = batches_of(Texts([3, 1, 2]), collate=collate_lengths, worst_case=lambda sample: -len(sample))

    assert batches.with_largest_first() is batches


def test_a_plain_order_becomes_the_worst_case_with_its_collate_function() -> None:
    batches = batches_of(Texts([3, 1, 2]), collate=collate_lengths)

    assert not batches.largest_first
    assert batches.with_largest_first()(3) == [3, 2, 1]


def test_samples_are_stacked_where_no_collate_function_is_given() -> None:
    assert batches_of(Texts([2, 2]))(3).tolist() == [[0, 0], [1, 1], [0, 0]]


def test_a_dataset_without_samples_is_refused() -> None:
    with pytest.raises(UsageError, match="Texts has 0 samples"):
        batches_of(Texts([]))


def test_a_dataset_without_a_length_is_refused_with_what_to_pass_instead() -> None:
    with pytest.raises(UsageError, match=r"Stream has no length and no index: pass a batch maker make_batch\(n\)"):
        batches_of(Stream())


def test_a_batch_maker_that_ends_by_stop_iteration_has_no_more_samples() -> None:
    left = iter([torch.ones(2)] * 3)

    def make_batch(size: int) -> Tensor:
        return torch.stack([next(left) for _ in range(size)])

    assert len(made_batch(make_batch, 2)) == 2
    with pytest.raises(ShortBatch, match=r"make_batch\(2\) ended by StopIteration: ") as raised:
        made_batch(make_batch, 2)
    assert raised.value.samples is None


def test_another_error_of_a_batch_maker_is_its_own() -> None:
    def make_batch(size: int) -> Tensor:
        raise RuntimeError("the disk is gone") from OSError()

    with pytest.raises(RuntimeError, match="the disk is gone"):
        made_batch(make_batch, 2)
