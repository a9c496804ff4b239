from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from benchmarks import threads
from profiler.devices.cpu import CpuDevice
from profiler.workers.client import ForkServer
from profiler.workers.runner import ProcessRunner


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from more threads, which on a busy machine wait for each other."""
    with threads.one_thread(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture
def quick_collection() -> Iterator[None]:
    """A trial in this process collects garbage several times, among all that the tests have imported."""
    gc.freeze()
    yield
    gc.unfreeze()


@dataclass(frozen=True, slots=True)
class Kept:
    """A fork server that goes on after its user is done with it."""

    server: ForkServer

    def run(self, function: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
        return self.server.run(function, *arguments, **settings)

    def close(self) -> None:
        """The session closes it."""


@dataclass(frozen=True, slots=True)
class Servers:
    """Stands for the class ForkServer: one server for each environment, since starting one imports torch."""

    started: dict[Any, ForkServer] = field(default_factory=dict)

    def __call__(
        self, environment: Mapping[str, str], imports: tuple[str, ...] = (), *, fixed_addresses: bool = False
    ) -> Kept:
        key = (frozenset(environment.items()), imports, fixed_addresses)
        if key not in self.started:
            self.started[key] = ForkServer(environment, imports, fixed_addresses=fixed_addresses)
        return Kept(self.started[key])


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """Fork servers that all tests share."""
    shared = Servers()
    yield shared
    for server in shared.started.values():
        server.close()


@pytest.fixture(scope="module")
def kept_servers(servers: Servers) -> Iterator[None]:
    """Probes of this process run in the shared servers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("profiler.workers.runner.ForkServer", servers)
        yield


@pytest.fixture(scope="session")
def runner(servers: Servers) -> ProcessRunner:
    """Workers of the servers that all tests share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("profiler.workers.runner.ForkServer", servers)
        return ProcessRunner(CpuDevice())
