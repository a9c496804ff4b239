"""What workers are told to do; importable in a server without torch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from profiler.devices.addresses import are_addresses_fixed
from profiler.trial import Done


def done(result: Any = None, *, clean: bool = True) -> Done[Any]:
    return Done(result=result, worker_is_clean=clean)


def give(value: Any) -> Done[Any]:
    return done(value)


def process_id(clean: bool) -> Done[Any]:
    return done(os.getpid(), clean=clean)


def environment(name: str) -> Done[Any]:
    return done(os.environ.get(name))


def has_fixed_addresses() -> Done[Any]:
    return done(are_addresses_fixed())


def reverse(content: bytes) -> Done[Any]:
    return done(content[::-1])


def raise_signal(number: int) -> Done[Any]:
    os.kill(os.getpid(), number)
    return done()


def end_with(status: int) -> Done[Any]:
    os._exit(status)


def leave() -> Done[Any]:
    sys.exit(0)


def raise_error() -> Done[Any]:
    raise ArithmeticError("seven is not eight")


def return_what_cannot_be_pickled() -> Done[Any]:
    return done(lambda: None)


def say(then_die: bool) -> Done[Any]:
    sys.stdout.write("by standard output\n")
    sys.stderr.write("by standard error\n")
    os.write(1, b"by the descriptor\n")
    subprocess.run(["echo", "by a child"], check=True)
    if then_die:
        os.kill(os.getpid(), signal.SIGKILL)
    return done()


def say_much() -> Done[Any]:
    sys.stdout.write(f"the beginning {'.' * 100_000} the end\n")
    os.kill(os.getpid(), signal.SIGKILL)
    return done()


def spin(file: Path) -> Done[Any]:
    _note(file, os.getpid())
    while True:
        pass


def sleep(file: Path) -> Done[Any]:
    _note(file, os.getpid())
    time.sleep(600)
    return done()


def sleep_deaf(file: Path) -> Done[Any]:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return sleep(file)


def start_child(file: Path, then: str) -> Done[Any]:
    child = subprocess.Popen(["sleep", "600"])
    _note(file, child.pid)
    if then == "hang":
        time.sleep(600)
    if then == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return done(clean=then != "end unclean")


def signal_and_sleep(file: Path, pid: int) -> Done[Any]:
    _note(file, os.getpid())
    os.kill(pid, signal.SIGUSR1)
    time.sleep(600)
    return done()


def kill_server(file: Path) -> Done[Any]:
    _note(file, os.getpid())
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(600)
    return done()


def _note(file: Path, pid: int) -> None:
    file.write_text(str(pid))
