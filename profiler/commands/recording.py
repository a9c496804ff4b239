"""Writes a run's records as things happen, and keeps them when it is interrupted."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.text import Text

from profiler.commands.console import errors
from profiler.events import (
    Began,
    Checked,
    Compared,
    Event,
    Found,
    Noted,
    Observer,
    Planned,
    Resumed,
    SizeTried,
    SoakEnded,
    Started,
    Timed,
    Verified,
)
from profiler.records import Records, RecordWriter
from profiler.report import Report, RunInfo
from profiler.resuming import Reopened
from profiler.run_folder import RunFolder


class Recording:
    """An observer that keeps a run's folder: `folder` where the user named one, else a new one once the run has a name.

    A run that ends in an error before its first trial ended leaves nothing behind, and an earlier run in its folder as it
    was; any other keeps its records. resumed: the run that goes on, whose records are kept whatever happens. can_resume:
    whether these records can be gone on from.
    """

    def __init__(
        self, folder: Path | None, *, force: bool, resumed: Reopened | None = None, can_resume: bool = False
    ) -> None:
        self._can_resume = can_resume
        self._has_written = False
        # What is known before the first trial has ended, the run first; written with it.
        self._waiting: list[RunInfo | str] = []
        if resumed is not None:
            self._folder: RunFolder | None = RunFolder(path=resumed.path, made=False, begun=True)
            self._writer: RecordWriter | None = resumed.writer
            return
        # A folder that cannot be used is said before anything is run.
        self._folder = RunFolder.create(folder, force=force) if folder is not None else None
        self._writer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()
            if kind is not None and self._has_written:
                more = f", and `microbatch probe --resume {self.path}` goes on from them" if self._can_resume else ""
                errors().print(Text(f"the records so far are in {self.path}; `microbatch plot` draws them{more}."))
        elif kind is not None and self._folder is not None:
            self._folder.discard()

    @property
    def path(self) -> Path | None:
        """The folder, None before the run has begun."""
        return self._folder.path if self._folder is not None else None

    def also(self, other: Observer) -> Observer:
        """An observer that records each event and then shows it to `other`."""

        def observe(event: Event) -> None:
            self._record(event)
            other(event)

        return observe

    def finish(self, results: Report | Records) -> list[Path]:
        """Write what follows from the records; the paths of all files."""
        assert self._folder is not None, "a run that ended has begun"
        if self._writer is not None:
            self._writer.close()
        return self._folder.finish(results)

    def _record(self, event: Event) -> None:
        match event:
            case Began(run=run):
                if self._folder is None:
                    self._folder = RunFolder.create_default(
                        workload=run.workload, device=run.device, now=datetime.now()
                    )
                self._waiting.insert(0, run)
            case Noted(text=text) if self._writer is None:
                self._waiting.append(text)
            case SizeTried() if self._writer is None:
                self._append(self._begin(), event)
            case Started() | Resumed():
                pass
            case _ if self._writer is not None:
                self._append(self._writer, event)

    def _begin(self) -> RecordWriter:
        assert self._folder is not None, "a size is tried after the run has begun"
        writer = self._folder.writer()
        for value in self._waiting:
            writer.append(value)
        self._writer = writer  # only now: records that an interrupt leaves without their run are none
        return writer

    def _append(self, writer: RecordWriter, event: Event) -> None:
        self._has_written = True
        match event:
            case SizeTried(trial=trial):
                writer.append(trial)
            case Compared(trial=trial):
                writer.append(trial, kind="comparison")
            case Timed(throughput=throughput):
                writer.append(throughput)
            case Checked(equivalence=equivalence):
                writer.append(equivalence)
            case Verified(plan=plan):
                writer.append(plan, kind="verified_plan")
            case Planned(plan=plan):
                writer.append(plan)
            case SoakEnded(soak=soak):
                writer.append(soak)
            case Noted(text=text):
                writer.append(text)
            case Found(finding=finding, seconds=seconds, trials=trials):
                writer.append_finding(finding, search_seconds=seconds, search_trials=trials)
