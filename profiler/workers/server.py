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

from profiler.workers.protocol import Died, Job, Reply, Returned, TimedOut, receive, send

_OUTPUT_TAIL_BYTES = 20_000
_PR_SET_PDEATHSIG = 1
# The memory of a large process takes the kernel some seconds to take back.
_DYING_SECONDS = 10.0
# The system's clocks end somewhere, and a time limit may be infinite.
_LONGEST_WAIT_SECONDS = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Worker:
    """A forked child: its process id, the pipe that jobs go down, the one that results come up, and what it prints."""

    pid: int
    jobs: int
    results: int
    output: int


def serve(requests: int, replies: int, imports: tuple[str, ...] = ()) -> None:
    """Answer jobs that arrive on the descriptor `requests` until it is closed, then end every worker and return.

    imports: modules that every job needs, beside torch.
    """
    _import(imports)
    # What the imports made stays for good: workers need not search it for garbage, 0.2 s each time.
    gc.collect()
    gc.freeze()
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
    import torch._dynamo  # an optimizer's constructor imports it

    assert torch is not None
    for name in names:
        # Whatever is wrong with it, the job that needs it finds the same and can say so.
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    del os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"]


def _fork(*, inherited: tuple[int, ...]) -> _Worker:
    jobs_out, jobs_in = os.pipe()
    results_out, results_in = os.pipe()
    output = os.memfd_create("worker-output")
    server = os.getpid()
    pid = os.fork()
    if pid == 0:
        for descriptor in (*inherited, jobs_in, results_out):
            os.close(descriptor)
        _work(jobs_out, results_in, output, server)
        os._exit(0)
    os.close(jobs_out)
    os.close(results_in)
    return _Worker(pid=pid, jobs=jobs_in, results=results_out, output=output)


def _work(jobs: int, results: int, output: int, server: int) -> None:
    """The worker's life: its own process group, gone with its server, printing where the server can read it."""
    os.setpgid(0, 0)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != server:  # the server died before the line above
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.dup2(output, 1)
    os.dup2(output, 2)
    while True:
        try:
            job: Job = receive(jobs)
        except EOFError:
            return
        function, arguments = pickle.loads(job.call)
        done = function(*arguments)
        sys.stdout.flush()
        sys.stderr.flush()
        send(results, (Returned(value=pickle.dumps(done.result)), done.worker_is_clean))


def _run(worker: _Worker, job: Job, requests: int) -> tuple[Reply | None, bool]:
    """The reply to `job`, and whether the worker can serve another; None where the caller closed the connection."""
    start = time.monotonic()
    deadline = start + job.timeout_seconds
    with contextlib.suppress(BrokenPipeError):  # it died: seen below
        send(worker.jobs, job)
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            return TimedOut(seconds=time.monotonic() - start, output=_output(worker)), False
        ready, _, _ = select.select([worker.results, requests], [], [], min(left, _LONGEST_WAIT_SECONDS))
        if worker.results in ready:
            try:
                reply, clean = receive(worker.results)
            except (EOFError, pickle.UnpicklingError):
                return Died(exit_status=_wait(worker), output=_output(worker)), False
            return reply, clean
        if requests in ready:  # nothing is asked while a job runs, so this is the end of the connection
            return None, False


def _wait(worker: _Worker) -> int | None:
    """The exit status of a worker that closed its pipe; None, once it is killed, where it lives on."""
    deadline = time.monotonic() + _DYING_SECONDS
    while time.monotonic() < deadline:
        pid, status = os.waitpid(worker.pid, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
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
    for descriptor in (worker.jobs, worker.results, worker.output):
        os.close(descriptor)


def _output(worker: _Worker) -> str:
    size = os.fstat(worker.output).st_size
    tail = os.pread(worker.output, _OUTPUT_TAIL_BYTES, max(0, size - _OUTPUT_TAIL_BYTES))
    return tail.decode(errors="replace")
