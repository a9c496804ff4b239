"""Measured runs, what was predicted of them, and what both say together; pure."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from math import ceil
from statistics import median
from typing import Any

from benchmarks import csv_rows

FIT, CHECK, ALL = "fit", "check", "all"
OURS = "microbatch"
ESTIMATORS = ("xmem", "dnnmem", "schedtune", "llmem")
# Models whose runs constants are fitted on; all others only check them. Decided before any run was simulated: every second
# one in the alphabet, among networks for images and among language models, from the first on.
FIT_MODELS = frozenset(
    {
        *("ConvNeXtTiny", "MobeNetV3Small", "RegNetX400MF", "VGG16"),
        *("distilbert/distilgpt2", "facebook/opt-125m", "Qwen/Qwen3-4B"),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A training run that others measured; see benchmarks/prediction_data/README.md. None is what is unknown.

    real_oom: whether it ran out of memory; then `ground_bytes` is no peak. estimates: of the published estimators, in
    bytes. estimated_oom: their decisions.
    """

    model: str
    optimizer: str
    batch_size: int
    zero_grad_mode: int | None
    gpu: str
    total_bytes: int
    real_oom: bool
    ground_bytes: int
    estimates: Mapping[str, float]
    estimated_oom: Mapping[str, bool]

    @property
    def part(self) -> str:
        """Whether constants are fitted on it, or it checks them."""
        return FIT if self.model in FIT_MODELS else CHECK


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """What a run came to on the simulated card.

    reserved_bytes, allocated_bytes: the peaks without a limit. within_bytes: the reserved peak within `capacity_bytes`, None
    where it runs out of memory there.
    """

    reserved_bytes: int
    allocated_bytes: int
    capacity_bytes: int
    within_bytes: int | None
    seconds: float

    @property
    def peak_bytes(self) -> int:
        """The reserved peak on the card; without its limit, where it runs out of memory."""
        return self.reserved_bytes if self.within_bytes is None else self.within_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A run beside its prediction. error: signed, relative to the measured peak; None where the run ran out of memory.

    residual_bytes: the measured less the simulated peak, before the card's constant, None likewise. mode: where gradients
    were set to None in the simulation. other_reserved_bytes: the reserved peak of runs of unknown mode had it been 1.
    """

    model: str
    optimizer: str
    batch_size: int
    zero_grad_mode: int | None
    gpu: str
    part: str
    total_bytes: int
    real_oom: bool
    ground_bytes: int
    mode: int
    reserved_bytes: int
    allocated_bytes: int
    capacity_bytes: int
    other_reserved_bytes: int | None
    residual_bytes: int | None
    constant_bytes: int
    predicted_bytes: int
    predicted_oom: bool
    error: float | None
    is_right: bool
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How well an estimator does. Errors are over the runs that it gives a peak for and that ran; decisions over all it
    judged. None without any.
    """

    estimator: str
    peaks: int
    median_error: float | None
    high_error: float | None
    judged: int
    wrong: int


def runs_of(table: str) -> list[Run]:
    """The runs of the published table."""
    return [_run(line) for line in csv.DictReader(StringIO(table))]


def _run(line: Mapping[str, str]) -> Run:
    estimates: dict[str, float] = {}
    decisions: dict[str, bool] = {}
    total_bytes = int(line["total_bytes"])
    for name in ESTIMATORS:
        text = line[f"{name}_bytes"]
        if not text:
            continue
        value = float(text)
        # -1 is a model that the estimator does not know, which its authors' comparison counts as running out of memory.
        decisions[name] = line["xmem_oom"] == "true" if name == "xmem" else value < 0 or value > total_bytes
        if value >= 0 and not (name == "xmem" and decisions[name]):
            estimates[name] = value
    return Run(
        model=line["model"],
        optimizer=line["optimizer"],
        batch_size=int(line["batch_size"]),
        zero_grad_mode=int(line["zero_grad_mode"]) if line["zero_grad_mode"] else None,
        gpu=line["gpu"],
        total_bytes=total_bytes,
        real_oom=line["real_oom"] == "true",
        ground_bytes=int(line["ground_bytes"]),
        estimates=estimates,
        estimated_oom=decisions,
    )


def constants(runs: Sequence[Run], simulated: Sequence[Simulated]) -> dict[str, int]:
    """For each card, the median of what was measured beyond the simulated peak, over runs of the part that is fitted.

    It stands for what the driver loads later, so it is never below 0; and 0 where the runs are of one model alone, whose
    constant it would be.
    """
    residuals: dict[str, list[int]] = {}
    models: dict[str, set[str]] = {}
    for run, result in zip(runs, simulated, strict=True):
        residuals.setdefault(run.gpu, [])
        if run.part == FIT and not run.real_oom:
            residuals[run.gpu].append(run.ground_bytes - result.peak_bytes)
            models.setdefault(run.gpu, set()).add(run.model)
    return {
        gpu: max(0, round(median(values))) if len(models.get(gpu, ())) > 1 else 0 for gpu, values in residuals.items()
    }


def row_of(
    run: Run, result: Simulated, constant_bytes: int, *, mode: int, other_reserved_bytes: int | None = None
) -> Row:
    """The run beside its prediction, with what the driver loads on that card."""
    predicted = result.peak_bytes + constant_bytes
    predicted_oom = result.within_bytes is None
    return Row(
        model=run.model,
        optimizer=run.optimizer,
        batch_size=run.batch_size,
        zero_grad_mode=run.zero_grad_mode,
        gpu=run.gpu,
        part=run.part,
        total_bytes=run.total_bytes,
        real_oom=run.real_oom,
        ground_bytes=run.ground_bytes,
        mode=mode,
        reserved_bytes=result.reserved_bytes,
        allocated_bytes=result.allocated_bytes,
        capacity_bytes=result.capacity_bytes,
        other_reserved_bytes=other_reserved_bytes,
        residual_bytes=None if run.real_oom else run.ground_bytes - result.peak_bytes,
        constant_bytes=constant_bytes,
        predicted_bytes=predicted,
        predicted_oom=predicted_oom,
        error=None if run.real_oom else predicted / run.ground_bytes - 1,
        is_right=predicted_oom == run.real_oom,
        seconds=result.seconds,
    )


def to_csv(rows: Sequence[Row]) -> str:
    """The table; None is an empty cell."""
    return csv_rows.to_csv(Row, rows)


def from_csv(table: str) -> list[Row]:
    """The rows of such a table."""
    return csv_rows.from_csv(Row, table)


def score(estimator: str, pairs: Iterable[tuple[float | None, bool | None]]) -> Score:
    """From a pair for each run: the signed error of its peak, and whether the decision was right; None is none."""
    pairs = list(pairs)
    errors = sorted(abs(error) for error, _ in pairs if error is not None)
    judged = [right for _, right in pairs if right is not None]
    return Score(
        estimator=estimator,
        peaks=len(errors),
        median_error=median(errors) if errors else None,
        # The least error that nine tenths of the runs do not exceed.
        high_error=errors[ceil(0.9 * len(errors)) - 1] if errors else None,
        judged=len(judged),
        wrong=sum(not right for right in judged),
    )


def scores(rows: Sequence[Row], runs: Sequence[Run]) -> list[Score]:
    """Ours, and each published estimator's on the same runs."""
    ours = score(OURS, ((row.error, row.is_right) for row in rows))
    return [ours, *(score(name, (_published(name, run) for run in runs)) for name in ESTIMATORS)]


def _published(name: str, run: Run) -> tuple[float | None, bool | None]:
    estimate, decision = run.estimates.get(name), run.estimated_oom.get(name)
    error = None if estimate is None or run.real_oom else estimate / run.ground_bytes - 1
    return error, None if decision is None else decision == run.real_oom


def summary_csv(rows: Sequence[Row], runs: Sequence[Run]) -> str:
    """Scores of every estimator: over all runs, by part, and by model and by optimizer of each part; ours signed too."""
    keys = {(part, model, optimizer) for row in rows for part, model, optimizer in _groups(row)}
    lines: list[dict[str, Any]] = []
    for part, model, optimizer in sorted(keys):
        chosen = [index for index, row in enumerate(rows) if (part, model, optimizer) in _groups(row)]
        signed = [row.error for row in (rows[index] for index in chosen) if row.error is not None]
        key = {"part": part, "model": model, "optimizer": optimizer}
        lines += [
            {**key, **asdict(found), "median_signed_error": _median(signed) if found.estimator == OURS else None}
            for found in scores([rows[index] for index in chosen], [runs[index] for index in chosen])
        ]
    return csv_rows.lines_to_csv(list(lines[0]), lines)


def _groups(row: Row) -> list[tuple[str, str, str]]:
    part, model, optimizer = row.part, row.model, row.optimizer
    return [(ALL, ALL, ALL), (part, ALL, ALL), (part, model, ALL), (part, ALL, optimizer)]


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None
