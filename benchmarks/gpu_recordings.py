"""Recordings of the real CUDA caching allocator, and whether the model of it does the same to the byte. Not yet run on a GPU.

Each recording is a sizing trial's steps (two optimizer steps, the second of two micro-batches) in a process of its own, with
_record_memory_history on from before the first allocation: a small size, a larger one, and the larger one again with less
memory than the allocator reserved for it, so that it has to release segments or runs out. Active bytes are read from the
allocator's counters after every operation. What cannot be read is kept raw beside it, as NAME.failed.json.gz.

results/recordings_<card>/  NAME.jsonl.gz for each (copied to tests/data/recordings/, tests/unit/test_recordings.py replays
                            them), table.csv, command.txt, environment.json

    python -m benchmarks.gpu_recordings --output FOLDER [--seconds 100] [TARGET ...]
"""

from __future__ import annotations

import argparse
import gzip
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from benchmarks.csv_rows import from_csv, to_csv
from benchmarks.gpu_results import json_bytes, this_card
from profiler.devices import open_device
from profiler.errors import DeviceUnavailable
from profiler.files import replace_file
from profiler.run_folder import safe_name
from profiler.simulation.recordings import first_difference, from_bytes

DEVICE = "cuda:0"
ONE_SECONDS = 60.0
SUFFIX = ".jsonl.gz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A workload of `benchmarks.gpu`, and the two sizes at which it is recorded."""

    target: str
    precision: str
    small: int
    large: int


SUBJECTS = (
    Subject(target="digits-resnet", precision="fp32", small=8, large=64),
    Subject(target="hf:gpt2", precision="bf16", small=1, large=8),
    Subject(target="torchvision:resnet50", precision="bf16", small=8, large=64),
    Subject(target="timm:vit_base_patch16_224", precision="bf16", small=8, large=64),
    Subject(target="text-gpt", precision="fp32", small=4, large=32),
    Subject(target="digits-cnn", precision="fp32", small=64, large=1024),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A recording and its replay. allowed_bytes: None for all memory. active_read: steps at which active bytes are known.

    ended: how the trial ended where not as planned. difference: the first one, with segments where the driver put them;
    own_difference: with segments where the model puts them. Empty where there is none.
    """

    file: str
    workload: str
    micro_batch_size: int
    precision: str
    allowed_bytes: int | None
    peak_allocated_bytes: int | None
    peak_reserved_bytes: int | None
    ended: str
    steps: int | None = None
    active_read: int | None = None
    refused: int | None = None
    file_bytes: int | None = None
    difference: str = "not recorded"
    own_difference: str = "not recorded"


def main() -> None:
    """One recording with --size, else all of them; status 1 where one is missing or the model does otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="all of them by default")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--size", type=int, help="record this size of the one TARGET into the file OUTPUT, here")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--allowed", type=int, metavar="BYTES")
    arguments = parser.parse_args()
    if arguments.size is not None:
        record_one(arguments.targets[0], arguments.precision, arguments.size, arguments.allowed, arguments.output)
        return
    subjects = [subject for subject in SUBJECTS if subject.target in (arguments.targets or [subject.target])]
    why_not = open_device(DEVICE).why_not()
    if why_not is not None:
        print(f"Nothing was recorded, for {DEVICE} cannot be used: {why_not}")
        sys.exit(DeviceUnavailable.exit_status)
    rows = []
    card, environment = this_card(DEVICE)
    arguments.output.mkdir(parents=True, exist_ok=True)
    replace_file(arguments.output / "environment.json", json_bytes(environment))
    command = shlex.join(["python", "-m", "benchmarks.gpu_recordings", *sys.argv[1:]])
    replace_file(arguments.output / "command.txt", f"{command}\n".encode())
    for row in all_rows(subjects, card, arguments.output, time.monotonic() + arguments.seconds):
        rows.append(row)
        print(f"{row.file}: {row.ended or 'ended as planned'}; {row.difference or 'the same to the byte'}", flush=True)
        write_table(arguments.output / "table.csv", rows)
    same = sum(not row.difference for row in rows)
    print(f"{same} of {3 * len(subjects)} recordings are replayed to the byte")
    sys.exit(0 if same == 3 * len(subjects) else 1)


def all_rows(subjects: list[Subject], card: str, folder: Path, deadline: float) -> Iterator[Row]:
    """Each subject small, large, and large with less memory, as long as there is time."""
    for subject in subjects:
        allowed_bytes: int | None = None
        for size, kind in ((subject.small, ""), (subject.large, ""), (subject.large, "_tight")):
            seconds = min(ONE_SECONDS, deadline - time.monotonic())
            if seconds <= 0 or (kind and allowed_bytes is None):
                continue
            path = folder / f"{safe_name(subject.target)}_{size}{kind}_{card}{SUFFIX}"
            row = row_of(subject, size, path, seconds, allowed_bytes if kind else None)
            if row.peak_reserved_bytes is not None and row.peak_allocated_bytes is not None:
                # Between what is needed and what is taken where there is plenty.
                allowed_bytes = (row.peak_allocated_bytes + row.peak_reserved_bytes) // 2
            yield row


def row_of(subject: Subject, size: int, path: Path, seconds: float, allowed_bytes: int | None) -> Row:
    """Records in another process, and replays here."""
    options = ["--size", str(size), "--precision", subject.precision, "--output", str(path)]
    options += [] if allowed_bytes is None else ["--allowed", str(allowed_bytes)]
    command = [sys.executable, "-m", "benchmarks.gpu_recordings", subject.target, *options]
    path.unlink(missing_ok=True)
    try:
        ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=seconds)
        lines, status = ended.stdout.strip().splitlines(), ended.returncode
        error = ended.stderr.strip().rpartition("\n")[2]
    except subprocess.TimeoutExpired:
        lines, status, error = [], -1, f"not done in {seconds:.0f} s"
    said: dict[str, Any] = json.loads(lines[-1]) if status == 0 and lines else {"ended": error or f"status {status}"}
    return Row(
        file=path.name,
        workload=subject.target,
        micro_batch_size=size,
        precision=subject.precision,
        allowed_bytes=allowed_bytes,
        peak_allocated_bytes=said.get("peak_allocated_bytes"),
        peak_reserved_bytes=said.get("peak_reserved_bytes"),
        ended=said["ended"],
        **(replayed(path) if path.exists() else {}),
    )


def replayed(path: Path) -> dict[str, Any]:
    """What the file holds, and where the model first does otherwise."""
    content = path.read_bytes()
    recording = from_bytes(content)
    differences = [first_difference(recording, own_addresses=own) for own in (False, True)]
    words = [
        f"step {found.step}: {found.what} {found.replayed_bytes}, recorded {found.recorded_bytes}" if found else ""
        for found in differences
    ]
    return {
        "steps": len(recording.steps),
        "active_read": sum(step.active_bytes is not None for step in recording.steps),
        "refused": sum(step.kind == "refused" for step in recording.steps),
        "file_bytes": len(content),
        "difference": words[0],
        "own_difference": words[1],
    }


def write_table(path: Path, rows: list[Row]) -> None:
    """The rows so far, in the place of earlier ones of the same files."""
    new = {row.file: row for row in rows}
    old = from_csv(Row, path.read_text()) if path.exists() else []
    path.write_text(to_csv(Row, [*(row for row in old if row.file not in new), *new.values()]))


def record_one(target: str, precision: str, size: int, allowed_bytes: int | None, path: Path) -> None:
    """Records in this process, which must be a fresh one, and prints what came of it as JSON."""
    from benchmarks.gpu_recorder import NotReadable, record
    from profiler.schedules import sizing_schedule
    from profiler.simulation.recordings import to_bytes
    from profiler.switches import Switches
    from profiler.targets import TargetOptions, TargetSource
    from profiler.trial import Setting

    source = TargetSource(target=target, options=TargetOptions(precision=cast(Any, precision)))
    setting = Setting(source=source, device=DEVICE, limit_bytes=None, switches=Switches.of_caller())
    try:
        recorded = record(setting, sizing_schedule(size), allowed_bytes=allowed_bytes)
    except NotReadable as error:
        raw = gzip.compress(json.dumps(error.raw).encode(), mtime=0)
        replace_file(path.with_name(path.name.removesuffix(SUFFIX) + ".failed.json.gz"), raw)
        raise
    replace_file(path, to_bytes(recorded.recording))
    print(
        json.dumps(
            {
                "peak_allocated_bytes": recorded.peak_allocated_bytes,
                "peak_reserved_bytes": recorded.peak_reserved_bytes,
                "ended": recorded.ended,
            }
        )
    )


if __name__ == "__main__":
    main()
