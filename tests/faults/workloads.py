"""A workload that fails at one size, as often as it is told to, and is sound otherwise."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from process.workloads import Scale, rows, sgd, squares
from torch import Tensor, nn

from profiler.units import MIB
from profiler.workload import Workload

LIMIT = 12 * MIB
# Half a MiB, and a MiB and a half for each sample.
LARGEST = 7
ALWAYS = 10**6

Loss = Callable[[nn.Module, Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Faulty:
    """A loss to which `fault` happens when a worker first runs it at `size`, in the first `times` workers that do.

    folder: a file for each time, since every worker is another process.
    """

    fault: Callable[[], object]
    size: int
    folder: Path
    times: int = 1

    def __call__(self, model: nn.Module, batch: Tensor) -> Tensor:
        if len(batch) == self.size and len(list(self.folder.iterdir())) < self.times:
            (self.folder / f"{os.getpid()}-{time.monotonic_ns()}").touch()
            self.fault()
        return squares(model, batch)


def workload(loss: Loss = squares, **changes: Any) -> Workload:
    return Workload(**{"model": Scale, "make_batch": rows, "loss": loss, "optimizer": sgd, "name": "faulty", **changes})


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def lose_a_page() -> None:
    os.kill(os.getpid(), signal.SIGBUS)


def refuse_memory() -> None:
    """As if another process had all the machine's memory for a moment."""
    torch.empty(2**50)


def segfault() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def abort() -> None:
    os.abort()


def end_well() -> None:
    os._exit(0)


def end_badly() -> None:
    os._exit(3)


def write_everywhere() -> None:
    for descriptor in range(3, 21):
        with contextlib.suppress(OSError):
            os.write(descriptor, b"epoch 1 of 10\n")


def close_everything() -> None:
    os.closerange(3, 50)


def leave() -> None:
    sys.exit(0)


def interrupt() -> None:
    raise KeyboardInterrupt


class Unspeakable(Exception):
    """Cannot be printed, and cannot be pickled."""

    def __init__(self) -> None:
        super().__init__(lambda: None)

    def __str__(self) -> str:
        raise ValueError("no words")


def raise_what_cannot_be_said() -> None:
    raise Unspeakable


def move_away() -> None:
    os.chdir("/")


def fork_and_go_on() -> None:
    if os.fork() == 0:
        os.setsid()
        time.sleep(600)


def sleep() -> None:
    time.sleep(600)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def wait_with_the_lock() -> None:
    ctypes.PyDLL(None).sleep(600)


def match_for_ever() -> None:
    re.match(r"(a+)+$", "a" * 60 + "b")
