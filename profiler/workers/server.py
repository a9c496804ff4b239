"""The fork server: a process that has imported torch and forks a worker for each job, or for several while it is clean.

It runs no tensor operation and builds no model: a forked child of a process that did hangs in OpenMP. It never touches
CUDA, whose contexts do not survive a fork. Not multiprocessing's fork server, which runs the caller's script again.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import pickle
import select
import signal
import sys
import time
from dataclasses import dataclass

from profiler.workers.descendants import adopt, children, end_all
from profiler.workers.protocol import Died, Job, Reply, Returned, TimedOut, framed, receive, send, whole

_OUTPUT_TAIL_BYTES = 20_000
# Where torch keeps what it compiles.
_COMPILED_CODE = "TORCHINDUCTOR_CACHE_DIR"
_PR_SET_PDEATHSIG = 1
# The memory of a large process takes the kernel some seconds to take back.
_DYING_SECONDS = 10.0
# A dead worker whose pipe a child of its own holds open is looked for this often.
_BETWEEN_LOOKS_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class _Worker:
    """A forked child: its process id, the pipe that jobs go down, the one that results come up, and what it prints.

    others: the server's children that were there before it.
    """

    pid: int
    jobs: int
    results: int
    output: int
    others: frozenset[int]


def serve(requests: int, replies: int, imports: tuple[str, ...] = ()) -> None:
    """Answer jobs that arrive on the descriptor `requests` until it is closed, then end every worker and return.

    imports: modules that every job needs, beside torch.
    """
    adopt()
    gc.disable()  # what an import makes stays: looking for garbage in it, again and again, takes 0.3 s of 2.3 s
    _import(imports)
    # For good: workers need not search it either, 0.2 s each time.
    gc.collect()
    gc.freeze()
    gc.enable()
    worker: _Worker | None = None
    while True:
        try:
            job: Job = receive(requests)
        except EOFError:
            break
        if worker is not None and job.fresh:
            _end(worker)
            worker = None
        if worker is None:
            worker = _fork(inherited=(requests, replies))
        reply, clean = _run(worker, job, requests)
        if not clean:
            _end(worker)
            worker = None
        if reply is None:  # the caller is gone
            break
        send(replies, reply)
    if worker is not None:
        _end(worker)


def _import(names: tuple[str, ...]) -> None:
    """What every worker would import: seconds each time."""
    # While something imported asks whether there is a GPU, torch shall ask NVML: CUDA itself does not survive a fork.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    import torch

    chosen = os.environ.get(_COMPILED_CODE)
    import torch._dynamo  # an optimizer's constructor imports it

    assert torch is not None
    if chosen is None:  # it chose one, and made it; whoever compiles makes it again
        with contextlib.suppress(OSError, KeyError):  # one that holds something stays
            os.rmdir(os.environ[_COMPILED_CODE])  # noqa: PTH106 - pathlib is not needed for one call
    for name in names:
        # Whatever is wrong with it, the job that needs it finds the same and can say so.
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    del os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"]


def _fork(*, inherited: tuple[int, ...]) -> _Worker:
    jobs_out, jobs_in = os.pipe()
    results_out, results_in = os.pipe()
    output = os.memfd_create("worker-output")
    server, others = os.getpid(), children()
    pid = os.fork()
    if pid == 0:
        for descriptor in (*inherited, jobs_in, results_out):
            os.close(descriptor)
        _work(jobs_out, results_in, output, server)
        os._exit(0)
    os.close(jobs_out)
    os.close(results_in)
    os.set_blocking(jobs_in, False)
    return _Worker(pid=pid, jobs=jobs_in, results=results_out, output=output, others=others)


def _work(jobs: int, results: int, output: int, server: int) -> None:
    """The worker's life: its own process group, gone with its server, printing where the server can read it."""
    os.setpgid(0, 0)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != server:  # the server died before the line above
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.dup2(output, 1)
    os.dup2(output, 2)
    pipe = os.fstat(results)
    while True:
        try:
            job: Job = receive(jobs)
        except EOFError:
            return
        function, arguments = pickle.loads(job.call)
        done = function(*arguments)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):  # what the job printed is its own, and so is closing where it printed
                stream.flush()
        # A job that closed what it did not open may have opened a file of its own under that number.
        assert os.path.samestat(os.fstat(results), pipe), "the job closed this worker's pipe"
        send(results, (Returned(value=pickle.dumps(done.result)), done.worker_is_clean))


def _run(worker: _Worker, job: Job, requests: int) -> tuple[Reply | None, bool]:
    """The reply to `job`, and whether the worker can serve another; None where the caller closed the connection."""
    start = time.monotonic()
    deadline = start + job.timeout_seconds
    unsent, received = memoryview(framed(job)), bytearray()
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            return TimedOut(seconds=time.monotonic() - start, output=_output(worker)), False
        sending = [worker.jobs] if unsent else []
        ready, room, _ = select.select([worker.results, requests], sending, [], min(left, _BETWEEN_LOOKS_SECONDS))
        if room:
            unsent = _sent(worker, unsent)
        if worker.results in ready:
            piece = os.read(worker.results, 2**20)
            if not piece:
                return Died(exit_status=_wait(worker), output=_output(worker)), False
            received += piece
            try:
                result = _result(received)
            except Exception:  # a pickle of something else can raise anything
                return Died(exit_status=None, output=_output(worker), is_garbled=True), False
            if result is not None:
                return result
        elif requests in ready:  # nothing is asked while a job runs, so this is the end of the connection
            return None, False
        elif not room and (status := _ended(worker)) is not None:
            return Died(exit_status=status, output=_output(worker)), False


def _sent(worker: _Worker, unsent: memoryview) -> memoryview:
    """What of `unsent` is left after the worker took what it could."""
    try:
        return unsent[os.write(worker.jobs, unsent) :]
    except BrokenPipeError:  # it died, which its other pipe tells
        return unsent[:0]


def _result(received: bytearray) -> tuple[Returned, bool] | None:
    """What the worker sent, None while more must come; raises where that is no result."""
    body = whole(received)
    if body is None:
        return None
    returned, clean = pickle.loads(body)
    if not (isinstance(returned, Returned) and isinstance(returned.value, bytes) and isinstance(clean, bool)):
        raise ValueError("what came is no result")
    return returned, clean


def _ended(worker: _Worker) -> int | None:
    """The exit status of a worker that is no more; None while it runs."""
    pid, status = os.waitpid(worker.pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if pid else None


def _wait(worker: _Worker) -> int | None:
    """The exit status of a worker that closed its pipe; None, once it is killed, where it lives on."""
    deadline = time.monotonic() + _DYING_SECONDS
    while time.monotonic() < deadline:
        status = _ended(worker)
        if status is not None:
            return status
        time.sleep(0.01)
    os.kill(worker.pid, signal.SIGKILL)
    os.waitpid(worker.pid, 0)
    return None


def _end(worker: _Worker) -> None:
    """Kill the worker with everything it started, and close its pipes."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(worker.pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(worker.pid, 0)
    end_all(worker.others)
    for descriptor in (worker.jobs, worker.results, worker.output):
        os.close(descriptor)


def _output(worker: _Worker) -> str:
    size = os.fstat(worker.output).st_size
    tail = os.pread(worker.output, _OUTPUT_TAIL_BYTES, max(0, size - _OUTPUT_TAIL_BYTES))
    return tail.decode(errors="replace")
