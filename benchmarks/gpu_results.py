"""What `benchmarks.gpu` leaves: a summary with a row for each budget, what the results depend on, one archive."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import sys
import tarfile
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.csv_rows import from_csv, to_csv
from profiler.devices.nvml import Nvml
from profiler.run_folder import safe_name

RESULTS = Path("results")
ARCHIVE = "gpu_results.tar.gz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One workload under one budget. Of a search alone there is no plan, and nothing is timed: None."""

    part: str
    workload: str
    precision: str
    budget: str
    capacity_bytes: int
    largest_fit: int
    smallest_misfit: int | None
    largest_fit_peak_bytes: int | None
    search_trials: int
    out_of_memory: int
    search_seconds: float
    plan: str | None
    plan_peak_bytes: int | None
    plan_step_seconds: float | None
    samples_per_second: float | None
    joules_per_sample: float | None


def row_of(document: dict[str, Any], *, part: str, precision: str, budget: str) -> Row:
    """The summary of a document that `--json` prints."""
    plan = document["plan"] or {}
    sizes = plan.get("micro_batch_sizes", [])
    timed: dict[str, Any] = next(
        (entry for entry in document["throughput"] if entry["micro_batch_size"] in sizes[:1]), {}
    )
    trials = [trial for trial in document["trials"] if trial["micro_batch_size"] == document["largest_fit"]]
    return Row(
        part=part,
        workload=document["workload"],
        precision=precision,
        budget=budget,
        capacity_bytes=document["capacity_bytes"],
        largest_fit=document["largest_fit"],
        smallest_misfit=document["smallest_misfit"],
        largest_fit_peak_bytes=trials[0]["peak_bytes"] if trials else None,
        search_trials=document["search"]["trials"],
        out_of_memory=document["search"]["out_of_memory"],
        search_seconds=document["search"]["seconds"],
        plan=" + ".join(f"{len(list(same))} x {size}" for size, same in groupby(sizes)) or None,
        plan_peak_bytes=plan.get("peak_bytes"),
        plan_step_seconds=plan.get("step_seconds"),
        samples_per_second=timed.get("samples_per_second"),
        joules_per_sample=timed.get("joules_per_sample"),
    )


def keep(folder: Path, row: Row) -> None:
    """Put `row` into the summary, in the place of an earlier one of the same part and budget."""
    path = folder / "summary.csv"
    rows = from_csv(Row, path.read_text()) if path.exists() else []
    others = [old for old in rows if (old.part, old.budget) != (row.part, row.budget)]
    path.write_text(to_csv(Row, [*others, row]))


def this_card(device: str) -> tuple[str, dict[str, Any]]:
    """The card's name for folders ("h100"), and what results depend on; makes no CUDA context."""
    import torch

    properties = torch.cuda.get_device_properties(device)
    # NVML stays open as long as this process lives, which keeps the driver awake from one worker to the next.
    driver = Nvml.for_uuid(str(properties.uuid))
    environment = {
        "card": properties.name,
        "total_bytes": properties.total_memory,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "driver": driver.driver_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "command": shlex.join(["python", "-m", "benchmarks.gpu", *sys.argv[1:]]),
    }
    return card_name(properties.name), environment


def card_name(description: str) -> str:
    """A short name for folders: "NVIDIA H100 80GB HBM3" is "h100", "NVIDIA GeForce RTX 4090" is "rtx-4090"."""
    model = re.search(r"(?:[GR]TX )?[A-Z]*\d+\w*", description)
    return safe_name((model[0] if model else description).lower())


def how_ended(status: int | None) -> str:
    """A command's exit status in words; None where it was ended."""
    return "ended at its time limit" if status is None else f"exit status {status}"


def pack(card: str) -> None:
    """All results of this card as one archive."""
    target = Path(os.environ.get("OUT") or RESULTS) / ARCHIVE
    unfinished = target.with_name(f"{ARCHIVE}.part")
    with tarfile.open(unfinished, "w:gz") as archive:
        for folder in sorted(RESULTS.glob(f"*_{card}")):
            archive.add(folder)
    unfinished.replace(target)


def json_bytes(value: Any) -> bytes:
    """`value` as a file's content."""
    return (json.dumps(value, indent=2) + "\n").encode()


def read_json(path: Path) -> dict[str, Any]:
    """The object in that file; empty where there is none, or not a whole one."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
