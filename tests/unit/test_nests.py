from __future__ import annotations

from collections import Counter, OrderedDict, UserDict, defaultdict, namedtuple
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from profiler.nests import can_be_sliced, leaves_of, length_of, map_leaves, map_samples, samples_in, slice_nest

Pair = namedtuple("Pair", ["first", "second"])
Image = namedtuple("Image", ["pixels", "shape"])


@dataclass(frozen=True)
class Tokens:
    """Refuses to be made of anything but a tensor, and holds what it makes of it."""

    ids: Tensor
    name: str = "text"
    lengths: Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths", (self.ids != 0).sum(dim=1))


SAMPLES = 5
arrays = st.sampled_from(
    [torch.arange(5), torch.ones(5, 0), torch.arange(10).reshape(5, 2), np.arange(5), np.ones((5, 2, 3))]
)
others = st.sampled_from(
    [None, 7, 0.5, "text", b"bytes", torch.tensor(1.0), np.float32(2.0), torch.ones(1, 5), np.ones(3), {1, 2}, Tensor]
)
nests = st.recursive(
    arrays | others,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=2), inner, max_size=3)
        | st.dictionaries(st.integers(), inner, max_size=3).map(UserDict)
        | st.tuples(inner, inner).map(lambda parts: Pair(*parts))
    ),
    max_leaves=12,
)


def is_sliced(leaf: Any) -> bool:
    return isinstance(leaf, Tensor | np.ndarray) and leaf.ndim > 0 and leaf.shape[0] == SAMPLES


@given(nests)
def test_mapping_the_identity_gives_the_same_leaves_in_the_same_containers(nest: Any) -> None:
    mapped = map_leaves(lambda leaf: leaf, nest)

    assert type(mapped) is type(nest)
    assert [id(leaf) for leaf in leaves_of(mapped)] == [id(leaf) for leaf in leaves_of(nest)]


@given(nests, st.lists(st.integers(0, SAMPLES), max_size=4).map(sorted))
def test_slices_put_together_are_the_batch(nest: Any, cuts: list[int]) -> None:
    bounds = [0, *cuts, SAMPLES]
    parts = [slice_nest(nest, *pair, SAMPLES) for pair in pairwise(bounds)]

    assert {type(part) for part in parts} == {type(nest)}
    for leaf, *sliced in zip(leaves_of(nest), *map(leaves_of, parts), strict=True):
        if is_sliced(leaf):
            assert [len(part) for part in sliced] == [stop - start for start, stop in pairwise(bounds)]
            assert np.array_equal(np.concatenate(sliced), leaf)
        else:
            assert all(part is leaf for part in sliced)


def test_slices_are_views() -> None:
    tensor, array = torch.arange(6), np.arange(6)
    part = slice_nest([tensor, array], 2, 4, 6)
    part[0][0] = part[1][0] = -1

    assert tensor.tolist() == array.tolist() == [0, 1, -1, 3, 4, 5]


@pytest.mark.parametrize(
    "nest",
    [
        {"a": torch.arange(4)},
        OrderedDict(a=torch.arange(4), b=3),
        defaultdict(torch.Tensor, a=torch.arange(4)),
        UserDict(a=torch.arange(4)),
        MappingProxyType({"a": torch.arange(4)}),
        Pair(torch.arange(4), "text"),
        [torch.arange(4), (torch.ones(1), None)],
        (torch.arange(4), torch.Size([4, 4])),
    ],
    ids=lambda nest: type(nest).__name__,
)
def test_a_container_keeps_its_type(nest: Any) -> None:
    part = slice_nest(nest, 1, 3, 4)

    assert type(part) is type(nest)
    assert next(leaves_of(part)).tolist() == [1, 2]
    assert [type(leaf) for leaf in leaves_of(part)] == [type(leaf) for leaf in leaves_of(nest)]


def test_a_mapping_keeps_its_keys_and_what_it_makes_of_missing_ones() -> None:
    mapped = map_leaves(lambda leaf: leaf + 1, defaultdict(list, {1: 10, "two": 20}))

    assert mapped == {1: 11, "two": 21}
    assert mapped["missing"] == []
    assert map_leaves(lambda leaf: leaf + 1, Counter("aab")) == {"a": 3, "b": 2}


def test_a_shape_in_a_batch_stays_a_shape() -> None:
    part = slice_nest([torch.ones(4, 4), torch.Size([4, 3])], 0, 1, 4)

    assert part[1] == (4, 3)
    assert type(part[1]) is torch.Size


def test_a_dataclass_is_made_again_from_its_part() -> None:
    batch = Tokens(ids=torch.tensor([[1, 0], [1, 1], [0, 0]]))
    part = slice_nest(batch, 1, 3, 3)

    assert type(part) is Tokens
    assert part.ids.tolist() == [[1, 1], [0, 0]]
    assert part.lengths.tolist() == [2, 0]
    assert part.name is batch.name


def test_looking_for_leaves_makes_no_container() -> None:
    batch = {"tokens": Tokens(ids=torch.ones(3, 2))}

    assert samples_in(batch) == 3
    assert len(list(leaves_of(batch))) == 2


def test_a_class_in_a_batch_is_no_dataclass_to_look_into() -> None:
    assert list(leaves_of([Tokens, Tensor])) == [Tokens, Tensor]


@pytest.mark.parametrize(
    ("leaf", "length"),
    [
        (torch.ones(3, 2), 3),
        (torch.ones(0), 0),
        (np.ones((4, 1)), 4),
        (torch.ones(3, device="meta"), 3),
        (torch.tensor(1.0), None),
        (np.float64(1.0), None),
        ([1, 2], None),
        ("text", None),
        (None, None),
        (Tensor, None),
        (slice(3), None),
    ],
)
def test_the_length_of_what_is_an_array_and_none_of_what_is_not(leaf: Any, length: int | None) -> None:
    assert length_of(leaf) == length


def test_a_named_tuple_with_a_shape_is_a_container_all_the_same() -> None:
    batch = Image(pixels=torch.ones(6, 2), shape=(2, 2))

    assert samples_in(batch) == 6
    assert slice_nest(batch, 0, 2, 6).pixels.shape == (2, 2)
    assert slice_nest(batch, 0, 2, 6).shape == (2, 2)


@pytest.mark.parametrize(
    ("batch", "samples"),
    [
        ({"scale": torch.tensor(1.0), "images": torch.ones(5, 3)}, 5),
        ([np.ones(2), torch.ones(3)], 2),
        ({"name": "text", "pair": Pair(None, torch.ones(7))}, 7),
        (torch.ones(0, 3), 0),
        ([], None),
        ("text", None),
        ([torch.tensor(1.0)], None),
    ],
)
def test_samples_are_counted_on_the_first_array_that_has_a_dimension(batch: Any, samples: int | None) -> None:
    assert samples_in(batch) == samples


def test_what_all_samples_share_goes_into_every_part_as_it_is() -> None:
    batch = {
        "ids": torch.ones(4, 6),
        "positions": torch.arange(6),
        "mask": torch.ones(1, 6),
        "scale": torch.tensor(2.0),
    }
    part = slice_nest(batch, 1, 2, 4)

    assert part["ids"].shape == (1, 6)
    assert all(part[name] is batch[name] for name in ("positions", "mask", "scale"))


# Lists of samples


@dataclass(frozen=True)
class Boxes:
    corners: Tensor


UNEVEN = [torch.ones(places + 1, 2) for places in range(4)]
LISTS_OF_SAMPLES = [
    ["a", "b", "c", "d"],
    ("a", "b", "c", "d"),
    [7, 8, 9, 10],
    [{"boxes": boxes} for boxes in UNEVEN],
    [{"boxes": torch.ones(4, 4), "id": torch.tensor(place)} for place in range(4)],
    [{"name": "a"}, {"names": ["b", "c"]}, {}, {"name": 3}],
    [Boxes(corners=boxes) for boxes in UNEVEN],
    [Pair(boxes, "text") for boxes in UNEVEN],
    UNEVEN,
    tuple(boxes.numpy() for boxes in UNEVEN),
    [torch.tensor(float(place)) for place in range(4)],
    [["a"], ["b", "c"], [], ["d"]],
    [torch.ones(4), torch.ones(4), torch.ones(4), torch.ones(5)],
]


@pytest.mark.parametrize("each", LISTS_OF_SAMPLES)
@pytest.mark.parametrize("nested", [lambda each: {"images": torch.ones(4), "each": each}, lambda each: [None, [each]]])
def test_a_list_of_samples_below_the_top_is_sliced_and_nothing_in_its_elements(each: Any, nested: Any) -> None:
    batch = nested(each)
    part = slice_nest(batch, 1, 3, 4)
    found = part["each"] if isinstance(part, dict) else part[1][0]

    assert type(found) is type(each)
    assert len(found) == 2
    assert all(one is other for one, other in zip(found, each[1:3], strict=True))
    assert can_be_sliced(batch, 4)


@pytest.mark.parametrize(
    ("samples", "shared"),
    [
        (4, ["a", "b", "c"]),
        (4, ["a", "b", "c", None]),
        (4, [1, 2.0, 3, 4]),
        (4, []),
        (2, Pair("a", "b")),
        (2, torch.Size([4, 4])),
        (2, {"a": 1, "b": 2}),
        (4, "text"),
        (2, {1, 2}),
        (2, range(2)),
    ],
    ids=str,
)
def test_what_is_no_list_of_samples_is_shared(samples: int, shared: Any) -> None:
    part = slice_nest({"images": torch.ones(samples), "shared": shared}, 0, 1, samples)

    assert part["shared"] == shared
    assert type(part["shared"]) is type(shared)
    assert not can_be_sliced({"shared": shared}, samples)


@pytest.mark.parametrize("container", [list, tuple])
@pytest.mark.parametrize("each", [lambda: torch.ones(3, 2), lambda: {"keys": torch.ones(3), "values": np.ones((3, 1))}])
def test_a_list_of_arrays_that_each_have_all_samples_is_sliced_within(container: Any, each: Any) -> None:
    levels = container(each() for _ in range(3))
    part = slice_nest({"levels": levels}, 0, 2, 3)["levels"]

    assert type(part) is container
    assert len(part) == 3
    assert {len(leaf) for leaf in leaves_of(part)} == {2}


def test_the_batch_itself_is_no_list_of_samples() -> None:
    mask = torch.ones(1, 5)
    inputs, found = slice_nest((torch.ones(2, 5), mask), 0, 1, 2)

    assert inputs.shape == (1, 5)
    assert found is mask
    assert slice_nest(["a", "b"], 0, 1, 2) == ["a", "b"]
    assert not can_be_sliced(["a", "b"], 2)


def test_a_list_of_a_class_of_its_own_stays_one() -> None:
    class Targets(list[str]):
        pass

    part = slice_nest({"targets": Targets("abc")}, 1, 3, 3)["targets"]

    assert type(part) is Targets
    assert part == ["b", "c"]


def test_samples_in_another_order_are_taken_from_lists_and_arrays_alike() -> None:
    batch = {"ids": torch.arange(3), "texts": ("a", "b", "c"), "scale": torch.ones(2)}
    order = [2, 0]
    taken = map_samples(
        lambda held: [held[place] for place in order] if isinstance(held, list | tuple) else held[order], batch, 3
    )

    assert taken["ids"].tolist() == [2, 0]
    assert taken["texts"] == ("c", "a")
    assert taken["scale"] is batch["scale"]


@pytest.mark.parametrize(
    ("batch", "can"), [(torch.ones(3), True), (torch.ones(2), False), ("abc", False), ({"a": {"b": np.ones(3)}}, True)]
)
def test_a_batch_without_anything_of_that_many_samples_cannot_be_sliced(batch: Any, can: bool) -> None:
    assert can_be_sliced(batch, 3) is can
