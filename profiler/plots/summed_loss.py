"""Peak memory against the number of micro-batches: a summed loss, a backward each, and the whole batch at once."""

from __future__ import annotations

from matplotlib.axes import Axes

from profiler.outcomes import Strategy
from profiler.plots import axes
from profiler.plots.axes import BLUE, GREEN, INK, VERMILLION
from profiler.plots.labels import ABOVE, BELOW, LEFT, RIGHT, Label, place_labels
from profiler.records import Frame

# The whole batch and the summed loss take nearly the same memory, so the first is drawn broad, and below the second.
_STRATEGIES = {
    Strategy.WHOLE_BATCH: ("whole batch", BLUE, "^", 12, 6),
    Strategy.SUMMED_LOSS: ("summed loss", VERMILLION, "s", 7, 2),
    Strategy.ACCUMULATION: ("a backward each", GREEN, "o", 7, 2),
}
# A text between two rows of out-of-memory marks could belong to either, so beside comes before above and below.
_BESIDE = (*RIGHT, *LEFT, *BELOW, *ABOVE)


def plot_summed_loss(ax: Axes, frame: Frame, *, capacity_bytes: int) -> None:
    """Draws `summed_loss_frame`, of one micro-batch size, of which at least one row must have fitted.

    What failed lies in the strip above the capacity, each strategy in a row of its own.
    """
    fits = axes.where(frame, "outcome", "fits", "fits_after_retry")
    failed = axes.where(frame, "outcome", "out_of_memory", "refused")
    highest = max(axes.numbers(fits, "peak_bytes"))
    axes.size_axis(ax, axes.numbers(frame, "accumulation_steps"))
    failing = [strategy for strategy in _STRATEGIES if not axes.where(failed, "strategy", strategy).empty]
    rows = axes.memory_axis(ax, highest, capacity_bytes, rows=len(failing))
    heights = dict(zip(failing, rows, strict=True))
    axes.style(ax, _title(fits, failed))
    ax.set_xlabel(f"micro-batches of {axes.samples(frame['micro_batch_size'].iloc[0])}")

    labels: list[Label] = []
    for strategy, (name, color, marker, size, line) in _STRATEGIES.items():
        points = axes.points(axes.where(fits, "strategy", strategy), "accumulation_steps", "peak_bytes")
        counts = axes.numbers(axes.where(failed, "strategy", strategy), "accumulation_steps")
        crosses = [(count, heights[strategy]) for count in counts]
        axes.draw(ax, points, color, marker, size=size, line=line)
        axes.draw(ax, crosses, color, "x")
        if points or crosses:
            text = name + (f" fails at {min(counts):,.0f}" if counts else "")
            # With few micro-batches the lines still lie together, and a text there could belong to any.
            spots = (*reversed(points[len(points) // 2 :]), *crosses)
            labels.append(Label(text=text, points=spots, color=INK[color], directions=_BESIDE))
    labels.append(axes.capacity_label(ax, highest, capacity_bytes))
    place_labels(ax, reversed(labels), fontsize=axes.FONT_POINTS)


def _title(fits: Frame, failed: Frame) -> str:
    """What the comparison found, in one line."""
    failing = axes.numbers(axes.where(failed, "strategy", Strategy.SUMMED_LOSS), "accumulation_steps")
    if failing:
        return f"Summed loss fails at {min(failing):,.0f} micro-batch{'es' if min(failing) > 1 else ''}"
    summed, each = (
        dict(axes.points(axes.where(fits, "strategy", strategy), "accumulation_steps", "peak_bytes"))
        for strategy in (Strategy.SUMMED_LOSS, Strategy.ACCUMULATION)
    )
    most = max(summed.keys() & each.keys(), default=None)
    if most is None:
        return "Peak memory of one optimizer step"
    return f"Summed loss takes {summed[most] / each[most]:,.1f} times the memory"
