"""Nests of tensors: counting the samples of a batch, moving it, and making one of n samples from a Dataset."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, default_collate

from profiler.errors import ShortBatch, UsageError, WorkloadError
from profiler.nests import leaves_of, map_leaves


def map_tensors(function: Callable[[Tensor], Any], batch: Any) -> Any:
    """`batch` with `function` applied to every tensor in its dicts, lists, (named) tuples and dataclasses.

    Whatever is no tensor and no container is passed on as it is.
    """
    return map_leaves(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, batch)


def tensors_of(batch: Any) -> Iterator[Tensor]:
    """Every tensor of the nest `batch`, in order."""
    return (leaf for leaf in leaves_of(batch) if isinstance(leaf, Tensor))


def count_samples(batch: Any) -> int:
    """How many samples `batch` holds: dimension 0 of its first tensor that has one.

    Raises WorkloadError where no tensor has a dimension 0.
    """
    for tensor in tensors_of(batch):
        if tensor.dim() > 0:
            return int(tensor.shape[0])
    raise WorkloadError(
        f"make_batch returned {type(batch).__name__} without a tensor that has samples along dimension 0: "
        "return a tensor, or a dict, list, tuple or dataclass of tensors."
    )


def check_batch(batch: Any, size: int) -> None:
    """Raise WorkloadError unless `batch` holds `size` samples: ShortBatch where it holds fewer."""
    samples = count_samples(batch)
    said = (
        f"make_batch({size}) returned a batch of {samples} samples: it must return as many as it is asked for "
        "(dimension 0 of its first tensor)."
    )
    if samples < size:
        raise ShortBatch(said, samples=samples)
    if samples > size:
        raise WorkloadError(said)


def made_batch(make_batch: Callable[[int], Any], size: int) -> Any:
    """`make_batch(size)`; WorkloadError unless it holds `size` samples, ShortBatch where the data came to their end before."""
    try:
        batch = make_batch(size)
    except (StopIteration, RuntimeError) as error:
        # Inside a generator of the user's, Python turns the one into the other.
        if not isinstance(error, StopIteration) and not isinstance(error.__cause__, StopIteration):
            raise
        raise ShortBatch(
            f"make_batch({size}) ended by StopIteration: the data that it takes samples from came to their end. Begin them "
            "again there, or use smaller sizes or fewer steps."
        ) from error
    check_batch(batch, size)
    return batch


def to_device(batch: Any, device: torch.device) -> Any:
    """`batch` with every tensor on `device`."""
    return map_tensors(lambda tensor: tensor.to(device, non_blocking=True), batch)


def elements_of(sample: Any) -> int:
    """How many numbers the tensors, arrays and lists of `sample` hold together; a text counts its characters."""
    if isinstance(sample, Tensor):
        return sample.numel()
    if isinstance(sample, Mapping):
        return sum(elements_of(value) for value in sample.values())
    if isinstance(sample, tuple | list):
        # The shortcut is for long lists of tokens, of which there may be one in every sample.
        if all(isinstance(part, int | float) for part in sample):
            return len(sample)
        return sum(elements_of(part) for part in sample)
    if dataclasses.is_dataclass(sample) and not isinstance(sample, type):
        return sum(elements_of(getattr(sample, field.name)) for field in dataclasses.fields(sample))
    size = getattr(sample, "size", None)
    if isinstance(size, int):  # a NumPy array
        return size
    return len(sample) if isinstance(sample, Sized) else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetBatches:
    """A batch maker over a map-style Dataset: the first n samples in `order`, from the start again where n is larger.

    largest_first: whether `order` puts the samples that make the largest batch first.
    """

    dataset: Dataset[Any]
    collate: Callable[[list[Any]], Any]
    order: Sequence[int]
    largest_first: bool = False

    def __call__(self, size: int) -> Any:
        return self.of(range(size))

    def of(self, places: Iterable[int]) -> Any:
        """The batch of the samples at those places in `order`, which begins again at its end."""
        return self.collate([self.dataset[self.order[place % len(self.order)]] for place in places])

    def with_largest_first(self, size_of: Callable[[Any], float] = elements_of) -> DatasetBatches:
        """The same samples, those of the largest `size_of` first; unchanged where they are in such an order already."""
        if self.largest_first:
            return self
        order = sorted(self.order, key=lambda index: -size_of(self.dataset[index]))
        return dataclasses.replace(self, order=order, largest_first=True)


def batches_of(
    dataset: Dataset[Any],
    *,
    collate: Callable[[list[Any]], Any] | None = None,
    worst_case: bool | Callable[[Any], float] = False,
) -> DatasetBatches:
    """A batch maker over `dataset`; with `worst_case` its largest samples come first.

    `worst_case=True` orders samples by their element count, a function by the size that it gives a sample. Variable
    lengths are what runs out of memory later, and n samples drawn at random are seldom the n longest. It reads every
    sample once. Raises UsageError for a Dataset without a length or without samples.
    """
    if isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized):
        raise UsageError(
            f"{type(dataset).__name__} has no length and no index: pass a batch maker make_batch(n) instead of the Dataset."
        )
    length = len(dataset)
    if length == 0:
        raise UsageError(f"{type(dataset).__name__} has 0 samples: a batch needs at least one.")
    batches = DatasetBatches(
        dataset=dataset,
        collate=collate or default_collate,
        order=range(length),
    )
    if worst_case is False:
        return batches
    return batches.with_largest_first(elements_of if worst_case is True else worst_case)
