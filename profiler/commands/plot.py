"""`microbatch plot`: figures and tables again, from a run's records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from profiler.commands.console import handled, output, printing
from profiler.commands.tables import print_lines


def plot(folder: Annotated[Path, typer.Argument(help="The folder of a run, as probe printed it.")]) -> None:
    """Draw the figures and tables of a run again from its records, finished or interrupted."""
    with handled():
        from profiler.run_folder import redraw

        paths = redraw(folder)
        with printing():
            print_lines(output(), (str(path) for path in paths))
