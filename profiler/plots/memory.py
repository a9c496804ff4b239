"""Peak memory against the size of a micro-batch, or of a batch of evaluation: what fits, what does not, and what one more sample costs."""

from __future__ import annotations

from matplotlib.axes import Axes

from profiler.plots import axes
from profiler.plots.axes import BLUE, GREEN, GREY, INK, VERMILLION
from profiler.plots.labels import BELOW, LEFT, RIGHT, Label, Point, place_labels
from profiler.records import Frame
from profiler.units import format_bytes

# How far the axis goes on beyond the last size that matters.
MARGIN = 1.15


def plot_memory(
    ax: Axes,
    frame: Frame,
    *,
    capacity_bytes: int,
    headroom: float,
    chosen: int | None = None,
    size: str = "micro-batch size",
) -> None:
    """Draws `trials_frame`, of which at least one row must have fitted; `chosen` is the plan's micro-batch size.

    headroom: the share of the capacity that a plan leaves; 0 where there is no plan to be. size: names the lower axis.
    What failed lies in the strip above the capacity, where height means nothing; the label counts what lies
    beyond the axis. The grey line is the frame's `line_bytes`. Hollow points fitted only after allocator retries.
    """
    clean = axes.points(axes.where(frame, "outcome", "fits"), "micro_batch_size", "peak_bytes")
    retried = axes.points(axes.where(frame, "outcome", "fits_after_retry"), "micro_batch_size", "peak_bytes")
    full = axes.numbers(axes.where(frame, "outcome", "out_of_memory"), "micro_batch_size")
    misfits = sorted([*full, *axes.numbers(axes.where(frame, "outcome", "refused"), "micro_batch_size")])
    line = sorted(set(axes.points(frame.dropna(subset="line_bytes"), "micro_batch_size", "line_bytes")))
    peaks = dict([*clean, *retried])
    largest, highest = max(peaks), max(peaks.values())

    _size_axis(ax, largest, misfits, size)
    heights = axes.memory_axis(ax, highest, capacity_bytes, rows=1 if misfits else 0)
    crosses = [(size, heights[0]) for size in misfits]
    tail = "(larger ones cannot be run)" if misfits else "(no larger size was tried)"
    tail = f"in {format_bytes(capacity_bytes)}" if full else tail
    axes.style(ax, f"{axes.samples(largest)} fit{'s' if largest == 1 else ''} {tail}")
    axes.draw(ax, line, GREY, line=1.5)
    axes.draw(ax, clean, BLUE, "o")
    axes.draw(ax, retried, BLUE, "o", hollow=True)
    axes.draw(ax, crosses, VERMILLION, "x")
    if chosen in peaks:
        axes.draw_ring(ax, (chosen, peaks[chosen]))

    why = "out of memory" if misfits and misfits[0] in full else "cannot be run"
    labels = [*_edge_label(ax, crosses, why), axes.capacity_label(ax, highest, capacity_bytes)]
    labels += _size_labels(peaks, largest, "fits after retries" if largest in dict(retried) else "fits", chosen)
    labels += _headroom_label(ax, capacity_bytes, headroom) + _slope_label(ax, line)
    place_labels(ax, labels, fontsize=axes.FONT_POINTS)


def _size_axis(ax: Axes, largest: float, misfits: list[float], name: str) -> None:
    """A linear axis, on which memory is a line, up to a little beyond the edge."""
    edge = next((size for size in misfits if size > largest), largest)
    right = max(MARGIN * edge, largest + 1)
    right = max(right, *(1.03 * size for size in misfits if size <= right), 0)
    ax.set_xlim(-0.02 * right, right)
    ax.xaxis.set_major_locator(axes.linear_ticks(integer=True))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.set_xlabel(f"{name} (samples)")


def _edge_label(ax: Axes, crosses: list[Point], why: str) -> list[Label]:
    """Names the smallest size that failed, and counts those beyond the axis."""
    if not crosses:
        return []
    hidden = sum(size > ax.get_xlim()[1] for size, _ in crosses)
    text = f"{crosses[0][0]:,.0f} {why}" + (f", {hidden} larger too" if hidden else "")
    return [Label(text=text, points=(crosses[0],), color=INK[VERMILLION], directions=(*LEFT, *BELOW))]


def _size_labels(peaks: dict[float, float], largest: float, word: str, chosen: int | None) -> list[Label]:
    """Names the largest size that fitted and the plan's; one label where they are the same."""
    words = {largest: [word]}
    if chosen in peaks:
        words.setdefault(chosen, []).append("chosen")
    return [
        Label(
            text=f"{size:,.0f} {', '.join(said)}",
            points=((size, peaks[size]),),
            color=INK[GREEN if size == chosen else BLUE],
            directions=(*BELOW, *RIGHT, *LEFT),
        )
        for size, said in words.items()
    ]


def _headroom_label(ax: Axes, capacity_bytes: int, headroom: float) -> list[Label]:
    """Draws and names the line that a plan stays under, where the axis reaches up to it."""
    limit = capacity_bytes * (1 - headroom)
    if headroom == 0 or limit > ax.get_ylim()[1]:
        return []
    ax.axhline(limit, color="black", linewidth=1, linestyle=(0, (5, 3)))
    return [
        Label(text=f"{headroom * 100:.3g} % headroom", points=axes.along(ax, limit), color="black", directions=BELOW)
    ]


def _slope_label(ax: Axes, line: list[Point]) -> list[Label]:
    """Names what the line says a sample costs."""
    if not line:
        return []
    (first, first_bytes), (last, last_bytes) = line[0], line[-1]
    slope = (last_bytes - first_bytes) / (last - first)
    inside = [(size, first_bytes + slope * (size - first)) for size, _ in axes.along(ax, 0)]
    return [Label(text=f"{format_bytes(slope)} a sample", points=tuple(inside), color=INK[GREY], directions=BELOW)]
