"""The subcommands together."""

from __future__ import annotations

import typer

from profiler.commands.check import check
from profiler.commands.compare import compare
from profiler.commands.devices import devices
from profiler.commands.plot import plot
from profiler.commands.probe import probe

app = typer.Typer(
    name="microbatch",
    help="Find the largest and the fastest micro-batch that fit, and the accumulation steps that reach an effective batch "
    "exactly; proved by running them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (probe, check, compare, plot, devices):
    app.command()(command)
