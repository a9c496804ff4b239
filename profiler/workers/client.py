"""The caller's side of the fork server."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TypeVar

from profiler.devices.addresses import addresses_fixed
from profiler.errors import TrialError
from profiler.trial import Done
from profiler.workers.protocol import Died, Job, Returned, TimedOut, receive, send

T = TypeVar("T")

# The path comes first: the package must be found where the caller found it, installed or not.
_PROGRAM = """\
import sys
sys.path[:] = {path!r}
from profiler.workers.server import serve
serve({requests}, {replies}, {imports!r})
"""
_END_SECONDS = 5.0


class ForkServer:
    """Runs jobs in forked workers of one server process; a context manager that leaves no process behind.

    environment: variables set for the server and its workers beside the caller's own. imports: modules that the server
    imports beside torch, before it forks. fixed_addresses: see `profiler.devices.addresses`. Started at the first job, or by
    `start`, which does not wait for it. Linux and other systems with fork only.
    """

    def __init__(
        self, environment: Mapping[str, str], imports: tuple[str, ...] = (), *, fixed_addresses: bool = False
    ) -> None:
        self._environment = dict(environment)
        self._addresses = addresses_fixed if fixed_addresses else contextlib.nullcontext
        self._imports = imports
        self._process: subprocess.Popen[bytes] | None = None
        self._requests = -1
        self._replies = -1

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start the server; nothing if it runs already."""
        if self._process is not None:
            return
        requests_out, self._requests = os.pipe()
        self._replies, replies_in = os.pipe()
        program = _PROGRAM.format(path=sys.path, requests=requests_out, replies=replies_in, imports=self._imports)
        # In memory: a folder for temporary files may be full, read-only or missing.
        self._errors = os.fdopen(os.memfd_create("server-output"), "w+b")
        try:
            with self._addresses():
                self._process = subprocess.Popen(
                    # Unbuffered: the last words of a worker that dies must have been written.
                    [sys.executable, "-u", "-c", program],
                    env={**os.environ, **self._environment},
                    pass_fds=(requests_out, replies_in),
                    stdin=subprocess.DEVNULL,
                    stdout=self._errors,
                    stderr=self._errors,
                    start_new_session=True,  # an interrupt at the terminal is the caller's to handle
                )
        except BaseException:  # an interrupt too: a server that started all the same ends with its pipe
            self._close_pipes()
            raise
        finally:
            os.close(requests_out)
            os.close(replies_in)

    def run(self, function: Callable[..., Done[T]], *arguments: Any, timeout_seconds: float, fresh: bool) -> T | Any:
        """Call `function(*arguments)` in a worker; its result, or `Died` or `TimedOut`.

        Raises TrialError where the server itself does not answer.
        """
        self.start()
        try:
            send(self._requests, Job.of(function, *arguments, timeout_seconds=timeout_seconds, fresh=fresh))
            reply: Returned | Died | TimedOut = receive(self._replies)
        except (EOFError, BrokenPipeError) as error:
            raise TrialError(f"the fork server ended: {self._last_words()}") from error
        if not isinstance(reply, Returned):
            return reply
        try:
            return pickle.loads(reply.value)
        except Exception as error:  # a class of the user's that is not here, or one that cannot be made again
            raise TrialError(
                f"what the worker found cannot be read in this process ({type(error).__name__}: {error}): raise errors of "
                "Python's own classes in the workload, or import the module of your own before probing."
            ) from error

    def close(self) -> None:
        """End the server and its workers."""
        if self._process is None:
            return
        process, self._process = self._process, None
        os.close(self._requests)  # which tells the server to end its worker and itself
        try:
            process.wait(timeout=_END_SECONDS)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        os.close(self._replies)
        self._errors.close()

    def _close_pipes(self) -> None:
        os.close(self._requests)
        os.close(self._replies)
        self._errors.close()

    def _last_words(self) -> str:
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=_END_SECONDS)
        self._errors.seek(0)
        text = self._errors.read().decode(errors="replace").strip()
        return text[-2000:] or f"exit status {self._process.returncode}, without a word."
