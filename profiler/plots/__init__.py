"""Figures of a run's records; the only package that imports matplotlib.

`plot_memory`, `plot_throughput`, `plot_summed_loss` and `plot_soak` draw a frame of `profiler.records` on the axes that
they are given and set no global style. `save_figures` writes them, each with its frame as CSV beside it.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from profiler.files import replace_file
from profiler.plots.memory import plot_memory
from profiler.plots.soak import plot_soak
from profiler.plots.summed_loss import plot_summed_loss
from profiler.plots.throughput import plot_throughput
from profiler.records import Frame, Records, records_of, soak_frame, summed_loss_frame, throughput_frame, trials_frame
from profiler.report import Report

__all__ = ["plot_memory", "plot_soak", "plot_summed_loss", "plot_throughput", "save_figures"]

# 840 x 600 pixels: at half of that, the width of half a README, the smallest text is still 12 pixels high.
SIZE_INCHES = (5.6, 4.0)
DOTS_PER_INCH = 150


def save_figures(results: Report | Records, folder: Path) -> list[Path]:
    """Writes memory, evaluation, throughput, summed_loss and soak (.png and the CSV behind each) into `folder`; the paths.

    A figure that has nothing to show is left out, with its CSV: memory and evaluation where no size fitted or only one was
    tried and not searched for, throughput without a timing, summed loss without a comparison, a soak without a step that
    ended.
    Raises UsageError where a file cannot be written.
    """
    records = records_of(results)
    chosen = records.plan.micro_batch_sizes[0] if records.plan else None
    capacity, headroom = records.run.capacity_bytes, records.run.headroom
    paths = []
    if _shows_memory(records):
        frame, (figure, ax) = trials_frame(records), _figure()
        plot_memory(ax, frame, capacity_bytes=capacity, headroom=headroom, chosen=chosen)
        _say_predicted(ax, records)
        paths += _save(figure, frame, folder / "memory")
    if _shows_memory(records.of_evaluation):
        frame, (figure, ax) = trials_frame(records.of_evaluation), _figure()
        plot_memory(ax, frame, capacity_bytes=capacity, headroom=0, size="batch size in evaluation")
        _say_predicted(ax, records)
        paths += _save(figure, frame, folder / "evaluation")
    if records.throughput:
        frame, (figure, ax) = throughput_frame(records), _figure()
        plot_throughput(ax, frame, chosen=chosen)
        paths += _save(figure, frame, folder / "throughput")
    if any(trial.fits for trial in records.comparison):
        frame, (figure, ax) = summed_loss_frame(records), _figure()
        plot_summed_loss(ax, frame, capacity_bytes=capacity)
        _say_predicted(ax, records)
        paths += _save(figure, frame, folder / "summed_loss")
    if records.soak and records.soak.points:
        frame, (figure, ax) = soak_frame(records), _figure()
        plot_soak(ax, frame, capacity_bytes=capacity, failed=not records.soak.passed)
        paths += _save(figure, frame, folder / "soak")
    return paths


def _shows_memory(records: Records) -> bool:
    return any(trial.fits for trial in records.trials) and bool(records.finding or len(records.trials) > 1)


def _say_predicted(ax: Axes, records: Records) -> None:
    if records.run.is_simulated:
        ax.set_ylabel(f"predicted {ax.get_ylabel()}")


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE_INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _save(figure: Figure, frame: Frame, stem: Path) -> list[Path]:
    """Writes the figure and the frame behind it."""
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=DOTS_PER_INCH)
    table = frame.to_csv(index=False, lineterminator="\n").encode()
    return [
        replace_file(stem.with_suffix(".png"), picture.getvalue()),
        replace_file(stem.with_suffix(".csv"), table),
    ]
