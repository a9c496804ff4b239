from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.nearest import did_you_mean, nearest_names

MODELS = ("resnet18", "resnet34", "resnet50", "resnet101", "vgg16", "ViT-B_16")


@pytest.mark.parametrize(
    ("name", "count", "expected"),
    [
        pytest.param("vgg_16", 3, ["vgg16"], id="one"),
        pytest.param("resnet10", 3, ["resnet101", "resnet50", "resnet18"], id="the best first"),
        pytest.param("resnet10", 1, ["resnet101"], id="no more than asked for"),
        pytest.param("vit_b-16", 3, ["ViT-B_16"], id="case, hyphens and underscores are no difference"),
        pytest.param("gpt2", 3, [], id="none"),
        pytest.param("", 3, [], id="no name"),
    ],
)
def test_the_names_that_are_spelled_most_alike(name: str, count: int, expected: list[str]) -> None:
    assert nearest_names(name, MODELS, count=count) == expected


def test_of_names_that_differ_by_nothing_the_first_is_named() -> None:
    assert nearest_names("a-name", ["a_name", "A-Name", "a-name"]) == ["a_name"]


@pytest.mark.parametrize(
    ("name", "known", "sentence"),
    [
        ("resnet51", ["resnet50"], " Did you mean 'resnet50'?"),
        ("resnet", ["resnet5", "resnet50"], " Did you mean 'resnet5' or 'resnet50'?"),
        ("resnet", ["resnet5", "resnet50", "resnet101"], " Did you mean 'resnet5', 'resnet50' or 'resnet101'?"),
        ("gpt2", ["resnet50"], ""),
        ("gpt2", [], ""),
    ],
)
def test_the_sentence_begins_with_a_space_or_is_empty(name: str, known: list[str], sentence: str) -> None:
    assert did_you_mean(name, known) == sentence


@given(st.text(max_size=8), st.lists(st.text(max_size=8), max_size=6), st.integers(1, 4))
def test_only_known_names_are_named(name: str, known: list[str], count: int) -> None:
    names = nearest_names(name, iter(known), count=count)

    assert set(names) <= set(known)
    assert len(names) <= count


def test_a_name_that_only_begins_like_a_known_one_means_the_longest_such() -> None:
    known = ["bert", "bert-base", "gpt2", "t5"]

    assert nearest_names("bert-base-uncased-with-more-words", known) == ["bert-base"]
    assert nearest_names("t5-a-small-one", known) == ["t5"]
    assert nearest_names("t5x-a-small-one", known) == []
