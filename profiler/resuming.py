"""Whether records can be gone on with: the same workload, environment and choices, and nobody else who writes them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from profiler.errors import UsageError
from profiler.files import explained
from profiler.options import Options
from profiler.records import Records, RecordWriter, read_records
from profiler.report import RunInfo
from profiler.run_folder import records_path
from profiler.units import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Reopened:
    """The folder of a run that goes on, what it recorded, and the writer of what comes, to be closed."""

    path: Path
    records: Records
    writer: RecordWriter


def reopen(folder: Path) -> Reopened:
    """The run in `folder`, which no other process can go on with until the writer is closed.

    A last line that an interruption cut short is removed. Raises UsageError where there are no records, they cannot be
    read or written, or another process writes them; they then are as they were.
    """
    path = records_path(folder, "gone on with")
    with ExitStack() as stack:
        writer = stack.enter_context(RecordWriter(path))
        records = read_records(path)
        with explained(f"{path} cannot be written"):
            _end_last_line(path)
        stack.pop_all()
    return Reopened(path=folder, records=records, writer=writer)


def _end_last_line(path: Path) -> None:
    """Nothing may be appended to a part of a line: a whole one gets its end, any other is cut off."""
    content = path.read_bytes()
    tail = content.rpartition(b"\n")[2]
    if not tail:
        return
    with path.open("r+b") as file:
        try:
            json.loads(tail)
        except (ValueError, RecursionError):
            file.truncate(len(content) - len(tail))
        else:
            file.seek(0, os.SEEK_END)
            file.write(b"\n")


def as_recorded(options: Options, run: RunInfo | None) -> Options:
    """`options` with what each run decides anew as it was decided in `run`, if one goes on: the capacity and the device.

    Raises UsageError where they ask for another memory limit.
    """
    if run is None:
        return options
    if options.limit_bytes not in (None, run.capacity_bytes):
        raise _different("the memory limit", format_bytes(run.capacity_bytes), format_bytes(options.limit_bytes or 0))
    # A CPU that stands in for a GPU that cannot be used does so again, and says so.
    device = options.device if run.device == "cpu" else options.device or run.device
    return replace(options, memory_limit=run.capacity_bytes, device=device, command=run.command)


def same_run(recorded: RunInfo | None, now: RunInfo) -> RunInfo:
    """The recorded run where one goes on, else `now`.

    Raises UsageError, with the key and both values, where results of both would not make one curve.
    """
    if recorded is None:
        return now
    if None not in (recorded.target_sha256, now.target_sha256) and recorded.target_sha256 != now.target_sha256:
        raise UsageError(
            "the target's file has changed since the records were made, and two models do not make one curve: put the "
            "file back as it was, or start a new probe."
        )
    for key, before, after in _values(recorded, now):
        if before != after:
            raise _different(key, str(before), str(after))
    return recorded


def _values(recorded: RunInfo, now: RunInfo) -> Iterator[tuple[str, object, object]]:
    yield "the workload", recorded.workload, now.workload
    yield "the device", recorded.device, now.device
    for key in dict.fromkeys([*recorded.environment, *now.environment]):
        yield key, recorded.environment.get(key, "unknown"), now.environment.get(key, "unknown")
    yield "the capacity", format_bytes(recorded.capacity_bytes), format_bytes(now.capacity_bytes)
    yield "the headroom", recorded.headroom, now.headroom
    yield "the effective batch", recorded.effective_batch_size, now.effective_batch_size
    yield "the data parallel size", recorded.data_parallel_size, now.data_parallel_size


def _different(key: str, before: str, after: str) -> UsageError:
    return UsageError(
        f"{key} is {before} in the records and {after} here, and results of both do not make one curve: go on with them "
        "where they were made and as they were asked for, or start a new probe."
    )
