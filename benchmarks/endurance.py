"""Whether a process that searches again and again grows: its memory, descriptors, children, threads and temporary files.

Two hundred searches of a tiny workload in this process (isolation="none"), then two hundred in workers (isolation="process"), each with
fork servers of its own; each runs out of memory at least once. Counted after the first twenty, when everything is loaded, and
every twenty from there. Writes results/endurance_cpu/: table.csv, environment.json, command.txt.

    python -m benchmarks.endurance [--searches 200]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.csv_rows import lines_to_csv
from profiler import Workload
from profiler.devices.cpu import CpuDevice
from profiler.devices.glibc import heap_usage
from profiler.events import unobserved
from profiler.finder import find_largest
from profiler.opening import open_prober
from profiler.options import Options
from profiler.report import RunInfo
from profiler.units import MIB

WIDTH = 2**16
LIMIT = 4 * MIB
EVERY = 20
# What a count may be larger by at the end; every other one by nothing.
ALLOWED = {"data_bytes": 8 * MIB, "allocated_bytes": MIB}
FOLDER = Path("results/endurance_cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a process holds: private writable memory (VmData), what of it malloc has given out, and the number of the rest.

    Holes in the heap come and go with the order in which blocks are freed, and move data_bytes by some MiB; what leaks is
    given out for ever. allocated_bytes: 0 where the C library does not tell.
    """

    data_bytes: int
    allocated_bytes: int
    descriptors: int
    children: int
    threads: int
    temporary_files: int

    @classmethod
    def now(cls) -> Held:
        """What is held after everything that can be given back was given back."""
        gc.collect()
        CpuDevice().release()
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return cls(
            data_bytes=int(status["VmData"].split()[0]) * 1024,
            allocated_bytes=heap_usage().allocated_bytes or 0,
            descriptors=len(os.listdir("/proc/self/fd")),  # noqa: PTH208 - one descriptor more, and always the same one
            children=_children(),
            threads=threading.active_count(),
            temporary_files=len(list(Path(tempfile.gettempdir()).iterdir())),
        )


def _children() -> int:
    """Children of this process, those that ended and were not waited for among them."""
    parents = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents.append(int(stat.read_text(errors="replace").rpartition(")")[2].split()[1]))
        except OSError:
            continue
    return parents.count(os.getpid())


class Scale(nn.Module):
    """A quarter of a MiB of parameters, and as much a sample; one or two samples fit in LIMIT."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, batch: Tensor) -> Tensor:
        return batch * self.weight


def rows(size: int) -> Tensor:
    """A quarter of a MiB a sample."""
    return torch.ones(size, WIDTH)


def squares(model: nn.Module, batch: Tensor) -> Tensor:
    """A loss."""
    outputs: Tensor = model(batch)
    return outputs.square().mean()


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """An optimizer without state."""
    return torch.optim.SGD(parameters, lr=0.001)


def tiny() -> Workload:
    """A workload whose search takes a few trials of some milliseconds."""
    return Workload(model=Scale, make_batch=rows, loss=squares, optimizer=sgd, name="tiny")


def search(isolation: str) -> RunInfo:
    """One search, from the opening of its workers to their end; it runs out of memory at least once."""
    options = Options(device="cpu", memory_limit=LIMIT, isolation=isolation)  # type: ignore[arg-type]
    with open_prober(tiny(), options, unobserved) as (prober, run):
        finding = find_largest(prober)
    assert finding.limited_by == "memory", finding
    return run


def measured(count: int, isolation: str, told: Callable[[int, Held], None]) -> RunInfo:
    """`count` searches; tells what is held after every EVERY of them."""
    run: RunInfo | None = None
    for number in range(1, count + 1):
        run = search(isolation)
        if number == 1:  # every trial here collects garbage, and need not look for it in all that was imported
            gc.freeze()
        if number % EVERY == 0:
            told(number, Held.now())
    assert run is not None, "at least one search"
    return run


def main() -> None:
    """Measure, print and write the table; exit with 1 where anything grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=int, default=200)
    parser.add_argument("--output", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as own:  # other processes leave files in the system's
        os.environ["TMPDIR"] = tempfile.tempdir = own
        grew = endure(arguments)
    raise SystemExit(1 if grew else 0)


def endure(arguments: argparse.Namespace) -> list[str]:
    """Measure, print and write the table; what grew."""
    rows: list[dict[str, object]] = []
    environment: dict[str, str] = {}
    for isolation in ("none", "process"):
        start = time.monotonic()

        def told(number: int, held: Held, isolation: str = isolation, start: float = start) -> None:
            rows.append({"isolation": isolation, "searches": number, **asdict(held)})
            print(rows[-1], f"{time.monotonic() - start:.0f} s", flush=True)

        environment = dict(measured(arguments.searches, isolation, told).environment)
    write(rows, environment, arguments)
    return grown(rows)


def grown(rows: list[dict[str, object]]) -> list[str]:
    """The counts that were larger at the end than after the first EVERY searches; memory by more than ALLOWED."""
    found = []
    for isolation in ("none", "process"):
        first, *_, last = [row for row in rows if row["isolation"] == isolation]
        found += [
            f"{isolation}: {column} grew from {first[column]} to {last[column]}"
            for column in (field.name for field in fields(Held))
            if int(str(last[column])) - int(str(first[column])) > ALLOWED.get(column, 0)
        ]
    print("\n".join(found) or "nothing grew")
    return found


def write(rows: list[dict[str, object]], environment: dict[str, str], arguments: argparse.Namespace) -> None:
    """The table as CSV, with environment and command beside it."""
    folder: Path = arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.csv").write_text(lines_to_csv(list(rows[0]), rows))
    (folder / "environment.json").write_text(json.dumps(environment, indent=2) + "\n")
    (folder / "command.txt").write_text(f"python -m benchmarks.endurance --searches {arguments.searches}\n")


if __name__ == "__main__":
    main()
