"""The figure of the predictions: predicted against measured peaks."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from benchmarks.prediction_models import is_cnn
from benchmarks.prediction_rows import CHECK, FIT, Row
from profiler.plots.axes import BLUE, FONT_POINTS, GREEN, VERMILLION, draw, style
from profiler.units import GIB

TICKS = (0.5, 1, 2, 4, 8, 16, 32, 64)
MARKS = {True: ("o", BLUE), False: ("s", GREEN)}
NAMES = {True: "images", False: "text"}
WIDTH = 0.1  # of the band around a perfect prediction


def figure(rows: Sequence[Row]) -> bytes:
    """A PNG: a mark a run, hollow where constants were fitted on it; errors by model on the right."""
    canvas = Figure(figsize=(11, 5.6), dpi=150, layout="constrained")
    FigureCanvasAgg(canvas)
    left, right = canvas.subplots(1, 2)
    _peaks(left, rows)
    _errors(right, rows)
    canvas.legend(handles=_legend(rows), loc="outside lower center", ncols=3, frameon=False, fontsize=FONT_POINTS)
    picture = BytesIO()
    canvas.savefig(picture, format="png")
    return picture.getvalue()


def _peaks(ax: Axes, rows: Sequence[Row]) -> None:
    low = 0.8 * min(min(row.ground_bytes, row.predicted_bytes) for row in rows) / GIB
    high = 1.25 * max(max(row.ground_bytes, row.predicted_bytes) for row in rows) / GIB
    ax.fill_between(
        [low, high], [low * (1 - WIDTH), high * (1 - WIDTH)], [low * (1 + WIDTH), high * (1 + WIDTH)], color="#EEEEEE"
    )
    ax.plot([low, high], [low, high], color="black", linewidth=1.2)
    for row in rows:
        color = VERMILLION if row.real_oom else MARKS[is_cnn(row.model)][1]
        marker = "x" if row.real_oom else MARKS[is_cnn(row.model)][0]
        draw(ax, [(row.ground_bytes / GIB, row.predicted_bytes / GIB)], color, marker, hollow=row.part == FIT)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_minor_locator(NullLocator())
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(low, high)
    ax.set_ylim(low, high)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(FixedLocator([tick for tick in TICKS if low <= tick <= high]))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set_xlabel("measured peak (GiB)")
    ax.set_ylabel("predicted peak (GiB)")
    style(ax, "Predicted and measured, with ± 10 %")


def _errors(ax: Axes, rows: Sequence[Row]) -> None:
    models = sorted(
        {row.model for row in rows if row.error is not None}, key=lambda name: (not is_cnn(name), name.casefold())
    )
    for row in rows:
        if row.error is not None:
            marker, color = MARKS[is_cnn(row.model)]
            draw(ax, [(100 * row.error, models.index(row.model))], color, marker, hollow=row.part == FIT)
    ax.axvline(0, color="black", linewidth=1.2)
    ax.set_yticks(range(len(models)), [name.split("/")[-1] for name in models])
    ax.set_ylim(len(models) - 0.5, -0.5)
    ax.set_xlabel("predicted less measured (%)")
    style(ax, "The error, by model")


def _legend(rows: Sequence[Row]) -> list[Line2D]:
    handles = []
    for cnn, part in ((True, FIT), (True, CHECK), (False, FIT), (False, CHECK)):
        if any(is_cnn(row.model) == cnn and row.part == part for row in rows):
            marker, color = MARKS[cnn]
            handles.append(
                Line2D(
                    [],
                    [],
                    marker=marker,
                    color=color,
                    linestyle="None",
                    markersize=8,
                    markerfacecolor="white" if part == FIT else color,
                    label=f"{NAMES[cnn]}, {'constants fitted on them' if part == FIT else 'models not fitted on'}",
                )
            )
    if any(row.real_oom for row in rows):
        handles.append(
            Line2D(
                [], [], marker="x", color=VERMILLION, linestyle="None", markersize=9, label="ran out of memory: no peak"
            )
        )
    return handles
