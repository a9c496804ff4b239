"""Frames over a pipe: eight bytes of length, then a pickle; both ends are this package's own."""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_LENGTH = struct.Struct("<Q")


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

    exit_status is None where it closed its pipe and lived on, so that it had to be killed: that is no signal of its own.
    """

    exit_status: int | None
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedOut:
    """The worker was killed at its time limit."""

    seconds: float
    output: str


Reply = Returned | Died | TimedOut


def send(descriptor: int, value: Any) -> None:
    """Write `value` as one frame; BrokenPipeError where the other end is gone."""
    body = pickle.dumps(value)
    view = memoryview(_LENGTH.pack(len(body)) + body)
    while view:
        view = view[os.write(descriptor, view) :]


def receive(descriptor: int) -> Any:
    """Read one frame; EOFError where the other end closed, or closed in the middle of one."""
    (length,) = _LENGTH.unpack(_read(descriptor, _LENGTH.size))
    return pickle.loads(_read(descriptor, length))


def _read(descriptor: int, length: int) -> bytes:
    body = bytearray()
    while len(body) < length:
        piece = os.read(descriptor, min(length - len(body), 2**20))
        if not piece:
            raise EOFError
        body += piece
    return bytes(body)
