"""Samples a second against micro-batch size: where the speed stops to rise, and what the plan takes."""

from __future__ import annotations

from matplotlib.axes import Axes

from profiler.plots import axes
from profiler.plots.axes import BLUE, GREEN, INK
from profiler.plots.labels import ABOVE, BELOW, LEFT, RIGHT, Label, place_labels
from profiler.records import Frame

# The smallest size that reaches this share of the best speed is the knee.
KNEE_SHARE = 0.95


def plot_throughput(ax: Axes, frame: Frame, *, chosen: int | None = None) -> None:
    """Draws `throughput_frame`, which must have a row: medians, and the quartiles of the windows as bars.

    Named are the fastest size, the knee (the smallest that reaches KNEE_SHARE of its speed), and `chosen`, the plan's.
    """
    points = axes.points(frame, "micro_batch_size", "samples_per_second")
    lows, highs = (axes.numbers(frame, f"samples_per_second_{end}") for end in ("low", "high"))
    rates = dict(points)
    fastest = max(rates, key=lambda size: rates[size])
    knee = min(size for size, rate in rates.items() if rate >= KNEE_SHARE * rates[fastest])

    axes.size_axis(ax, list(rates))
    ax.set_ylim(0, 1.3 * max(highs))
    ax.yaxis.set_major_locator(axes.linear_ticks())
    ax.yaxis.set_major_formatter("{x:,.10g}")
    reach = "reaches" if knee == 1 else "reach"
    axes.style(
        ax,
        f"{axes.samples(knee)} {reach} {KNEE_SHARE * 100:.0f} % of the top speed"
        if knee != fastest
        else f"Fastest with {axes.samples(fastest)}",
    )
    ax.set_xlabel("micro-batch size (samples)")
    ax.set_ylabel("samples/s")

    axes.draw(ax, points, BLUE, "o", line=1.5)
    for (size, _), low, high in zip(points, lows, highs, strict=True):
        axes.draw(ax, [(size, low), (size, high)], BLUE, "_", line=2)
    if chosen in rates:
        axes.draw_ring(ax, (chosen, rates[chosen]))
    place_labels(ax, _labels(rates, fastest, knee, chosen), fontsize=axes.FONT_POINTS)


def _labels(rates: dict[float, float], fastest: float, knee: float, chosen: int | None) -> list[Label]:
    """One label a size that has a part to play, with all its parts."""
    rate = f"{rates[fastest]:,.0f}" if rates[fastest] >= 100 else f"{rates[fastest]:.3g}"
    parts = [(fastest, f"fastest ({rate}/s)"), (chosen, "chosen"), (knee if knee != fastest else None, "knee")]
    words: dict[float, list[str]] = {}
    for size, part in parts:
        if size in rates:
            words.setdefault(size, []).append(part)
    return [
        Label(
            text=f"{size:,.0f} {', '.join(said)}",
            points=((size, rates[size]),),
            color=INK[GREEN if size == chosen else BLUE],
            directions=(*ABOVE, *BELOW, *LEFT, *RIGHT),
        )
        for size, said in words.items()
    ]
