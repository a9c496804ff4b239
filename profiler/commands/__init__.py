"""The command line: one module a subcommand; the only code that prints or exits."""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType

NOT_EQUAL = 5
INTERRUPTED = 130
TERMINATED = 143
# For so long after a signal another one is passed over, so that a second Ctrl-C does not leave the workers of the first.
CLEARING_SECONDS = 10.0

_STATUS = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}


def main() -> None:
    """Run `microbatch` on sys.argv and exit: 0 done, NOT_EQUAL where `check` found accumulation to differ from the whole
    batch, else the status of the error (see `profiler.errors`); INTERRUPTED or TERMINATED after such a signal.
    """
    received = _interrupt_by_signals()
    try:
        # typer comes with the subcommands; torch, pandas and matplotlib wait for the subcommand that needs them.
        from profiler.commands.app import app

        app()
    except BrokenPipeError:
        # The reader has gone (`microbatch ... | head`); Python would complain again when it flushes at exit.
        forget_output()
        sys.exit(1)
    except BaseException:
        # An interrupt that comes while a library is imported or called from C reaches this place as anything.
        if not received:
            raise
    finally:
        for number in _STATUS:  # what is done is done, and Python's own end is no place for an exception
            signal.signal(number, signal.SIG_IGN)
    sys.exit(received[-1] if received else 0)


def forget_output() -> None:
    """Standard output goes nowhere from now on, since what Python still holds for it cannot be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _interrupt_by_signals() -> list[int]:
    """End by way of every `finally` at the first signal, so that no worker is left; the statuses that signals asked for."""
    received: list[int] = []
    last = 0.0

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal last
        if received and time.monotonic() - last < CLEARING_SECONDS:
            return
        last = time.monotonic()
        received.append(_STATUS[signal.Signals(number)])
        raise KeyboardInterrupt

    for number in _STATUS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup and a shell's background jobs leave it
            signal.signal(number, interrupt)
    return received
