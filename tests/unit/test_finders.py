from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.finder_rows import (
    ANSWERED,
    CRASHED,
    ENDLESS,
    MISSING,
    OURS,
    RIVAL,
    UNBOUNDED_RIVAL,
    Row,
    from_csv,
    goals,
    row_of,
    summaries,
    times_faster,
    to_csv,
)
from benchmarks.finder_runs import band
from benchmarks.finders import RESULT_MARK, death, judged, result_in
from benchmarks.finders_figure import figure
from benchmarks.readme import finders

TRUTH: dict[str, Any] = {
    "workload": "toy",
    "low": 54,
    "high": 55,
    "capacity_bytes": 1000,
    "pair_seconds": [1.0, 9.0, 2.0],
}


def result(answer: int | None, seconds: float = 4.0, whole_seconds: float = 6.0, **more: Any) -> dict[str, Any]:
    return {
        "answer": answer,
        "seconds": seconds,
        "whole_seconds": whole_seconds,
        "steps": 9,
        "out_of_memory": 1,
        **more,
    }


@pytest.mark.parametrize(
    ("answer", "exact", "ratio"), [(27, False, 0.5), (54, True, 1.0), (55, True, 1.0), (110, False, 2.0)]
)
def test_an_answer_inside_the_band_is_exact(answer: int, exact: bool, ratio: float) -> None:
    row = row_of("toma", result(answer), TRUTH)

    assert (row.outcome, row.exact, row.answer_over_truth) == (ANSWERED, exact, ratio)


def test_costs_are_told_by_the_median_of_the_pairs() -> None:
    row = row_of(OURS, result(54), TRUTH)

    assert (row.least_seconds, row.seconds_over_least, row.whole_over_least) == (2.0, 2.0, 3.0)


@pytest.mark.parametrize(
    ("said", "outcome", "words"),
    [
        (result(None, crashed="MemoryError: no words"), CRASHED, "MemoryError: no words"),
        (result(None), CRASHED, "it gave no answer"),
        ({"no_end": 300.0}, ENDLESS, "no end within 300 s"),
        ({"not_installed": "toma"}, MISSING, "toma is not installed"),
    ],
)
def test_what_is_no_answer_says_why(said: dict[str, Any], outcome: str, words: str) -> None:
    row = row_of("toma", said, TRUTH)

    assert (row.outcome, row.words, row.answer, row.exact) == (outcome, words, None, False)


def test_a_process_that_dies_is_told_by_its_signal_and_last_words() -> None:
    assert death(-9, "") == "signal SIGKILL: without a word"
    assert death(1, "Traceback\nMemoryError: \n") == "exit status 1: MemoryError:"


def test_the_result_is_found_among_what_libraries_print() -> None:
    assert result_in(f'loading\n{RESULT_MARK}{{"answer": 3}}\nbye') == {"answer": 3}
    assert result_in("loading\n") is None


def test_what_an_answer_leaves_unused_is_the_capacity_less_its_peak() -> None:
    row = row_of("toma", result(27), TRUTH)

    assert (judged(row, {"27": 400}).fits, judged(row, {"27": 400}).unused_bytes) == (True, 600)
    assert (judged(row, {"27": None}).fits, judged(row, {"27": None}).unused_bytes) == (False, None)
    assert judged(row, {}).fits is None


def test_a_firm_edge_is_a_band_of_one() -> None:
    def repeat(size: int) -> list[bool]:
        raise AssertionError("nothing flips")

    assert band(54, [True] * 5, [False] * 5, repeat) == (54, 54)


def test_a_flipping_edge_is_followed_both_ways() -> None:
    fits = {53: [True, True], 56: [False, True], 57: [False, False]}

    assert band(54, [True, False], [False, True], fits.__getitem__) == (53, 56)


ROWS = [
    judged(row_of(OURS, result(54, process_seconds=8.0), TRUTH), {"54": 900}),
    judged(row_of(RIVAL, result(110, 12.0, 12.0), TRUTH), {"110": None}),
    row_of(UNBOUNDED_RIVAL, result(54, 24.0, 24.0, process_seconds=40.0), TRUTH),
    row_of("accelerate", {"crashed": "RuntimeError: could not create a primitive"}, TRUTH),
    row_of("toma", {"not_installed": "toma"}, TRUTH),
]


def test_the_table_comes_back_as_it_was_written() -> None:
    assert from_csv(to_csv(ROWS)) == ROWS


def test_a_summary_counts_what_was_exact_what_runs_out_and_what_crashed() -> None:
    counted = {found.finder: (found.exact, found.too_large, found.crashed) for found in summaries(ROWS)}

    assert counted == {OURS: (1, 0, 0), RIVAL: (0, 1, 0), UNBOUNDED_RIVAL: (1, 0, 0), "accelerate": (0, 0, 1)}


def test_times_faster_compares_whole_calls_where_there_are_two() -> None:
    other = [replace(ROWS[0], workload="other"), replace(ROWS[1], workload="other", outcome=CRASHED)]

    assert times_faster([*ROWS, *other], RIVAL) == [2.0]
    assert times_faster([*ROWS, *other], UNBOUNDED_RIVAL) == [4.0]


def test_times_faster_from_the_start_of_both_processes() -> None:
    assert times_faster(ROWS, UNBOUNDED_RIVAL, from_start=True) == [5.0]


def test_an_end_that_is_not_found_in_time_counts_with_the_time() -> None:
    assert times_faster([ROWS[0], row_of(RIVAL, {"no_end": 300.0}, TRUTH)], RIVAL) == [50.0]


def test_goals_are_reached_or_missed_by_this_run() -> None:
    slow: Row = replace(ROWS[0], seconds_over_least=5.0, out_of_memory=4, exact=False)

    assert [goal.reached for goal in goals(ROWS)] == [True, True, True, True]
    assert [goal.reached for goal in goals([slow])] == [False, False, False, False]
    assert goals(ROWS[1:]) == []


def test_the_readme_has_a_row_for_each_finder_that_ran_and_a_line_for_each_goal() -> None:
    text = finders(to_csv(ROWS))

    assert "| microbatch | 1 of 1 | 1.00, 1.00 | 0 | 0 | 2.0 ×, 2.0 × | 3.0 × | 1 |" in text
    assert "| accelerate | 0 of 1 | -, - | 0 | 1 | - ×, - × | - × | - |" in text
    assert "toma" not in text
    assert text.count("- reached: ") == 4


def test_the_figure_is_drawn_whatever_became_of_the_finders() -> None:
    assert figure(ROWS).startswith(b"\x89PNG")
    assert figure(ROWS[2:3]).startswith(b"\x89PNG")
