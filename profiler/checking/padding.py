"""Micro-batches as a data loader makes them, collated by themselves, where the checked ones are cut from a whole batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from profiler.batches import DatasetBatches, tensors_of, to_device
from profiler.checking.decomposition import places_of
from profiler.checking.state import batch_in_float64
from profiler.checking.subject import Piece, Subject
from profiler.checking.ways import Split, reference_of, way_of_parts
from profiler.equivalence import Way
from profiler.outcomes import Strategy


def collated_apart(
    subject: Subject, make_batch: Callable[[int], Any], sizes: Split, weights: Sequence[float]
) -> Way | None:
    """Accumulation over parts that are each collated, and so padded, by themselves.

    None where that changes no shape, where batches are not made of a Dataset, and where its samples are never the same twice.
    """
    if not isinstance(make_batch, DatasetBatches):
        return None
    device = subject.passes.device

    def made(places: Sequence[int]) -> Any:
        batch = to_device(make_batch.of(places), device)
        return batch_in_float64(batch) if subject.precision == "fp64" else batch

    again = subject.tried(partial(made, range(subject.samples)))
    apart = [subject.tried(partial(made, places)) for places in places_of(sizes)]
    cut = [subject.take(places) for places in places_of(sizes)]
    if any(isinstance(part, str) for part in (again, *apart)) or not _same(again, subject.batch, torch.equal):
        return None
    if all(_same(one, other, _same_shape) for one, other in zip(apart, cut, strict=True)):
        return None
    places = places_of(sizes)
    pieces = [Piece(places=of_part, batch=part) for of_part, part in zip(places, apart, strict=True)]
    parts = [(piece, weight) for piece, weight in zip(pieces, weights, strict=True) if weight]
    reference = reference_of(subject, sizes, weights)
    return way_of_parts(subject, reference, Strategy.ACCUMULATION, parts, sizes)


def _same_shape(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape


def _same(one: Any, other: Any, alike: Callable[[torch.Tensor, torch.Tensor], bool]) -> bool:
    pairs = zip(tensors_of(one), tensors_of(other), strict=False)
    return all(alike(*pair) for pair in pairs)
