"""The real command, interrupted at random moments: what it leaves behind."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from process.commands import CLI, environment, processes_with, user_folder

SEED = 2026
# An uninterrupted command takes some seconds: import, loading, the search, timing, check, comparison, plan, writing.
COMMAND = (
    *("probe", "train.py:workload", "--device", "cpu", "--memory-limit", "4MiB", "--effective-batch", "9"),
    *("--output", "run"),
)
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """When to interrupt: `share` of a part after the line of progress that begins with `after`; "" is the start."""

    after: str
    share: float
    signal: signal.Signals
    twice: bool = False

    def __str__(self) -> str:
        where = self.after.strip().replace(" ", "-") or "the-start"
        return f"{self.signal.name}{'-twice' if self.twice else ''}-{self.share:.2f}-after-{where}"


def moments() -> Iterator[Moment]:
    """At random within each part of a probe, by each signal in turn."""
    chance = random.Random(SEED)
    parts = (
        "",
        "",
        "",
        "tiny on cpu",
        "  size      1",
        "  size",
        "  largest",
        "  time",
        "  check",
        "  plan",
        "  whole batch",
    )
    for number, after in enumerate(parts):
        kind = (signal.SIGINT, signal.SIGTERM)[number % 2]
        yield Moment(after=after, share=chance.random(), signal=kind, twice=number % 3 == 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interrupted:
    """A command that was interrupted: how it ended, what it said, and what it left."""

    status: int
    lines: list[str]
    folder: Path
    temporary: Path
    processes: list[int]


def handles(pid: int, number: int) -> bool:
    """Whether the process has a handler of its own for that signal: Python itself is up, and the command has begun."""
    caught = re.search(r"^SigCgt:\s+([0-9a-f]+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (number - 1) & 1)


def interrupt(moment: Moment, root: Path) -> Interrupted:
    folder, mark = user_folder(root / str(moment)), uuid.uuid4().hex
    temporary = folder.parent / f"temporary-{moment}"
    temporary.mkdir()
    with subprocess.Popen(
        [sys.executable, str(CLI), *COMMAND],
        cwd=folder,
        env=environment(MARK=mark, TMPDIR=str(temporary)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stderr is not None
        lines = list[str]()
        while not handles(running.pid, signal.SIGTERM):
            time.sleep(0.01)
        while moment.after and not (lines and lines[-1].startswith(moment.after)):
            lines.append(running.stderr.readline())
            assert lines[-1], lines
        time.sleep(moment.share * (2.5 if not moment.after else 0.4))
        running.send_signal(moment.signal)
        if moment.twice:
            time.sleep(moment.share / 10)
            running.send_signal(moment.signal)
        lines += running.stderr.read().splitlines(keepends=True)
        status = running.wait(timeout=60)
    deadline = time.monotonic() + 20
    while processes_with(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    return Interrupted(status=status, lines=lines, folder=folder, temporary=temporary, processes=processes_with(mark))


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Interrupted]]]:
    """Every command, two at a time."""
    root = tmp_path_factory.mktemp("interrupted")
    with ThreadPoolExecutor(max_workers=2) as pool:
        yield {str(moment): pool.submit(interrupt, moment, root) for moment in moments()}


@pytest.mark.parametrize("moment", tuple(moments()), ids=str)
def test_an_interrupted_command_keeps_what_it_showed_and_leaves_nothing_else(
    interrupted: dict[str, Future[Interrupted]], moment: Moment
) -> None:
    ran = interrupted[str(moment)].result()
    said = "".join(ran.lines)

    assert ran.status == STATUS[moment.signal], said
    assert "Traceback" not in said
    assert "Exception" not in said
    assert ran.processes == []
    assert list(ran.temporary.iterdir()) == []
    assert [path.name for path in ran.folder.rglob("*.part")] == []
    records = ran.folder / "run" / "records.jsonl"
    content = records.read_text() if records.exists() else ""
    assert content == "" or content.endswith("\n")
    kept = [json.loads(line) for line in content.splitlines()]
    assert [record["kind"] for record in kept[:1]] == (["run"] if content else [])
    for kind, pattern in (("trial", r"^  size +(\d+) "), ("throughput", r"^  time +(\d+) ")):
        shown = {int(size) for size in re.findall(pattern, said, re.MULTILINE)}
        assert shown <= {record["micro_batch_size"] for record in kept if record["kind"] == kind}


def test_signals_that_the_caller_ignores_stay_ignored(tmp_path: Path) -> None:
    folder = user_folder(tmp_path / "run")
    with subprocess.Popen(
        [sys.executable, str(CLI), "plot", "nowhere"],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    ) as running:
        while running.poll() is None and not handles(running.pid, signal.SIGTERM):
            time.sleep(0.005)
        os.kill(running.pid, signal.SIGINT)
        _, errors = running.communicate(timeout=60)

    assert running.returncode == 2
    assert b"nowhere cannot be drawn" in errors
