from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import pytest

from profiler.codec import decode, encode


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    size: int
    note: str = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    name: str
    seconds: float
    colour: Colour = Colour.RED
    limit: int | None = None
    rows: tuple[tuple[int, ...], ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    inner: Inner | None = None
    parts: tuple[Inner, ...] = ()
    exact: bool = False


WHOLE = Outer(
    name="a",
    seconds=0.5,
    colour=Colour.BLUE,
    limit=3,
    rows=((2, 1), (1,)),
    versions={"torch": "2.13"},
    inner=Inner(size=7),
    parts=(Inner(size=1), Inner(size=2, note="last")),
    exact=True,
)
ENTRIES: dict[str, Any] = {
    "name": "a",
    "seconds": 0.5,
    "colour": "blue",
    "limit": 3,
    "rows": [[2, 1], [1]],
    "versions": {"torch": "2.13"},
    "inner": {"size": 7, "note": "none"},
    "parts": [{"size": 1, "note": "none"}, {"size": 2, "note": "last"}],
    "exact": True,
}


def test_a_dataclass_is_an_object_of_its_fields_in_their_order() -> None:
    assert encode(WHOLE) == ENTRIES
    assert list(encode(WHOLE)) == list(ENTRIES)
    assert type(encode(WHOLE)["colour"]) is str


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, None), (True, True), (1.5, 1.5), ((1, (2,)), [1, [2]]), ({1: (Colour.RED,)}, {"1": ["red"]})],
)
def test_values_become_jsons_own_types(value: object, expected: object) -> None:
    assert encode(value) == expected
    assert json.loads(json.dumps(encode(value))) == expected


def test_what_was_encoded_is_decoded_by_the_annotations() -> None:
    assert decode(Outer, json.loads(json.dumps(encode(WHOLE)))) == WHOLE
    assert type(decode(Outer, encode(WHOLE)).colour) is Colour


def test_what_is_inside_is_decoded_likewise() -> None:
    entries = ENTRIES | {"inner": None, "parts": [{"size": 1, "colour": "green"}]}

    assert decode(Outer, entries).inner is None
    assert decode(Outer, entries).parts == (Inner(size=1),)


def test_what_is_given_is_taken_as_it_is() -> None:
    assert decode(Outer, ENTRIES | {"inner": "what is passed over"}, inner=Inner(size=7)) == WHOLE


def test_a_missing_key_takes_its_default_and_each_time_a_new_one() -> None:
    first, second = decode(Outer, {"name": "a", "seconds": 1}), decode(Outer, {"name": "a", "seconds": 1})

    assert first == Outer(name="a", seconds=1.0)
    assert first.versions is not second.versions


def test_an_unknown_key_is_passed_over() -> None:
    assert decode(Inner, {"size": 1, "colour": "green"}) == Inner(size=1)


def test_a_key_without_a_default_must_be_there() -> None:
    with pytest.raises(ValueError, match=r'^"seconds" is missing$'):
        decode(Outer, {"name": "a"})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("name", 1, '"name" is 1, not a text'),
        ("name", None, '"name" is None, not a text'),
        ("seconds", "1", "\"seconds\" is '1', not a number"),
        ("seconds", True, '"seconds" is True, not a number'),
        ("seconds", None, '"seconds" is None, not a number'),
        ("limit", 1.0, '"limit" is 1.0, not a whole number'),
        ("limit", True, '"limit" is True, not a whole number'),
        ("colour", "green", "\"colour\" is 'green', not one of red, blue"),
        ("colour", ["red"], "\"colour\" is ['red'], not one of red, blue"),
        ("rows", 1, '"rows" is 1, not a list'),
        ("rows", [1], '"rows" is 1, not a list'),
        ("rows", [[1], ["2"]], "\"rows\" is '2', not a whole number"),
        ("versions", [], '"versions" is [], not an object'),
        ("versions", {"torch": 2}, '"versions" is 2, not a text'),
        ("exact", 1, '"exact" is 1, not true or false'),
        ("exact", None, '"exact" is None, not true or false'),
        ("inner", [], '"inner" is [], not an object'),
        ("inner", {}, '"size" is missing'),
        ("parts", {"size": 1}, "\"parts\" is {'size': 1}, not a list"),
        ("parts", [1], '"parts" is 1, not an object'),
        ("parts", [{"size": 1}, {"size": "2"}], "\"size\" is '2', not a whole number"),
    ],
)
def test_a_value_of_another_type_is_refused_by_its_key(key: str, value: object, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is compared
        decode(Outer, {"name": "a", "seconds": 1.0, key: value})
    assert str(caught.value) == message
