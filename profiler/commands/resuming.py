"""What `probe --resume` takes from the records: the command that made them, parsed as it was then."""

from __future__ import annotations

import os
import shlex
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import typer
from rich.text import Text

from profiler.commands.console import errors
from profiler.errors import UsageError
from profiler.resuming import Reopened, reopen

# What decides no result: how to show it, as it is typed now, and how long to wait, as then unless it is typed now.
_SHOWN = ("resume", "as_json", "quiet")
_TIMES = ("trial_timeout", "verification_timeout")
# What typer raises for a line that it cannot parse, by whichever name it keeps that.
_UNPARSED: tuple[type[Exception], ...] = (ValueError, *cast(tuple[type[Exception], ...], typer.BadParameter.__bases__))


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """The run that goes on, and the arguments of the command with which it began."""

    run: Reopened
    arguments: dict[str, Any]


def resumed(context: typer.Context, folder: Path) -> Resumed:
    """The run in `folder`, to go on with, in the directory where its command was given.

    Raises UsageError where it is no run of `probe` that can, or where something else than then was typed beside it.
    """
    run, path = reopen(folder), folder.absolute()
    with ExitStack() as stack:
        stack.callback(run.writer.close)
        arguments = _arguments(context, folder, run.records.run.command)
        if _return_to(run.records.run.directory, arguments):
            run = replace(run, path=path)
        stack.pop_all()
    return Resumed(run=run, arguments=arguments)


def _return_to(directory: str | None, arguments: dict[str, Any]) -> bool:
    """Whether this went to another directory, the one where the command was given: its target and the target's data are there.

    Where that is gone, as on another machine, a target that is found from here goes on here; UsageError for any other.
    """
    if directory is None or directory == str(Path.cwd()):
        return False
    try:
        os.chdir(directory)
    except OSError as error:
        place = arguments["target"].rpartition(":")[0]
        if place.endswith(".py") and not Path(place).is_file():
            raise UsageError(
                f"the command was given in {directory}, which cannot be entered ({error.strerror or error}), and there is no "
                f"{place} here: go to where it is now, and resume there."
            ) from error
        return False
    if not arguments["quiet"]:
        errors().print(Text(f"going on in {directory}, where the command was given"))
    return True


def _arguments(context: typer.Context, folder: Path, command: str | None) -> dict[str, Any]:
    then = _parsed(context, folder, command)
    now = {name: value for name, value in context.params.items() if _is_typed(context, name)}
    for name, value in now.items():
        if name not in (*_SHOWN, *_TIMES) and value != then[name]:
            raise UsageError(
                f"{_flag(context, name)} is {value} here and {then[name]} in the command of {folder} ({command}), which goes on "
                "as it began: leave it out, or start a new probe without --resume."
            )
    shown = {name: context.params[name] for name in _SHOWN}
    return then | {name: now[name] for name in _TIMES if name in now} | shown


def _parsed(context: typer.Context, folder: Path, command: str | None) -> dict[str, Any]:
    """The arguments of the recorded command, by the parser of this one."""
    if command is None:
        raise UsageError(
            f"{folder} was recorded in Python, with no command to go on with: use probe(workload, options, resume=records) "
            "there, of profiler.records.read_records, or start a new probe."
        )
    try:
        _, subcommand, *arguments = shlex.split(command)
        if subcommand == context.info_name:
            return dict(context.command.make_context(subcommand, arguments).params)
        reason = f"only {context.info_name} goes on"
    except _UNPARSED as error:
        reason = getattr(error, "message", str(error))
    raise UsageError(f"{folder} was made by `{command}`, which cannot go on ({reason}): run that command again.")


def _is_typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _flag(context: typer.Context, name: str) -> str:
    flags = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    return flags[name] if flags[name].startswith("-") else f"the {flags[name]}"
