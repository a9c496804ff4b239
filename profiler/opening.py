"""From a workload and options to a prober that is ready to try sizes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from profiler.devices import Device, default_device_name, open_device
from profiler.errors import DeviceUnavailable
from profiler.events import Began, Noted, Observer, Started
from profiler.judge import inspection_error
from profiler.options import Options
from profiler.prober import Prober
from profiler.replay import Replay
from profiler.report import RunInfo
from profiler.resuming import as_recorded, same_run
from profiler.switches import Switches
from profiler.targets import LiveSource, TargetSource
from profiler.trial import Inspection, Setting, Source, inspect
from profiler.workers.runner import ProcessRunner, Runner, can_fork

if TYPE_CHECKING:
    from profiler.workload import Workload

# A driver's own use of memory drifts by less than this share; a budget of all that is free stays as much below it.
DRIFT = 1 / 400
_OWN_HEAP = (
    "on the CPU, isolation none: trials share this process's memory. What libraries keep of earlier trials counts as the "
    'process\'s, so that peaks are not exact by some MiB and the answer can be too large by as much; isolation="process" is exact.'
)
_SIMULATED = (
    "a simulated card: every number is predicted and none was measured, nothing is timed, and whether accumulation equals the "
    "whole batch is not checked: `microbatch check` does that on the CPU."
)
_NO_WORKERS = "this system has no fork for workers: trials run in this process, which keeps no time limit and does not survive a crash."
_SIMULATED_EAGER = (
    "the model is compiled, and a simulated card runs it uncompiled: compiled models mostly take less memory, since what is fused "
    "keeps nothing between its operations, and some take more."
)


@contextmanager
def open_prober(
    workload: Workload | str,
    options: Options,
    observe: Observer,
    *,
    sizing: bool = True,
    replay: Replay | None = None,
) -> Iterator[tuple[Prober, RunInfo]]:
    """A prober that is ready to try sizes, and what it runs on; its workers end with the block, error or not.

    sizing: whether sizes will be tried. Else there is no budget that nobody asked for, and nothing is said of what only
    sizes depend on: samples that differ, and the optimizer. replay: what a run recorded that goes on.

    Raises DeviceUnavailable, UsageError for a limit above what is available or another run than the recorded one, and
    what loading the workload raises.
    """
    replay = replay or Replay()
    options = as_recorded(options, replay.run)
    with ExitStack() as stack:
        device = open_device(options.device or default_device_name(), options.assume)
        try:
            runner, setting, inspection = _inspect(workload, device, options, observe, stack, sizing=sizing)
        except DeviceUnavailable as error:
            if options.device is not None or device.type == "cpu":
                raise
            observe(Noted(text=f"{error} The CPU is used instead."))
            device = open_device("cpu")
            runner, setting, inspection = _inspect(workload, device, options, observe, stack, sizing=sizing)
        run = same_run(replay.run, _run_info(device, inspection, options, workload))
        observe(Began(run=run))
        if replay.resumed is not None:
            observe(replay.resumed)
        if inspection.optimizer_is_default and sizing:
            observe(Noted(text="the workload names no optimizer: AdamW with torch's defaults is used."))
        if inspection.samples_vary and sizing:
            observe(
                Noted(
                    text="samples differ in size, and a micro-batch of n takes the first n: sizes are not compared on the same "
                    "samples, and longer ones come later. --worst-case (worst_case=True) takes the largest first."
                )
            )
        own_heap = device.measures_host_memory and not isinstance(runner, ProcessRunner)
        if own_heap and sizing:
            observe(Noted(text=_OWN_HEAP))
        if not device.computes and sizing:
            observe(Noted(text=_SIMULATED))
            if options.assume:
                observe(Noted(text=f"the numbers rest on what was assumed: {', '.join(options.assume)}."))
            if inspection.compile:
                observe(Noted(text=_SIMULATED_EAGER))
        timed_apart = bool(device.sizing_environment())
        prober = Prober(
            runner=runner,
            setting=setting,
            timing_setting=replace(setting, limit_bytes=None) if timed_apart else setting,
            capacity_bytes=inspection.capacity_bytes,
            compiled=inspection.compile,
            multiple_of=options.multiple_of,
            smallest_size=options.multiple_of,
            smallest_evaluation=options.multiple_of,
            dataset_samples=inspection.dataset_samples,
            limits=options.limits,
            observe=observe,
            replay=replay,
            own_heap=own_heap,
            computes=device.computes,
        )
        yield prober, run


def _inspect(
    workload: Workload | str, device: Device, options: Options, observe: Observer, stack: ExitStack, *, sizing: bool
) -> tuple[Runner, Setting, Inspection]:
    """A runner, closed with `stack`, and what it says of the workload and the device."""
    why_not = device.why_not() if device.type == "cpu" else None  # others are asked in a worker: they need their driver
    if why_not is not None:
        raise DeviceUnavailable(f"{device.name} cannot be used: {why_not}")
    runner, source = _runner(workload, device, options, observe, exact=sizing)
    stack.callback(runner.close)
    limit_bytes = options.limit_bytes or (device.default_limit_bytes() if sizing else None)
    setting = Setting(
        source=source,
        device=device.name,
        limit_bytes=limit_bytes,
        switches=Switches.of_caller(),
        assumptions=options.assume,
    )
    observe(Started(what="loading the workload", why="to see what it is and what the device has"))
    reply = runner.size(inspect, setting, timeout_seconds=options.limits.trial_seconds, fresh=True)
    if not isinstance(reply, Inspection):
        raise inspection_error(reply, device.name)
    if limit_bytes is None:  # what is free now is the budget, whoever takes or gives memory from now on
        limit_bytes = int(reply.capacity_bytes * (1 - DRIFT))
        setting = replace(setting, limit_bytes=limit_bytes)
        reply = replace(reply, capacity_bytes=limit_bytes)
    return runner, setting, reply


def _runner(
    workload: Workload | str, device: Device, options: Options, observe: Observer, *, exact: bool
) -> tuple[Runner, Source]:
    """Where trials run and where they get the workload: a model that lives on an accelerator cannot leave its process."""
    if options.isolation == "process" and not can_fork():
        observe(Noted(text=_NO_WORKERS))
    elif options.isolation == "process":
        if isinstance(workload, str):
            target = TargetSource(target=workload, options=options.target_options)
            target.check()
            return ProcessRunner(device, target.imports, exact=exact), target
        if not workload.lives_on_accelerator:
            return ProcessRunner(device, exact=exact), LiveSource.of(workload)
        observe(Noted(text="the model already lives on the accelerator, so it is probed in this process."))
    from profiler.workers.in_process import HeldSource, InProcessRunner, directory_kept, random_states_kept

    if isinstance(workload, str):
        with random_states_kept(), directory_kept(), device.standing_in():
            workload = TargetSource(target=workload, options=options.target_options).load()
    return InProcessRunner(), HeldSource(workload=workload)


def _run_info(device: Device, inspection: Inspection, options: Options, workload: Workload | str) -> RunInfo:
    return RunInfo(
        workload=inspection.workload,
        device=device.name,
        capacity_bytes=inspection.capacity_bytes,
        headroom=options.headroom,
        effective_batch_size=options.effective_batch_size,
        data_parallel_size=options.data_parallel_size,
        command=options.command,
        directory=str(Path.cwd()) if options.command is not None else None,
        started_at=datetime.now().astimezone().isoformat(timespec="seconds"),
        environment={"microbatch": _version(), **inspection.facts.environment},
        target_sha256=TargetSource(target=workload).sha256 if isinstance(workload, str) else None,
    )


def _version() -> str:
    try:
        return version("microbatch")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "not installed"
