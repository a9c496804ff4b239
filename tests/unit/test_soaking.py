from __future__ import annotations

from itertools import islice
from typing import Any

from torch.utils.data import Dataset

from profiler.batches import batches_of
from profiler.soaking import as_trained, shuffled_places


class Numbers(Dataset[int]):
    """Ten samples that are their own index."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> int:
        return index


def as_list(samples: list[Any]) -> list[Any]:
    return samples


def test_places_are_all_taken_once_an_epoch_in_another_order_each_time() -> None:
    places = shuffled_places(10)
    first, second = list(islice(places, 10)), list(islice(places, 10))

    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert first != list(range(10))


def test_the_order_is_the_same_in_every_soak() -> None:
    assert list(islice(shuffled_places(7), 30)) == list(islice(shuffled_places(7), 30))


def test_each_batch_takes_the_next_samples_over_the_end_of_an_epoch() -> None:
    make_batch = as_trained(batches_of(Numbers(), collate=as_list))
    taken = [make_batch(size) for size in (4, 4, 4, 4, 4)]

    assert [len(batch) for batch in taken] == [4] * 5
    flat = [sample for batch in taken for sample in batch]
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert flat == list(islice(shuffled_places(10), 20))


def test_the_worst_case_first_is_shuffled_too() -> None:
    make_batch = as_trained(batches_of(Numbers(), collate=as_list, worst_case=float))

    assert sorted(make_batch(10)) == list(range(10))
    assert make_batch(10) != list(range(9, -1, -1))


def test_a_batch_maker_makes_its_own() -> None:
    assert as_trained(len) is len  # type: ignore[comparison-overlap, arg-type]
