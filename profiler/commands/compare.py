"""`microbatch compare`: summed loss against a backward each."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from profiler.commands import arguments
from profiler.commands.console import errors, handled, output, printing
from profiler.commands.progress import Progress
from profiler.commands.recording import Recording
from profiler.commands.tables import comparison_table, print_lines
from profiler.comparison import DEFAULT_MOST_STEPS
from profiler.limits import TRIAL_SECONDS


def compare(
    target: arguments.Target = arguments.DEFAULT_TARGET,
    *,
    micro_batch: Annotated[int, typer.Option(help="Samples in each micro-batch.")] = 8,
    most_steps: Annotated[int, typer.Option(help="Largest number of micro-batches.")] = DEFAULT_MOST_STEPS,
    device: arguments.DeviceOption = None,
    memory_limit: arguments.MemoryLimit = None,
    precision: arguments.PrecisionOption = None,
    compile: arguments.Compile = None,
    worst_case: arguments.WorstCase = False,
    image_size: arguments.ImageSize = None,
    sequence_length: arguments.SequenceLength = None,
    classes: arguments.Classes = None,
    trial_timeout: arguments.TrialTimeout = TRIAL_SECONDS,
    isolation: arguments.Isolation = "process",
    assume: arguments.Assume = None,
    output_folder: arguments.Output = None,
    force: arguments.Force = False,
    as_json: arguments.Json = False,
    quiet: arguments.Quiet = False,
) -> None:
    """Compare the peak memory of one whole batch, one backward over summed losses, and a backward per micro-batch."""
    with handled():
        options = arguments.options(
            device=device,
            memory_limit=memory_limit,
            precision=precision,
            compile=compile,
            worst_case=worst_case,
            image_size=image_size,
            sequence_length=sequence_length,
            classes=classes,
            trial_timeout=trial_timeout,
            isolation=isolation,
            assume=assume,
        )
        from profiler.api import compare_strategies
        from profiler.document import to_json_document
        from profiler.records import Records

        with Recording(output_folder, force=force) as recording, Progress(errors(), quiet=quiet) as progress:
            compared = compare_strategies(
                target, micro_batch, options, most_steps=most_steps, observe=recording.also(progress)
            )
            records = Records(
                run=compared.run, trials=compared.trials, comparison=compared.comparison, notes=compared.notes
            )
            files = recording.finish(records)
        with printing():
            if as_json:
                print(json.dumps(to_json_document(records, files), indent=2))
                return
            comparison_table(records.comparison, records.run.capacity_bytes, simulated=records.run.is_simulated).print(
                output()
            )
            print_lines(output(), (f"note: {note}" for note in records.notes))
            print_lines(output(), (str(path) for path in files))
