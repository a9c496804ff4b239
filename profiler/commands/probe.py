"""`microbatch probe`: the main job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from profiler.commands import arguments
from profiler.commands.check_tables import verdict_line
from profiler.commands.console import errors, handled, output, printing
from profiler.commands.progress import Progress
from profiler.commands.recording import Recording
from profiler.commands.resuming import resumed
from profiler.commands.tables import (
    comparison_table,
    evaluation_table,
    finding_lines,
    plan_lines,
    print_lines,
    sizes_table,
)
from profiler.errors import NothingFits
from profiler.limits import TRIAL_SECONDS, VERIFICATION_SECONDS
from profiler.options import DEFAULT_HEADROOM
from profiler.report import Report
from profiler.smallest import does_not_fit


def probe(
    context: typer.Context,
    target: arguments.Target = arguments.DEFAULT_TARGET,
    *,
    train: Annotated[
        bool, typer.Option("--train", help="Find the largest micro-batch for training: the default without --eval.")
    ] = False,
    evaluate: Annotated[
        bool,
        typer.Option(
            "--eval",
            help="Find the largest batch for evaluation: model.eval(), no gradients, beside the optimizer's state and the last "
            "step's gradients. Alone, or with --train.",
        ),
    ] = False,
    effective_batch: Annotated[
        int | None, typer.Option(help="Samples per optimizer step over all replicas. Without it there is no plan.")
    ] = None,
    device: arguments.DeviceOption = None,
    memory_limit: arguments.MemoryLimit = None,
    headroom: Annotated[float, typer.Option(help="Share of the memory that a plan leaves unused.")] = DEFAULT_HEADROOM,
    data_parallel_size: Annotated[int, typer.Option(help="Replicas that share the effective batch.")] = 1,
    equal: Annotated[bool, typer.Option("--equal", help="Only equal micro-batches.")] = False,
    ceiling: Annotated[
        str | None,
        typer.Option(metavar="N|target", help="Try no larger size; target: the share of the effective batch."),
    ] = None,
    multiple_of: Annotated[
        int, typer.Option(metavar="N", help="Only multiples of N, for a model that takes no other sizes.")
    ] = 1,
    soak: Annotated[
        int | None,
        typer.Option(metavar="N", help="Run the plan for N optimizer steps, on samples in a shuffled order."),
    ] = None,
    precision: arguments.PrecisionOption = None,
    compile: arguments.Compile = None,
    worst_case: arguments.WorstCase = False,
    image_size: arguments.ImageSize = None,
    sequence_length: arguments.SequenceLength = None,
    classes: arguments.Classes = None,
    trial_timeout: arguments.TrialTimeout = TRIAL_SECONDS,
    verification_timeout: arguments.VerificationTimeout = VERIFICATION_SECONDS,
    isolation: arguments.Isolation = "process",
    assume: arguments.Assume = None,
    comparison: Annotated[
        bool, typer.Option("--compare/--no-compare", help="Compare summed loss with a backward each.")
    ] = True,
    check: Annotated[
        bool,
        typer.Option("--check/--no-check", help="Check on a few samples that accumulation equals the whole batch."),
    ] = True,
    resume: arguments.Resume = None,
    output_folder: arguments.Output = None,
    force: arguments.Force = False,
    as_json: arguments.Json = False,
    quiet: arguments.Quiet = False,
) -> None:
    """Find the largest micro-batch that fits, the fastest one, and the accumulation plan for an effective batch."""
    if resume is not None and context.obj is None:
        with handled():
            context.obj = resumed(context, resume)
        probe(context, **context.obj.arguments)
        return
    with handled():
        options = arguments.options(
            train=train,
            evaluate=evaluate,
            effective_batch=effective_batch,
            device=device,
            memory_limit=memory_limit,
            headroom=headroom,
            data_parallel_size=data_parallel_size,
            equal=equal,
            ceiling=ceiling,
            multiple_of=multiple_of,
            soak=soak,
            precision=precision,
            compile=compile,
            worst_case=worst_case,
            image_size=image_size,
            sequence_length=sequence_length,
            classes=classes,
            trial_timeout=trial_timeout,
            verification_timeout=verification_timeout,
            isolation=isolation,
            assume=assume,
        )
        from profiler.api import probe as run_probe

        run = context.obj.run if resume is not None else None
        records = run.records if run is not None else None
        recording = Recording(output_folder, force=force, resumed=run, can_resume=True)
        with recording, Progress(errors(), quiet=quiet) as progress:
            observe = recording.also(progress)
            report = run_probe(target, options, comparison=comparison, check=check, resume=records, observe=observe)
            files = recording.finish(report)
        with printing():
            _print(report, target, files, as_json=as_json)
        trained, evaluated = report.finding, report.evaluation
        if trained is not None and (trained.largest_fit == 0 or (effective_batch is not None and report.plan is None)):
            raise NothingFits(report.notes[-1])
        if evaluated is not None and evaluated.largest_fit == 0:
            raise NothingFits(next(note for note in report.notes if note.startswith(does_not_fit(evaluated))))


def _print(report: Report, target: str, files: list[Path], *, as_json: bool) -> None:
    if as_json:
        from profiler.document import to_json_document

        print(json.dumps(to_json_document(report, files), indent=2))
        return
    console, simulated = output(), report.run.is_simulated
    if report.finding is not None:
        sizes_table(report).print(console)
        print_lines(console, finding_lines(report.finding, simulated=simulated))
    if report.evaluation is not None:
        evaluation_table(report).print(console)
        print_lines(console, finding_lines(report.evaluation, simulated=simulated))
    if report.plan is not None:
        console.print()
        print_lines(console, plan_lines(report.plan, report.run, report.soak))
    if report.equivalence is not None:
        print_lines(console, (verdict_line(report.equivalence, target),))
    if report.comparison:
        console.print()
        comparison_table(report.comparison, report.run.capacity_bytes, simulated=simulated).print(console)
    print_lines(console, (f"note: {note}" for note in report.notes))
    reasons = dict.fromkeys(timed.energy_note for timed in report.throughput if timed.energy_note)
    print_lines(console, (f"note: energy per sample is unknown: {reason}" for reason in reasons))
    print_lines(console, (str(path) for path in files))
