"""A batch cut into a plan's micro-batches, and the weight of each one's averaged loss; pure, standard library only."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from profiler.errors import UsageError, WorkloadError
from profiler.nests import can_be_sliced, samples_in, slice_nest

# Of a batch, how many samples or loss items it has; of a batch and sizes, its parts; of a number here, its sum over replicas.
Count = Callable[[Any], Any]
Split = Callable[[Any, tuple[int, ...]], Iterable[Any]]
Sum = Callable[[float], Any]


def equal_sizes(samples: int, parts: int) -> tuple[int, ...]:
    """`samples` in `parts` sizes that differ by at most one, largest first."""
    small, larger = divmod(samples, parts)
    return (small + 1,) * larger + (small,) * (parts - larger)


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one replica of a plan does for an optimizer step.

    sizes: its micro-batch sizes. largest: that of all replicas. replicas: how many there are. effective_batch_size: samples
    over all of them.
    """

    sizes: tuple[int, ...]
    largest: int
    replicas: int
    effective_batch_size: int

    @classmethod
    def of(cls, replicas: tuple[tuple[int, ...], ...], replica: int) -> Share:
        """The share of number `replica`; UsageError where there is none of that number."""
        if not 0 <= replica < len(replicas):
            raise UsageError(
                f"replica {replica}: this plan has {len(replicas)}, numbered from 0; the number is the process's rank "
                "among those that share the effective batch."
            )
        sizes = [size for each in replicas for size in each]
        return cls(sizes=replicas[replica], largest=max(sizes), replicas=len(replicas), effective_batch_size=sum(sizes))

    @property
    def samples(self) -> int:
        """How many samples the replica has per optimizer step."""
        return sum(self.sizes)

    def sizes_for(self, samples: int) -> tuple[int, ...]:
        """The sizes that a batch of so many samples is cut into: the plan's own, or of a short batch the fewest that fit.

        Raises UsageError for a batch that is empty or larger than the share.
        """
        if samples == self.samples:
            return self.sizes
        if samples < 1:
            raise UsageError(f"the batch has {samples} samples, and a part needs at least one: leave the batch out.")
        if samples > self.samples:
            raise UsageError(
                f"the batch has {samples} samples, and the plan has {self.samples} per optimizer step"
                f"{' on this replica' if self.replicas > 1 else ''}: load batches of {self.samples}, or make a plan for an "
                f"effective batch of {samples * self.replicas}."
            )
        return equal_sizes(samples, -(-samples // self.largest))


def count_samples(batch: Any, samples: Count | None) -> int:
    """How many samples a batch holds: what `samples` says, or dimension 0 of its first array.

    Raises UsageError where neither says it.
    """
    if samples is not None:
        count = _scalar(samples(batch))
        if isinstance(count, int):
            return count
        raise UsageError(
            f"samples returned {count!r} for a batch ({type(batch).__name__}): it must return a whole number, how many samples "
            "the batch holds."
        )
    found = samples_in(batch)
    if found is not None:
        return found
    raise UsageError(
        f"the batch ({type(batch).__name__}) has no array with samples along dimension 0: pass samples, a function that "
        "counts those of a batch, and to cut it split, a function of the batch and sizes that returns its parts."
    )


def cut(
    batch: Any, share: Share, *, split: Split | None = None, samples: Count | None = None
) -> tuple[list[Any], tuple[int, ...]]:
    """The parts of a batch, and how many samples each has; by slicing, or by the user's `split(batch, sizes)`.

    Raises UsageError where the batch cannot be cut, WorkloadError where `split` gives another number of parts, parts that
    do not add up to the batch, or one that is larger than the plan's.
    """
    check_functions(split=split)
    count = count_samples(batch, samples)
    sizes = share.sizes_for(count)
    if split is not None:
        parts = _parts_of(split(batch, sizes), sizes)
        return parts, _checked_sizes(parts, sizes, share, samples)
    if not can_be_sliced(batch, count):
        raise UsageError(
            f"the batch has {count} samples by its count, and no array with {count} along dimension 0, and below its top "
            f"no list of {count}, to be cut: pass split, a function of the batch and sizes that returns its parts."
        )
    stops = accumulate(sizes)
    return [slice_nest(batch, stop - size, stop, count) for size, stop in zip(sizes, stops, strict=True)], sizes


def _parts_of(returned: Any, sizes: tuple[int, ...]) -> list[Any]:
    """What the user's `split` returned, if that is a part for each size."""
    if not isinstance(returned, Iterable):
        raise WorkloadError(f"split returned {type(returned).__name__}: it must return the parts, one for each size.")
    parts = list(returned)
    if len(parts) != len(sizes):
        raise WorkloadError(
            f"split returned {len(parts)} parts for the sizes {list(sizes)}: it must return one for each of these "
            f"{len(sizes)}."
        )
    return parts


def _checked_sizes(
    parts: Sequence[Any], asked: tuple[int, ...], share: Share, samples: Count | None
) -> tuple[int, ...]:
    """How many samples each of the user's parts has, where that can be counted; else what was asked for."""
    sizes = tuple(
        size if samples is None and samples_in(part) is None else count_samples(part, samples)
        for part, size in zip(parts, asked, strict=True)
    )
    what = f"split was asked for parts of {list(asked)} samples and returned parts of {list(sizes)}"
    advice = "return parts of the sizes that it is given" + (
        " (they are counted along dimension 0 of their first array; to count otherwise, pass samples)."
        if samples is None
        else " (they are counted by samples)."
    )
    if sum(sizes) != sum(asked) or min(sizes) < 0:
        raise WorkloadError(f"{what}, {sum(sizes)} in all, where the batch has {sum(asked)}: {advice}")
    if max(sizes) > share.largest:
        raise WorkloadError(f"{what}, and the plan was proved for up to {share.largest}: {advice}")
    return sizes


def count_items(parts: Sequence[Any], sizes: Sequence[int], loss_items: Count | None) -> list[float]:
    """How many items the loss of each part averages over: by `loss_items`, or its samples where that is None.

    Raises WorkloadError for a count that is no number, negative, or not finite.
    """
    if loss_items is None:
        return list(sizes)
    counts = [_number(loss_items(part)) for part in parts]
    wrong = next((number for number, count in enumerate(counts) if not 0 <= count < math.inf), None)
    if wrong is not None:
        raise WorkloadError(
            f"loss_items counted {counts[wrong]} items in part {wrong + 1} of {len(parts)}, which has {sizes[wrong]} "
            "samples: a count must be finite and not negative, for it is what the part's loss averages over."
        )
    if math.isinf(sum(counts)):
        raise WorkloadError(
            f"the counts of loss_items, {counts}, add up to more than a float can hold: scale them down."
        )
    return counts


def _number(count: Any) -> float:
    count = _scalar(count)
    if isinstance(count, int | float):
        return count
    raise WorkloadError(
        f"loss_items returned {type(count).__name__}: it must return how many items the loss of a batch averages over, "
        "a number or a tensor of one."
    )


def _scalar(value: Any) -> Any:
    """The number in a tensor or NumPy scalar, recognised without importing either; anything else as it is."""
    is_scalar = math.prod(getattr(value, "shape", (2,))) == 1 and hasattr(value, "item")
    return value.item() if is_scalar else value


def check_functions(**functions: Any) -> None:
    """Raise UsageError for an argument that is given and cannot be called."""
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise UsageError(f"{name} is a {type(function).__name__}, which cannot be called: pass a function.")


def weigh(parts: Sequence[Any], items: Sequence[float], total: Any, replicas: int) -> list[tuple[Any, Any]]:
    """The parts that have items, each with its weight: its items, over all, times the replicas that gradients average over.

    A part without items is left out: its loss is 0/0, and weight 0 does not undo that.
    """
    return [(part, replicas * count / total) for part, count in zip(parts, items, strict=True) if count]


def weighted(
    parts: Sequence[Any],
    sizes: Sequence[int],
    share: Share,
    loss_items: Count | None,
    sum_over_replicas: Sum | None,
) -> list[tuple[Any, Any]]:
    """`weigh`, with the items counted and summed over the replicas.

    Where this replica has no items and another may have some, one part stays, at weight 0: the other waits for it.
    """
    items = count_items(parts, sizes, loss_items)
    if sum_over_replicas is not None:
        total = _checked_total(sum_over_replicas(sum(items)), sum(items))
        nothing_anywhere = isinstance(total, int | float) and total == 0
        return weigh(parts, items, total, share.replicas) or ([] if nothing_anywhere else [(parts[0], 0.0)])
    # Of samples, the plan says how many the other replicas have for each of this one's.
    return weigh(parts, items, sum(items) * (share.effective_batch_size / share.samples), share.replicas)


def check_counting(
    share: Share, loss_items: Count | None, samples: Count | None, sum_over_replicas: Sum | None
) -> None:
    """Raise UsageError for a function that cannot be called, or for want of one that says what the other replicas have."""
    check_functions(loss_items=loss_items, samples=samples, sum_over_replicas=sum_over_replicas)
    if loss_items is not None and sum_over_replicas is None and share.replicas > 1:
        raise UsageError(
            f"each of {share.replicas} replicas counts its own loss items, and the weights need those of all: pass "
            "sum_over_replicas, a function that sums a number over them (an all-reduce), or use accumulate, which does."
        )


def _checked_total(total: Any, items: float) -> Any:
    # One on a device is left there: to read it would wait for the device.
    if isinstance(total, int | float) and not items * (1 - 1e-6) <= total < math.inf:
        raise UsageError(
            f"sum_over_replicas gave {total} for the {items} items of this replica: it must be their sum over all."
        )
    return total


def split_batch(
    batch: Any,
    share: Share,
    loss_items: Count | None = None,
    *,
    split: Split | None = None,
    samples: Count | None = None,
    sum_over_replicas: Sum | None = None,
) -> Iterator[tuple[Any, Any]]:
    """`AccumulationPlan.split`; everything is checked and counted by the call itself, before the first part."""
    check_counting(share, loss_items, samples, sum_over_replicas)
    parts, sizes = cut(batch, share, split=split, samples=samples)
    return iter(weighted(parts, sizes, share, loss_items, sum_over_replicas))
