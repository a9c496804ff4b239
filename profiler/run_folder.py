"""The folder of one run: made safely, filled as the run goes on, redrawn from its records.

records.jsonl                    a line for each thing, as it happens; everything else follows from it
table.csv  plan.json             a row a micro-batch size; the plan, and where and for what it was made
memory.png  evaluation.png  throughput.png  summed_loss.png  soak.png, each with the CSV behind it
command.txt                      what to type to get these results again
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Self

from profiler.document import plan_document
from profiler.errors import UsageError
from profiler.files import PART_SUFFIX, explained, replace_file
from profiler.records import Records, RecordWriter, read_records, records_of, table_frame
from profiler.report import Report

RECORDS = "records.jsonl"
FILES = (
    RECORDS,
    "table.csv",
    "plan.json",
    "memory.png",
    "memory.csv",
    "evaluation.png",
    "evaluation.csv",
    "throughput.png",
    "throughput.csv",
    "summed_loss.png",
    "summed_loss.csv",
    "soak.png",
    "soak.csv",
    "command.txt",
)
# Everything that a run may leave in its folder; nothing else is ever removed from it.
_OWN_NAMES = frozenset(FILES) | {name + PART_SUFFIX for name in FILES}

_LONGEST_NAME = 60
_NAMES_SHOWN = 5


@dataclass(slots=True, kw_only=True)
class RunFolder:
    """A folder that one run may fill. `made`: whether it was made for it, and not there before.

    What an earlier run left in it stays until `writer` begins this run's records.
    """

    path: Path
    made: bool
    begun: bool = False

    @classmethod
    def create(cls, path: Path, *, force: bool = False) -> Self:
        """Makes `path`, or takes it over where it is empty, and checks that it can be written.

        A folder with something in it is refused without `force`. With it, the files that an earlier run wrote there will
        be replaced, and nothing else: other files stay, links are removed and not followed. Raises UsageError, with the
        reason, where the folder cannot be used.
        """
        present = _entries(path)
        if present and not force:
            raise UsageError(
                f"{path} is not empty: it holds {_listed(present)}. "
                "Name another folder with --output, or let --force replace the files of an earlier run in it."
            )
        _own(path, present)
        with explained(f"{path} cannot be made"):
            made = not path.is_dir()
            path.mkdir(parents=True, exist_ok=True)
        with explained(f"{path} cannot be written"):
            trace = path / (RECORDS + PART_SUFFIX)
            trace.unlink(missing_ok=True)
            try:
                trace.touch(exist_ok=False)
            finally:
                trace.unlink(missing_ok=True)
        return cls(path=path, made=made)

    @classmethod
    def create_default(cls, *, workload: str, device: str, now: datetime, root: Path = Path("results/runs")) -> Self:
        """A new folder `root`/<workload>_<device>_<date-time>, with a number behind it where that exists already."""
        name = f"{safe_name(workload)}_{safe_name(device)}_{now:%Y%m%d-%H%M%S}"
        for number in count(1):
            path = root / (name if number == 1 else f"{name}-{number}")
            with explained(f"{path} cannot be made"):
                try:
                    path.mkdir(parents=True)
                    break
                except FileExistsError:
                    continue
        return cls(path=cls.create(path).path, made=True)

    def writer(self) -> RecordWriter:
        """Begins the run's records, of which the first must be the run; what an earlier run left is removed here."""
        with explained(f"{self.path} cannot be cleared"):
            for entry in _own(self.path, _entries(self.path)):
                entry.unlink()
        self.begun = True
        return RecordWriter(self.path / RECORDS)

    def finish(self, results: Report | Records) -> list[Path]:
        """Writes everything that follows from the records; the paths of all the run's files, the records first.

        Raises UsageError where one cannot be written.
        """
        return [self.path / RECORDS, *_write_results(self.path, records_of(results))]

    def discard(self) -> None:
        """Removes what this run wrote, and the folder if it was made for it: for a run that ended before it found anything."""
        with explained(f"{self.path} cannot be cleared"):
            for name in _OWN_NAMES if self.begun else ():
                (self.path / name).unlink(missing_ok=True)
            if self.made and not any(self.path.iterdir()):
                self.path.rmdir()


def redraw(folder: Path) -> list[Path]:
    """Writes figures and tables again from the records in `folder`, finished or interrupted; the paths written.

    Raises UsageError where there are no records, they cannot be read, or a file cannot be written.
    """
    return _write_results(folder, read_records(records_path(folder, "drawn")))


def records_path(folder: Path, purpose: str) -> Path:
    """The records in `folder`; UsageError, which says that it cannot be `purpose`, where there are none."""
    path = folder / RECORDS
    with explained(f"{folder} cannot be read", "name the folder of a run, as probe printed it"):
        there, is_folder = path.is_file(), folder.is_dir()
    if not there:
        reason = f"there is no {RECORDS} in it" if is_folder else "it is no folder"
        raise UsageError(f"{folder} cannot be {purpose}: {reason}. Name the folder of a run, as probe printed it.")
    return path


def safe_name(text: str) -> str:
    """`text` as a part of a file name: "torchvision:resnet50" is "torchvision-resnet50", "cuda:0" is "cuda-0"."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", text)[-_LONGEST_NAME:].strip("-._") or "unnamed"


def _write_results(folder: Path, records: Records) -> list[Path]:
    """Everything but the records themselves."""
    # matplotlib takes a while to import, and a run has other things to do before it draws.
    from profiler.plots import save_figures

    paths = []
    if records.trials or not records.evaluations:
        table = table_frame(records).to_csv(index=False, lineterminator="\n")
        paths.append(replace_file(folder / "table.csv", table.encode()))
    plan = plan_document(records)
    if plan:
        paths.append(replace_file(folder / "plan.json", (json.dumps(plan, indent=2) + "\n").encode()))
    paths += save_figures(records, folder)
    if records.run.command:
        paths.append(replace_file(folder / "command.txt", (records.run.command + "\n").encode()))
    return paths


def _entries(path: Path) -> list[Path]:
    """What the folder holds; nothing where it does not exist yet. UsageError where it is no folder."""
    if not os.path.lexists(path):
        return []
    with explained(f"{path} cannot be read"):
        if path.is_dir():
            return sorted(path.iterdir())
    raise UsageError(f"{path} is not a folder: name another with --output.")


def _own(path: Path, present: list[Path]) -> list[Path]:
    """What an earlier run left in the folder; UsageError where that may be someone else's."""
    own = [entry for entry in present if entry.name in _OWN_NAMES]
    if own and path.is_symlink():
        raise UsageError(
            f"{path} is a link to {path.resolve()}: name that folder itself for --force to replace files in it."
        )
    folders = [entry for entry in own if entry.is_dir() and not entry.is_symlink()]
    if folders:
        raise UsageError(f"{folders[0]} is a folder, which no run wrote: move it away, or name another with --output.")
    if own and not _wrote(path / RECORDS, alone=len(own) == 1):
        raise UsageError(
            f"{path} holds {_listed(own)}, but no records of a run that could have written that: nothing was removed. "
            "Move it away, or name another folder with --output."
        )
    return own


def _wrote(path: Path, *, alone: bool) -> bool:
    """Whether a run wrote these records, of any schema, finished or not; before its first line it leaves them `alone`."""
    if path.is_symlink() or not path.is_file():
        return False
    with explained(f"{path} cannot be read"):
        start = path.read_bytes()[:64]
    return (alone and not start) or re.match(rb'\{"schema": \d+, "kind": "run"', start) is not None


def _listed(entries: list[Path]) -> str:
    """The names of the entries, the first few."""
    names = ", ".join(entry.name for entry in entries[:_NAMES_SHOWN])
    return names + (f" and {len(entries) - _NAMES_SHOWN} more" if len(entries) > _NAMES_SHOWN else "")
