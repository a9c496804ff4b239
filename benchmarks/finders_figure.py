"""The figure of the finders' table: who finds the exact maximum, and at what cost."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from benchmarks.finder_rows import ANSWERED, MISSING, Row, Summary, summaries
from profiler.plots.axes import BLUE, FONT_POINTS, GREEN, GREY, TITLE_POINTS, VERMILLION

NAMES = {
    "microbatch": "microbatch",
    "bisection": "bisection in\nfresh processes",
    "lightning-binsearch": "Lightning,\nbisection",
    "lightning-power": "Lightning,\ndoubling",
    "lightning-unbounded": "Lightning, bisection\nwithout its 8,192",
    "accelerate": "accelerate",
    "toma": "toma",
}
# Marks of one finder lie side by side over this share of its row, so that equal ones can be counted.
SPREAD = 0.62
EXACT, SMALLER, TOO_LARGE, NO_ANSWER = "exact", "smaller", "runs out of memory", "no answer (crash or no end)"
MARKS = {EXACT: ("o", GREEN), SMALLER: ("o", BLUE), TOO_LARGE: ("X", VERMILLION), NO_ANSWER: ("s", GREY)}
TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500)


def figure(rows: Sequence[Row]) -> bytes:
    """A PNG: answers over the truth on the left, seconds over the least possible on the right, a mark a workload."""
    ran = [row for row in rows if row.outcome != MISSING]
    found = sorted(summaries(ran), key=lambda summary: list(NAMES).index(summary.finder))
    canvas = Figure(figsize=(11, 1.9 + 0.78 * len(found)), dpi=150, layout="constrained")
    FigureCanvasAgg(canvas)
    left, right = canvas.subplots(1, 2, sharey=True)
    _answers(left, ran, found)
    _seconds(right, ran, found)
    used = {_kind(row) for row in ran}
    canvas.legend(
        handles=[
            Line2D([], [], marker=marker, color=color, linestyle="None", markersize=9, label=kind)
            for kind, (marker, color) in MARKS.items()
            if kind in used
        ],
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=FONT_POINTS,
    )
    picture = BytesIO()
    canvas.savefig(picture, format="png")
    return picture.getvalue()


def _kind(row: Row) -> str:
    if row.outcome != ANSWERED:
        return NO_ANSWER
    return EXACT if row.exact else TOO_LARGE if row.fits is False or row.answer_over_truth is None else SMALLER


def _answers(ax: Axes, rows: Sequence[Row], found: Sequence[Summary]) -> None:
    ratios = [row.answer_over_truth for row in rows if row.outcome == ANSWERED and row.answer_over_truth]
    low, high = min([0.5, *ratios]), max([1.0, *ratios])
    none = low / 2.2
    is_missing = any(_kind(row) == NO_ANSWER for row in rows)
    ax.set_xscale("log")
    ax.set_xlim((none if is_missing else low) / 1.5, high * 1.6)
    ax.axvline(1, color="black", linewidth=1.2)
    for row, height in _placed(rows, found):
        marker, color = MARKS[_kind(row)]
        where = row.answer_over_truth if row.outcome == ANSWERED and row.answer_over_truth else none
        ax.plot([where], [height], marker=marker, color=color, markersize=8, markeredgecolor="white", zorder=3)
    ticks = [tick for tick in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if low / 1.2 <= tick <= high * 1.6]
    _ticks(ax, [*([none] if is_missing else []), *ticks], {none: "none"})
    ax.set_yticks(range(len(found)), [_label(summary) for summary in found], fontsize=FONT_POINTS)
    ax.set_ylim(len(found) - 0.5, -0.5)
    ax.set_xlabel("answer / largest size that fits", fontsize=FONT_POINTS)
    ax.set_title("The answer", fontsize=TITLE_POINTS, fontweight="bold", loc="left")
    _plain(ax, len(found))


def _seconds(ax: Axes, rows: Sequence[Row], found: Sequence[Summary]) -> None:
    costs = [row.whole_over_least for row in rows if row.whole_over_least]
    ax.set_xscale("log")
    ax.set_xlim(min([1.0, *costs]) / 1.4, max([2.0, *costs]) * 1.4)
    ax.axvline(1, color="black", linewidth=1.2)
    for row, height in _placed(rows, found):
        if row.whole_over_least:
            marker, color = MARKS[_kind(row)]
            ax.plot(
                [row.whole_over_least],
                [height],
                marker=marker,
                color=color,
                markersize=8,
                markeredgecolor="white",
                zorder=3,
            )
    low, high = ax.get_xlim()
    _ticks(ax, [tick for tick in (0.1, 0.2, 0.5, *TICKS) if low <= tick <= high], {})
    ax.set_xlabel("seconds of the whole call / least possible", fontsize=FONT_POINTS)
    ax.set_title("Its cost", fontsize=TITLE_POINTS, fontweight="bold", loc="left")
    _plain(ax, len(found))


def _placed(rows: Sequence[Row], found: Sequence[Summary]) -> list[tuple[Row, float]]:
    """Every row with its height: the finder's, and in it the workload's, in the table's order."""
    workloads = list(dict.fromkeys(row.workload for row in rows))
    heights = {summary.finder: float(index) for index, summary in enumerate(found)}
    step = SPREAD / max(len(workloads) - 1, 1)
    return [(row, heights[row.finder] + step * workloads.index(row.workload) - SPREAD / 2) for row in rows]


def _label(summary: Summary) -> str:
    return f"{NAMES[summary.finder]}\n{summary.exact} of {summary.workloads} exact"


def _ticks(ax: Axes, ticks: Sequence[float], names: dict[float, str]) -> None:
    ax.xaxis.set_major_locator(FixedLocator(list(ticks)))
    ax.xaxis.set_minor_locator(NullLocator())
    named = [names.get(tick, f"{tick:g}") for tick in ticks]
    ax.xaxis.set_major_formatter(FuncFormatter(lambda _, index: named[index] if index is not None else ""))


def _plain(ax: Axes, count: int) -> None:
    ax.tick_params(labelsize=FONT_POINTS)
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.grid(visible=True, axis="x", color="#E5E5E5", linewidth=0.8)
    for index in range(0, count, 2):
        ax.axhspan(index - 0.5, index + 0.5, color="#F6F6F6", zorder=0)
    ax.set_axisbelow(True)
