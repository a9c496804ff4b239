"""How every figure looks: colours, marks, and axes in samples and bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil, floor, log2

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from profiler.plots.labels import ABOVE, BELOW, Label, Point
from profiler.records import Frame
from profiler.units import GIB, KIB, MIB, format_bytes

# Okabe and Ito's colours, which stay apart for every kind of colour blindness; grey for what was not measured.
BLUE, VERMILLION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
# The same hues for text, dark enough to be read.
INK = {BLUE: "#005A8E", VERMILLION: "#A84A00", GREEN: "#00694D", GREY: "#505050"}

FONT_POINTS = 12
TITLE_POINTS = 13

# Where the highest peak is a smaller share of the capacity than this, a figure ends above the peaks.
SMALL_SHARE = 0.5
# The height, as a share of the capacity, of a row of text or of out-of-memory marks above it.
ROW_SHARE = 0.1
# Steps of an axis that read well.
STEPS = (1, 2, 2.5, 5, 10)
# More ticks than this run into each other at half width.
MOST_TICKS = 7


def where(frame: Frame, column: str, *values: str) -> Frame:
    """The rows whose `column` is one of `values`."""
    return frame[frame[column].isin(values)]


def numbers(frame: Frame, column: str) -> list[float]:
    """A column as plain numbers, in the frame's order."""
    return [float(value) for value in frame[column]]


def points(frame: Frame, x: str, y: str) -> list[Point]:
    """Two columns as points, in the frame's order."""
    return list(zip(numbers(frame, x), numbers(frame, y), strict=True))


def samples(count: float) -> str:
    """`count` samples, in words."""
    return f"{count:,.0f} sample{'' if count == 1 else 's'}"


def style(ax: Axes, title: str) -> None:
    """Title, ticks and grid, and every text in a size that can be read at half width."""
    ax.set_title(title, fontsize=TITLE_POINTS, fontweight="bold", loc="left")
    ax.xaxis.label.set_fontsize(FONT_POINTS)
    ax.yaxis.label.set_fontsize(FONT_POINTS)
    ax.tick_params(labelsize=FONT_POINTS)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(visible=True, color="#E5E5E5", linewidth=0.8)
    ax.set_axisbelow(True)


def draw(
    ax: Axes,
    where: Sequence[Point],
    color: str,
    marker: str = "None",
    *,
    size: float = 7,
    line: float = 0,
    hollow: bool = False,
) -> None:
    """Marks of that size at the points, joined by a line of width `line` if that is not 0; nothing without points."""
    crossed = marker == "x"
    if where:
        ax.plot(
            [x for x, _ in where],
            [y for _, y in where],
            color=color,
            marker=marker,
            markersize=9 if crossed else size,
            markeredgewidth=2.5 if crossed else 1.5,
            markerfacecolor="white" if hollow else color,
            linestyle="-" if line else "None",
            linewidth=line,
        )


def draw_ring(ax: Axes, point: Point) -> None:
    """A ring around the point that was chosen."""
    ax.plot(
        [point[0]],
        [point[1]],
        color=GREEN,
        marker="o",
        markersize=15,
        markeredgewidth=2.5,
        markerfacecolor="None",
        linestyle="None",
    )


def linear_ticks(*, integer: bool = False) -> MaxNLocator:
    """Few enough ticks to be read at half width."""
    return MaxNLocator(nbins=6, steps=STEPS, integer=integer)


def size_axis(ax: Axes, sizes: Iterable[float]) -> None:
    """A logarithmic axis over the sizes, with powers of two as ticks."""
    low, high = min(sizes), max(sizes)
    ax.set_xscale("log", base=2)
    ax.set_xlim(low / 1.4, high * 1.4)
    first, last = ceil(log2(low / 1.4)), floor(log2(high * 1.4))
    step = ceil((last - first + 1) / MOST_TICKS)
    ax.xaxis.set_major_locator(FixedLocator([2.0**power for power in range(first, last + 1, step)]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def memory_axis(ax: Axes, highest_bytes: float, capacity_bytes: int, *, rows: int) -> list[float]:
    """A y axis in bytes from 0 on, with the capacity as a line and a strip above it; the heights of the strip's rows.

    Without rows for out-of-memory marks there is no strip; where the peaks are small too, the axis ends above them.
    """
    if rows or highest_bytes >= SMALL_SHARE * capacity_bytes:
        top = capacity_bytes * (1 + ROW_SHARE * (rows + 1.2))
        ax.axhline(capacity_bytes, color="black", linewidth=1.5)
    else:
        top = 1.35 * highest_bytes
    if rows:
        ax.axhspan(capacity_bytes, top, color=VERMILLION, alpha=0.1, linewidth=0)
    top = max(top, 1.05 * highest_bytes)
    unit, name = memory_unit(top)
    ax.set_ylim(0, top)
    ax.set_ylabel(f"peak memory ({name})")
    ax.yaxis.set_major_locator(FixedLocator([tick * unit for tick in linear_ticks().tick_values(0, top / unit)]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / unit:,.10g}"))
    return [capacity_bytes * (1 + ROW_SHARE * (row + 1.5)) for row in range(rows)]


def memory_unit(top_bytes: float) -> tuple[int, str]:
    """The unit that an axis up to `top_bytes` is best read in."""
    units = ((GIB, "GiB"), (MIB, "MiB"))
    return next(((unit, name) for unit, name in units if top_bytes >= 2 * unit), (KIB, "KiB"))


def capacity_label(ax: Axes, highest_bytes: float, capacity_bytes: int) -> Label:
    """Names the capacity's line, or says how far above the figure it lies."""
    text, top = f"capacity {format_bytes(capacity_bytes)}", ax.get_ylim()[1]
    if capacity_bytes <= top:
        return Label(text=text, points=along(ax, capacity_bytes), color="black", directions=ABOVE)
    ratio = capacity_bytes / highest_bytes
    text += f", {ratio:,.{0 if ratio >= 10 else 1}f} times the peak"
    return Label(text=text, points=along(ax, top), color="black", directions=BELOW)


def along(ax: Axes, height: float) -> tuple[Point, ...]:
    """Points at that height across the axes, from the left."""
    inverse = ax.transAxes + ax.transData.inverted()
    return tuple((float(inverse.transform((share / 20, 0))[0]), float(height)) for share in range(3, 18))
