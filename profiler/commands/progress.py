"""What is being tried and why, while it happens: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.status import Status
from rich.text import Text

from profiler.commands.soak_lines import soak_summary
from profiler.commands.tables import format_rate
from profiler.events import (
    Began,
    Checked,
    Compared,
    Event,
    Found,
    Noted,
    Planned,
    Resumed,
    SizeTried,
    SoakEnded,
    Started,
    Timed,
)
from profiler.outcomes import Purpose, Trial
from profiler.units import format_bytes, format_seconds


class Progress:
    """An observer that prints each event as a line; on a terminal what runs now turns below the lines."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._status: Status | None = None
        self._capacity_bytes = 0

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._quiet:
            self._status = self._console.status("starting a worker")
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._status is not None:
            self._status.stop()
        sys.stderr.flush()

    def __call__(self, event: Event) -> None:
        """Show `event`."""
        if self._quiet:
            return
        try:
            self._show(event)
        except BrokenPipeError:
            raise
        except OSError:  # a full disk under a log: what cannot be shown stops nothing
            self._quiet = True

    def _show(self, event: Event) -> None:
        if isinstance(event, Began):
            self._capacity_bytes = event.run.capacity_bytes
        if isinstance(event, Started) and self._status is not None:
            self._status.update(Text(f"{event.what} ({event.why})"))
        line = describe(event, self._capacity_bytes)
        if line is not None:
            self._console.print(Text(line))


def describe(event: Event, capacity_bytes: int) -> str | None:
    """One line for `event`; None for what only a live display shows."""
    match event:
        case Began(run=run):
            return f"{run.workload} on {run.device}: {format_bytes(run.capacity_bytes)} may be used"
        case SizeTried(trial=trial):
            word = "eval" if trial.purpose is Purpose.EVALUATION else "size"
            return f"  {word} {trial.micro_batch_size:>6}  {_outcome(trial, capacity_bytes)}  {trial.why}"
        case Found(finding=finding, trials=trials, seconds=seconds):
            verb = "cannot be run" if finding.limited_by == "refusal" else "does not"
            end = "the ceiling fits" if finding.smallest_misfit is None else f"{finding.smallest_misfit} {verb}"
            what = "largest that fits" + (" in evaluation" if finding.purpose is Purpose.EVALUATION else "")
            return f"  {what}: {finding.largest_fit} ({end}); {trials} trials in {format_seconds(seconds)}"
        case Timed(throughput=timed):
            rate = f"{format_rate(timed.samples_per_second)} samples/s"
            return f"  time {timed.micro_batch_size:>6}  {rate}, spread {timed.spread:.0%}"
        case Compared(trial=trial):
            way = f"{trial.strategy.value.replace('_', ' ')} of {trial.accumulation_steps} × {trial.micro_batch_size}"
            return f"  {way:<32}{_outcome(trial, capacity_bytes)}"
        case Checked(equivalence=equivalence):
            return f"  check {equivalence.batch_size:>5}  {equivalence.verdict}"
        case Planned() | SoakEnded():
            return _planned(event, capacity_bytes)
        case Noted(text=text):
            return f"  note  {text}"
        case Resumed(trials=trials, timings=timings, compared=compared):
            counts = {"trials of sizes": trials, "timings": timings, "trials of strategies": compared}
            kept = [f"{count} {what}" for what, count in counts.items() if count]
            return f"  went on from {', '.join(kept) or 'no trial'} on record"
    return None


def _planned(event: Planned | SoakEnded, capacity_bytes: int) -> str:
    if isinstance(event, Planned):
        return f"  plan  {event.plan.reason}"
    again = event.soak.again
    if again is not None:
        return f"  soak  {soak_summary(again, capacity_bytes)}, with {again.environment}"
    return f"  soak  {soak_summary(event.soak, capacity_bytes)}"


def _outcome(trial: Trial, capacity_bytes: int) -> str:
    label = trial.outcome.label.replace("_", " ")
    if trial.peak_bytes is None or not trial.fits:
        return f"{label:<33}"
    share = f"{trial.peak_bytes / capacity_bytes:.0%}" if capacity_bytes else ""
    return f"{label:<17}{format_bytes(trial.peak_bytes):>9} {share:>5} "
