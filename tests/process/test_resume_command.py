from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sample_records import resnet

from process.commands import Runs, interrupted, microbatch, user_folder
from profiler.records import RecordWriter, read_records
from profiler.run_folder import FILES

SMALL = ("train.py:slow", "--device", "cpu", "--memory-limit", "8MiB", "--ceiling", "2", "--no-compare", "--no-check")
COMMAND = ("probe", *SMALL, "--output", "run")
BEGUN = f"microbatch {' '.join(COMMAND)}"
REFUSED = {
    "another option": (
        ("--resume", "begun", "--headroom", "0.2"),
        ("--headroom is 0.2 here and 0.05 in the command of"),
    ),
    "another target": (("digits-cnn", "--resume", "begun"), ("the target is digits-cnn here and train.py:slow in the")),
    "another folder": (
        ("--resume", "begun", "--output", "new"),
        ("--output is new here and run in the command of begun"),
    ),
    "no run": (("--resume", "nowhere"), "nowhere cannot be gone on with: it is no folder"),
    "made in Python": (("--resume", "python"), "use probe(workload, options, resume=records)"),
    "made by compare": (("--resume", "compare"), "which cannot go on (only probe goes on): run that command again"),
    "made by a later version": (("--resume", "later"), "which cannot go on (No such option: --wings"),
    "made where nothing is any more": (
        ("--resume", "lost"),
        "the command was given in /nowhere/at/all, which cannot be entered (No such file or directory), and there is no "
        "lost.py here: go to where it is now, and resume there.",
    ),
    "no command": (("--resume", "words"), 'was made by `microbatch probe "`, which cannot go on'),
}


class Refusals(Runs):
    """Each in a folder with runs that cannot go on as it is asked."""

    def prepare(self, folder: Path) -> None:
        commands = {
            "begun": BEGUN,
            "python": None,
            "compare": "microbatch compare --output compare",
            "later": "microbatch probe --wings 2",
            "words": 'microbatch probe "',
        }
        for name, command in commands.items():
            (folder / name).mkdir()
            with RecordWriter(folder / name / "records.jsonl") as writer:
                writer.append(replace(resnet().run, command=command))
        (folder / "lost").mkdir()
        with RecordWriter(folder / "lost" / "records.jsonl") as writer:
            lost = replace(resnet().run, command="microbatch probe lost.py:slow", directory="/nowhere/at/all")
            writer.append(lost)


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    commands = {name: ("probe", *arguments) for name, (arguments, _) in REFUSED.items()}
    with Refusals(tmp_path_factory.mktemp("refused"), commands) as started:
        yield started


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_go_on_is_refused_in_words(refusals: Runs, name: str) -> None:
    ran = refusals[name]

    assert (ran.status, ran.output) == (2, ""), ran.errors
    assert REFUSED[name][1] in ran.errors
    assert "Traceback" not in ran.errors
    assert not (ran.folder / "new").exists()


def sizes(path: Path) -> list[int]:
    return [trial.micro_batch_size for trial in read_records(path / "records.jsonl").trials]


def test_an_interrupted_command_goes_on_where_it_was_and_runs_no_size_twice(tmp_path: Path) -> None:
    folder = user_folder(tmp_path / "here")
    interrupted(folder, *COMMAND, after_lines=2)
    before = (folder / "run" / "records.jsonl").read_bytes()
    tried = sizes(folder / "run")
    shutil.copytree(folder / "run", folder / "edited")

    # The same options as then may stand beside it; how to show the results is typed anew.
    resumed = microbatch(*COMMAND, "--resume", "run", "--json", folder=folder)

    assert resumed.status == 0, resumed.errors
    document: dict[str, Any] = json.loads(resumed.output)
    assert (document["largest_fit"], document["limited_by"]) == (2, "ceiling")
    assert len(tried) >= 1
    assert f"went on from {len(tried)} trials of sizes" in resumed.errors
    assert not any(f"  size {size:>6} " in resumed.errors for size in tried)
    assert sizes(folder / "run")[: len(tried)] == tried
    assert sorted(sizes(folder / "run")) == [1, 2]
    assert (folder / "run" / "records.jsonl").read_bytes().startswith(before)
    assert (folder / "run" / "command.txt").read_text() == f"{BEGUN}\n"
    assert {path.name for path in (folder / "run").iterdir()} == set(FILES) - {
        "plan.json",
        "summed_loss.png",
        "summed_loss.csv",
        "evaluation.png",
        "evaluation.csv",
        "soak.png",
        "soak.csv",
    }

    ended = (folder / "run" / "records.jsonl").read_bytes()
    again = microbatch("probe", "--resume", "run", "--json", "--quiet", folder=folder)
    assert (again.status, again.errors) == (0, "")
    assert json.loads(again.output) == document
    assert (folder / "run" / "records.jsonl").read_bytes() == ended

    with (folder / "train.py").open("a") as file:
        file.write("# edited\n")
    edited = microbatch("probe", "--resume", "edited", folder=folder)
    assert edited.status == 2
    assert "the target's file has changed since the records were made" in edited.errors
    assert (folder / "edited" / "records.jsonl").read_bytes() == before


def test_a_run_goes_on_where_its_command_was_given_or_where_that_was_moved(tmp_path: Path) -> None:
    folder, elsewhere = user_folder(tmp_path / "here"), user_folder(tmp_path / "elsewhere")
    (elsewhere / "train.py").write_text("raise SystemExit('another file of that name')")
    interrupted(folder, *COMMAND, after_lines=2)
    assert read_records(folder / "run" / "records.jsonl").run.directory == str(folder)

    resumed = microbatch("probe", "--resume", "../here/run", folder=elsewhere)
    assert resumed.status == 0, resumed.errors
    assert f"going on in {folder}, where the command was given" in resumed.errors
    assert (folder / "run" / "table.csv").is_file()
    assert {path.name for path in elsewhere.iterdir()} == {"train.py"}
    ended = (folder / "run" / "records.jsonl").read_bytes()

    moved = folder.rename(tmp_path / "there")
    again = microbatch("probe", "--resume", "run", "--quiet", folder=moved)
    assert (again.status, again.errors) == (0, "")
    assert (moved / "run" / "records.jsonl").read_bytes() == ended
