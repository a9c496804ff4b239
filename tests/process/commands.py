"""The command as a user runs it, and a user's file of workloads, sound and broken."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

ROOT = Path(__file__).parents[2]
CLI = ROOT / "cli.py"

# A sample of 128 KiB and 256 KiB of parameters: some 60 samples fit in 16 MiB.
USER_FILE = """\
import dataclasses
import time

import torch
from torch import nn

from profiler import Workload

WIDTH = 2**15


def workload(**changes):
    sound = Workload(
        model=lambda: nn.Linear(WIDTH, 2),
        make_batch=lambda size: torch.ones(size, WIDTH),
        loss=lambda model, batch: model(batch).square().mean(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.001),
        name="tiny",
    )
    return dataclasses.replace(sound, **changes)


def slow_loss(model, batch):
    time.sleep(0.2)
    return model(batch).square().mean()


def slow():
    return workload(loss=slow_loss)


class Misshapen(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(WIDTH + 1, 2)

    def forward(self, batch):
        return self.layer(batch)


def misshapen():
    return workload(model=Misshapen)


def failing():
    raise KeyError("learning_rate")


def a_model():
    return nn.Linear(WIDTH, 2)


def three_samples():
    return workload(make_batch=lambda size: torch.ones(3, WIDTH))


def texts():
    return workload(make_batch=lambda size: ["text"] * size)


def vector():
    return workload(loss=lambda model, batch: model(batch).square().mean(1).repeat(2))


def infinite():
    return workload(loss=lambda model, batch: model(batch).square().mean() * float("inf"))


def detached():
    return workload(loss=lambda model, batch: model(batch).square().mean().detach())


def heavy():
    return workload(model=lambda: nn.Sequential(nn.Linear(WIDTH, 64), nn.Linear(64, 2)))


number = 7
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """A command that ended, and the folder it ran in."""

    status: int
    output: str
    errors: str
    folder: Path


def environment(**more: str) -> dict[str, str]:
    """One thread, no colours, a width that no terminal decides, and no bytecode in the folders that tests compare."""
    kept = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "COLUMNS")}
    fixed = {"OMP_NUM_THREADS": "1", "NO_COLOR": "1", "TERM": "dumb", "PYTHONDONTWRITEBYTECODE": "1"}
    return {**kept, **fixed, **more}


def microbatch(*arguments: str, folder: Path, program: str = str(CLI)) -> Ran:
    """Run the command in `folder` to its end."""
    done = subprocess.run(
        [sys.executable, program, *arguments],
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
    )
    return Ran(status=done.returncode, output=done.stdout, errors=done.stderr, folder=folder)


def user_folder(folder: Path) -> Path:
    """`folder`, made, with the user's train.py in it."""
    folder.mkdir(parents=True)
    (folder / "train.py").write_text(USER_FILE)
    return folder


def processes_with(mark: str) -> list[int]:
    """The processes that carry `mark` in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"MARK={mark}".encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            continue
    return found


def wait_for_the_end_of(mark: str) -> None:
    deadline = time.monotonic() + 5
    while processes_with(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_with(mark) == []


class Runs:
    """Commands by name, each in a folder of its own, two at a time; whoever asks for one waits for it.

    Most of a short command is importing torch, and a test would do nothing but wait for it.
    """

    def __init__(self, root: Path, commands: Mapping[str, Sequence[str]]) -> None:
        self._pool = ThreadPoolExecutor(max_workers=2)
        self._root = root
        self._running: dict[str, Future[Ran]] = {}
        for name, arguments in commands.items():
            folder = user_folder(root / name.replace(" ", "-"))
            self.prepare(folder)
            self._running[name] = self._pool.submit(microbatch, *arguments, folder=folder)

    def prepare(self, folder: Path) -> None:
        """Fill the folder of a command before it starts."""

    def __getitem__(self, name: str) -> Ran:
        return self._running[name].result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)


def interrupted(folder: Path, *arguments: str, after_lines: int) -> list[str]:
    """The first lines of progress of a command that is interrupted after them; it ends in words, and no worker is left."""
    mark = uuid.uuid4().hex
    running = subprocess.Popen(
        [sys.executable, str(CLI), *arguments],
        cwd=folder,
        env=environment(MARK=mark),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stderr is not None
    lines = [running.stderr.readline() for _ in range(after_lines)]
    assert len(processes_with(mark)) > 1
    running.send_signal(signal.SIGINT)
    output, errors = running.communicate(timeout=30)
    assert running.returncode == 130
    assert output == ""
    assert errors.splitlines()[-1].startswith("interrupted: ")
    assert "Traceback" not in errors
    wait_for_the_end_of(mark)
    return lines
