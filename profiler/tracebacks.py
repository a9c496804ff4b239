"""The user's part of a traceback: what went wrong in their code, without the frames that only called it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from traceback import FrameSummary, StackSummary, TracebackException

_OURS = str(Path(__file__).parent)
_DRY_RUN = str(Path(_OURS, "dry_run"))
_IMPORT_MACHINERY = str(Path(importlib.__file__).parent)


def user_traceback(error: BaseException) -> str:
    """The traceback of `error` as text, without its leading frames of this package and of Python's import machinery.

    The frames after the first foreign one stay, but for those that only simulate a card. An error without any frame of the user's, raised inside this
    package or torch, keeps the whole traceback: there the caller's frames are what is left to read. The errors that it
    was raised from are treated alike.
    """
    report = TracebackException.from_exception(error)
    for part in _chain(report):
        part.stack = _trimmed(part)
    return "".join(report.format()).rstrip("\n")


def _chain(report: TracebackException) -> Iterator[TracebackException]:
    """`report`, and every error that it was raised from, during, or that it groups."""
    yield report
    for linked in (report.__cause__, report.__context__, *(report.exceptions or ())):
        if linked is not None:
            yield from _chain(linked)


def _trimmed(report: TracebackException) -> StackSummary:
    frames = list(report.stack)
    first = next((index for index, frame in enumerate(frames) if not _only_called(frame)), len(frames))
    if first == len(frames) and _is_syntax_error(report):
        return StackSummary.from_list([])  # the file and line stand in the error itself
    if all(_only_called(frame) or _is_torch(frame) for frame in frames):
        return report.stack
    return StackSummary.from_list(_without_dry_runs(frames[first:]))


def _without_dry_runs(frames: list[FrameSummary]) -> list[FrameSummary]:
    """`frames` but for those in which a simulated card stands for a kernel: from its first one to the next of the user's."""
    kept, inside = [], False
    for frame in frames:
        inside = _is_in(frame, _DRY_RUN) or (inside and (_only_called(frame) or _is_torch(frame)))
        if not inside:
            kept.append(frame)
    return kept


def _is_syntax_error(report: TracebackException) -> bool:
    return getattr(report, "filename", None) is not None


def _only_called(frame: FrameSummary) -> bool:
    return _is_in(frame, _OURS) or _is_in(frame, _IMPORT_MACHINERY) or frame.filename.startswith("<frozen importlib")


def _is_torch(frame: FrameSummary) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and torch.__file__ is not None and _is_in(frame, str(Path(torch.__file__).parent))


def _is_in(frame: FrameSummary, folder: str) -> bool:
    return Path(frame.filename).is_relative_to(folder)
