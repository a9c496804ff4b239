"""Prediction beside measurement, with a simulated card in the place of the measured one."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_parts import PARTS
from benchmarks.gpu_prediction import Answer, Measured, Peak, answer_of, measured_in, predicted, words, write_csv
from benchmarks.gpu_results import keep, row_of
from profiler.document import to_json_document
from profiler.events import unobserved
from profiler.finder import find_largest
from profiler.opening import open_prober
from profiler.options import Options
from profiler.report import Report
from profiler.targets import TargetOptions

LATER = time.time() + 10_000
DEVICE = "sim:85020639232@9.0"
LIMIT = "900MiB"  # beside a context of 750, and 64 of cuBLAS


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """What a search of digits-cnn prints, on a card whose memory is predicted as it will be predicted again."""
    options = Options(
        device=DEVICE, memory_limit=LIMIT, isolation="none", target_options=TargetOptions(precision="fp32")
    )
    with open_prober("digits-cnn", options, unobserved) as (prober, info):
        finding = find_largest(prober)
        return to_json_document(
            Report(run=info, finding=finding, search_seconds=1.0, search_trials=len(finding.trials))
        )


@pytest.fixture
def folder(document: dict[str, Any], tmp_path: Path) -> Path:
    """As `benchmarks.gpu` leaves it, with rows of a part that is no more and of one whose document is lost."""
    (tmp_path / "digits-cnn.json").write_text(json.dumps(document))
    for part in ("digits-cnn", "a part that was", "text-gpt"):
        keep(tmp_path, row_of(document, part=part, precision="fp32", budget=LIMIT))
    return tmp_path


def test_what_was_measured_is_found_with_its_target(folder: Path, document: dict[str, Any]) -> None:
    (search,) = measured_in(folder)

    assert (search.part, search.target, search.budget) == ("digits-cnn", "digits-cnn", LIMIT)
    assert (search.largest_fit, search.smallest_misfit) == (document["largest_fit"], document["largest_fit"] + 1)
    assert [size for size, _, _ in search.peaks] == [
        trial["micro_batch_size"] for trial in document["trials"] if trial["outcome"] == "fits"
    ]


def test_a_card_that_is_as_predicted_shows_no_error(folder: Path) -> None:
    (search,) = measured_in(folder)

    answer, peaks = predicted(search, DEVICE, LATER, "none")

    assert (answer.predicted_largest_fit, answer.error, answer.note) == (search.largest_fit, 0.0, "")
    assert len(peaks) == len(search.peaks) > 2
    for peak in peaks:
        assert peak.predicted_allocated_bytes == peak.allocated_bytes
        assert peak.predicted_reserved_bytes == peak.reserved_bytes


def test_another_card_and_a_size_that_is_predicted_not_to_fit_are_seen(folder: Path) -> None:
    (search,) = measured_in(folder)
    too_large = (100 * search.largest_fit, 1, 2)
    search = replace(search, largest_fit=2 * search.largest_fit, peaks=(too_large,))

    answer, (peak,) = predicted(search, DEVICE, LATER, "none")

    assert answer.error == -0.5
    assert (peak.allocated_bytes, peak.predicted_allocated_bytes, peak.predicted_reserved_bytes) == (1, None, None)
    assert words(answer).startswith(f"digits-cnn in {LIMIT}: largest {search.largest_fit}, predicted ")


SEARCH = Measured(
    part="a", target="digits-cnn", precision="fp32", budget="1MiB", capacity_bytes=2**20, largest_fit=5,
    smallest_misfit=6, peaks=(),
)  # fmt: skip


def test_what_cannot_be_predicted_says_why() -> None:
    answer, peaks = predicted(SEARCH, DEVICE, LATER, "none")
    late, _ = predicted(SEARCH, DEVICE, 0.0)

    assert (answer.predicted_largest_fit, answer.error, peaks) == (None, None, [])
    assert "does not even hold a CUDA context" in answer.note
    assert words(late) == "digits-cnn in 1MiB: largest 5, not predicted: left out: no time was left"


@pytest.mark.parametrize(
    ("measured", "largest", "error", "said"),
    [
        pytest.param(4, 5, 0.25, "largest 4, predicted 5 (+25.0%); 1 s", id="too many"),
        pytest.param(4, 0, -1.0, "largest 4, predicted 0 (-100.0%); 1 s", id="none at all"),
        pytest.param(0, 0, 0.0, "largest 0, predicted 0 (+0.0%); 1 s", id="nothing fits, as predicted"),
        pytest.param(0, 2, None, "largest 0, predicted 2", id="nothing fitted"),
    ],
)
def test_an_answer_is_off_by_a_share_of_what_was_measured(
    measured: int, largest: int, error: float | None, said: str
) -> None:
    answer = answer_of(replace(SEARCH, largest_fit=measured), largest, 1.0, "")

    assert answer.error == error
    assert words(answer) == f"digits-cnn in 1MiB: {said}"


def test_tables_are_in_order_whoever_was_first(tmp_path: Path) -> None:
    first, _ = predicted(SEARCH, DEVICE, 0.0)
    second = replace(first, part="b")
    write_csv(tmp_path / "one.csv", Answer, [first, second])
    write_csv(tmp_path / "other.csv", Answer, [second, first])
    write_csv(tmp_path / "peaks.csv", Peak, [])

    assert (tmp_path / "one.csv").read_text() == (tmp_path / "other.csv").read_text()
    assert (tmp_path / "peaks.csv").read_text().count("\n") == 1


def test_parts_have_names_of_their_own() -> None:
    assert len({part.name for part in PARTS}) == len(PARTS)
