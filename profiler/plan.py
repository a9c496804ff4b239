"""From an effective batch to micro-batches and weights that add up to it exactly; pure, standard library only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from profiler.errors import UsageError
from profiler.parts import Count, Share, Split, Sum, equal_sizes, split_batch
from profiler.units import format_bytes, format_seconds
from profiler.windows import PlannedBatches, windows

# Two step times closer than this are a tie whatever their measured spread says.
TIE = 0.02
# A wider spread says that the machine was busy, not that a split which takes half as long again is as fast.
WIDEST_TIE = 0.10


@dataclass(frozen=True, slots=True, kw_only=True)
class AccumulationPlan:
    """How to reach an effective batch: which micro-batches, with which weights, and what that costs.

    effective_batch_size: samples per optimizer step over all replicas.
    replicas: each replica's micro-batch sizes; all replicas run the same number, so that none waits in a collective.
    reason: why this plan was chosen, in words. notes: what else the user should know, a sentence each.
    predicted_peak_bytes, predicted_step_seconds: from the trials of its largest micro-batch.
    peak_bytes: measured by running the plan itself for `verified_steps` optimizer steps; None before that.
    step_seconds: the median of the steps but the first; on the CPU of a second such run, without the exact allocator.
    soaked_steps, soaked_peak_bytes: how many optimizer steps it ran on batches as training takes them, and the peak over
    those; 0 and None where no soak was asked for.
    equivalence: whether accumulation equals the whole batch for this model and loss, in a sentence; None where that was
    not checked.

    It refuses to exist (UsageError) if the sizes do not add up to the effective batch.
    """

    effective_batch_size: int
    replicas: tuple[tuple[int, ...], ...]
    reason: str
    notes: tuple[str, ...] = ()
    predicted_peak_bytes: int | None = None
    predicted_step_seconds: float | None = None
    peak_bytes: int | None = None
    step_seconds: float | None = None
    verified_steps: int = 0
    soaked_steps: int = 0
    soaked_peak_bytes: int | None = None
    equivalence: str | None = None

    def __post_init__(self) -> None:
        check_effective_batch(self.effective_batch_size, self.data_parallel_size)
        sizes = [size for replica in self.replicas for size in replica]
        if any(size < 1 for size in sizes):
            raise UsageError(f"micro-batches {sizes}: each counts samples, so it must be at least 1.")
        if sum(sizes) != self.effective_batch_size:
            raise UsageError(
                f"micro-batches {sizes} add up to {sum(sizes)}, not to the effective batch of {self.effective_batch_size}."
            )
        if len({len(replica) for replica in self.replicas}) != 1:
            raise UsageError(
                f"replicas run different numbers of micro-batches: {[len(replica) for replica in self.replicas]}."
            )
        # Running the first replica, its largest micro-batch first, proves the others only if none has a larger one.
        if self.replicas[0][0] != max(sizes):
            raise UsageError(f"the first micro-batch has {self.replicas[0][0]} samples, and a later one {max(sizes)}.")

    @property
    def micro_batch_sizes(self) -> tuple[int, ...]:
        """The first replica's micro-batch sizes, largest first; no replica has a larger one."""
        return self.replicas[0]

    @property
    def accumulation_steps(self) -> int:
        """Micro-batches per optimizer step on one replica."""
        return len(self.micro_batch_sizes)

    @property
    def data_parallel_size(self) -> int:
        """How many replicas share the effective batch."""
        return len(self.replicas)

    @property
    def weights(self) -> tuple[float, ...]:
        """The share of the effective batch's samples in each of the first replica's micro-batches.

        Multiply a micro-batch's averaged loss by its weight before its backward. Where gradients are averaged over
        replicas, multiply by `replica_factor` too.
        """
        return tuple(size / self.effective_batch_size for size in self.micro_batch_sizes)

    @property
    def replica_weights(self) -> tuple[tuple[float, ...], ...]:
        """Each replica's `weights`; all of them add up to 1."""
        return tuple(tuple(size / self.effective_batch_size for size in sizes) for sizes in self.replicas)

    @property
    def replica_factor(self) -> int:
        """The factor that undoes the averaging of gradients over replicas (DistributedDataParallel divides by it)."""
        return self.data_parallel_size

    def split(
        self,
        batch: Any,
        loss_items: Count | None = None,
        *,
        split: Split | None = None,
        samples: Count | None = None,
        replica: int = 0,
        sum_over_replicas: Sum | None = None,
    ) -> Iterator[tuple[Any, float]]:
        """The parts of a batch, each with the weight of its averaged loss: its share of the items of the whole batch.

        batch: this replica's samples of one optimizer step, or fewer (an epoch's last): a nest (dict, list, tuple,
            dataclass). Sliced are arrays with the samples along dimension 0 and, below the top, lists of samples: a list
            or plain tuple of one element for each, all of one type, whose arrays do not all have the samples along
            dimension 0. Nothing in those elements is sliced. All else goes into every part as it is.
        loss_items: how many items the loss of a part averages over, as in `Workload`; None is its samples. All parts are
            counted before this returns, and one without items is left out: its loss is 0/0.
        split: a function of the batch and sizes that returns the parts, for batches that are cut otherwise, such as a list.
        samples: how many samples a batch, or a part by `split`, holds; None is dimension 0 of its first array.
        replica: which of `replicas` this is.
        sum_over_replicas: a function that sums a number over the replicas. The weights then are shares of all replicas'
            items, times `replica_factor`. Without it, of samples, the other replicas have what the plan says, or are short
            in proportion. A replica that alone has no items gets one part, at weight 0, for the others wait for it; its
            loss must be finite (`accumulate` sees to that).

        Raises UsageError for a batch that is empty, larger than this replica's share, or cannot be cut, WorkloadError for
        counts or parts that cannot be right.
        """
        share = Share.of(self.replicas, replica)
        return split_batch(batch, share, loss_items, split=split, samples=samples, sum_over_replicas=sum_over_replicas)

    def windows(
        self,
        loader: Iterable[Any],
        loss_items: Count | None = None,
        *,
        samples: Count | None = None,
        replica: int = 0,
        sum_over_replicas: Sum | None = None,
    ) -> Iterator[tuple[Any, float, bool]]:
        """The micro-batches of `loader`, each with its weight and whether it is the last before `optimizer.step()`.

        `accumulation_steps` of them are read and counted before the first of them is given; no more are read ahead. Only
        the last window of an epoch may have fewer samples, with weights of its own. Weights, parts without items and the
        other arguments are as in `split`; a window without any items gives nothing, and so no step.

        Raises UsageError for a micro-batch or window larger than the plan's, or a smaller window when another follows,
        WorkloadError for counts that cannot be right.
        """
        share = Share.of(self.replicas, replica)
        return windows(loader, share, loss_items, samples=samples, sum_over_replicas=sum_over_replicas)

    def batch_sampler(self, sampler: Iterable[int], *, replica: int = 0) -> PlannedBatches:
        """For `DataLoader(dataset, batch_sampler=...)`: the sampler's indices in micro-batches of the plan's sizes, in order.

        Raises UsageError for an iterator, which would be used up after one epoch.
        """
        return PlannedBatches(sampler=sampler, sizes=Share.of(self.replicas, replica).sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A split of the effective batch whose largest micro-batch ran; times are None where the device gives none.

    spread: the relative interquartile range of the timing, as in `Throughput.spread`.
    """

    replicas: tuple[tuple[int, ...], ...]
    peak_bytes: int
    step_seconds: float | None = None
    spread: float = 0.0

    @property
    def accumulation_steps(self) -> int:
        """Micro-batches per optimizer step on one replica."""
        return len(self.replicas[0])

    @property
    def is_equal(self) -> bool:
        """Whether every micro-batch has the same size."""
        return len({size for replica in self.replicas for size in replica}) == 1


def check_effective_batch(effective_batch_size: int, data_parallel_size: int) -> None:
    """Raise UsageError unless both are whole numbers and every replica gets at least one sample."""
    for name, value in (("the effective batch", effective_batch_size), ("data_parallel_size", data_parallel_size)):
        if not isinstance(value, int):
            raise UsageError(f"{name} is {value!r}: it must be a whole number.")
    if data_parallel_size < 1:
        raise UsageError(f"data_parallel_size is {data_parallel_size}: it counts replicas, so it must be at least 1.")
    if effective_batch_size < 1:
        raise UsageError(f"the effective batch is {effective_batch_size}: it counts samples, so it must be at least 1.")
    if effective_batch_size < data_parallel_size:
        raise UsageError(
            f"an effective batch of {effective_batch_size} cannot be shared by {data_parallel_size} replicas: each needs "
            "a sample. Use fewer replicas or a larger batch."
        )


def check_equal_shares(effective_batch_size: int, data_parallel_size: int) -> None:
    """Raise UsageError unless every replica can have the same number of samples."""
    if effective_batch_size % data_parallel_size:
        below = effective_batch_size // data_parallel_size * data_parallel_size
        raise UsageError(
            f"{data_parallel_size} replicas cannot share {effective_batch_size} samples equally: use "
            f"{below} or {below + data_parallel_size}, or leave out --equal."
        )


def check_multiple(effective_batch_size: int, multiple_of: int, data_parallel_size: int) -> None:
    """Raise UsageError unless the effective batch is made of multiples, of which every replica gets at least one."""
    if effective_batch_size % multiple_of:
        below = effective_batch_size // multiple_of * multiple_of
        choices = f"{below} or {below + multiple_of}" if below else f"{multiple_of}"
        raise UsageError(
            f"an effective batch of {effective_batch_size} is no sum of micro-batches that are multiples of {multiple_of}: use "
            f"{choices}, or another --multiple-of."
        )
    if effective_batch_size < multiple_of * data_parallel_size:
        raise UsageError(
            f"an effective batch of {effective_batch_size} cannot be shared by {data_parallel_size} replicas in multiples of "
            f"{multiple_of}: use at least {multiple_of * data_parallel_size}, or fewer replicas."
        )


def split(
    effective_batch_size: int, accumulation_steps: int, data_parallel_size: int = 1, *, multiple_of: int = 1
) -> tuple[tuple[int, ...], ...]:
    """Each replica's micro-batch sizes: as equal as they can be, largest first, adding up to the effective batch exactly.

    Sizes are multiples of `multiple_of`, of which the effective batch must be one, and differ by at most that; so do the
    replicas' sums. There must be no more than `effective_batch_size / multiple_of` parts.
    """
    parts, blocks = accumulation_steps * data_parallel_size, effective_batch_size // multiple_of
    assert 1 <= parts <= blocks, f"{parts} parts of {blocks} × {multiple_of} samples"
    sizes = tuple(multiple_of * count for count in equal_sizes(blocks, parts))
    # Dealt like cards, so that no replica gets all the larger ones.
    return tuple(tuple(sizes[replica::data_parallel_size]) for replica in range(data_parallel_size))


def least_steps(effective_batch_size: int, largest_size: int, data_parallel_size: int = 1) -> int:
    """The fewest accumulation steps with no micro-batch above `largest_size`."""
    return -(-effective_batch_size // (largest_size * data_parallel_size))


def equal_steps(effective_batch_size: int, least: int, data_parallel_size: int = 1) -> tuple[int, ...]:
    """Every number of accumulation steps from `least` on that makes all micro-batches equal; the fewest first.

    Raises UsageError where the replicas alone do not divide the effective batch.
    """
    check_equal_shares(effective_batch_size, data_parallel_size)
    share = effective_batch_size // data_parallel_size
    return tuple(steps for steps in range(least, share + 1) if share % steps == 0)


def better_targets(effective_batch_size: int, least: int, data_parallel_size: int = 1) -> tuple[int, ...]:
    """The nearest other effective batches, below and above, that `least` equal micro-batches a replica add up to."""
    block = least * data_parallel_size
    below = (effective_batch_size - 1) // block * block
    above = (effective_batch_size // block + 1) * block
    return (below, above) if below else (above,)


def choose(candidates: Sequence[Candidate], *, safe_bytes: int, prefer_equal: bool = False) -> tuple[Candidate, str]:
    """The candidate to run, and why, in words: fastest, not largest.

    Of those whose peak is within `safe_bytes`, the one with the least time per optimizer step; of those within 2 % of it,
    or within the measured spread of either if that is larger (up to 10 %), the one with the least memory. prefer_equal: among those,
    equal micro-batches first (a compiled model is compiled again for a second size). Without times, the largest
    micro-batch.

    Raises UsageError where none of the candidates, of which there is at least one, is within `safe_bytes`.
    """
    assert candidates, "nothing to choose from"
    safe = [candidate for candidate in candidates if candidate.peak_bytes <= safe_bytes]
    if not safe:
        least = min(candidate.peak_bytes for candidate in candidates)
        raise UsageError(
            f"no split leaves the headroom: the smallest peak is {format_bytes(least)}, and {format_bytes(safe_bytes)} "
            "may be used. Lower --headroom, or raise the limit."
        )
    timed = [(candidate.step_seconds, candidate) for candidate in safe if candidate.step_seconds is not None]
    if not timed:
        chosen = min(safe, key=lambda candidate: candidate.accumulation_steps)
        return chosen, f"{_sizes(chosen)}: the largest that leaves the headroom; nothing was timed on this device."
    best_seconds, best = min(timed, key=lambda pair: pair[0])
    close = [
        (seconds, candidate)
        for seconds, candidate in timed
        if seconds <= best_seconds * (1 + min(max(TIE, best.spread, candidate.spread), WIDEST_TIE))
    ]
    equal = [pair for pair in close if pair[1].is_equal] if prefer_equal else []
    seconds, chosen = min(equal or close, key=lambda pair: (pair[1].peak_bytes, pair[0]))
    return chosen, _reason(chosen, seconds, best_seconds, len(timed), len(close), of_equal=bool(equal))


def _reason(chosen: Candidate, seconds: float, best_seconds: float, timed: int, close: int, *, of_equal: bool) -> str:
    what = f"{_sizes(chosen)}: {format_seconds(seconds)} per optimizer step by its parts"
    if timed == 1:
        return f"{what}; the only split that leaves the headroom and was timed."
    among = f"of the {timed} splits that leave the headroom and were timed"
    if close == 1:
        return f"{what}, the fastest {among}."
    return (
        f"{what}; {close} {among} are within {TIE:.0%} of the best, {format_seconds(best_seconds)}, or within the spread of "
        f"their timing, and {'of those with equal micro-batches ' if of_equal else ''}this one needs the least memory, "
        f"{format_bytes(chosen.peak_bytes)}."
    )


def _sizes(candidate: Candidate) -> str:
    sizes = candidate.replicas[0]
    count = f"{len(sizes)} micro-batch{'es' if len(sizes) > 1 else ''}"
    if sizes[0] == sizes[-1]:
        return f"{count} of {sizes[0]}"
    return f"{count}, {sizes.count(sizes[0])} of {sizes[0]} and {sizes.count(sizes[-1])} of {sizes[-1]}"
