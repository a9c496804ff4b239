"""Results as tables: from a report to rows, and from rows to text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from profiler.commands.soak_lines import soak_lines
from profiler.outcomes import Finding, Fits, Purpose, Refused, Strategy, Throughput, Trial
from profiler.plan import AccumulationPlan
from profiler.report import Report, RunInfo
from profiler.soak import Soak
from profiler.units import format_bytes, format_joules, format_seconds

# Columns of words; the first column is one anyway.
LEFT = ("outcome", "split")


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A title, column names and rows of text; words stand left, numbers right."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def print(self, console: Console) -> None:
        """Print it without frames, so that it can be pasted anywhere."""
        table = RichTable(
            box=box.SIMPLE_HEAD, title=self.title, title_justify="left", title_style="bold", pad_edge=False
        )
        for index, column in enumerate(self.columns):
            table.add_column(column, justify="left" if column in LEFT or not index else "right")
        for row in self.rows:
            table.add_row(*row)
        console.print(table)


def sizes_table(report: Report) -> Table:
    """A row a micro-batch size: outcome, peak and its share of the capacity, throughput, energy where it is known.

    On a simulated card, where nothing is timed, the least capacity in which the size still runs stands in their place.
    """
    assert report.finding is not None, "a report without training has no micro-batch sizes"
    if report.run.is_simulated:
        return _by_size(report, report.finding, ("micro-batch", "runs in"), _least_capacity)
    timed = {throughput.micro_batch_size: throughput for throughput in report.throughput}
    energy = any(throughput.joules_per_sample is not None for throughput in report.throughput)
    columns = ("micro-batch", "samples/s", "spread", *(("energy/sample",) * energy))
    return _by_size(report, report.finding, columns, lambda trial: _rate(timed.get(trial.micro_batch_size), energy))


def evaluation_table(report: Report) -> Table:
    """A row a batch size of evaluation: outcome, peak and its share of the capacity."""
    assert report.evaluation is not None, "a report without evaluation has no such sizes"
    return _by_size(report, report.evaluation, ("batch",), lambda _: (), about=", evaluation")


def _by_size(
    report: Report,
    finding: Finding,
    columns: tuple[str, ...],
    cells: Callable[[Trial], tuple[str, ...]],
    *,
    about: str = "",
) -> Table:
    """A row a trial by size: its outcome and peak, then its `cells`. columns: what a size is called, and those of the cells."""
    rows = (
        (
            str(trial.micro_batch_size),
            trial.outcome.label.replace("_", " "),
            *_peak(trial, report.run.capacity_bytes),
            *cells(trial),
        )
        for trial in sorted(finding.trials, key=lambda trial: trial.micro_batch_size)
    )
    return Table(
        title=f"{report.run.workload} on {report.run.device}{about}" + ", predicted" * report.run.is_simulated,
        columns=(columns[0], "outcome", "peak", "of capacity", *columns[1:]),
        rows=tuple(rows),
    )


def comparison_table(trials: Sequence[Trial], capacity_bytes: int, *, simulated: bool = False) -> Table:
    """A row a number of micro-batches, the peak of each strategy in it."""
    by_steps: dict[int, dict[Strategy, Trial]] = {}
    for trial in trials:
        by_steps.setdefault(trial.accumulation_steps, {})[trial.strategy] = trial
    rows = [(str(steps), *(_cell(of.get(strategy)) for strategy in Strategy)) for steps, of in sorted(by_steps.items())]
    size = trials[0].micro_batch_size
    return Table(
        title=f"{'Predicted peak' if simulated else 'Peak'} of one optimizer step over k micro-batches of {size} "
        f"(capacity {format_bytes(capacity_bytes)})",
        columns=("k", "whole batch", "summed loss, one backward", "a backward each"),
        rows=tuple(rows),
    )


def finding_lines(finding: Finding, *, simulated: bool = False) -> Iterable[str]:
    """What was found, in sentences. simulated: whether it was predicted."""
    capacity = format_bytes(finding.capacity_bytes)
    training = finding.purpose is Purpose.TRAINING
    batch = "micro-batch" if training else "batch for evaluation"
    if finding.largest_fit == 0:
        return
    misfit = finding.trial_of(finding.smallest_misfit) if finding.smallest_misfit is not None else None
    if misfit is not None and isinstance(misfit.outcome, Refused):
        yield (
            f"Largest {batch} that runs: {finding.largest_fit}, and it fits in {capacity}; {misfit.micro_batch_size} cannot "
            f"be run: {misfit.outcome.evidence} ({misfit.outcome.message.rstrip('.')})."
        )
    elif finding.smallest_misfit is None:
        yield f"Largest {batch} tried: {finding.largest_fit}, the ceiling; it fits in {capacity}."
    else:
        yield (
            f"Largest {batch} that fits in {capacity}: {finding.largest_fit}; {finding.smallest_misfit} runs out of "
            f"memory. Both were {'simulated' if simulated else 'run'}."
        )
    largest = finding.trial_of(finding.largest_fit)
    if largest is not None and largest.outcome.label == "fits_after_retry":
        yield (
            f"{finding.largest_fit} fits only after the allocator gave its cache back and tried again"
            + ("; a plan takes sizes that do without." if training else ".")
        )


def plan_lines(plan: AccumulationPlan, run: RunInfo, soak: Soak | None = None) -> Iterable[str]:
    """The plan: how its numbers come about, line by line, why it was chosen, and what running it measured."""
    sizes = plan.micro_batch_sizes
    yield f"Plan for an effective batch of {plan.effective_batch_size}"
    yield f"  micro-batches per optimizer step    {plan.accumulation_steps}" + (
        f" on each of {plan.data_parallel_size} replicas" if plan.data_parallel_size > 1 else ""
    )
    yield f"  their sizes                         {' + '.join(str(size) for size in sizes) if len(sizes) <= 8 else _runs(sizes)}"
    if plan.data_parallel_size > 1:
        for replica, replica_sizes in enumerate(plan.replicas):
            yield f"    replica {replica}                         {_runs(replica_sizes)}, {sum(replica_sizes)} samples"
        yield f"  multiply each loss by               its weight × {plan.replica_factor}, since gradients are averaged over replicas"
    every = sorted({size for replica in plan.replicas for size in replica}, reverse=True)
    weights = [f"{size}/{plan.effective_batch_size}" for size in every]
    yield f"  weight of each one's loss           {', '.join(weights)}"
    if plan.peak_bytes is not None:
        share = plan.peak_bytes / run.capacity_bytes
        how = "predicted over {} optimizer steps    " if run.is_simulated else "measured over {} optimizer steps     "
        yield (
            f"  {how.format(plan.verified_steps)}peak {format_bytes(plan.peak_bytes)}, {share:.0%} of the capacity"
            + (f"; {format_seconds(plan.step_seconds)} a step" if plan.step_seconds is not None else "")
        )
    if soak is not None:
        yield from soak_lines(soak, run.capacity_bytes)
    yield f"  chosen because                      {plan.reason}"
    for note in plan.notes:
        yield f"  note                                {note}"


def format_rate(rate: float) -> str:
    """Four digits, and never an exponent: 18.46, 2,834, 52,310."""
    return f"{rate:,.0f}" if rate >= 999.95 else f"{rate:.4g}"


def print_lines(console: Console, lines: Iterable[str]) -> None:
    """Print each line as it is."""
    for line in lines:
        console.print(Text(line))


def _runs(sizes: Sequence[int]) -> str:
    """Sizes as count × size, largest first."""
    return " + ".join(f"{sizes.count(size)} × {size}" for size in dict.fromkeys(sizes))


def _peak(trial: Trial, capacity_bytes: int) -> tuple[str, str]:
    if not trial.fits or trial.peak_bytes is None:
        return "-", "-"
    return format_bytes(trial.peak_bytes), f"{trial.peak_bytes / capacity_bytes:.0%}"


def _least_capacity(trial: Trial) -> tuple[str, ...]:
    least_bytes = trial.outcome.least_capacity_bytes if isinstance(trial.outcome, Fits) else None
    return ("-" if least_bytes is None else format_bytes(least_bytes),)


def _rate(throughput: Throughput | None, energy: bool) -> tuple[str, ...]:
    if throughput is None:
        return ("-", "-", *(("-",) * energy))
    joules = throughput.joules_per_sample
    return (
        format_rate(throughput.samples_per_second),
        f"{throughput.spread:.0%}",
        *((format_joules(joules) if joules is not None else "-",) * energy),
    )


def _cell(trial: Trial | None) -> str:
    if trial is None:
        return "-"
    if trial.fits and trial.peak_bytes is not None:
        return format_bytes(trial.peak_bytes)
    return trial.outcome.label.replace("_", " ")
