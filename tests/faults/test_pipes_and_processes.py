"""One job that goes wrong in a way that no trial should: what the server makes of it, and the job after it."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from process.conftest import Servers
from process.test_workers import is_gone

from faults import jobs
from profiler.devices.cpu import CpuDevice
from profiler.workers.protocol import LONGEST_RESULT_BYTES, Died, Returned, TimedOut, framed, whole

HALF = framed((Returned(value=pickle.dumps(7)), True))[:-5]


@pytest.fixture
def run(servers: Servers) -> Callable[..., Any]:
    server = servers(CpuDevice().sizing_environment())

    def call(job: Callable[..., Any], *arguments: Any, seconds: float = 60.0) -> Any:
        reply = server.run(job, *arguments, timeout_seconds=seconds, fresh=True)
        assert server.run(jobs.write_everywhere, b"", timeout_seconds=60.0, fresh=True) == "a result"
        return reply

    return call


@pytest.mark.parametrize(
    "content",
    [
        b"x",
        b"1 of 8 samples done\n",
        jobs.HEADER + (2**60).to_bytes(8, "little"),
        jobs.HEADER + (5).to_bytes(8, "little") + b"12345",
        framed(7),
        framed((7, True)),
        framed((Returned(value=b""), "yes")),
        framed((Returned(value=pickle.dumps(7)), True)) + b"x",
    ],
    ids=["a byte", "text", "a huge length", "no pickle", "a number", "a pair", "no answer", "a result and more"],
)
def test_what_is_no_result_ends_the_worker_and_is_said(run: Callable[..., Any], content: bytes) -> None:
    reply = run(jobs.write_and_sleep, content)

    assert isinstance(reply, Died)
    assert (reply.exit_status, reply.is_garbled) == (None, True)


def test_what_a_job_writes_where_it_should_not_spoils_its_result_and_is_not_taken_for_it(
    run: Callable[..., Any],
) -> None:
    reply = run(jobs.write_everywhere, b"epoch 1")

    assert isinstance(reply, Died)
    assert reply.is_garbled


def test_a_result_cut_in_the_middle_is_the_workers_end(run: Callable[..., Any]) -> None:
    assert run(jobs.write_and_end, HALF) == Died(exit_status=0, output=reply_of(HALF))


def reply_of(content: bytes) -> str:
    """What of it went to the worker's own output, which is among the descriptors."""
    return content.decode(errors="replace")


@pytest.mark.parametrize("content", [HALF, jobs.HEADER[:5], jobs.HEADER + (2**20).to_bytes(8, "little") + b"1"])
def test_a_result_that_never_ends_ends_at_the_time_limit(run: Callable[..., Any], content: bytes) -> None:
    assert isinstance(run(jobs.write_and_sleep, content, seconds=0.5), TimedOut)


def test_frames_are_told_from_anything_else_by_their_first_byte() -> None:
    frame = framed({"size": 3})

    assert all(whole(frame[:length]) is None for length in range(len(frame)))
    assert pickle.loads(whole(frame) or b"") == {"size": 3}
    for content in (b"x", frame + b"x", frame[1:], frame[:8] + LONGEST_RESULT_BYTES.to_bytes(8, "little")):
        with pytest.raises(ValueError, match="no frame"):
            whole(content)


def test_a_job_that_closes_the_workers_pipe_is_a_death_that_says_so(run: Callable[..., Any]) -> None:
    reply = run(jobs.close_everything)

    assert isinstance(reply, Died)
    assert reply.exit_status != 0


def test_no_result_is_written_into_a_file_that_took_the_pipes_number(run: Callable[..., Any], tmp_path: Path) -> None:
    reply = run(jobs.open_files_where_pipes_were, tmp_path)

    assert isinstance(reply, Died)
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {b"mine"}


def test_a_job_may_close_its_output(run: Callable[..., Any]) -> None:
    assert run(jobs.close_output) == "a result"


@pytest.mark.parametrize("then", ["die", "go on"])
def test_a_child_in_a_session_of_its_own_hides_no_death_and_is_ended(
    run: Callable[..., Any], tmp_path: Path, then: str
) -> None:
    start = time.monotonic()
    reply = run(jobs.leave_a_child, tmp_path / "pid", then)

    assert reply == (Died(exit_status=-11, output="") if then == "die" else "a result")
    assert time.monotonic() - start < 30
    assert is_gone(int((tmp_path / "pid").read_text()))


def test_a_worker_that_changed_its_group_is_ended(run: Callable[..., Any], tmp_path: Path) -> None:
    assert isinstance(run(jobs.change_group, tmp_path / "pid", seconds=0.5), TimedOut)
    assert is_gone(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize("job", [jobs.stop, jobs.wait_with_the_lock, jobs.match_for_ever])
def test_what_hangs_where_python_does_not_run_ends_at_the_time_limit(
    run: Callable[..., Any], job: Callable[..., Any]
) -> None:
    reply = run(job, seconds=0.5)

    assert isinstance(reply, TimedOut)
    assert 0.5 <= reply.seconds < 30
