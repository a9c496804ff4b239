"""The identity itself, and what the check's parts promise, for any model, counts and splits."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import pytest
import torch
from checking_models import IGNORED, advised_items, checked, subject_of
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.threads import one_thread
from profiler.checking.decomposition import places_of
from profiler.checking.gradients import SKETCH_LENGTH, distance, norm, sketch
from profiler.checking.ways import splits_of
from profiler.equivalence import Decomposition
from profiler.outcomes import Strategy

CLASSES, MOST_ITEMS = 3, 4
few, fewer = settings(max_examples=25), settings(max_examples=8)
seeds = st.integers(0, 2**32 - 1)
widths = st.lists(st.integers(1, 5), min_size=1, max_size=3)
activations = st.sampled_from([nn.Tanh, nn.ReLU, nn.Sigmoid, nn.Softplus])


@st.composite
def splits(draw: st.DrawFn, samples: int) -> list[int]:
    """Sizes that add up to `samples`."""
    cuts = sorted(draw(st.sets(st.integers(1, samples - 1)))) if samples > 1 else []
    return [end - start for start, end in zip([0, *cuts], [*cuts, samples], strict=True)]


def mlp(seed: int, hidden: list[int], activation: type[nn.Module]) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in zip([3, *hidden], [*hidden, CLASSES], strict=True):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers[:-1]).double()


def items_batch(counts: list[int]) -> tuple[Tensor, Tensor]:
    """Samples of MOST_ITEMS items, as many of which have labels as `counts` says."""
    labels = torch.randint(CLASSES, (len(counts), MOST_ITEMS))
    labelled = torch.arange(MOST_ITEMS) < torch.tensor(counts)[:, None]
    return torch.randn(len(counts), MOST_ITEMS, 3, dtype=torch.float64), torch.where(labelled, labels, IGNORED)


def item_mean(model: nn.Module, batch: Any) -> Any:
    return functional.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())


@few
@given(
    counts=st.lists(st.integers(0, MOST_ITEMS), min_size=2, max_size=7),
    data=st.data(),
    seed=seeds,
    hidden=widths,
    activation=activations,
    strategy=st.sampled_from([Strategy.ACCUMULATION, Strategy.SUMMED_LOSS]),
)
def test_parts_weighted_by_their_items_have_the_whole_batchs_loss_and_gradient(
    counts: list[int],
    data: st.DataObject,
    seed: int,
    hidden: list[int],
    activation: type[nn.Module],
    strategy: Strategy,
) -> None:
    assume(any(counts))
    sizes = data.draw(splits(len(counts)))
    subject = subject_of(mlp(seed, hidden, activation), items_batch(counts), item_mean)
    items = [sum(counts[place] for place in places) for places in places_of(tuple(sizes))]
    parts = [
        (subject.piece(places), number / sum(counts))
        for places, number in zip(places_of(tuple(sizes)), items, strict=True)
        if number
    ]
    with one_thread():
        whole = subject.total(Strategy.WHOLE_BATCH, [(subject.piece(range(subject.samples)), 1.0)])
        total = subject.total(strategy, parts)

    assert total.loss == pytest.approx(whole.loss, rel=1e-10)
    assert distance(total.gradients, whole.gradients) <= 1e-10 * norm(whole.gradients)


@fewer
@given(counts=st.lists(st.integers(0, MOST_ITEMS), min_size=2, max_size=8), seed=seeds)
@example(counts=[0, 4], seed=0)
@example(counts=[1, 1, 1, 0], seed=0)
def test_any_counts_are_found_and_counting_them_as_advised_is_equal(counts: list[int], seed: int) -> None:
    assume(any(counts))
    torch.manual_seed(seed)
    model, batch = nn.Linear(3, CLASSES), items_batch(counts)
    equivalence = checked(model, (batch[0].float(), batch[1]), item_mean)

    if len(set(counts)) == 1:
        assert (equivalence.equal, equivalence.decomposes) == (True, Decomposition.SAMPLES)
    else:
        assert (equivalence.equal, equivalence.decomposes) == (False, Decomposition.ITEMS)
        advised = advised_items(equivalence)
        assert checked(model, (batch[0].float(), batch[1]), item_mean, loss_items=advised).equal


@fewer
@given(counts=st.lists(st.integers(1, MOST_ITEMS), min_size=2, max_size=8), seed=seeds)
def test_the_check_says_equal_for_the_right_counts_alone(counts: list[int], seed: int) -> None:
    assume(len(set(counts)) > 1)
    torch.manual_seed(seed)
    batch = items_batch(counts)
    right = checked(nn.Linear(3, CLASSES).double(), batch, item_mean, loss_items=lambda b: (b[1] != IGNORED).sum())
    wrong = checked(nn.Linear(3, CLASSES).double(), batch, item_mean, loss_items=lambda b: (b[1] != IGNORED).sum() + 1)

    assert (right.equal, wrong.equal) == (True, False)


@given(samples=st.integers(2, 600), least=st.sampled_from([1, 2, 4, 8]))
@example(samples=16, least=1)
@example(samples=2, least=1)
@example(samples=3, least=1)
@example(samples=17, least=8)
def test_every_split_is_of_all_samples_in_parts_that_run(samples: int, least: int) -> None:
    assume(samples >= 2 * least)
    found = splits_of(samples, least)

    assert found
    assert all(sum(sizes) == samples for sizes in found)
    assert all(min(sizes) >= least for sizes in found)
    assert all(len(sizes) > 1 for sizes in found)
    assert len(set(found)) == len(found)


@given(samples=st.integers(3, 600), least=st.sampled_from([1, 2, 4, 8]))
def test_some_split_is_uneven_where_one_can_be(samples: int, least: int) -> None:
    assume(samples > 2 * least)

    assert any(len(set(sizes)) > 1 for sizes in splits_of(samples, least))


def test_sixteen_samples_are_split_in_equal_parts_in_unequal_ones_and_singly() -> None:
    assert splits_of(16, 1) == ((4, 4, 4, 4), (5, 5, 5, 1), (1,) * 16)


@given(samples=st.integers(2, 60), data=st.data())
def test_the_places_of_a_split_are_all_places_in_order(samples: int, data: st.DataObject) -> None:
    sizes = tuple(data.draw(splits(samples)))
    places = places_of(sizes)

    assert [place for part in places for place in part] == list(range(samples))
    assert [len(part) for part in places] == list(sizes)
    assert [part.stop for part in places] == list(accumulate(sizes))


lengths = st.lists(
    st.sampled_from([1, 7, SKETCH_LENGTH - 1, SKETCH_LENGTH, 2 * SKETCH_LENGTH + 3]), min_size=1, max_size=4
)


def gradients_like(sizes: list[int]) -> list[Tensor | None]:
    return [torch.randn(size) if size != 7 else None for size in sizes]


def sketched(gradients: list[Tensor | None], sizes: list[int]) -> Tensor:
    return sketch(gradients, [torch.empty(size) for size in sizes])


@few
@given(sizes=lengths, seed=seeds)
def test_sketches_add_up_as_gradients_do(sizes: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    one, other = gradients_like(sizes), gradients_like(sizes)
    both = [None if a is None or b is None else a.double() + 2 * b.double() for a, b in zip(one, other, strict=True)]

    torch.testing.assert_close(sketched(both, sizes), sketched(one, sizes) + 2 * sketched(other, sizes))


@few
@given(sizes=lengths, seed=seeds)
def test_a_sketch_nearly_keeps_the_norm(sizes: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    gradients = gradients_like(sizes)

    assert sketched(gradients, sizes).shape == (len(sizes), SKETCH_LENGTH)
    assert float(sketched(gradients, sizes).norm()) == pytest.approx(norm(gradients), rel=0.3)


def test_a_difference_in_one_small_parameter_is_seen_in_the_sketch() -> None:
    sizes = [3 * SKETCH_LENGTH, 4, 4]
    torch.manual_seed(0)
    gradients = gradients_like(sizes)
    changed = [gradients[0], gradients[1], None]

    assert float((sketched(changed, sizes) - sketched(gradients, sizes)).norm()) == pytest.approx(
        norm([gradients[2]]), rel=1e-6
    )


def test_a_parameter_without_a_gradient_has_one_of_zeros() -> None:
    assert distance([None, torch.ones(4)], [torch.full((9,), 2.0), torch.ones(4)]) == pytest.approx(6.0)
    assert distance([None], [None]) == 0.0
