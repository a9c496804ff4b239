"""Frames over a pipe: a mark, eight bytes of length, then a pickle; both ends are this package's own.

The mark is for pipes into which the user's code writes as well: what does not begin with it is no frame.
"""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_HEADER = struct.Struct("<8sQ")
_MARK = b"\x93frame\r\n"
# No result of a job is near as large; a length beyond it was not written by this package.
LONGEST_RESULT_BYTES = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A call to make in a worker: `function(*arguments)`, pickled, within `timeout_seconds`; `fresh` asks for a new worker."""

    call: bytes
    timeout_seconds: float
    fresh: bool

    @classmethod
    def of(cls, function: Callable[..., Any], *arguments: Any, timeout_seconds: float, fresh: bool) -> Job:
        """A job from a module-level function."""
        return cls(call=pickle.dumps((function, arguments)), timeout_seconds=timeout_seconds, fresh=fresh)


@dataclass(frozen=True, slots=True, kw_only=True)
class Returned:
    """The job ended; `value` is what it returned, pickled."""

    value: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Died:
    """The worker ended without a result: its exit status (negative: the signal), and the end of what it printed.

    exit_status is None where it lived on and had to be killed, which is no signal of its own: it had closed its pipe, or
    (is_garbled) sent something down it that is no result.
    """

    exit_status: int | None
    output: str
    is_garbled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedOut:
    """The worker was killed at its time limit."""

    seconds: float
    output: str


Reply = Returned | Died | TimedOut


def framed(value: Any) -> bytes:
    """`value` as one frame."""
    body = pickle.dumps(value)
    return _HEADER.pack(_MARK, len(body)) + body


def whole(received: bytes | bytearray) -> bytes | None:
    """The pickle of the one frame that `received` holds; None while more must come. ValueError where it is no frame."""
    if not received.startswith(_MARK[: len(received)]):
        raise ValueError("what came is no frame")
    if len(received) < _HEADER.size:
        return None
    end = _HEADER.size + _HEADER.unpack_from(received)[1]
    if end > LONGEST_RESULT_BYTES or end < len(received):
        raise ValueError("what came is no frame of a result")
    return bytes(received[_HEADER.size :]) if end == len(received) else None


def send(descriptor: int, value: Any) -> None:
    """Write `value` as one frame; BrokenPipeError where the other end is gone."""
    view = memoryview(framed(value))
    while view:
        view = view[os.write(descriptor, view) :]


def receive(descriptor: int) -> Any:
    """Read one frame; EOFError where the other end closed, or closed in the middle of one. ValueError for anything else."""
    mark, length = _HEADER.unpack(_read(descriptor, _HEADER.size))
    if mark != _MARK:
        raise ValueError("what came is no frame")
    return pickle.loads(_read(descriptor, length))


def _read(descriptor: int, length: int) -> bytes:
    body = bytearray()
    while len(body) < length:
        piece = os.read(descriptor, min(length - len(body), 2**20))
        if not piece:
            raise EOFError
        body += piece
    return bytes(body)
