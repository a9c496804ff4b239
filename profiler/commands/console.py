"""Where text goes: results to standard output, progress and errors to standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.text import Text

from profiler.commands import INTERRUPTED, forget_output
from profiler.errors import MicrobatchError, UsageError, WorkloadError


def output() -> Console:
    """Standard output; plain, and wide enough for every table, where it is no terminal."""
    return Console(highlight=False, soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else 120)


def errors() -> Console:
    """Standard error, likewise."""
    return Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())


@contextmanager
def printing() -> Iterator[None]:
    """What is printed inside has been written at its end; UsageError where it cannot be (a full disk)."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        forget_output()
        raise UsageError(
            f"standard output cannot be written: {error.strerror or error}; send it somewhere else. What was written to "
            "files is there all the same."
        ) from error


@contextmanager
def handled() -> Iterator[None]:
    """The one place where an error becomes text and an exit status; the user's own traceback is shown for their own bug."""
    try:
        yield
    except MicrobatchError as error:
        if isinstance(error, WorkloadError) and error.user_traceback:
            errors().print(Text(error.user_traceback))
        errors().print(Text.assemble(("error: ", "bold red"), str(error)))
        raise typer.Exit(error.exit_status) from None
    except KeyboardInterrupt:
        errors().print(Text.assemble(("interrupted: ", "bold red"), "every worker has ended."))
        raise typer.Exit(INTERRUPTED) from None
