from __future__ import annotations

import subprocess
import sys

import pytest

from process import jobs
from profiler.devices import addresses
from profiler.devices.addresses import addresses_fixed, are_addresses_fixed
from profiler.devices.cpu import CpuDevice
from profiler.workers.runner import ProcessRunner

A_WHILE = 60.0

PROGRAM = """\
import mmap
from ctypes import addressof, c_char
from profiler.devices.addresses import are_addresses_fixed
print(are_addresses_fixed(), hex(id(object())), hex(addressof(c_char.from_buffer(mmap.mmap(-1, 2**20)))))
"""


def started() -> str:
    return subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout


def test_processes_of_the_block_have_the_same_addresses() -> None:
    with addresses_fixed():
        if not are_addresses_fixed():
            pytest.skip("this system does not allow addresses to be fixed (a filter of system calls)")
        first, second = started(), started()
    assert first == second
    assert first.startswith("True")


def test_processes_after_the_block_have_their_own_again() -> None:
    before = are_addresses_fixed()
    with addresses_fixed():
        pass
    assert are_addresses_fixed() == before
    assert started().startswith(str(before))


def test_the_block_ends_with_an_error_too() -> None:
    before = are_addresses_fixed()
    with pytest.raises(ZeroDivisionError), addresses_fixed():
        raise ZeroDivisionError
    assert are_addresses_fixed() == before


def test_a_system_that_refuses_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refused(persona: int) -> int | None:
        asked.append(persona)
        return 0 if persona == 0xFFFFFFFF else None

    monkeypatch.setattr(addresses, "_personality", refused)
    with addresses_fixed():
        assert not are_addresses_fixed()
    assert asked == [0xFFFFFFFF, 0x40000, 0xFFFFFFFF]


def test_a_system_without_the_call_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "_personality", lambda persona: None)
    with addresses_fixed():
        assert not are_addresses_fixed()


def test_workers_that_measure_host_memory_have_fixed_addresses() -> None:
    with addresses_fixed():
        allowed = are_addresses_fixed()
    runner = ProcessRunner(CpuDevice())
    try:
        sizing = runner.size(jobs.has_fixed_addresses, timeout_seconds=A_WHILE, fresh=True)
        timing = runner.time(jobs.has_fixed_addresses, timeout_seconds=A_WHILE, fresh=True)
    finally:
        runner.close()
    assert (sizing, timing) == (allowed, are_addresses_fixed())
