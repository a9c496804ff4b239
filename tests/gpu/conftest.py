from __future__ import annotations

from collections.abc import Iterator

import pytest

from profiler.devices import open_device
from profiler.workers.runner import ProcessRunner


@pytest.fixture(scope="session", autouse=True)
def gpu() -> None:
    """Skips where there is no GPU that can be used, and says why."""
    why_not = open_device("cuda:0").why_not()
    if why_not is not None:
        pytest.skip(why_not)


@pytest.fixture(scope="session")
def runner(gpu: None) -> Iterator[ProcessRunner]:
    """A fork server that all tests share, since starting one imports torch; this process itself makes no context."""
    shared = ProcessRunner(open_device("cuda:0"))
    yield shared
    shared.close()
