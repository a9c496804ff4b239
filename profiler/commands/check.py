"""`microbatch check`: whether accumulation equals the whole batch."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from profiler.commands import NOT_EQUAL, arguments
from profiler.commands.check_tables import check_lines, check_tables
from profiler.commands.console import errors, handled, output, printing
from profiler.commands.progress import Progress
from profiler.commands.tables import print_lines
from profiler.equivalence import DEFAULT_CHECKED_SAMPLES, Equivalence
from profiler.events import Began, Event
from profiler.limits import TRIAL_SECONDS
from profiler.report import RunInfo


def check(
    target: arguments.Target = arguments.DEFAULT_TARGET,
    *,
    effective_batch: Annotated[
        int, typer.Option(help="Samples that are run as a whole batch and in parts, 2 or more.")
    ] = DEFAULT_CHECKED_SAMPLES,
    device: arguments.DeviceOption = None,
    precision: arguments.PrecisionOption = None,
    compile: arguments.Compile = None,
    worst_case: arguments.WorstCase = False,
    image_size: arguments.ImageSize = None,
    sequence_length: arguments.SequenceLength = None,
    classes: arguments.Classes = None,
    trial_timeout: arguments.TrialTimeout = TRIAL_SECONDS,
    isolation: arguments.Isolation = "process",
    as_json: arguments.Json = False,
    quiet: arguments.Quiet = False,
) -> None:
    """Check whether accumulation gives the whole batch's gradient, for this model and its loss; exits with 5 if not."""
    with handled():
        options = arguments.options(
            device=device,
            precision=precision,
            compile=compile,
            worst_case=worst_case,
            image_size=image_size,
            sequence_length=sequence_length,
            classes=classes,
            trial_timeout=trial_timeout,
            isolation=isolation,
        )
        from profiler.api import check_equivalence

        began: list[RunInfo] = []
        with Progress(errors(), quiet=quiet) as progress:

            def observe(event: Event) -> None:
                began.extend([event.run] if isinstance(event, Began) else [])
                progress(event)

            equivalence = check_equivalence(target, effective_batch, options, observe=observe)
        with printing():
            _print(equivalence, began[0], as_json=as_json)
        if not equivalence.equal:
            raise typer.Exit(NOT_EQUAL)


def _print(equivalence: Equivalence, run: RunInfo, *, as_json: bool) -> None:
    if as_json:
        from profiler.document import check_document

        print(json.dumps(check_document(run, equivalence), indent=2))
        return
    console = output()
    for table in check_tables(equivalence, run.workload, run.device):
        table.print(console)
    print_lines(console, check_lines(equivalence))
