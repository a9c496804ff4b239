"""Memory over the optimizer steps of a soak: whether it still grows, and what is held for nothing."""

from __future__ import annotations

from matplotlib.axes import Axes

from profiler.plots import axes
from profiler.plots.axes import BLUE, GREEN, INK, VERMILLION
from profiler.plots.labels import ABOVE, BELOW, LEFT, RIGHT, Label, Point, place_labels
from profiler.records import Frame
from profiler.units import format_bytes

# column -> name, colour, width of the line
_LINES = {
    "peak_bytes": ("peak so far", BLUE, 2.5),
    "reserved_bytes": ("held after a step", VERMILLION, 1.5),
    "allocated_bytes": ("in use after a step", GREEN, 1.5),
}


def plot_soak(ax: Axes, frame: Frame, *, capacity_bytes: int, failed: bool = False) -> None:
    """Draws `soak_frame`, which must have a row; `failed` says that the soak did not pass.

    Lines are the peak since the first step, and what the allocator held and had in use at the ends of steps.
    """
    steps, peaks = axes.numbers(frame, "step"), axes.numbers(frame, "peak_bytes")
    last, highest = steps[-1], max(peaks)
    # A short soak that failed early is no reason for an axis of no width.
    ax.set_xlim(0, max(1.04 * last, last + 1))
    ax.xaxis.set_major_locator(axes.linear_ticks(integer=True))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.set_xlabel("optimizer steps")
    axes.memory_axis(ax, highest, capacity_bytes, rows=0)
    unit_label = ax.get_ylabel().removeprefix("peak ")
    ax.set_ylabel(unit_label)
    grown = f"{format_bytes(peaks[0])} to {format_bytes(highest)}"
    title = f"Out of memory after {last:,.0f} step{'' if last == 1 else 's'}"
    axes.style(ax, title if failed else f"{last:,.0f} step{'' if last == 1 else 's'}: {_growth(peaks, grown)}")

    labels: list[Label] = []
    for column, (name, color, width) in _LINES.items():
        points = axes.points(frame.dropna(subset=column), "step", column)
        if points:
            axes.draw(ax, points, color, "o" if len(points) == 1 else "None", line=width)
            labels.append(_label(name, points, color))
    labels.append(axes.capacity_label(ax, highest, capacity_bytes))
    place_labels(ax, labels, fontsize=axes.FONT_POINTS)


def _growth(peaks: list[float], grown: str) -> str:
    return f"peak {grown}" if format_bytes(peaks[0]) != format_bytes(max(peaks)) else f"peak {format_bytes(peaks[0])}"


def _label(name: str, points: list[Point], color: str) -> Label:
    """Beside the later half of the line, where the lines lie apart."""
    spots = tuple(points[len(points) // 2 :: max(1, len(points) // 20)])
    return Label(text=name, points=spots, color=INK[color], directions=(*ABOVE, *BELOW, *LEFT, *RIGHT))
