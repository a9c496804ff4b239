from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from process.commands import CLI, Ran, Runs, environment, interrupted, user_folder

# Beside the sound and broken workloads of every command's folder.
LOSSES = """\
import os
import signal
import time

import torch

from train import workload


def summed_loss(model, batch):
    return model(batch).square().sum()


def summed():
    return workload(loss=summed_loss)


def raising_loss(model, batch):
    raise LookupError("no such label")


def raising():
    return workload(loss=raising_loss)


def crashing_loss(model, batch):
    os.kill(os.getpid(), signal.SIGSEGV)


def crashing():
    return workload(loss=crashing_loss)


def hungry_loss(model, batch):
    return model(batch).square().mean() + torch.ones(2**50).mean()


def hungry():
    return workload(loss=hungry_loss)


def endless_loss(model, batch):
    print("at work", flush=True)
    while True:
        time.sleep(0.1)


def endless():
    return workload(loss=endless_loss)
"""

COMMANDS = {
    "equal": ("check", "digits-cnn", "--device", "cpu", "--json"),
    "equal in words": ("check", "digits-cnn", "--device", "cpu", "--effective-batch", "6"),
    "not equal": ("check", "digits-resnet", "--effective-batch", "4", "--device", "cpu", "--json", "--quiet"),
    "not equal in words": (
        "check",
        "digits-resnet",
        "--effective-batch",
        "4",
        "--device",
        "cpu",
        "--precision",
        "bf16",
    ),
    "own": ("check", "train.py:workload", "--device", "cpu", "--effective-batch", "2", "--json"),
    "summed": ("check", "losses.py:summed", "--device", "cpu", "--json"),
    "in this process": ("check", "train.py:workload", "--device", "cpu", "--isolation", "none", "--json"),
    "raising": ("check", "losses.py:raising", "--device", "cpu", "--json"),
    "crashing": ("check", "losses.py:crashing", "--device", "cpu", "--json"),
    "hungry": ("check", "losses.py:hungry", "--device", "cpu", "--json"),
}

KEYS = [
    *("schema", "workload", "device", "batch_size", "equal", "decomposes", "items", "modules", "random_modules"),
    *("verdict", "reasons", "ways", "advice", "notes"),
]
WAY = ["strategy", "split", "precision", "loss", "gradient_difference", "bound", "parameter_sum", "equal", "why"]


class CheckRuns(Runs):
    """The commands of this file, in folders with more workloads."""

    def prepare(self, folder: Path) -> None:
        (folder / "losses.py").write_text(LOSSES)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with CheckRuns(tmp_path_factory.mktemp("checks"), COMMANDS) as started:
        yield started


def document(ran: Ran) -> dict[str, Any]:
    """The one JSON object that is all of standard output."""
    printed: dict[str, Any] = json.loads(ran.output)
    return printed


@pytest.mark.parametrize(
    ("name", "status", "equal"),
    [
        ("equal", 0, True),
        ("equal in words", 0, None),
        ("not equal", 5, False),
        ("not equal in words", 5, None),
        ("own", 0, True),
        ("summed", 5, False),
        ("in this process", 0, True),
    ],
)
def test_the_status_says_whether_accumulation_equals_the_whole_batch(
    runs: Runs, name: str, status: int, equal: bool | None
) -> None:
    ran = runs[name]

    assert ran.status == status, ran.errors
    assert "Traceback" not in ran.errors
    assert "error:" not in ran.errors
    if equal is not None:
        assert document(ran)["equal"] is equal


@pytest.mark.parametrize("name", ["equal", "not equal", "own", "summed", "in this process"])
def test_standard_output_is_one_json_object_of_the_promised_keys(runs: Runs, name: str) -> None:
    printed = document(runs[name])

    assert list(printed) == KEYS
    assert printed["schema"] == 1
    assert printed["device"] == "cpu"
    assert printed["verdict"].startswith("equal" if printed["equal"] else "not equal: ")
    assert printed["reasons"]
    assert printed["advice"]
    assert {tuple(way) for way in printed["ways"]} == {tuple(WAY)}
    assert {sum(way["split"]) for way in printed["ways"]} == {printed["batch_size"]}


def test_every_way_of_a_loss_over_samples_is_equal_and_says_by_how_little_it_differs(runs: Runs) -> None:
    printed = document(runs["equal"])

    assert (printed["workload"], printed["batch_size"], printed["decomposes"]) == ("digits-cnn", 16, "samples")
    assert (printed["items"], printed["modules"]) == (None, [])
    exact = [way for way in printed["ways"] if way["precision"] == "fp64"]
    assert {(way["strategy"], tuple(way["split"])) for way in exact} == {
        ("whole_batch", (16,)),
        *((strategy, (4,) * 4) for strategy in ("summed_loss", "accumulation")),
        *((strategy, (5, 5, 5, 1)) for strategy in ("summed_loss", "accumulation")),
        *((strategy, (1,) * 16) for strategy in ("summed_loss", "accumulation")),
    }
    assert {way["precision"] for way in printed["ways"]} == {"fp64", "fp32"}
    assert all(way["equal"] and way["gradient_difference"] <= way["bound"] < 1e-3 for way in printed["ways"])
    assert [way["loss"] for way in exact] == pytest.approx([exact[0]["loss"]] * 7, rel=1e-12)
    assert [way["parameter_sum"] for way in exact] == pytest.approx([exact[0]["parameter_sum"]] * 7, rel=1e-12)


def test_batch_norm_is_found_and_its_modules_are_named(runs: Runs) -> None:
    printed = document(runs["not equal"])
    differing = [way for way in printed["ways"] if not way["equal"]]

    assert printed["workload"] == "digits-resnet"
    assert "BatchNorm" in printed["verdict"]
    assert printed["modules"]
    assert differing
    assert any(way["gradient_difference"] is not None and way["gradient_difference"] > 1e-3 for way in differing)
    assert all(way["why"] for way in differing)


def test_a_summed_loss_is_named_as_one(runs: Runs) -> None:
    assert document(runs["summed"])["decomposes"] == "sum"


def test_two_samples_are_enough(runs: Runs) -> None:
    printed = document(runs["own"])

    assert printed["batch_size"] == 2
    assert {tuple(way["split"]) for way in printed["ways"]} == {(2,), (1, 1)}


@pytest.mark.parametrize(
    ("name", "samples", "precision", "words"),
    [
        ("equal in words", 6, "fp32", "Accumulation and the whole batch are equal."),
        ("not equal in words", 4, "bf16", "Accumulation and the whole batch are not equal: BatchNorm"),
    ],
)
def test_without_json_standard_output_is_tables_that_fit_and_sentences(
    runs: Runs, name: str, samples: int, precision: str, words: str
) -> None:
    ran = runs[name]
    workload = COMMANDS[name][1]
    rows = [line for line in ran.output.splitlines() if re.search(r"  (yes|no|-) *$", line)]

    assert "\x1b" not in ran.output
    assert re.findall(rf"^{workload} on cpu: {samples} samples in (\w+)$", ran.output, re.MULTILINE) == [
        "fp64",
        precision,
    ]
    assert max(len(row) for row in rows) <= 120
    assert rows[0].split()[:3] == ["whole", "batch", str(samples)]
    assert words in ran.output
    assert re.search("^what to do: ", ran.output, re.MULTILINE)


def test_progress_is_on_standard_error_and_quiet_is_without(runs: Runs) -> None:
    assert re.search(r"^digits-cnn on cpu: .* may be used$", runs["equal"].errors, re.MULTILINE)
    assert re.search(r"^  check +16  equal$", runs["equal"].errors, re.MULTILINE)
    assert runs["not equal"].errors == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_a_check_writes_no_file(runs: Runs, name: str) -> None:
    left = {path.name for path in runs[name].folder.iterdir()} - {"__pycache__"}

    assert left == {"train.py", "losses.py"}


def test_a_loss_that_raises_is_shown_with_the_users_traceback(runs: Runs) -> None:
    ran = runs["raising"]

    assert (ran.status, ran.output) == (2, "")
    assert ran.errors.count("Traceback") == 1
    assert "in raising_loss" in ran.errors
    assert "the workload failed in the check with 16 samples, in its forward: LookupError: no such label" in ran.errors


def test_a_crash_is_one_of_the_check(runs: Runs) -> None:
    ran = runs["crashing"]

    assert (ran.status, ran.output) == (2, "")
    assert "error: the worker died in the check with 16 samples with exit status -11" in ran.errors
    assert "--effective-batch" in ran.errors


def test_a_check_without_the_memory_ends_with_3(runs: Runs) -> None:
    ran = runs["hungry"]

    assert (ran.status, ran.output) == (3, "")
    assert "the check with 16 samples ran out of memory in its forward" in ran.errors
    assert "--effective-batch" in ran.errors


def test_an_interrupted_check_leaves_no_worker(tmp_path: Path) -> None:
    folder = user_folder(tmp_path / "check")
    (folder / "losses.py").write_text(LOSSES)
    (line,) = interrupted(folder, "check", "losses.py:endless", "--device", "cpu", "--json", after_lines=1)

    assert "may be used" in line


def test_the_commands_own_process_does_without_torch(tmp_path: Path) -> None:
    script = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))\n"
    script += f"import runpy; runpy.run_path({str(CLI)!r}, run_name='__main__')"
    command = [sys.executable, "-c", script, "check", "digits-cnn", "--effective-batch", "2", "--json", "--quiet"]
    ended = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True)

    assert ended.stderr.splitlines()[-1] == "False"
    assert json.loads(ended.stdout)["equal"]
