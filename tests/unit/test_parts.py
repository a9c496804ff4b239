from __future__ import annotations

from collections import UserDict, namedtuple
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import fsum, inf, nan
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from sample_plans import (
    Recorded,
    TinyModel,
    assert_close,
    count_rows,
    count_targets,
    gradients,
    plan_of,
    plans,
    sample_loss,
    token_batches,
    token_loss,
    whole_gradients,
)
from torch import Tensor, nn

from profiler.errors import UsageError, WorkloadError
from profiler.nests import leaves_of
from profiler.parts import equal_sizes
from profiler.plan import AccumulationPlan

Pair = namedtuple("Pair", ["first", "second"])


@dataclass(frozen=True)
class Tokens:
    ids: Any
    name: str = "text"


@st.composite
def nested(draw: st.DrawFn, samples: int) -> Any:
    """A nest whose first array has `samples` of them, without lists of samples."""
    sliced = st.sampled_from([torch.arange(samples), np.arange(2 * samples).reshape(samples, 2)])
    whole = st.sampled_from(["text", None, 0.5, torch.tensor(1.0), torch.ones(samples + 1), np.ones((samples + 2, 1))])
    inner = st.recursive(
        sliced | whole,
        lambda inner: (
            st.lists(inner, max_size=3).filter(lambda values: len(values) != samples)
            | st.dictionaries(st.text(max_size=2), inner, max_size=3)
            | st.dictionaries(st.text(max_size=2), inner, max_size=3).map(UserDict)
            | st.tuples(inner, inner).map(lambda pair: Pair(*pair))
            | inner.map(lambda value: Tokens(ids=value))
        ),
        max_leaves=8,
    )
    return (draw(sliced), draw(inner))


def concatenated(leaves: tuple[Any, ...]) -> Any:
    return torch.cat(leaves) if isinstance(leaves[0], Tensor) else np.concatenate(leaves)


def lengths(pairs: Iterable[tuple[Any, float]]) -> list[int]:
    return [len(part) for part, _ in pairs]


def grouped(values: Sequence[Any], sizes: Sequence[int]) -> list[Any]:
    """Consecutive groups of the values, of those sizes."""
    return [values[stop - size : stop] for size, stop in zip(sizes, np.cumsum(sizes).tolist(), strict=True)]


# What is cut


@given(st.data(), plans())
def test_parts_put_together_are_the_batch(data: st.DataObject, plan: AccumulationPlan) -> None:
    samples = data.draw(st.integers(1, plan.effective_batch_size))
    batch = data.draw(nested(samples))
    parts = [part for part, _ in plan.split(batch)]

    assert {type(part) for part in parts} == {tuple}
    for leaf, *sliced in zip(leaves_of(batch), *map(leaves_of, parts), strict=True):
        if isinstance(leaf, Tensor | np.ndarray) and leaf.ndim and len(leaf) == samples:
            assert np.array_equal(concatenated(tuple(sliced)), leaf)
        else:
            assert all(part is leaf for part in sliced)


@given(st.data(), plans())
def test_a_full_batch_is_cut_into_the_plans_sizes_and_a_short_one_into_the_fewest_that_fit(
    data: st.DataObject, plan: AccumulationPlan
) -> None:
    samples = data.draw(st.integers(1, plan.effective_batch_size))
    sizes = lengths(plan.split(torch.ones(samples, 2)))

    assert sum(sizes) == samples
    if samples == plan.effective_batch_size:
        assert tuple(sizes) == plan.micro_batch_sizes
    else:
        largest = plan.micro_batch_sizes[0]
        assert max(sizes) <= largest
        assert len(sizes) == -(-samples // largest)
        assert max(sizes) - min(sizes) <= 1


def test_512_samples_are_cut_into_171_171_and_170_with_the_plans_own_weights() -> None:
    plan = plan_of((171, 171, 170))
    pairs = list(plan.split({"images": torch.ones(512, 3), "name": "text"}))

    assert [len(part["images"]) for part, _ in pairs] == [171, 171, 170]
    assert tuple(weight for _, weight in pairs) == plan.weights


@pytest.mark.parametrize(
    ("samples", "expected"), [(511, [171, 170, 170]), (342, [171, 171]), (172, [86, 86]), (171, [171]), (1, [1])]
)
def test_the_short_last_batch_of_an_epoch_has_its_own_parts_and_weights(samples: int, expected: list[int]) -> None:
    pairs = list(plan_of((171, 171, 170)).split(torch.ones(samples)))

    assert [len(part) for part, _ in pairs] == expected
    assert [weight for _, weight in pairs] == [size / samples for size in expected]


def test_each_replica_cuts_its_own_share() -> None:
    plan = plan_of((4, 3), (3, 3))

    assert lengths(plan.split(torch.ones(7), replica=0)) == [4, 3]
    assert lengths(plan.split(torch.ones(6), replica=1)) == [3, 3]
    assert lengths(plan.split(torch.ones(5), replica=1)) == [3, 2]


@pytest.mark.parametrize("replica", [-1, 2])
def test_a_replica_that_the_plan_does_not_have_is_refused(replica: int) -> None:
    plan = plan_of((2,), (2,))

    with pytest.raises(UsageError, match=rf"replica {replica}: this plan has 2, numbered from 0"):
        plan.split(torch.ones(2), replica=replica)
    with pytest.raises(UsageError, match=rf"replica {replica}"):
        plan.windows([], replica=replica)
    with pytest.raises(UsageError, match=rf"replica {replica}"):
        plan.batch_sampler([], replica=replica)


def test_an_empty_batch_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match="the batch has 0 samples, and a part needs at least one"):
        plan_of((2, 1)).split(torch.ones(0, 3))


def test_a_batch_larger_than_the_share_is_refused_with_both_numbers() -> None:
    with pytest.raises(
        UsageError, match=r"8 samples, and the plan has 7 per optimizer step: load batches of 7, or .* 8\."
    ):
        plan_of((4, 3)).split(torch.ones(8))
    with pytest.raises(UsageError, match=r"7 samples, and the plan has 6 per optimizer step on this replica"):
        plan_of((4, 3), (3, 3)).split(torch.ones(7), replica=1)


@pytest.mark.parametrize("batch", [[], "text", {"scale": torch.tensor(1.0)}, object()])
def test_a_batch_whose_samples_cannot_be_counted_is_refused_with_what_to_pass(batch: Any) -> None:
    with pytest.raises(UsageError, match="no array with samples along dimension 0: pass samples"):
        plan_of((2, 1)).split(batch)


def test_a_batch_that_slicing_would_copy_whole_into_each_part_is_refused() -> None:
    with pytest.raises(
        UsageError,
        match="3 samples by its count, and no array with 3 along dimension 0, and below its top no list of 3",
    ):
        plan_of((2, 1)).split({"texts": ["a", "b"], "scale": torch.ones(5)}, samples=lambda batch: 3)
    with pytest.raises(UsageError, match="and below its top no list of 3, to be cut: pass split"):
        plan_of((2, 1)).split(["a", "b", "c"], samples=len)


# Lists of samples


class Detector(nn.Module):
    """One number for each image, and a loss of it and each image's own boxes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 4, dtype=torch.float64)

    def forward(self, image: Tensor) -> Tensor:
        box: Tensor = torch.tanh(self.layer(image))
        return box


def detection_loss(model: nn.Module, batch: Any) -> Tensor:
    images, targets = batch
    losses = [(model(image) - each["boxes"]).square().mean() for image, each in zip(images, targets, strict=True)]
    return torch.stack(losses).mean()


def detections(samples: int, boxes_of: Callable[[int], int]) -> tuple[Tensor, list[dict[str, Any]]]:
    torch.manual_seed(1)
    targets = [{"boxes": torch.randn(boxes_of(place), 4, dtype=torch.float64), "id": place} for place in range(samples)]
    return torch.randn(samples, 3, dtype=torch.float64), targets


@given(data=st.data(), plan=plans())
def test_targets_of_several_boxes_each_have_the_gradient_of_the_whole_batch(
    data: st.DataObject, plan: AccumulationPlan
) -> None:
    samples = data.draw(st.integers(1, plan.effective_batch_size))
    # Of one target at least not as many boxes as there are samples.
    counts = [samples + 1, *data.draw(st.lists(st.integers(1, 6), min_size=samples - 1, max_size=samples - 1))]
    batch = detections(samples, counts.__getitem__)
    model = Detector()
    _, expected = whole_gradients(model, detection_loss, batch)

    pairs = list(plan.split(batch))
    assert [[each["id"] for each in targets] for (_, targets), _ in pairs] == [
        list(ids) for ids in grouped(range(samples), lengths((images, weight) for (images, _), weight in pairs))
    ]
    for part, weight in pairs:
        (detection_loss(model, part) * weight).backward()
    assert_close(gradients(model), expected)


def test_a_target_with_as_many_boxes_as_samples_keeps_them_all() -> None:
    images, targets = detections(8, lambda place: place + 1)
    parts = [part for part, _ in plan_of((3, 3, 2)).split({"images": images, "targets": targets})]

    assert [[len(each["boxes"]) for each in part["targets"]] for part in parts] == [[1, 2, 3], [4, 5, 6], [7, 8]]
    assert parts[2]["targets"][1]["boxes"] is targets[7]["boxes"]


def test_lists_of_images_and_targets_are_cut_where_their_samples_are_counted() -> None:
    batch = ([torch.ones(3, 4 + place) for place in range(5)], list("abcde"))
    parts = plan_of((3, 2)).split(batch, samples=lambda batch: len(batch[0]))

    assert [([image.shape[1] for image in images], names, weight) for (images, names), weight in parts] == [
        ([4, 5, 6], ["a", "b", "c"], 3 / 5),
        ([7, 8], ["d", "e"], 2 / 5),
    ]


@pytest.mark.parametrize("count", [2.0, None, "3", torch.ones(2)])
def test_a_count_of_samples_that_is_no_whole_number_is_refused(count: Any) -> None:
    with pytest.raises(UsageError, match=r"samples returned .*: it must return a whole number"):
        plan_of((2, 1)).split(torch.ones(3), samples=lambda batch: count)


@pytest.mark.parametrize("count", [3, torch.tensor(3), np.int64(3)])
def test_samples_may_be_counted_where_the_first_array_does_not_show_them(count: Any) -> None:
    batch = {"positions": torch.ones(1, 4), "ids": torch.arange(3)}
    pairs = plan_of((2, 1)).split(batch, samples=lambda batch: count)

    assert [part["ids"].tolist() for part, _ in pairs] == [[0, 1], [2]]


# A function of the user's that cuts


def by_text(batch: list[str], sizes: tuple[int, ...]) -> list[list[str]]:
    return grouped(batch, sizes)


def test_a_function_of_the_users_cuts_what_slicing_cannot() -> None:
    pairs = list(plan_of((2, 1)).split(["a", "b", "c"], split=by_text, samples=len))

    assert pairs == [(["a", "b"], 2 / 3), (["c"], 1 / 3)]


def test_the_users_function_is_told_the_sizes_of_a_short_batch() -> None:
    cut = Recorded(lambda batch, sizes: batch.split(list(sizes)))

    assert lengths(plan_of((4, 4, 3)).split(torch.ones(5), split=cut)) == [3, 2]
    assert cut.calls == [(3, 2)]


def test_the_users_parts_are_weighed_by_their_items() -> None:
    pairs = plan_of((2, 1)).split(["aaa", "b", "cc"], lambda part: sum(map(len, part)), split=by_text, samples=len)

    assert [weight for _, weight in pairs] == [4 / 6, 2 / 6]


def test_parts_of_a_generator_are_taken_as_they_come() -> None:
    def each(batch: Tensor, sizes: tuple[int, ...]) -> Iterator[Tensor]:
        yield from batch.split(list(sizes))

    assert lengths(plan_of((2, 1)).split(torch.ones(3), split=each)) == [2, 1]


def test_another_number_of_parts_than_sizes_is_the_users_bug() -> None:
    with pytest.raises(WorkloadError, match=r"split returned 3 parts for the sizes \[2, 1\]"):
        plan_of((2, 1)).split(torch.ones(3), split=lambda batch, sizes: list(batch))
    with pytest.raises(WorkloadError, match="split returned NoneType: it must return the parts"):
        plan_of((2, 1)).split(torch.ones(3), split=lambda batch, sizes: None)  # type: ignore[arg-type,return-value]


def test_parts_of_other_sizes_than_asked_for_are_weighed_by_their_own() -> None:
    batch = torch.arange(10)
    pairs = list(plan_of((3, 3, 2, 2)).split(batch, split=lambda batch, sizes: batch.split(3)))

    assert [(len(part), weight) for part, weight in pairs] == [(3, 0.3), (3, 0.3), (3, 0.3), (1, 0.1)]
    assert sum(part.double().mean() * weight for part, weight in pairs).item() == pytest.approx(4.5)


def test_the_users_parts_are_counted_by_samples_where_that_is_given() -> None:
    pairs = plan_of((3, 3, 2)).split(
        list("abcdefgh"), split=lambda batch, sizes: grouped(batch, [2, 3, 3]), samples=len
    )

    assert [(len(part), weight) for part, weight in pairs] == [(2, 2 / 8), (3, 3 / 8), (3, 3 / 8)]


def test_a_part_that_cannot_be_counted_has_the_size_that_was_asked_for() -> None:
    pairs = plan_of((2, 1)).split(torch.ones(3), split=lambda batch, sizes: [object(), batch[2:]])

    assert [weight for _, weight in pairs] == [2 / 3, 1 / 3]


@pytest.mark.parametrize("loss_items", [None, count_rows])
@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([2, 2, 2], r"parts of \[3, 3, 2\] samples and returned parts of \[2, 2, 2\], 6 in all, where the batch has 8"),
        ([3, 3, 3], r"returned parts of \[3, 3, 3\], 9 in all, where the batch has 8: return parts of the sizes"),
        ([4, 2, 2], r"returned parts of \[4, 2, 2\], and the plan was proved for up to 3: return .* pass samples"),
    ],
)
def test_parts_that_are_not_the_batch_or_larger_than_the_plans_are_the_users_bug(
    sizes: list[int], message: str, loss_items: Any
) -> None:
    def wrong(batch: Tensor, asked: tuple[int, ...]) -> list[Tensor]:
        return [torch.ones(size) for size in sizes]

    with pytest.raises(WorkloadError, match=message):
        plan_of((3, 3, 2)).split(torch.ones(8), loss_items, split=wrong)


def test_parts_of_less_than_no_samples_are_the_users_bug() -> None:
    with pytest.raises(WorkloadError, match=r"returned parts of \[4, -1\], 3 in all.*\(they are counted by samples\)"):
        plan_of((2, 1)).split(3, split=lambda batch, sizes: [4, -1], samples=lambda batch: batch)


@pytest.mark.parametrize("name", ["loss_items", "split", "samples", "sum_over_replicas"])
def test_what_cannot_be_called_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} is a int, which cannot be called"):
        plan_of((2, 1)).split(torch.ones(3), **{name: 5})  # type: ignore[arg-type]
    if name != "split":
        with pytest.raises(UsageError, match=f"{name} is a int, which cannot be called"):
            plan_of((2, 1)).windows([], **{name: 5})  # type: ignore[arg-type]


# Weights


@given(st.data(), plans())
def test_weights_are_shares_of_the_items_and_parts_without_any_are_skipped(
    data: st.DataObject, plan: AccumulationPlan
) -> None:
    samples = data.draw(st.integers(1, plan.effective_batch_size))
    batch = torch.tensor(data.draw(st.lists(st.integers(0, 3) | st.just(0), min_size=samples, max_size=samples)))
    pairs = list(plan.split(batch, count_rows))

    assert all(weight > 0 for _, weight in pairs)
    assert [weight * count_rows(batch) for _, weight in pairs] == pytest.approx([count_rows(part) for part, _ in pairs])
    assert fsum(weight for _, weight in pairs) == pytest.approx(1 if batch.any() else 0, abs=1e-12)
    assert sum(map(len, (part for part, _ in pairs))) == samples - sum(
        len(part) for part, _ in plan.split(batch) if not part.any()
    )


@given(st.lists(st.floats(0, 1e300), min_size=1, max_size=6))
def test_items_may_be_a_sum_of_class_weights(counts: list[float]) -> None:
    assume(0 < sum(counts) < inf)
    batch = torch.tensor(counts, dtype=torch.float64)
    pairs = list(plan_of((1,) * len(counts)).split(batch, lambda part: part.sum().item()))

    assert fsum(weight for _, weight in pairs) == pytest.approx(1, abs=1e-12)
    assert len(pairs) == sum(count > 0 for count in counts)


@pytest.mark.parametrize(
    "scalar", [int, float, torch.tensor, np.int64, np.float32, lambda count: torch.tensor([count])]
)
def test_a_count_may_be_a_number_of_any_library(scalar: Any) -> None:
    pairs = list(plan_of((2, 1)).split(torch.tensor([1, 4, 3]), lambda part: scalar(count_rows(part))))

    assert [weight for _, weight in pairs] == [5 / 8, 3 / 8]


@pytest.mark.parametrize("count", [-1, -0.5, nan, inf, -inf, torch.tensor(nan)])
def test_a_count_that_cannot_be_one_is_refused_with_its_part(count: Any) -> None:
    with pytest.raises(
        WorkloadError, match=r"counted (-1|-0\.5|nan|inf|-inf) items in part 2 of 2, which has 1 samples"
    ):
        plan_of((2, 1)).split(torch.ones(3), lambda part: count if len(part) == 1 else 4)


def test_counts_that_add_up_to_infinity_are_refused() -> None:
    with pytest.raises(WorkloadError, match="add up to more than a float can hold"):
        plan_of((1, 1)).split(torch.ones(2), lambda part: 1e308)


@pytest.mark.parametrize("count", [None, "5", torch.ones(2), [3]])
def test_a_count_that_is_no_number_is_refused(count: Any) -> None:
    with pytest.raises(WorkloadError, match=r"loss_items returned .*: it must return how many items"):
        plan_of((2, 1)).split(torch.ones(3), lambda part: count)


def test_all_parts_are_counted_before_the_first_one_is_given() -> None:
    count = Recorded(len)
    pairs = plan_of((2, 2, 1)).split(torch.ones(5), count)

    assert [len(part) for part in count.calls] == [2, 2, 1]
    assert lengths(pairs) == [2, 2, 1]
    assert len(count.calls) == 3


def test_a_batch_without_items_gives_nothing() -> None:
    assert list(plan_of((2, 1)).split(torch.zeros(3), count_rows)) == []


def test_equal_sizes_differ_by_at_most_one_and_add_up() -> None:
    assert equal_sizes(10, 3) == (4, 3, 3)
    assert equal_sizes(9, 3) == (3, 3, 3)


# Several replicas


def test_weights_over_replicas_are_shares_of_all_items_times_their_number() -> None:
    plan = plan_of((2, 1), (2, 1))
    batches = [torch.tensor([1, 2, 3]), torch.tensor([0, 0, 4])]
    total = Recorded(lambda items: 10)
    pairs = [
        list(plan.split(batch, count_rows, replica=number, sum_over_replicas=total))
        for number, batch in enumerate(batches)
    ]

    assert [[weight for _, weight in each] for each in pairs] == [[2 * 3 / 10, 2 * 3 / 10], [2 * 4 / 10]]
    assert total.calls == [6, 4]
    # Averaged over the replicas, which is what happens to gradients.
    assert fsum(weight for each in pairs for _, weight in each) / 2 == pytest.approx(1)


def test_a_total_on_a_device_is_not_read() -> None:
    plan = plan_of((2, 1), (2, 1))
    pairs = plan.split(torch.ones(3), count_rows, sum_over_replicas=lambda items: torch.tensor(items, device="meta"))

    assert [weight.device.type for _, weight in pairs] == ["meta", "meta"]  # type: ignore[attr-defined]


def test_of_samples_the_plan_says_what_the_other_replicas_have() -> None:
    plan = plan_of((2, 2), (2, 1))
    weights = [[weight for _, weight in plan.split(torch.ones(4 - number), replica=number)] for number in (0, 1)]

    assert weights == [[pytest.approx(2 * 2 / 7)] * 2, [pytest.approx(2 * 2 / 7), pytest.approx(2 * 1 / 7)]]


def test_replicas_with_equal_shares_weigh_short_batches_by_themselves() -> None:
    pairs = plan_of((4, 3), (4, 3)).split(torch.ones(5))

    assert [weight for _, weight in pairs] == [3 / 5, 2 / 5]


def test_items_of_one_of_several_replicas_are_no_weights() -> None:
    plan = plan_of((2,), (2,))

    with pytest.raises(UsageError, match=r"each of 2 replicas counts its own loss items.* pass sum_over_replicas"):
        plan.split(torch.ones(2), count_rows)
    with pytest.raises(UsageError, match="each of 2 replicas counts its own loss items"):
        plan.windows([], count_rows)


@pytest.mark.parametrize("total", [2, 0, -1, nan, inf])
def test_a_total_below_the_replicas_own_items_is_refused(total: float) -> None:
    with pytest.raises(UsageError, match=rf"sum_over_replicas gave {total} for the 3 items of this replica"):
        plan_of((3,), (3,)).split(torch.ones(3), count_rows, sum_over_replicas=lambda items: total)


@pytest.mark.parametrize("total", [5, torch.tensor(5.0)])
def test_a_replica_without_items_keeps_one_part_at_weight_0_where_others_wait_for_it(total: Any) -> None:
    plan = plan_of((2, 1), (2, 1))
    pairs = list(plan.split(torch.zeros(3), count_rows, sum_over_replicas=lambda items: total))
    windows = list(plan.windows(torch.zeros(3).split(2), count_rows, sum_over_replicas=lambda items: total))

    assert [(len(part), weight) for part, weight in pairs] == [(2, 0.0)]
    assert [(len(part), weight, is_last) for part, weight, is_last in windows] == [(2, 0.0, True)]


def test_where_no_replica_has_items_none_waits() -> None:
    assert list(plan_of((2,), (2,)).split(torch.zeros(2), count_rows, sum_over_replicas=lambda items: 0)) == []


# The identity that the weights are for


@pytest.mark.parametrize(("loss", "loss_items"), [(token_loss, count_targets), (sample_loss, None)])
@given(data=st.data(), plan=plans())
def test_the_weighted_parts_have_the_gradient_of_the_whole_batch(
    data: st.DataObject, plan: AccumulationPlan, loss: Any, loss_items: Any
) -> None:
    batch = data.draw(token_batches(data.draw(st.integers(1, plan.effective_batch_size))))
    assume(loss_items is None or count_targets(batch))
    model = TinyModel()
    whole, expected = whole_gradients(model, loss, batch)

    total = torch.zeros((), dtype=torch.float64)
    for part, weight in plan.split(batch, loss_items):
        weighted = loss(model, part) * weight
        weighted.backward()
        total += weighted.detach()

    assert total.item() == pytest.approx(whole.item(), rel=1e-12)
    assert_close(gradients(model), expected)
