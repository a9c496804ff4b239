"""Where jobs run: in workers of fork servers, or in the caller's process; one interface for both."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from profiler.devices import Device
from profiler.trial import Done
from profiler.workers.client import ForkServer

T = TypeVar("T")

# Threads that wait for each other sleep: spinning ones, the default, take the processor from whatever else is running.
PATIENT = {"OMP_WAIT_POLICY": "PASSIVE"}


def can_fork() -> bool:
    """Whether this system has what a fork server is made of; Windows and macOS have not."""
    return hasattr(os, "fork") and hasattr(os, "memfd_create")


class Runner(Protocol):
    """Runs the functions of `profiler.trial` and `profiler.checking.job`."""

    def close(self) -> None:
        """End every process that was started."""

    def with_environment(self, environment: Mapping[str, str]) -> Runner | None:
        """Another runner whose workers have these variables too, to be closed by who asked; None where there are no workers."""

    def size(self, function: Callable[..., Done[T]], *arguments: Any, timeout_seconds: float, fresh: bool) -> T | Any:
        """The job's result, or how its worker ended; memory is measured exactly. fresh: in a worker of its own."""

    def time(self, function: Callable[..., Done[T]], *arguments: Any, timeout_seconds: float, fresh: bool) -> T | Any:
        """The same where time is measured: nothing that slows training for exactness' sake."""


class ProcessRunner:
    """Workers of fork servers: one for sizing and, where exact sizes cost time on this device, another for timing.

    imports: modules that every job will need, beside torch. exact: whether memory will be measured; without it there is one
    server, that of an ordinary allocator. environment: variables for all of them beside the caller's own.
    """

    def __init__(
        self,
        device: Device,
        imports: tuple[str, ...] = (),
        *,
        exact: bool = True,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        added = dict(environment or {})
        own = device.sizing_environment() if exact else PATIENT
        self._sizing = ForkServer({**own, **added}, imports, fixed_addresses=exact and device.measures_host_memory)
        self._timing = ForkServer(added, imports) if exact and own else self._sizing
        self._keeps_workers = device.keeps_workers
        self._device, self._imports, self._exact = device, imports, exact

    def with_environment(self, environment: Mapping[str, str]) -> ProcessRunner:
        """The same with these variables; it starts nothing before its first job."""
        return ProcessRunner(self._device, self._imports, exact=self._exact, environment=environment)

    def close(self) -> None:
        """End the servers and their workers."""
        self._sizing.close()
        self._timing.close()

    def size(self, function: Callable[..., Done[T]], *arguments: Any, timeout_seconds: float, fresh: bool) -> T | Any:
        """Call `function(*arguments)` in a sizing worker."""
        fresh = fresh or not self._keeps_workers
        return self._sizing.run(function, *arguments, timeout_seconds=timeout_seconds, fresh=fresh)

    def time(self, function: Callable[..., Done[T]], *arguments: Any, timeout_seconds: float, fresh: bool) -> T | Any:
        """Call `function(*arguments)` in a timing worker."""
        fresh = fresh or not self._keeps_workers
        return self._timing.run(function, *arguments, timeout_seconds=timeout_seconds, fresh=fresh)
