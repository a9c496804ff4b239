"""The command line: one module a subcommand; the only code that prints or exits."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

NOT_EQUAL = 5
INTERRUPTED = 130
TERMINATED = 143


def main() -> None:
    """Run `microbatch` on sys.argv and exit: 0 done, NOT_EQUAL where `check` found accumulation to differ from the whole
    batch, else the status of the error (see `profiler.errors`).
    """
    signal.signal(signal.SIGTERM, _terminate)
    # typer comes with the subcommands; torch, pandas and matplotlib wait for the subcommand that needs them.
    from profiler.commands.app import app

    try:
        app()
    except BrokenPipeError:
        # The reader has gone (`microbatch ... | head`); Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _terminate(number: int, frame: FrameType | None) -> None:
    """End by way of every `finally`, so that no worker is left."""
    raise SystemExit(TERMINATED)
