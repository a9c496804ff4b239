from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from math import isnan
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.loss_entries import ENTRIES, SAMPLES, Entry
from benchmarks.losses import (
    EXACT,
    FOLDER,
    NEARLY,
    Row,
    advised,
    code_in,
    read_table,
    readme,
    row_of,
    write_table,
)
from profiler.equivalence import Decomposition
from profiler.nests import slice_nest

BY_NAME = {entry.name: entry for entry in ENTRIES}
COMMITTED = read_table(FOLDER / "table.csv")
of_this_release = pytest.mark.skipif(
    not hasattr(nn, "LinearCrossEntropyLoss"),
    reason="the table was made with torch 2.13, which has losses that this torch lacks",
)
OF_TORCH = {*torch.nn.modules.loss.__all__, *(name for name in dir(nn) if name.endswith("Loss"))}
GUARDED = "masked mean, mean + 1e-8"

# Their advised weights are summed in fp32, or their mean is guarded by a small constant.
NEARLY_EXACT = (
    "CrossEntropyLoss, mean, class weights of tenths",
    "mse_loss, mean, weights in the batch",
    "l1_loss, mean, weights in the batch",
    "weighted mean, mean",
    GUARDED,
)


def each(entries: Iterable[Entry]) -> list[object]:
    return [pytest.param(entry, id=entry.name) for entry in entries]


DECOMPOSING = [entry for entry in ENTRIES if entry.expected is not Decomposition.NO]
# 16 samples of 16 classes: what a class weighs and what a sample does cannot be told apart, so that there is no code.
COUNTING = [entry for entry in DECOMPOSING if entry.right is not None and "no class twice" not in entry.variant]
NOT_BY_SAMPLES = [entry for entry in ENTRIES if entry.expected is not Decomposition.SAMPLES]


@cache
def fresh(name: str) -> Row:
    """The row as it is measured now, once for all tests."""
    return row_of(BY_NAME[name])


def key(row: Row | Entry) -> tuple[str, str, str]:
    return row.loss, row.reduction, row.variant


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", sorted(OF_TORCH))
def test_every_loss_of_torch_has_an_entry(loss: str, reduction: str) -> None:
    assert any((entry.loss, entry.reduction) == (loss, reduction) for entry in ENTRIES)


def test_the_mean_over_the_batch_of_kullback_and_leibler_has_an_entry() -> None:
    assert ("KLDivLoss", "batchmean") in {(entry.loss, entry.reduction) for entry in ENTRIES}


def test_no_two_entries_have_the_same_name() -> None:
    assert len(BY_NAME) == len(ENTRIES)


@of_this_release
def test_the_committed_table_has_a_row_for_every_entry_and_no_other() -> None:
    assert [key(row) for row in COMMITTED] == [key(entry) for entry in ENTRIES]


@of_this_release
def test_the_committed_readme_shows_the_committed_table() -> None:
    environment = json.loads((FOLDER / "environment.json").read_text())

    assert (FOLDER / "README.md").read_text() == readme(COMMITTED, environment["torch"])


@pytest.mark.parametrize("entry", each(ENTRIES))
def test_the_committed_table_has_what_the_check_says_now(entry: Entry) -> None:
    row = next(row for row in COMMITTED if key(row) == key(entry))
    now = fresh(entry.name)

    assert (now.decomposes, now.averaged_over) == (row.decomposes, row.averaged_over)
    assert now.difference_by_samples == pytest.approx(row.difference_by_samples, rel=0.02, abs=1e-10, nan_ok=True)


def test_the_committed_advice_is_in_the_words_of_the_check() -> None:
    assert {row.what_to_do for row in COMMITTED} == {fresh(entry.name).what_to_do for entry in ENTRIES}


@pytest.mark.parametrize("entry", each(ENTRIES))
def test_the_check_finds_how_a_loss_decomposes_by_torchs_documentation(entry: Entry) -> None:
    assert fresh(entry.name).decomposes == entry.expected


@pytest.mark.parametrize("entry", each(DECOMPOSING))
def test_with_the_right_weights_the_gradient_is_the_whole_batchs(entry: Entry) -> None:
    difference = fresh(entry.name).difference_by_right_weights

    assert difference is not None
    assert difference < (NEARLY if entry.name in NEARLY_EXACT else EXACT)


@pytest.mark.parametrize("entry", each(NOT_BY_SAMPLES))
def test_with_shares_of_samples_the_gradient_of_other_losses_is_another(entry: Entry) -> None:
    difference = fresh(entry.name).difference_by_samples

    assert isnan(difference) or difference > 0.01


@pytest.mark.parametrize("entry", each(COUNTING))
def test_the_advised_weights_are_those_of_torchs_documentation(entry: Entry) -> None:
    count = advised(entry, fresh(entry.name).what_to_do)
    assert count is not None
    assert entry.right is not None
    batch = entry.workload.make_batch(SAMPLES)
    samples = [slice_nest(batch, place, place + 1, SAMPLES) for place in range(SAMPLES)]

    assert [count(sample) for sample in samples] == pytest.approx([entry.right(sample) for sample in samples])


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = [row for row in COMMITTED if not isnan(row.difference_by_samples)]
    write_table(rows, tmp_path / "table.csv")

    assert read_table(tmp_path / "table.csv") == rows


def test_the_code_of_an_advice_is_taken_out_of_its_words() -> None:
    advice = "Pass loss_items=lambda batch: int((batch[1][:, 1:] != -100).sum()), so that each part's weight is right."

    assert code_in(advice) == "lambda batch: int((batch[1][:, 1:] != -100).sum())"
    assert code_in("Leave loss_items out: the share of samples is the right weight.") == ""
