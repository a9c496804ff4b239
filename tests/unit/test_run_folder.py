from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_records import evaluated, evaluated_alone, no_plan, nothing_fits, resnet

from profiler.errors import UsageError
from profiler.records import Records, RecordWriter, read_records
from profiler.run_folder import FILES, RunFolder, redraw, safe_name

# Has no figure to draw, which is what takes long.
PLAIN = Records(run=resnet().run, plan=resnet().plan)
PLAIN_FILES = {"records.jsonl", "table.csv", "plan.json", "command.txt"}
NOW = datetime(2026, 11, 23, 8, 31, 5)


def run_into(path: Path, records: Records, *, force: bool = False) -> list[Path]:
    folder = RunFolder.create(path, force=force)
    with folder.writer() as writer:
        writer.append_all(records)
    return folder.finish(records)


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def test_a_run_leaves_every_file_and_says_so(tmp_path: Path) -> None:
    paths = run_into(tmp_path / "run", evaluated())

    assert sorted(paths) == sorted(tmp_path / "run" / name for name in FILES)
    assert names(tmp_path / "run") == set(FILES)
    assert (tmp_path / "run" / "command.txt").read_text() == "microbatch probe\n"
    assert read_records(tmp_path / "run" / "records.jsonl") == evaluated()


def test_the_plan_file_says_what_to_run_and_where_it_was_found(tmp_path: Path) -> None:
    run_into(tmp_path / "run", PLAIN)
    document = json.loads((tmp_path / "run" / "plan.json").read_text())

    assert document["workload"] == "digits-resnet"
    assert document["capacity_bytes"] == 512 * 2**20
    assert document["plan"]["micro_batch_sizes"] == [171, 171, 170]


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        (no_plan(), {"records.jsonl", "table.csv", "command.txt", "memory.png", "memory.csv"}),
        (nothing_fits(), {"records.jsonl", "table.csv", "command.txt"}),
        (evaluated_alone(), {"records.jsonl", "command.txt", "evaluation.png", "evaluation.csv"}),
        (PLAIN, PLAIN_FILES),
        (replace(PLAIN, run=replace(PLAIN.run, command=None)), {"records.jsonl", "table.csv", "plan.json"}),
    ],
)
def test_what_there_is_not_is_not_written(tmp_path: Path, records: Records, expected: set[str]) -> None:
    paths = run_into(tmp_path / "run", records)

    assert names(tmp_path / "run") == {path.name for path in paths} == expected


def test_redrawing_writes_the_same_files_again(tmp_path: Path) -> None:
    paths = run_into(tmp_path / "run", resnet())
    before = {path.name: path.read_bytes() for path in paths}
    for path in paths:
        if path.name != "records.jsonl":
            path.unlink()

    again = redraw(tmp_path / "run")

    assert sorted(again) == sorted(path for path in paths if path.name != "records.jsonl")
    assert {path.name: path.read_bytes() for path in paths} == before


def test_an_interrupted_run_can_be_drawn(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    with folder.writer() as writer:
        writer.append(resnet().run)
        for trial in resnet().trials[:4]:
            writer.append(trial)
    with folder.path.joinpath("records.jsonl").open("a") as records:
        records.write('{"schema": 1, "kind": "tri')

    assert [path.name for path in redraw(folder.path)] == ["table.csv", "memory.png", "memory.csv", "command.txt"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "it is no folder"),
        (lambda folder: folder.write_text("x"), "it is no folder"),
        (lambda folder: folder.mkdir(), r"there is no records\.jsonl in it"),
        (lambda folder: (folder.mkdir(), (folder / "records.jsonl").touch()), "does not hold one run"),
    ],
)
def test_what_holds_no_records_cannot_be_drawn(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    make(tmp_path / "run")

    with pytest.raises(UsageError, match=message):
        redraw(tmp_path / "run")


def test_the_default_folder_is_named_after_workload_device_and_time(tmp_path: Path) -> None:
    named = [
        RunFolder.create_default(
            workload="torchvision:resnet50", device="cuda:0", now=NOW, root=tmp_path / "a" / "runs"
        )
        for _ in range(3)
    ]

    assert [folder.path.name for folder in named] == [
        "torchvision-resnet50_cuda-0_20261123-083105",
        "torchvision-resnet50_cuda-0_20261123-083105-2",
        "torchvision-resnet50_cuda-0_20261123-083105-3",
    ]
    assert all(folder.path.is_dir() for folder in named)


@given(st.text())
def test_a_safe_name_is_one_plain_part_of_a_path(text: str) -> None:
    name = safe_name(text)

    assert 0 < len(name) <= 60
    assert Path("folder", name).parent == Path("folder")
    assert name.isascii()
    assert not name.startswith((".", "-"))
    assert safe_name(name) == name


def test_a_long_name_keeps_its_end() -> None:
    assert safe_name("a/" * 50 + "train.py:make_workload").endswith("a-a-train.py-make_workload")


def test_a_folder_in_use_is_refused_and_keeps_everything(tmp_path: Path) -> None:
    run_into(tmp_path, PLAIN)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    with pytest.raises(
        UsageError, match=r"is not empty: it holds command\.txt, plan\.json, records\.jsonl, table\.csv\. .*--force"
    ):
        RunFolder.create(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_force_replaces_an_earlier_run_and_nothing_else(tmp_path: Path) -> None:
    run_into(tmp_path, PLAIN)
    (tmp_path / "notes.md").write_text("mine")
    (tmp_path / "checkpoints").mkdir()

    run_into(tmp_path, replace(PLAIN, plan=None), force=True)

    assert names(tmp_path) == {"notes.md", "checkpoints", "records.jsonl", "table.csv", "command.txt"}
    assert (tmp_path / "notes.md").read_text() == "mine"
    assert read_records(tmp_path / "records.jsonl") == replace(PLAIN, plan=None)


def test_a_long_listing_is_shortened(tmp_path: Path) -> None:
    for number in range(7):
        (tmp_path / f"file{number}").touch()

    with pytest.raises(UsageError, match="it holds file0, file1, file2, file3, file4 and 2 more"):
        RunFolder.create(tmp_path)


def test_force_keeps_the_earlier_run_until_the_new_one_begins(tmp_path: Path) -> None:
    run_into(tmp_path, PLAIN)

    folder = RunFolder.create(tmp_path, force=True)
    assert names(tmp_path) == PLAIN_FILES
    folder.discard()
    assert names(tmp_path) == PLAIN_FILES

    folder.writer().close()
    assert names(tmp_path) == {"records.jsonl"}


@pytest.mark.parametrize("name", ["table.csv", "command.txt", "records.jsonl"])
def test_force_leaves_files_alone_that_no_run_wrote(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")

    with pytest.raises(UsageError, match=f"holds {name}, but no records of a run.*nothing was removed"):
        RunFolder.create(tmp_path, force=True)
    assert (tmp_path / name).read_text() == "mine"


def test_force_does_not_take_an_empty_records_file_for_proof(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").touch()
    RunFolder.create(tmp_path, force=True)
    (tmp_path / "table.csv").write_text("mine")

    with pytest.raises(UsageError, match="nothing was removed"):
        RunFolder.create(tmp_path, force=True)


def test_force_removes_links_and_never_what_they_lead_to(tmp_path: Path) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text("mine")
    run_into(tmp_path / "run", PLAIN)
    for name in ("command.txt", "table.csv.part", "plan.json.part"):
        (tmp_path / "run" / name).unlink(missing_ok=True)
        (tmp_path / "run" / name).symlink_to(outside)

    run_into(tmp_path / "run", PLAIN, force=True)

    assert outside.read_text() == "mine"
    assert names(tmp_path / "run") == PLAIN_FILES
    assert not (tmp_path / "run" / "command.txt").is_symlink()


def test_force_does_not_replace_files_behind_a_linked_folder(tmp_path: Path) -> None:
    run_into(tmp_path / "run", PLAIN)
    (tmp_path / "link").symlink_to(tmp_path / "run")

    with pytest.raises(UsageError, match=r"is a link to .*run: name that folder itself"):
        RunFolder.create(tmp_path / "link", force=True)
    assert names(tmp_path / "run") == PLAIN_FILES


def test_a_records_file_that_is_a_link_proves_nothing(tmp_path: Path) -> None:
    run_into(tmp_path / "run", PLAIN)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "records.jsonl").symlink_to(tmp_path / "run" / "records.jsonl")

    with pytest.raises(UsageError, match="nothing was removed"):
        RunFolder.create(tmp_path / "other", force=True)


def test_a_folder_where_a_file_belongs_is_refused(tmp_path: Path) -> None:
    run_into(tmp_path, replace(PLAIN, plan=None))
    (tmp_path / "plan.json").mkdir()

    with pytest.raises(UsageError, match=r"plan\.json is a folder, which no run wrote"):
        RunFolder.create(tmp_path, force=True)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("file", "file is not a folder: name another with --output"),
        ("file/below", "cannot be made: Not a directory; a part of that path is a file"),
        ("dangling", "dangling is not a folder"),
        ("x" * 300, "File name too long; name a folder with a shorter path"),
    ],
)
def test_a_place_that_cannot_be_a_folder_is_refused(tmp_path: Path, place: str, message: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")

    with pytest.raises(UsageError, match=message):
        RunFolder.create(tmp_path / place)


def test_a_place_that_nobody_can_write_to_is_refused() -> None:
    with pytest.raises(UsageError, match=r"/proc/microbatch cannot be made: .*; name a folder that you can write to"):
        RunFolder.create(Path("/proc/microbatch"))


def test_missing_parents_are_made(tmp_path: Path) -> None:
    assert RunFolder.create(tmp_path / "a" / "b").path.is_dir()


def test_a_run_that_found_nothing_leaves_nothing(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    with folder.writer() as writer:
        writer.append(resnet().run)
    folder.discard()

    assert names(tmp_path) == set()


def test_a_folder_that_was_there_stays_when_the_run_found_nothing(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path)
    folder.writer().close()
    folder.discard()

    assert tmp_path.is_dir()
    assert names(tmp_path) == set()


def test_a_full_disk_leaves_the_previous_files_and_no_scraps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_into(tmp_path, PLAIN)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def full(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UsageError, match=r"table\.csv cannot be written: No space left on device; free some space"):
        redraw(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_second_writer_goes_on_where_the_first_ended(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    for value in (resnet().run, "a note"):
        with RecordWriter(path) as writer:
            writer.append(value)

    assert read_records(path).notes == ("a note",)
