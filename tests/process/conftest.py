from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from profiler.devices.cpu import CpuDevice
from profiler.workers.runner import ProcessRunner


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from more threads, which on a busy machine wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def runner() -> Iterator[ProcessRunner]:
    """Fork servers that all tests share, since starting one imports torch."""
    shared = ProcessRunner(CpuDevice())
    yield shared
    shared.close()
