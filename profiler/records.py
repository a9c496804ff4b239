"""A run's records: to JSON lines as things happen, back, and to tables; the only module that imports pandas."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

from profiler.codec import encode
from profiler.curve import line_through_last
from profiler.equivalence import Equivalence
from profiler.errors import UsageError
from profiler.files import explained, lock
from profiler.lines import SearchEnd, Value, from_record, search_end, throughput_entries, to_record, trial_entries
from profiler.outcomes import Finding, Fits, Purpose, Throughput, Trial
from profiler.plan import AccumulationPlan
from profiler.report import Report, RunInfo
from profiler.soak import Soak, SoakPoint

if TYPE_CHECKING:
    import pandas as pd

Frame: TypeAlias = "pd.DataFrame"

_PEAKS = (
    "peak_bytes",
    "peak_allocated_bytes",
    "peak_reserved_bytes",
    "peak_device_used_bytes",
    "peak_resident_bytes",
    "unlimited_reserved_bytes",
    "least_capacity_bytes",
)
_THROUGHPUT = (
    *("micro_batch_size", "samples_per_second", "samples_per_second_low", "samples_per_second_high", "spread"),
    *("micro_step_seconds", "optimizer_seconds", "windows", "joules_per_sample", "energy_note"),
)
_WHOLE = ("micro_batch_size", "accumulation_steps", "batch_size", "allocator_retries", "windows", *_PEAKS)
_SOAK = tuple(field.name for field in fields(SoakPoint))
_TEXTS = ("strategy", "outcome", "phase", "why", "energy_note")


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """What a run recorded, finished or not.

    attempts: every trial of a size, in the order they ran, with those that were tried again. trials: the last of each
    micro-batch size. comparison: those of the three strategies.
    finding, search_seconds, search_trials: None where no search was made, or it was interrupted.
    evaluations, evaluation, evaluation_search_seconds, evaluation_search_trials: the same of batches of evaluation.
    equivalence: None where accumulation was not compared with the whole batch. verified: the plans that ran, each as it was
    before its soak. soaks: in the order they ran, those of plans that failed first; one that another
    setting followed once more, with that.
    """

    run: RunInfo
    attempts: tuple[Trial, ...] = field(default=(), compare=False)
    trials: tuple[Trial, ...] = ()
    throughput: tuple[Throughput, ...] = ()
    comparison: tuple[Trial, ...] = ()
    finding: Finding | None = None
    search_seconds: float | None = None
    search_trials: int | None = None
    evaluations: tuple[Trial, ...] = ()
    evaluation: Finding | None = None
    evaluation_search_seconds: float | None = None
    evaluation_search_trials: int | None = None
    equivalence: Equivalence | None = None
    verified: tuple[AccumulationPlan, ...] = field(default=(), compare=False)
    plan: AccumulationPlan | None = None
    soaks: tuple[Soak, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def soak(self) -> Soak | None:
        """The last soak, which is the plan's where there is one; None where none ran."""
        return self.soaks[-1] if self.soaks else None

    @property
    def largest_fit(self) -> int | None:
        """The largest size that ran: the finding's, else the largest so far; None where no size was tried."""
        if self.finding:
            return self.finding.largest_fit
        return max((trial.micro_batch_size if trial.fits else 0 for trial in self.trials), default=None)

    @property
    def smallest_misfit(self) -> int | None:
        """The smallest size that ran out of memory: the finding's, else the smallest so far; None where none did."""
        if self.finding:
            return self.finding.smallest_misfit
        return min((trial.micro_batch_size for trial in self.trials if not trial.fits), default=None)

    @property
    def of_evaluation(self) -> Records:
        """The trials and the search of evaluation in place of training's, and nothing else."""
        return Records(
            run=self.run,
            trials=self.evaluations,
            finding=self.evaluation,
            search_seconds=self.evaluation_search_seconds,
            search_trials=self.evaluation_search_trials,
        )


def records_of(results: Report | Records) -> Records:
    """The records of a finished probe; records are returned as they are."""
    if isinstance(results, Records):
        return results
    return Records(
        run=results.run,
        attempts=tuple(trial for found in (results.finding, results.evaluation) if found for trial in found.trials),
        trials=results.finding.trials if results.finding else (),
        throughput=results.throughput,
        comparison=results.comparison,
        finding=results.finding,
        search_seconds=results.search_seconds if results.finding else None,
        search_trials=results.search_trials if results.finding else None,
        evaluations=results.evaluation.trials if results.evaluation else (),
        evaluation=results.evaluation,
        evaluation_search_seconds=results.evaluation_search_seconds if results.evaluation else None,
        evaluation_search_trials=results.evaluation_search_trials if results.evaluation else None,
        equivalence=results.equivalence,
        plan=results.plan,
        soaks=(results.soak,) if results.soak else (),
        notes=results.notes,
    )


class RecordWriter:
    """Appends a line to a records file as each thing happens; the line is in the file when the call returns.

    Raises UsageError where the file cannot be opened (a link is not followed) or written (a full disk), and then leaves no
    part of a line in it, or where another writer has it. The first line must be the run.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        with explained(f"{path} cannot be written"):
            self._file = os.fdopen(os.open(path, flags, 0o666), "ab", buffering=0)
        if not lock(self._file.fileno()):
            self._file.close()
            raise UsageError(
                f"{path} is being written by a run that has not ended: wait for its end, or name another folder."
            )

    def append(self, value: Value, *, kind: str | None = None) -> None:
        """Writes one value; a note is its text. A trial of a comparison, or a verified plan, is called so with `kind`."""
        line = memoryview(json.dumps(to_record(value, kind=kind), allow_nan=False).encode() + b"\n")
        with explained(f"{self._path} cannot be written"):
            end = os.fstat(self._file.fileno()).st_size
            try:
                while line:
                    line = line[self._file.write(line) :]
            except OSError:
                with suppress(OSError):  # what is no file cannot be cut
                    self._file.truncate(end)
                raise

    def append_finding(self, finding: Finding, *, search_seconds: float, search_trials: int) -> None:
        """Writes how the search ended; its trials have lines of their own."""
        end = search_end(finding, search_seconds=search_seconds, search_trials=search_trials)
        self.append(end, kind="evaluation_finding" if finding.purpose is Purpose.EVALUATION else None)

    def append_all(self, results: Report | Records) -> None:
        """Writes everything that a run found, the run first."""
        records = records_of(results)
        values: tuple[Value, ...] = (records.run, *records.trials, *records.evaluations, *records.throughput)
        for value in values:
            self.append(value)
        for trial in records.comparison:
            self.append(trial, kind="comparison")
        for of in (records, records.of_evaluation):
            if of.finding:
                seconds, trials = of.search_seconds or 0.0, of.search_trials or 0
                self.append_finding(of.finding, search_seconds=seconds, search_trials=trials)
        for plan in records.verified:
            self.append(plan, kind="verified_plan")
        for rest in (records.equivalence, *records.soaks, records.plan, *records.notes):
            if rest is not None:
                self.append(rest)

    def close(self) -> None:
        """Closes the file; closing twice is fine."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def read_records(path: Path) -> Records:
    """What the records file at `path` holds; a note says where the run was interrupted.

    A last line that an interruption cut short is passed over. Raises UsageError, with the line's number, where the file
    is missing or empty, or holds anything else that is no record of this schema.
    """
    with explained(f"{path} cannot be read", "name the folder of a run, as probe printed it"):
        *lines, tail = path.read_bytes().split(b"\n")
    notes = []
    if tail and _is_json(tail):
        lines.append(tail)
    elif tail:
        notes = [f"Line {len(lines) + 1} of {path.name}, the last, was cut short by an interruption and is left out."]
    values = [_read_line(path, number, line) for number, line in enumerate(lines, start=1)]
    if [kind == "run" for kind, _ in values] != [True] + [False] * (len(values) - 1):
        next_step = "name a folder that a probe wrote, or run the probe again"
        raise UsageError(f"{path} does not hold one run, with the run's record on its first line: {next_step}.")
    return _assemble(path, values, notes)


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _read_line(path: Path, number: int, line: bytes) -> tuple[str, Value]:
    """The kind and value of one line; UsageError, naming the line, where it has none."""
    try:
        record = json.loads(line, parse_constant=_refuse)
        if not isinstance(record, dict):
            raise ValueError("it is no JSON object")
        return str(record.get("kind")), from_record(record)
    except (ValueError, ArithmeticError, RecursionError, UsageError) as error:
        raise UsageError(
            f"{path}, line {number}, is no record that this version can read: {error}. "
            "Read it with the version that wrote it, remove that line, or run the probe again."
        ) from error


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number in JSON")


def _assemble(path: Path, values: Sequence[tuple[str, Value]], notes: Iterable[str]) -> Records:
    """The records of all lines, the first of which is the run."""
    run = values[0][1]
    assert isinstance(run, RunInfo)
    attempts = tuple(value for kind, value in values if kind in ("trial", "evaluation") and isinstance(value, Trial))
    trials, evaluations = (
        _last_of_each_size(attempts, Purpose.TRAINING),
        _last_of_each_size(attempts, Purpose.EVALUATION),
    )
    comparison = tuple(value for kind, value in values if kind == "comparison" and isinstance(value, Trial))
    ends = {kind: value for kind, value in reversed(values) if isinstance(value, SearchEnd)}
    end, evaluation_end = ends.get("finding"), ends.get("evaluation_finding")
    if trials and not end and not comparison:
        notes = (*notes, f"No search was finished: sizes are bounds from {len(trials)} trials, not the answer.")
    if evaluations and not evaluation_end:
        bounds = f"sizes are bounds from {len(evaluations)} trials, not the answer"
        notes = (*notes, f"The search of evaluation was not finished: {bounds}.")
    return Records(
        run=run,
        attempts=attempts,
        trials=trials,
        throughput=tuple(value for _, value in values if isinstance(value, Throughput)),
        comparison=comparison,
        finding=_finding(path, end, trials) if end else None,
        search_seconds=end.search_seconds if end else None,
        search_trials=end.search_trials if end else None,
        evaluations=evaluations,
        evaluation=_finding(path, evaluation_end, evaluations, Purpose.EVALUATION) if evaluation_end else None,
        evaluation_search_seconds=evaluation_end.search_seconds if evaluation_end else None,
        evaluation_search_trials=evaluation_end.search_trials if evaluation_end else None,
        equivalence=next((value for _, value in reversed(values) if isinstance(value, Equivalence)), None),
        verified=tuple(
            value for kind, value in values if kind == "verified_plan" and isinstance(value, AccumulationPlan)
        ),
        plan=next(
            (value for kind, value in reversed(values) if kind == "plan" and isinstance(value, AccumulationPlan)), None
        ),
        soaks=tuple(value for _, value in values if isinstance(value, Soak)),
        notes=(*(value for _, value in values if isinstance(value, str)), *notes),
    )


def _last_of_each_size(attempts: Iterable[Trial], purpose: Purpose) -> tuple[Trial, ...]:
    """Of a size that was tried again the last trial counts."""
    return tuple({trial.micro_batch_size: trial for trial in attempts if trial.purpose is purpose}.values())


def _finding(path: Path, end: SearchEnd, trials: tuple[Trial, ...], purpose: Purpose = Purpose.TRAINING) -> Finding:
    """The finding with its trials; UsageError where they do not bear it out."""
    try:
        return Finding(
            largest_fit=end.largest_fit,
            smallest_misfit=end.smallest_misfit,
            limited_by=end.limited_by,
            capacity_bytes=end.capacity_bytes,
            trials=trials,
            purpose=purpose,
        )
    except AssertionError as error:
        raise UsageError(f"{path}: the finding contradicts the trials: {error}; run the probe again.") from error


def trials_frame(records: Records) -> Frame:
    """One row a trial of a micro-batch size, in the order they ran: what `memory.csv` holds and `plot_memory` draws.

    micro_batch_size, outcome ("fits", "fits_after_retry", "out_of_memory", "refused"); peak_bytes in the capacity's unit (up to
    the failure where it failed), peak_allocated_bytes, peak_reserved_bytes, peak_device_used_bytes,
    peak_resident_bytes, unlimited_reserved_bytes, least_capacity_bytes; allocator_retries, seconds (wall time), phase (where it failed), why (that size was tried),
    line_bytes (of the line through the last fits, at this size). Missing where unknown. Of `records.of_evaluation` it is
    what `evaluation.csv` holds, with the samples of each batch as micro_batch_size.
    """
    line = line_through_last(
        (trial.micro_batch_size, trial.outcome.peak_bytes)
        for trial in records.trials
        if isinstance(trial.outcome, Fits) and not trial.outcome.allocator_retries
    )
    rows = [trial_entries(trial) for trial in records.trials]
    for row in rows:
        row["line_bytes"] = line.at(row["micro_batch_size"]) if line else None
    names = ("micro_batch_size", "outcome", *_PEAKS, "allocator_retries", "seconds", "phase", "why", "line_bytes")
    return _frame(names, rows)


def throughput_frame(records: Records) -> Frame:
    """One row a size that was timed, by size: what `throughput.csv` holds and `plot_throughput` draws.

    micro_batch_size; samples_per_second at the median window, samples_per_second_low and samples_per_second_high at
    the windows' slower and faster quartile; spread (the quartiles' distance over the median, of the times);
    micro_step_seconds and optimizer_seconds (medians); windows (how many); joules_per_sample, energy_note.
    """
    rows = [throughput_entries(timed) for timed in sorted(records.throughput, key=lambda timed: timed.micro_batch_size)]
    return _frame(_THROUGHPUT, rows)


def summed_loss_frame(records: Records) -> Frame:
    """One row a trial of the comparison: what `summed_loss.csv` holds and `plot_summed_loss` draws.

    strategy ("whole_batch", "summed_loss", "accumulation"), micro_batch_size, accumulation_steps (how many
    micro-batches), batch_size (samples of all of them), outcome, the peaks as in `trials_frame`, seconds, phase.
    """
    rows = [trial_entries(trial) for trial in records.comparison]
    for row in rows:
        row["batch_size"] = row["micro_batch_size"] * row["accumulation_steps"]
    names = ("strategy", "micro_batch_size", "accumulation_steps", "batch_size", "outcome")
    return _frame((*names, *_PEAKS, "seconds", "phase"), rows)


def soak_frame(records: Records) -> Frame:
    """One row a point of the soak, the fields of `SoakPoint`: what `soak.csv` holds and `plot_soak` draws."""
    return _frame(_SOAK, [encode(point) for point in records.soak.points] if records.soak else [])


def table_frame(records: Records) -> Frame:
    """One row a micro-batch size that was tried or timed, by size: what `table.csv` holds.

    The outcome and peaks of its last trial, and its throughput; the columns mean what they mean in those frames.
    """
    rows: dict[int, dict[str, Any]] = {}
    for trial in records.trials:
        rows.setdefault(trial.micro_batch_size, {}).update(trial_entries(trial))
    for timed in records.throughput:
        rows.setdefault(timed.micro_batch_size, {}).update(throughput_entries(timed))
    names = ("micro_batch_size", "outcome", *_PEAKS, "samples_per_second", "spread", "micro_step_seconds")
    return _frame((*names, "optimizer_seconds", "joules_per_sample"), [rows[size] for size in sorted(rows)])


def _frame(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Frame:
    """The rows' named columns, in types that know a missing value: whole numbers stay whole."""
    import pandas as pd

    return pd.DataFrame({name: pd.array([row.get(name) for row in rows], dtype=_dtype(name)) for name in names})


def _dtype(name: str) -> Literal["string", "Float64", "Int64"]:
    if name in _TEXTS:
        return "string"
    return "Int64" if name in (*_WHOLE, *_SOAK) else "Float64"
