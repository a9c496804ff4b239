from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from process import jobs
from profiler.errors import TrialError
from profiler.workers.client import ForkServer
from profiler.workers.protocol import Died, TimedOut

MEGABYTES = 10 * 2**20
A_WHILE = 60.0


@pytest.fixture(scope="module", autouse=True)
def no_torch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An empty package in torch's place: these jobs do not need it, and importing the real one takes seconds."""
    folder = tmp_path_factory.mktemp("instead")
    (folder / "torch" / "_dynamo").mkdir(parents=True)
    for package in ("torch", "torch/_dynamo"):
        (folder / package / "__init__.py").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.delenv("PYTHONUNBUFFERED", raising=False)  # which would hide what a dying worker does not flush
        yield


@pytest.fixture(scope="module")
def server(no_torch: None) -> Iterator[ForkServer]:
    with ForkServer({"GREETING": "good morning"}) as server:
        yield server


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "pid"


def run(
    server: ForkServer, job: Callable[..., Any], *arguments: Any, seconds: float = A_WHILE, fresh: bool = False
) -> Any:
    return server.run(job, *arguments, timeout_seconds=seconds, fresh=fresh)


def is_gone(pid: int) -> bool:
    """Whether no such process runs, at once or soon; one that ended and waits for its parent does not run."""
    for _ in range(200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


def noted(file: Path) -> int:
    return int(file.read_text())


def test_a_job_gives_its_value(server: ForkServer) -> None:
    assert run(server, jobs.give, {"size": 3, "name": ("a", None)}) == {"size": 3, "name": ("a", None)}


def test_a_job_runs_in_another_process_with_the_servers_environment(server: ForkServer) -> None:
    assert run(server, jobs.process_id, True) != os.getpid()
    assert run(server, jobs.environment, "GREETING") == "good morning"
    assert "GREETING" not in os.environ


def test_a_clean_worker_is_kept(server: ForkServer) -> None:
    assert run(server, jobs.process_id, True) == run(server, jobs.process_id, True)


def test_a_fresh_worker_is_another_and_ends_the_old_one(server: ForkServer) -> None:
    first = run(server, jobs.process_id, True)
    second = run(server, jobs.process_id, True, fresh=True)

    assert first != second
    assert is_gone(first)
    assert run(server, jobs.process_id, True) == second


def test_a_worker_that_is_not_clean_ends(server: ForkServer) -> None:
    unclean = run(server, jobs.process_id, False)

    assert run(server, jobs.process_id, True) != unclean
    assert is_gone(unclean)


@pytest.mark.parametrize(
    ("job", "argument", "status"),
    [
        (jobs.raise_signal, signal.SIGKILL, -9),
        (jobs.raise_signal, signal.SIGSEGV, -11),
        (jobs.raise_signal, signal.SIGABRT, -6),
        (jobs.end_with, 3, 3),
        (jobs.end_with, 0, 0),
    ],
)
def test_a_dead_worker_is_read_from_its_exit_status(
    server: ForkServer, job: Callable[..., Any], argument: int, status: int
) -> None:
    assert run(server, job, argument) == Died(exit_status=status, output="")


def test_a_job_that_leaves_ends_its_worker_alone(server: ForkServer) -> None:
    assert run(server, jobs.leave) == Died(exit_status=0, output="")


@pytest.mark.parametrize(
    ("job", "word"),
    [(jobs.raise_error, "seven is not eight"), (jobs.return_what_cannot_be_pickled, "pickle")],
)
def test_an_error_in_the_job_itself_is_a_death_with_its_traceback(
    server: ForkServer, job: Callable[..., Any], word: str
) -> None:
    died = run(server, job)

    assert isinstance(died, Died)
    assert died.exit_status == 1
    assert word in died.output


@pytest.mark.parametrize("job", [jobs.raise_error, jobs.end_with, jobs.spin])
def test_the_server_answers_the_next_job_after_a_worker_failed(
    server: ForkServer, file: Path, job: Callable[..., Any]
) -> None:
    arguments = {jobs.end_with: (3,), jobs.spin: (file,)}.get(job, ())
    assert isinstance(run(server, job, *arguments, seconds=0.5), Died | TimedOut)
    assert run(server, jobs.give, 8) == 8


def test_what_a_dying_worker_printed_arrives_and_nothing_leaks(
    server: ForkServer, capfd: pytest.CaptureFixture[str]
) -> None:
    died = run(server, jobs.say, True)

    assert isinstance(died, Died)
    assert sorted(died.output.splitlines()) == [
        "by a child",
        "by standard error",
        "by standard output",
        "by the descriptor",
    ]
    assert capfd.readouterr() == ("", "")


def test_what_a_working_worker_prints_leaks_nowhere(server: ForkServer, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(server, jobs.say, False) is None
    assert capfd.readouterr() == ("", "")


def test_of_much_output_the_end_arrives(server: ForkServer) -> None:
    output = run(server, jobs.say_much).output

    assert output.endswith("the end\n")
    assert len(output) < 50_000


@pytest.mark.parametrize("job", [jobs.spin, jobs.sleep, jobs.sleep_deaf])
def test_a_worker_that_hangs_is_ended_at_its_time_limit(
    server: ForkServer, file: Path, job: Callable[..., Any]
) -> None:
    start = time.monotonic()
    reply = run(server, job, file, seconds=0.5, fresh=True)

    assert isinstance(reply, TimedOut)
    assert 0.5 <= reply.seconds <= time.monotonic() - start < 30
    assert is_gone(noted(file))


@pytest.mark.parametrize("then", ["hang", "die", "end unclean"])
def test_what_a_worker_started_ends_with_it(server: ForkServer, file: Path, then: str) -> None:
    run(server, jobs.start_child, file, then, seconds=1.0)

    assert is_gone(noted(file))


def test_large_arguments_and_results_arrive_whole(server: ForkServer) -> None:
    content = os.urandom(MEGABYTES)

    assert run(server, jobs.reverse, content) == content[::-1]


def test_closing_leaves_no_process_and_can_be_repeated() -> None:
    server = ForkServer({})
    worker = run(server, jobs.process_id, True)
    parent = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])

    server.close()
    server.close()

    assert parent != os.getpid()
    assert is_gone(parent)
    assert is_gone(worker)


def interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def test_an_interrupt_while_a_worker_runs_leaves_no_process(file: Path) -> None:
    former = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with ForkServer({}) as server, pytest.raises(KeyboardInterrupt):
            run(server, jobs.signal_and_sleep, file, os.getpid())
    finally:
        signal.signal(signal.SIGUSR1, former)

    assert is_gone(noted(file))


def test_closing_what_was_never_started_is_nothing() -> None:
    ForkServer({}).close()


def test_the_servers_death_is_an_error_in_words_and_ends_its_worker(file: Path) -> None:
    with ForkServer({}) as server:
        with pytest.raises(TrialError, match=r"the fork server ended: exit status -9, without a word\."):
            run(server, jobs.kill_server, file)
        assert is_gone(noted(file))


def test_a_server_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch is not there')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with (
        ForkServer({}) as server,
        pytest.raises(TrialError, match=r"(?s)the fork server ended:.*libtorch is not there"),
    ):
        run(server, jobs.give, 1)


CALLER = """
import sys
sys.path[:] = {path!r}
from process import jobs
from pathlib import Path
from profiler.workers.client import ForkServer
ForkServer({{}}).run(jobs.start_child, Path({file!r}), "hang", timeout_seconds=600, fresh=False)
"""


def test_workers_and_what_they_started_end_when_the_caller_is_killed(file: Path) -> None:
    program = CALLER.format(path=sys.path, file=str(file))
    with subprocess.Popen([sys.executable, "-c", program]) as caller:
        while not file.exists() or not file.read_text():
            assert caller.poll() is None
            time.sleep(0.01)
        caller.kill()

    assert is_gone(noted(file))
