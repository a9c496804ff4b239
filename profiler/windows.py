"""The micro-batches of a data loader in windows, one for each optimizer step; pure, standard library only.

In the loop that people have:

    loader = DataLoader(dataset, batch_sampler=plan.batch_sampler(RandomSampler(dataset)))
    for part, weight, is_last in plan.windows(loader, count_tokens):
        (loss(model, part) * weight).backward()
        if is_last:
            optimizer.step()
            optimizer.zero_grad()
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from itertools import accumulate, cycle, islice
from typing import Any, cast

from profiler.errors import UsageError
from profiler.parts import Count, Share, Sum, check_counting, count_samples, weighted

ADVICE = "use DataLoader(dataset, batch_sampler=plan.batch_sampler(sampler)), which gives the plan's own sizes."


def windows(
    loader: Iterable[Any],
    share: Share,
    loss_items: Count | None = None,
    *,
    samples: Count | None = None,
    sum_over_replicas: Sum | None = None,
) -> Iterator[tuple[Any, Any, bool]]:
    """`AccumulationPlan.windows`; arguments are checked by the call itself, micro-batches as they come."""
    check_counting(share, loss_items, samples, sum_over_replicas)
    if not any(hasattr(type(loader), name) for name in ("__iter__", "__getitem__")):
        raise UsageError(
            f"the loader is a {type(loader).__name__}, which cannot be iterated: pass a DataLoader, or micro-batches in "
            "any iterable."
        )
    return _windows(loader, share, loss_items, samples, sum_over_replicas)


def _windows(
    loader: Iterable[Any], share: Share, loss_items: Count | None, samples: Count | None, sum_over_replicas: Sum | None
) -> Iterator[tuple[Any, Any, bool]]:
    micro_batches = iter(loader)
    had = share.samples
    while window := list(islice(micro_batches, len(share.sizes))):
        _check_was_whole(had, share)
        sizes = [count_samples(micro_batch, samples) for micro_batch in window]
        _check_window(sizes, share)
        had = sum(sizes)
        parts = deque(weighted(window, sizes, share, loss_items, sum_over_replicas))
        # So that a part can be freed once it is done.
        window.clear()
        while parts:
            part, weight = parts.popleft()
            yield part, weight, not parts


def _check_window(sizes: Sequence[int], share: Share) -> None:
    if max(sizes) > share.largest:
        raise UsageError(
            f"the loader gave a micro-batch of {max(sizes)} samples, and the plan was proved for up to {share.largest}: {ADVICE}"
        )
    if sum(sizes) > share.samples:
        raise UsageError(
            f"{len(sizes)} micro-batches of the loader have {sum(sizes)} samples, and the plan has {share.samples} per "
            f"optimizer step: {ADVICE}"
        )


def _check_was_whole(had: int, share: Share) -> None:
    """Raise UsageError for a window of `had` samples that another one follows, if the plan has more."""
    if had < share.samples:
        raise UsageError(
            f"{len(share.sizes)} micro-batches of the loader had {had} samples and more of them follow, and the plan has "
            f"{share.samples} per optimizer step, fewer only in an epoch's last: {ADVICE}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedBatches:
    """Lists of the sampler's indices in a plan's micro-batch sizes, over and over; the last are short where indices run out.

    It can be iterated as often as `sampler`, and its length is known where the sampler's is.
    """

    sampler: Iterable[int]
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.sampler, Iterable) or isinstance(self.sampler, Iterator):
            raise UsageError(
                f"the sampler is a {type(self.sampler).__name__}, which cannot be iterated once an epoch: pass a sampler, "
                "such as torch.utils.data.RandomSampler(dataset), or a list of indices."
            )

    def __iter__(self) -> Iterator[list[int]]:
        indices = iter(self.sampler)
        for size in cycle(self.sizes):
            batch = list(islice(indices, size))
            if not batch:
                return
            yield batch

    def __len__(self) -> int:
        steps, rest = divmod(len(cast(Sized, self.sampler)), sum(self.sizes))
        starts = [stop - size for size, stop in zip(self.sizes, accumulate(self.sizes), strict=True)]
        return steps * len(self.sizes) + sum(start < rest for start in starts)
