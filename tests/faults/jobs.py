"""What a worker does to the pipes and processes around it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

from process.jobs import done

from profiler.trial import Done
from profiler.workers.protocol import framed

# What a careless program takes for its own files.
DESCRIPTORS = range(3, 21)
HEADER = framed(None)[:8]


def write_everywhere(content: bytes) -> Done[Any]:
    """Write to every descriptor that a file of the job's own could have had."""
    for descriptor in DESCRIPTORS:
        with contextlib.suppress(OSError):
            os.write(descriptor, content)
    return done("a result")


def write_and_end(content: bytes) -> Done[Any]:
    write_everywhere(content)
    os._exit(0)


def write_and_sleep(content: bytes) -> Done[Any]:
    write_everywhere(content)
    time.sleep(600)
    return done()


def close_everything() -> Done[Any]:
    os.closerange(3, 50)
    return done("a result")


def open_files_where_pipes_were(folder: Path) -> Done[Any]:
    os.closerange(3, 50)
    for number in range(20):
        (folder / str(number)).open("wb").write(b"mine")
        os.open(folder / str(number), os.O_WRONLY | os.O_APPEND)
    return done("a result")


def close_output() -> Done[Any]:
    sys.stdout.close()
    os.close(1)
    os.close(2)
    return done("a result")


def leave_a_child(file: Path, then: str) -> Done[Any]:
    """Fork a child that holds the pipes, in a session of its own, where no signal to the worker's group reaches it."""
    if os.fork() == 0:
        os.setsid()
        file.write_text(str(os.getpid()))
        time.sleep(600)
    while not file.exists() or not file.read_text():
        time.sleep(0.01)
    if then == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    return done("a result", clean=False)


def change_group(file: Path) -> Done[Any]:
    """Move to the server's own process group, and hang."""
    os.setpgid(0, os.getpgid(os.getppid()))
    file.write_text(str(os.getpid()))
    time.sleep(600)
    return done()


def stop() -> Done[Any]:
    os.kill(os.getpid(), signal.SIGSTOP)
    return done()


def wait_with_the_lock() -> Done[Any]:
    """Wait in C without letting go of the interpreter's lock: no Python code runs, no signal handler either."""
    ctypes.PyDLL(None).sleep(600)
    return done()


def match_for_ever() -> Done[Any]:
    re.match(r"(a+)+$", "a" * 60 + "b")
    return done()
