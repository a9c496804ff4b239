"""Finders of the largest batch size, side by side: the same workloads under the same enforced budget, in fresh processes.

Every workload is measured in this order, each entry in a Python process of its own:

truth     doubling and bisection by our trial, each trial in a fresh worker; then the answer and the answer + 1 five times
          each, every pair under a fork server of its own. Where these flip, the truth is a band, and any answer inside is exact. The median of the five pairs' seconds
          is the least possible: one trial at the answer, one at the answer + 1. Its own row is called "bisection".
finders   microbatch            profiler.finder.find_largest. `seconds` is that search in open workers, `whole_seconds` the
                                call from nothing: start of the fork server, loading, search, end.
          lightning-binsearch   Tuner.scale_batch_size, three optimizer steps a size of two accumulated micro-batches each,
          lightning-power       margin 0, else its defaults: from 2 on, and 8192 (`max_val`) is an answer that it does not run.
          lightning-unbounded   lightning-binsearch with `max_val` above what fits: the same question as ours.
          accelerate            find_executable_batch_size from its default of 128, running our sizing trial.
          toma                  toma.batch from 4096, running our sizing trial; it has no default, and never goes up.
          The last five run in the process whose budget is in force, which before has imported everything, run the finder on
          a toy and settled; `seconds` and `whole_seconds` are their call alone.
          `process_seconds` is, for all, from the start of the process on, with its imports; of the last five without the toy
          and loading the workload.
answers   our trial at every answer, in a fresh worker: what it leaves unused, or that it runs out of memory.

A finder that raises or whose process dies has crashed; one that takes longer than --time-limit has no end. Steps are
forward passes begun (of a failed trial of ours, all three count). Nothing is read from earlier runs; the table, which is
written after every workload, holds this run's rows only. "Times faster" compares the whole call of ours with the call of
lightning-unbounded.

    python -m benchmarks.finders [--device cpu] [--memory-limit 512MiB] [--only FINDER ...] [TARGET ...]

Writes results/finders_<device>/: table.csv, finders.png, environment.json, command.txt.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from benchmarks.finder_rows import ANSWERED, BISECTION, OURS, Row, first_line, goals, number, row_of, to_csv
from benchmarks.finder_runs import Task, perform
from profiler.devices import open_device
from profiler.devices.addresses import addresses_fixed
from profiler.files import replace_file
from profiler.options import Options
from profiler.run_folder import safe_name
from profiler.targets import TargetOptions

OWN = "benchmarks/workloads.py:"
EXAMPLES = ("digits-cnn", "digits-resnet", "text-gpt")
OWN_TARGETS = tuple(
    OWN + name for name in ("wide_mlp", "wide_input", "recommender", "contrastive", "bucketed_attention")
)
TARGETS = (*EXAMPLES, *OWN_TARGETS)
OTHERS = ("lightning-binsearch", "lightning-power", "lightning-unbounded", "accelerate", "toma")
TIME_LIMIT_SECONDS = 300.0
# The truth is some forty trials, each at its own pace; it is no finder, and is given time.
TRUTH_LIMITS = 4
RESULT_MARK = "finders-result "


def main() -> None:
    """Measure every workload, print a line for each row, write the table and the figure."""
    arguments = parsed()
    if arguments.one:
        begun, what, target, *sizes = arguments.one
        result = perform(
            Task(
                what=what,
                target=target,
                options=options_of(arguments),
                begun=float(begun),
                sizes=tuple(map(int, sizes)),
            )
        )
        print(f"\n{RESULT_MARK}{json.dumps(result)}", flush=True)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that a running child is ended too
    rows: list[Row] = []
    folder = arguments.output or Path("results") / f"finders_{safe_name(arguments.device)}"
    failed = False
    for target in arguments.targets or TARGETS:
        start = time.monotonic()
        found, environment = measure(target, arguments)
        rows += found
        failed |= not found
        if found:
            write(rows, environment, folder)
        print(f"{target}: {time.monotonic() - start:.0f} s\n", flush=True)
    for goal in goals(rows):
        print(f"{'reached' if goal.reached else 'MISSED'}: {goal.text}: {goal.measured}")
    sys.exit(1 if failed else 0)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory-limit", default="512MiB")
    parser.add_argument("--precision", help="instead of the workloads' own")
    parser.add_argument("--only", nargs="+", choices=(OURS, *OTHERS), default=(OURS, *OTHERS), metavar="FINDER")
    parser.add_argument("--time-limit", type=float, default=TIME_LIMIT_SECONDS, help="seconds a finder may take")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--one", nargs="+", metavar="BEGUN", help=argparse.SUPPRESS)  # what a child process is told
    return parser.parse_args()


def options_of(arguments: argparse.Namespace) -> Options:
    """The options that every process shares."""
    target_options = TargetOptions(precision=cast(Any, arguments.precision))
    return Options(device=arguments.device, memory_limit=arguments.memory_limit, target_options=target_options)


def measure(target: str, arguments: argparse.Namespace) -> tuple[list[Row], dict[str, str]]:
    """The rows of one workload, and the environment; no rows where there is no truth to hold them to."""
    truth = run_one(["truth", target], arguments, seconds=TRUTH_LIMITS * arguments.time_limit)
    if "low" not in truth:
        print(f"{target}: no truth was found: {truth.get('crashed') or truth}", flush=True)
        return [], {}
    rows = [row_of(BISECTION, truth, truth)]
    say(rows[0])
    for finder in arguments.only:
        result = run_one([finder, target], arguments, seconds=arguments.time_limit)
        rows.append(row_of(finder, result, truth))
        say(rows[-1])
    sizes = sorted({str(row.answer) for row in rows if row.answer}, key=int)
    peaks = run_one(["answers", target, *sizes], arguments, seconds=TRUTH_LIMITS * arguments.time_limit)
    return [judged(row, peaks.get("peaks", {})) for row in rows], truth["environment"]


def run_one(what: Sequence[str], arguments: argparse.Namespace, *, seconds: float) -> dict[str, Any]:
    """What a process of its own says of that; that it found no end, or crashed, is said for it."""
    command = [sys.executable, "-m", "benchmarks.finders", "--device", arguments.device]
    command += ["--memory-limit", arguments.memory_limit]
    command += [] if arguments.precision is None else ["--precision", arguments.precision]
    others = what[0] in OTHERS  # ours makes its workers exact by itself
    sizing = open_device(arguments.device).sizing_environment() if others else {}
    try:
        with addresses_fixed() if others else nullcontext():
            ended = subprocess.run(
                [*command, "--one", str(time.monotonic()), *what],
                env={**os.environ, **sizing},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=seconds,
                check=False,
            )
    except subprocess.TimeoutExpired:
        return {"no_end": seconds}
    return result_in(ended.stdout) or {"crashed": death(ended.returncode, ended.stderr)}


def result_in(output: str) -> dict[str, Any] | None:
    """The result among what a process printed, None where there is none."""
    found = [line for line in output.splitlines() if line.startswith(RESULT_MARK)]
    result: dict[str, Any] | None = json.loads(found[-1].removeprefix(RESULT_MARK)) if found else None
    return result


def death(status: int, errors: str) -> str:
    """How a process ended that said nothing: its signal or status, and its last words."""
    lines = errors.strip().splitlines()
    how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    return f"{how}: {first_line(lines[-1]) if lines else 'without a word'}"


def judged(row: Row, peaks: dict[str, int | None]) -> Row:
    """The row with what our trial at its answer came to."""
    if row.answer is None or str(row.answer) not in peaks:
        return row
    peak = peaks[str(row.answer)]
    return replace(row, fits=peak is not None, unused_bytes=None if peak is None else row.capacity_bytes - peak)


def say(row: Row) -> None:
    """The row in a line, as soon as it is known."""
    truth = f"{row.truth_low}" + (f" to {row.truth_high}" if row.truth_high > row.truth_low else "")
    came = f"{row.answer} of {truth}" if row.outcome == ANSWERED else f"{row.outcome}: {row.words}"
    print(
        f"{row.workload}: {row.finder}: {came}{', exact' if row.exact else ''}; {number(row.seconds)} s "
        f"({number(row.whole_seconds)} whole, least {number(row.least_seconds)}), {row.steps} steps, "
        f"{row.out_of_memory} out of memory; tried {row.tried}",
        flush=True,
    )


def write(rows: Sequence[Row], environment: dict[str, str], folder: Path) -> None:
    """Table, figure, environment and command."""
    from benchmarks.finders_figure import figure

    folder.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", "-m", "benchmarks.finders", *sys.argv[1:]])
    replace_file(folder / "table.csv", to_csv(rows).encode())
    replace_file(folder / "environment.json", (json.dumps(environment, indent=2) + "\n").encode())
    replace_file(folder / "command.txt", f"{command}\n".encode())
    replace_file(folder / "finders.png", figure(rows))


if __name__ == "__main__":
    main()
