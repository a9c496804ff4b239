"""Everything that needs a GPU, in one go and within nine minutes: the tests marked gpu, probes, and searches alone.

Parts run in the order of PARTS, the most important first. One is begun only if the time it should take is left, and it is
ended when twice that, or all, is over; whatever becomes of it, the rest goes on. Estimated for an H100: a fork server is
up in 5 to 7 s, a fresh worker (context, cuDNN, its library's import, the model) in 2 to 4 s; a trial near the edge takes 2
to 6 s more, a timed size 2 s, and a search some 7 fresh workers. The parts up to vit-search add up to nine minutes; what
is left out is said, and a second call can name it (each part of other finders takes as long as all the rest). Results so far are packed
after every part into gpu_results.tar.gz, in the folder that the environment variable OUT names, else in results/.

results/gpu_<card>/               summary.csv, environment.json, and what each part printed
results/<workload>_<card>/        a probe's folder
results/finders_<budget>_<card>/  finders side by side
results/recordings_<card>/        the allocator's events (benchmarks.gpu_recordings)
results/prediction_<card>/        predicted beside measured (benchmarks.gpu_prediction, which needs no GPU)

    python -m benchmarks.gpu [--seconds 540] [PART ...]
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from benchmarks.gpu_parts import ALL, PARTS, Check, Finders, Part, Prediction, Probe, Recordings, Search, Tests
from benchmarks.gpu_results import RESULTS, how_ended, json_bytes, keep, pack, read_json, row_of, this_card
from profiler.commands import NOT_EQUAL
from profiler.devices import open_device
from profiler.document import to_json_document
from profiler.errors import DeviceUnavailable
from profiler.events import Event, SizeTried, Started
from profiler.files import replace_file
from profiler.finder import find_largest
from profiler.limits import Limits
from profiler.opening import open_prober
from profiler.options import Options
from profiler.report import Report
from profiler.run_folder import safe_name
from profiler.targets import TargetOptions
from profiler.units import parse_bytes

DEVICE = "cuda:0"
SECONDS = 540.0
# For packing; a part that is told to end gets as long to write what it has.
LAST_SECONDS = 10.0
TRIAL_SECONDS = 50.0


def main() -> None:
    """Run the parts, most important first, until the time is over; pack what there is after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [part.name for part in PARTS]
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(names)}; all of them by default")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(names):
        parser.error(f"there is no part {', '.join(sorted(unknown))}: use {', '.join(names)}")
    deadline = time.monotonic() + arguments.seconds - LAST_SECONDS
    why_not = open_device(DEVICE).why_not()
    if why_not is not None:
        print(f"Nothing was measured, for {DEVICE} cannot be used: {why_not}")
        sys.exit(DeviceUnavailable.exit_status)
    chosen = [part for part in PARTS if part.name in (arguments.parts or names)]
    sys.exit(0 if run_all(chosen, deadline) else 1)


def run_all(parts: Sequence[Part], deadline: float) -> bool:
    """Whether every part that was begun succeeded."""
    card, environment = this_card(DEVICE)
    folder = RESULTS / f"gpu_{card}"
    folder.mkdir(parents=True, exist_ok=True)
    log = read_json(folder / "environment.json").get("parts", {})
    outcomes: list[str] = []
    for part in parts:
        start, left = time.monotonic(), deadline - time.monotonic()
        if left < part.seconds:
            outcome = f"left out: it should take {part.seconds:.0f} s, and {max(left, 0):.0f} s were left"
        else:
            try:
                outcome = run(part, card, folder, min(2 * part.seconds, left))
            except Exception as error:  # of whatever kind: the other parts are worth as much
                outcome = f"failed: {type(error).__name__}: {error}"
        log[part.name] = {"outcome": outcome, "seconds": round(time.monotonic() - start, 1)}
        print(f"{part.name}: {outcome} ({log[part.name]['seconds']} s)", flush=True)
        replace_file(folder / "environment.json", json_bytes({**environment, "parts": log}))
        pack(card)
        outcomes.append(outcome)
    return not any(outcome.startswith("failed") for outcome in outcomes)


def run(part: Part, card: str, folder: Path, seconds: float) -> str:
    """What became of `part`, in words: "done: ...", or "failed: ..."."""
    match part:
        case Tests():
            return run_tests(part, folder, seconds)
        case Probe():
            return run_probe(part, card, folder, seconds)
        case Search():
            return run_search(part, folder, seconds)
        case Check():
            return run_checks(part, folder, seconds)
        case Finders():
            return run_finders(part, card, folder, seconds)
        case Recordings():
            options = ["--seconds", f"{seconds - LAST_SECONDS:.0f}", *part.targets]
            return run_module(
                "benchmarks.gpu_recordings", RESULTS / f"recordings_{card}", options, part, folder, seconds
            )
        case Prediction():
            options = ["--measured", str(folder), "--seconds", f"{seconds - LAST_SECONDS:.0f}"]
            return run_module(
                "benchmarks.gpu_prediction", RESULTS / f"prediction_{card}", options, part, folder, seconds
            )


def run_tests(part: Tests, folder: Path, seconds: float) -> str:
    """Only tests/gpu is collected: other tests import what is not installed here, and so may pytest's plugins."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "--durations=0", "tests/gpu"]
    output = folder / f"{part.name}.txt"
    status = call(command, output, output, seconds, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    last = output.read_text(errors="replace").strip().rpartition("\n")[2].strip("= ")
    return f"{'done' if status == 0 else 'failed'}: {shlex.join(command[1:])}, {how_ended(status)}: {last}"


def run_probe(part: Probe, card: str, folder: Path, seconds: float) -> str:
    """The command as a user types it, its JSON document and its progress kept, and its row in the summary."""
    deadline = time.monotonic() + seconds
    document = folder / f"{part.name}.json"
    outcome = "failed: there is no budget to try"
    for budget in part.budgets:
        options = ["--memory-limit", budget, "--effective-batch", str(part.effective_batch)]
        options += ["--precision", part.precision, *(() if part.compare else ("--no-compare",))]
        options += ["--output", str(RESULTS / f"{safe_name(part.target)}_{card}"), "--force", "--json"]
        command = [sys.executable, "cli.py", "probe", part.target, "--device", DEVICE, *options]
        status = call(command, document, folder / f"{part.name}.txt", deadline - time.monotonic())
        outcome = f"{'done' if status == 0 else 'failed'}: {shlex.join(command[1:])}, {how_ended(status)}"
        if found := read_json(document):
            keep(folder, row_of(found, part=part.name, precision=part.precision, budget=budget))
        if status in (0, None):
            break
    return outcome


def run_search(part: Search, folder: Path, seconds: float) -> str:
    """Each budget's row as soon as it is known, and the document behind it."""
    deadline = time.monotonic() + seconds
    lines: list[str] = []

    def observe(event: Event) -> None:
        if isinstance(event, SizeTried):
            lines.append(f"{event.trial.micro_batch_size} {event.trial.outcome.label} {event.trial.peak_bytes}\n")
            (folder / f"{part.name}.txt").write_text("".join(lines))
        if isinstance(event, Started) and time.monotonic() > deadline:
            raise TimeoutError(f"ended after {seconds:.0f} s, before {event.what}")

    options = Options(
        device=DEVICE,
        limits=Limits(trial_seconds=TRIAL_SECONDS),
        target_options=TargetOptions(precision=cast(Any, part.precision)),
    )
    answers = []
    with open_prober(part.target, options, observe) as (whole, info):
        for budget in part.budgets:
            limit = whole.setting.limit_bytes if budget == ALL else parse_bytes(budget)
            capacity = limit or whole.capacity_bytes
            if capacity > whole.capacity_bytes:
                answers.append(f"{budget} is more than the card has")
                continue
            setting = replace(whole.setting, limit_bytes=limit)
            prober = replace(whole, setting=setting, timing_setting=setting, capacity_bytes=capacity, trials={})
            lines.append(f"{budget}, {capacity} bytes\n")
            start = time.monotonic()
            finding = find_largest(prober)
            report = Report(
                run=replace(info, capacity_bytes=capacity),
                finding=finding,
                search_seconds=time.monotonic() - start,
                search_trials=len(finding.trials),
            )
            document = to_json_document(report)
            replace_file(folder / f"{part.name}_{budget}.json", json_bytes(document))
            keep(folder, row_of(document, part=part.name, precision=part.precision, budget=budget))
            answers.append(f"{finding.largest_fit} in {budget}")
    return f"done: {', '.join(answers)}"


def run_checks(part: Check, folder: Path, seconds: float) -> str:
    """The command as a user types it, and what it printed; that a workload is not equal is an answer."""
    deadline = time.monotonic() + seconds
    outcomes = []
    for target in part.targets:
        command = [sys.executable, "cli.py", "check", target, "--device", DEVICE, "--precision", part.precision]
        output = folder / f"check_{safe_name(target)}.txt"
        status = call(command, output, output, deadline - time.monotonic())
        outcomes.append(f"{target}: {how_ended(status)}")
        if status not in (0, NOT_EQUAL, None):
            return f"failed: {'; '.join(outcomes)}"
    return f"done: {'; '.join(outcomes)}"


def run_finders(part: Finders, card: str, folder: Path, seconds: float) -> str:
    """The table after every target, and a line for each of its rows as soon as it is known."""
    options = f"--device {DEVICE} --memory-limit {part.budget} --precision {part.precision} --time-limit 90".split()
    options += ["--output", str(RESULTS / f"finders_{part.budget}_{card}")]
    command = [sys.executable, "-m", "benchmarks.finders", *options, *part.targets]
    output = folder / f"{part.name}.txt"
    status = call(command, output, output, seconds)
    return f"{'done' if status == 0 else 'failed'}: {shlex.join(command[1:])}, {how_ended(status)}"


def run_module(module: str, output: Path, options: list[str], part: Part, folder: Path, seconds: float) -> str:
    """A program that writes its own folder and ends with a line that says what came of it."""
    command = [sys.executable, "-m", module, "--output", str(output), *options]
    printed = folder / f"{part.name}.txt"
    status = call(command, printed, printed, seconds)
    last = printed.read_text(errors="replace").strip().rpartition("\n")[2]
    return f"{'done' if status == 0 else 'failed'}: {shlex.join(command[1:])}, {how_ended(status)}: {last}"


def call(command: list[str], output: Path, errors: Path, seconds: float, **environment: str) -> int | None:
    """The command's exit status, None where it was ended when its time was over; what it prints goes to the files."""
    with (
        output.open("wb") as out,
        errors.open("ab" if errors == output else "wb") as err,
        subprocess.Popen(command, stdout=out, stderr=err, env={**os.environ, **environment}) as process,
    ):
        try:
            return process.wait(timeout=max(seconds, 0.0))
        except subprocess.TimeoutExpired:
            process.terminate()  # it ends its workers and keeps its records
        try:
            process.wait(timeout=LAST_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
    return None


if __name__ == "__main__":
    main()
