from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from process.commands import ROOT, Runs

EARLIER = {
    "records.jsonl": '{"schema": 1, "kind": "run", "workload": "earlier"}\n',
    "table.csv": "micro_batch_size\n1\n",
    "memory.png": "a figure\n",
}


@dataclass(frozen=True, slots=True)
class Refused:
    """What is typed, and what must come of it: every one of `words` on standard error."""

    arguments: tuple[str, ...]
    words: tuple[str, ...]
    status: int = 2
    own_traceback: str | None = None


def probe(target: str, *options: str, words: tuple[str, ...], status: int = 2, own: str | None = None) -> Refused:
    """A probe on the CPU that could replace an earlier run, were its input good."""
    device = () if "--device" in options else ("--device", "cpu")
    arguments = ("probe", target, *device, "--output", "earlier", "--force", *options)
    return Refused(arguments, words, status, own)


def check_of(target: str, *options: str, words: tuple[str, ...], own: str | None = None) -> Refused:
    """A check on the CPU, which writes nowhere."""
    return Refused(("check", target, "--device", "cpu", *options), words, own_traceback=own)


SOUND = "train.py:workload"
ROWS = {
    # What is not there.
    "missing file": probe("nowhere.py:workload", words=("nowhere.py does not exist", "from the current directory")),
    "file misspelt": probe("trian.py:workload", words=("trian.py does not exist", "train.py")),
    "missing module": probe("no_such_module:workload", words=("no module no_such_module", "package.module:factory")),
    "missing factory": probe("train.py:workloads", words=("train.py has no workloads", "workload")),
    "missing attribute": probe("train.py:workload.small", words=("train.py has no workload.small",)),
    "no factory named": probe("train.py", words=("train.py names no factory", "train.py:FUNCTION")),
    "no such example": probe("digits-cn", words=("no workload 'digits-cn'", "digits-cnn")),
    # What is no workload.
    "factory is a number": probe("train.py:number", words=("number in train.py is of type int", "name a function")),
    "factory raises": probe(
        "train.py:failing", words=("failing() in train.py raised KeyError ('learning_rate')",), own="in failing"
    ),
    "factory returns a model": probe("train.py:a_model", words=("returned of type Linear", "return profiler.Workload")),
    # Workloads with a bug.
    "model with a bug": probe(
        "train.py:misshapen",
        words=("failed at micro-batch size 1, in its forward", "RuntimeError", "shapes cannot be multiplied"),
        own="in forward",
    ),
    "batch of another size": probe(
        "train.py:three_samples", words=("make_batch(1) returned a batch of 3 samples", "as many as it is asked for")
    ),
    "batch without tensors": probe("train.py:texts", words=("make_batch returned list without a tensor", "return a")),
    "loss is a vector": probe("train.py:vector", words=("a tensor of shape (2,)", "must be a scalar")),
    "loss is infinite": probe("train.py:infinite", words=("the loss of the first step is inf", "Check the batch")),
    "loss without gradient": probe("train.py:detached", words=("the loss has no gradient", "detached")),
    # Numbers out of range.
    "no samples": probe(SOUND, "--effective-batch", "0", words=("effective batch is 0", "at least 1")),
    "negative samples": probe(SOUND, "--effective-batch", "-8", words=("effective batch is -8", "at least 1")),
    "fewer samples than replicas": probe(
        *(SOUND, "--effective-batch", "3", "--data-parallel-size", "4"), words=("effective batch", "3", "4 replicas")
    ),
    "no replicas": probe(SOUND, "--data-parallel-size", "0", words=("data_parallel_size is 0", "at least 1")),
    "samples that are no number": probe(SOUND, "--effective-batch", "many", words=("--effective-batch", "integer")),
    "headroom of all": probe(SOUND, "--headroom", "1", words=("headroom is 1.0", "below 1")),
    "negative headroom": probe(SOUND, "--headroom", "-0.1", words=("headroom is -0.1", "from 0")),
    "headroom that is no number": probe(SOUND, "--headroom", "nan", words=("headroom is nan", "from 0 to below 1")),
    "ceiling of 0": probe(SOUND, "--ceiling", "0", words=("ceiling is 0", "at least 1", "'target'")),
    "ceiling that is no size": probe(SOUND, "--ceiling", "high", words=("ceiling 'high'", "'target'")),
    "ceiling of no target": probe(SOUND, "--ceiling", "target", words=("no effective batch was given",)),
    "limit that is no size": probe(SOUND, "--memory-limit", "lots", words=("'lots'", "2GiB")),
    "no limit at all": probe(SOUND, "--memory-limit", "0", words=("'0' is less than a byte", "positive")),
    "limit above what is there": probe(SOUND, "--memory-limit", "900TiB", words=("900 TiB", "GiB")),
    "no time at all": probe(SOUND, "--trial-timeout", "0", words=("time limit of 0.0 seconds", "positive")),
    "unknown precision": probe(SOUND, "--precision", "fp8", words=("'fp8'", "fp32, tf32, bf16, fp16")),
    "unknown isolation": probe(SOUND, "--isolation", "thread", words=("'thread'", "'process' or 'none'")),
    "unknown option": probe(SOUND, "--effective", "8", words=("--effective",)),
    "no micro-batch": Refused(
        ("compare", SOUND, "--micro-batch", "0", "--output", "earlier", "--force"), ("of 0 samples", "at least 1")
    ),
    # Checks.
    "check of one sample": check_of(
        SOUND, "--effective-batch", "1", words=("effective batch is 1", "cannot be split", "Use 2 or more")
    ),
    "check of no samples": check_of(SOUND, "--effective-batch", "0", words=("effective batch is 0", "at least 1")),
    "check of a negative number": check_of(SOUND, "--effective-batch", "-3", words=("effective batch is -3",)),
    "check of no number": check_of(SOUND, "--effective-batch", "abc", words=("--effective-batch", "integer")),
    "check of no such example": check_of("digits-cn", words=("no workload 'digits-cn'", "digits-cnn")),
    "check with an unknown precision": check_of(SOUND, "--precision", "fp8", words=("'fp8'", "fp32, tf32, bf16")),
    "check in no time at all": check_of(SOUND, "--trial-timeout", "0", words=("time limit of 0.0 seconds",)),
    "check into a folder": check_of(SOUND, "--output", "elsewhere", words=("No such option", "--output")),
    "check of a model with a bug": check_of(
        "train.py:misshapen",
        words=("failed in the check with 16 samples, in its forward", "RuntimeError", "shapes cannot be multiplied"),
        own="in forward",
    ),
    "check of a loss that is infinite": check_of("train.py:infinite", words=("inf",)),
    "check of a loss that is a vector": check_of("train.py:vector", words=("a tensor of shape (32,)", "a scalar")),
    # What does not fit, or is not here.
    "micro-batch too large to compare": Refused(
        (
            *("compare", SOUND, "--micro-batch", "500", "--device", "cpu", "--memory-limit", "8MiB"),
            *("--output", "elsewhere", "--quiet"),
        ),
        ("a micro-batch of 500 does not fit in 8 MiB", "use a smaller one"),
        status=3,
    ),
    "unknown device": probe(SOUND, "--device", "tpu:0", words=("no device 'tpu:0'", "cuda:N", "microbatch devices")),
    # Places that cannot be written or read.
    "results folder in use": Refused(
        ("probe", SOUND, "--output", "earlier"), ("earlier is not empty", "records.jsonl", "--force")
    ),
    "results folder is a file": Refused(
        ("probe", SOUND, "--output", "train.py"), ("train.py is not a folder", "--output")
    ),
    "results folder below a file": Refused(
        ("probe", SOUND, "--output", "train.py/run"), ("train.py/run cannot be made", "--output")
    ),
    "results folder of somebody else": Refused(
        ("probe", SOUND, "--output", "theirs", "--force"), ("theirs holds table.csv", "nothing was removed")
    ),
    "plot of nothing": Refused(("plot", "nowhere"), ("nowhere cannot be drawn", "as probe printed it")),
    "plot without records": Refused(("plot", "theirs"), ("no records.jsonl", "as probe printed it")),
    "plot of broken records": Refused(("plot", "broken"), ("broken/records.jsonl", "line 1")),
}
NO_GPU = probe(SOUND, "--device", "cuda:7", words=("cuda:7 cannot be used", "torch"), status=4)


class BadRuns(Runs):
    """Every row runs where an earlier run, somebody else's files and broken records lie."""

    def prepare(self, folder: Path) -> None:
        for name in ("earlier", "theirs", "broken"):
            (folder / name).mkdir()
        for name, text in EARLIER.items():
            (folder / "earlier" / name).write_text(text)
        (folder / "theirs" / "table.csv").write_text("mine\n")
        (folder / "broken" / "records.jsonl").write_text("no record\n")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("refused")


@pytest.fixture(scope="module")
def refused(root: Path) -> Iterator[Runs]:
    commands = {name: row.arguments for name, row in (*ROWS.items(), ("no GPU", NO_GPU))}
    with BadRuns(root, commands) as started:
        yield started


@pytest.fixture(scope="module")
def untouched(root: Path) -> dict[str, bytes | None]:
    """What a folder holds before its command starts."""
    folder = root / "untouched"
    with BadRuns(root, {"untouched": ("--help",)}) as started:
        started["untouched"]
    return content_of(folder)


def content_of(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes() for path in folder.rglob("*")}


def check(name: str, row: Refused, refused: Runs) -> None:
    ran = refused[name]
    assert ran.status == row.status, ran.errors
    assert ran.output == ""
    said = " ".join(ran.errors.replace("│", " ").split())
    assert [words for words in row.words if words not in said] == [], ran.errors
    assert ran.errors.count("Traceback") == (1 if row.own_traceback else 0), ran.errors
    assert str(ROOT / "profiler") not in ran.errors
    if row.own_traceback:
        assert row.own_traceback in ran.errors
        assert "train.py" in ran.errors


@pytest.mark.parametrize("name", ROWS)
def test_bad_input_is_refused_in_words_and_no_traceback_but_the_users_own(name: str, refused: Runs) -> None:
    check(name, ROWS[name], refused)


# Where a trial was run, its records are kept.
@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.status == 2])
def test_a_refused_command_leaves_an_earlier_run_and_everything_else_as_it_was(
    name: str, refused: Runs, untouched: dict[str, bytes | None]
) -> None:
    assert content_of(refused[name].folder) == untouched


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused_with_the_reason(refused: Runs, untouched: dict[str, bytes | None]) -> None:
    check("no GPU", NO_GPU, refused)
    assert content_of(refused["no GPU"].folder) == untouched
