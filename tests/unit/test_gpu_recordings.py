from __future__ import annotations

import csv
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sample_recordings import small_training

from benchmarks import gpu_recordings
from benchmarks.gpu_parts import PARTS, Recordings
from benchmarks.gpu_recordings import SUBJECTS, Row, Subject, all_rows, replayed, row_of, write_table
from profiler.simulation.recordings import Recording, to_bytes

SUBJECT = Subject(target="text-gpt", precision="fp32", small=4, large=32)
ROW = Row(
    file="one.jsonl.gz", workload="text-gpt", micro_batch_size=4, precision="fp32", allowed_bytes=None,
    peak_allocated_bytes=100, peak_reserved_bytes=300, ended="",
)  # fmt: skip


def test_every_workload_of_the_parts_has_its_sizes() -> None:
    named = [target for part in PARTS if isinstance(part, Recordings) for target in part.targets]

    assert sorted(named) == sorted(subject.target for subject in SUBJECTS)
    assert all(0 < subject.small < subject.large for subject in SUBJECTS)


def test_a_file_s_replay_is_told_in_words(tmp_path: Path) -> None:
    made, path = small_training().recording(), tmp_path / "one.jsonl.gz"
    path.write_bytes(to_bytes(made))
    told = replayed(path)
    assert (told["difference"], told["own_difference"], told["refused"]) == ("", "", 1)
    assert (told["steps"], told["file_bytes"]) == (len(made.steps), path.stat().st_size)

    wrong = made.steps[3]._replace(reserved_bytes=7)
    path.write_bytes(to_bytes(Recording(origin=made.origin, steps=(*made.steps[:3], wrong, *made.steps[4:]))))
    assert replayed(path)["difference"] == f"step 3: reserved {made.steps[3].reserved_bytes}, recorded 7"


def test_the_large_size_is_recorded_again_between_what_it_needs_and_what_it_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def stand_in(subject: Subject, size: int, path: Path, seconds: float, allowed_bytes: int | None) -> Row:
        asked.append((path.name, allowed_bytes))
        return replace(ROW, peak_allocated_bytes=100 * size, peak_reserved_bytes=300 * size)

    monkeypatch.setattr(gpu_recordings, "row_of", stand_in)

    assert len(list(all_rows([SUBJECT], "h100", tmp_path, time.monotonic() + 100))) == 3
    assert asked == [
        ("text-gpt_4_h100.jsonl.gz", None),
        ("text-gpt_32_h100.jsonl.gz", None),
        ("text-gpt_32_tight_h100.jsonl.gz", 6400),
    ]
    assert list(all_rows([SUBJECT], "h100", tmp_path, time.monotonic())) == []


@pytest.mark.parametrize(
    ("status", "output", "errors", "ended"),
    [
        pytest.param(0, 'a word\n{"peak_reserved_bytes": 5, "ended": "forward: no memory"}\n', "", "forward: no memory",
                     id="with an error of its own"),
        pytest.param(1, "", "Traceback\nNotReadable: why", "NotReadable: why", id="failed"),
        pytest.param(-9, "", "", "status -9", id="killed"),
    ],
)  # fmt: skip
def test_how_a_recording_ended_is_in_its_row(
    status: int, output: str, errors: str, ended: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stand_in(command: list[str], **settings: Any) -> subprocess.CompletedProcess[str]:
        assert command[-2:] == ["--allowed", "77"]
        return subprocess.CompletedProcess(command, status, output, errors)

    monkeypatch.setattr(subprocess, "run", stand_in)

    row = row_of(SUBJECT, 4, tmp_path / "one.jsonl.gz", 1.0, 77)

    assert (row.ended, row.difference) == (ended, "not recorded")
    assert row.peak_reserved_bytes == (5 if status == 0 else None)


def test_a_table_keeps_the_rows_of_other_files(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    write_table(path, [ROW, replace(ROW, file="two.jsonl.gz")])
    write_table(path, [replace(ROW, difference="step 1")])

    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [(row["file"], row["difference"]) for row in rows] == [
        ("two.jsonl.gz", "not recorded"),
        ("one.jsonl.gz", "step 1"),
    ]
    assert rows[0]["allowed_bytes"] == ""
