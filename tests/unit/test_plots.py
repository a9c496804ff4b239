from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import combinations
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from sample_records import SHAPES, evaluated, evaluated_alone, nothing_fits, records_like, resnet

from profiler.plots import (
    DOTS_PER_INCH,
    SIZE_INCHES,
    plot_memory,
    plot_soak,
    plot_summed_loss,
    plot_throughput,
    save_figures,
)
from profiler.records import Frame, Records, soak_frame, summed_loss_frame, throughput_frame, trials_frame
from profiler.units import GIB, MIB

Drawing = Callable[[Axes, Records], None]


def memory(ax: Axes, records: Records) -> None:
    chosen = records.plan.micro_batch_sizes[0] if records.plan else None
    run = records.run
    plot_memory(ax, trials_frame(records), capacity_bytes=run.capacity_bytes, headroom=run.headroom, chosen=chosen)


def throughput(ax: Axes, records: Records) -> None:
    chosen = records.plan.micro_batch_sizes[0] if records.plan else None
    plot_throughput(ax, throughput_frame(records), chosen=chosen)


def summed_loss(ax: Axes, records: Records) -> None:
    plot_summed_loss(ax, summed_loss_frame(records), capacity_bytes=records.run.capacity_bytes)


def soak(ax: Axes, records: Records) -> None:
    assert records.soak is not None
    plot_soak(ax, soak_frame(records), capacity_bytes=records.run.capacity_bytes, failed=not records.soak.passed)


def drawn(draw: Drawing, records: Records) -> Axes:
    figure = Figure(figsize=SIZE_INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.add_subplot()
    draw(ax, records)
    figure.draw_without_rendering()
    return ax


CASES = [
    (draw, name)
    for name, make in SHAPES.items()
    for draw in (memory, throughput, summed_loss)
    if draw is memory or (make().throughput if draw is throughput else make().comparison)
]
CASES += [(soak, name) for name, make in SHAPES.items() if make().soak]


@cache
def figure_of(draw: Drawing, name: str) -> Axes:
    """A sample's figure, drawn once for all tests."""
    return drawn(draw, SHAPES[name]())


each_figure = pytest.mark.parametrize(("draw", "name"), CASES, ids=[f"{draw.__name__}-{name}" for draw, name in CASES])


def texts(ax: Axes) -> Iterator[Text]:
    """Every text that can be seen: labels, title, names of the axes, and the numbers at ticks."""
    yield from ax.texts
    yield from (ax.title, ax._left_title, ax.xaxis.label, ax.yaxis.label)  # type: ignore[attr-defined]
    for axis, (low, high) in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
        for tick in axis.get_major_ticks():
            if low <= tick.get_loc() <= high:
                yield tick.label1


def boxes(ax: Axes) -> dict[str, Bbox]:
    # An annotation's own box takes in its leader.
    written = [text for text in texts(ax) if text.get_text()]
    return {f"{number} {text.get_text()}": Text.get_window_extent(text) for number, text in enumerate(written)}


def assert_readable(ax: Axes) -> None:
    figure = ax.get_figure(root=True)
    assert figure is not None
    found = boxes(ax)
    for name, box in found.items():
        assert box.x0 >= 0, name
        assert box.y0 >= 0, name
        assert box.x1 <= figure.bbox.x1, name
        assert box.y1 <= figure.bbox.y1, name
    for (one, box), (other, other_box) in combinations(found.items(), 2):
        assert not box.overlaps(other_box), f"{one!r} overlaps {other!r}"


@each_figure
def test_no_text_overlaps_another_or_leaves_the_figure(draw: Drawing, name: str) -> None:
    ax = figure_of(draw, name)

    assert len(boxes(ax)) > 5
    assert_readable(ax)


@each_figure
def test_no_text_covers_a_mark(draw: Drawing, name: str) -> None:
    ax = figure_of(draw, name)
    scale = DOTS_PER_INCH / 72

    for text in ax.texts:
        box = Text.get_window_extent(text)
        for line in ax.lines:
            if line.get_marker() in ("None", ""):
                continue
            for x, y in line.get_transform().transform(data(line)):
                radius = line.get_markersize() / 2 * scale
                mark = Bbox.from_extents(x - radius, y - radius, x + radius, y + radius)
                assert not box.overlaps(mark), f"{text.get_text()} covers the mark at {data(line)}"


@each_figure
def test_texts_are_large_enough_at_half_width(draw: Drawing, name: str) -> None:
    # 840 pixels wide, 420 at half: a text of 12 points is then 12.5 pixels high.
    assert SIZE_INCHES[0] * DOTS_PER_INCH == 840
    assert {text.get_fontsize() for text in texts(figure_of(draw, name)) if text.get_text()} == {12.0, 13.0}


@each_figure
def test_nothing_is_drawn_twice(draw: Drawing, name: str) -> None:
    lines = [(line.get_marker(), line.get_color(), *data(line)) for line in figure_of(draw, name).lines]

    assert len(lines) == len(set(lines))


def data(line: Line2D) -> list[tuple[float, float]]:
    return [(x, y) for x, y in np.column_stack([line.get_xdata(), line.get_ydata()]).tolist()]


def marks(ax: Axes, marker: str, *, color: str, hollow: bool | None = None) -> list[tuple[float, float]]:
    """The points of all marks of that kind."""
    found = [
        line
        for line in ax.lines
        if line.get_marker() == marker
        and line.get_color() == color
        and (hollow is None or (line.get_markerfacecolor() != color) == hollow)
    ]
    return [point for line in found for point in data(line)]


def rows(frame: Frame, x: str, y: str, **where: str) -> list[tuple[float, float]]:
    for column, value in where.items():
        frame = frame[frame[column] == value]
    return [(float(row[x]), float(row[y])) for row in frame.to_dict("records")]


BLUE, VERMILLION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"


@pytest.mark.parametrize("name", SHAPES)
def test_the_memory_figure_shows_its_frame(name: str) -> None:
    records = SHAPES[name]()
    frame, ax = trials_frame(records), figure_of(memory, name)
    capacity = records.run.capacity_bytes
    fits = rows(frame, "micro_batch_size", "peak_bytes", outcome="fits")
    retried = rows(frame, "micro_batch_size", "peak_bytes", outcome="fits_after_retry")
    failed = sorted(frame[frame["outcome"] == "out_of_memory"]["micro_batch_size"])

    assert marks(ax, "o", color=BLUE, hollow=False) == fits
    assert marks(ax, "o", color=BLUE, hollow=True) == retried
    assert [size for size, _ in marks(ax, "x", color=VERMILLION)] == failed
    assert all(height > capacity for _, height in marks(ax, "x", color=VERMILLION))
    if records.plan:
        chosen = records.plan.micro_batch_sizes[0]
        assert marks(ax, "o", color=GREEN) == [(chosen, dict(fits + retried)[chosen])]
    else:
        assert not marks(ax, "o", color=GREEN)
    grey = [data(line) for line in ax.lines if line.get_color() == GREY]
    line = sorted(rows(frame.dropna(subset="line_bytes"), "micro_batch_size", "line_bytes"))
    assert grey == ([line] if line else [])


@pytest.mark.parametrize("name", ["resnet", "bent", "gpu"])
def test_the_soak_figure_shows_its_frame(name: str) -> None:
    frame, ax = soak_frame(SHAPES[name]()), figure_of(soak, name)
    lines = {line.get_color(): data(line) for line in ax.lines if line.get_color() != "black"}

    assert lines == {
        BLUE: rows(frame, "step", "peak_bytes"),
        VERMILLION: rows(frame, "step", "reserved_bytes"),
        GREEN: rows(frame, "step", "allocated_bytes"),
    }
    assert {"peak so far", "held after a step", "in use after a step"} <= words(ax)


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("resnet", "200 steps: peak 96 MiB to 106 MiB"),
        ("gpu", "50 steps: peak 60.2 GiB to 70 GiB"),
        ("bent", "Out of memory after 36 steps"),
        ("only_one", "Out of memory after 1 step"),
    ],
)
def test_the_soak_title_says_how_it_ended(name: str, title: str) -> None:
    assert figure_of(soak, name).get_title(loc="left") == title


def test_a_soak_that_knows_only_its_peak_draws_that_alone() -> None:
    ax = figure_of(soak, "only_one")

    assert marks(ax, "o", color=BLUE) == [(1.0, 60.0 * MIB)]
    assert words(ax) == {"peak so far", "capacity 64 MiB"}


def horizontals(ax: Axes) -> list[float]:
    """Where the black lines across the axes lie."""
    return [data(line)[0][1] for line in ax.lines if line.get_color() == "black"]


def words(ax: Axes) -> set[str]:
    return {text.get_text() for text in ax.texts}


def test_the_memory_figure_names_what_matters() -> None:
    ax = figure_of(memory, "resnet")

    assert words(ax) == {
        "213 out of memory",
        "capacity 512 MiB",
        "212 fits",
        "171 chosen",
        "5 % headroom",
        "1.77 MiB a sample",
    }
    assert ax.get_title(loc="left") == "212 samples fit in 512 MiB"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("micro-batch size (samples)", "peak memory (MiB)")
    assert horizontals(ax) == [512 * MIB, 512 * MIB * 0.95]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("bent", {"1,107 out of memory, 3 larger too", "1,024 chosen", "307 KiB a sample"}),
        ("gpu", {"514 fits after retries", "515 out of memory", "capacity 79.1 GiB"}),
        ("only_one", {"1 fits, chosen", "2 out of memory"}),
        ("ceiling", {"256 fits", "capacity 79.1 GiB, 13 times the peak"}),
    ],
)
def test_the_memory_figure_names_what_is_special(name: str, said: set[str]) -> None:
    assert said <= words(figure_of(memory, name))


@pytest.mark.parametrize(
    ("name", "title"),
    [("only_one", "1 sample fits in 64 MiB"), ("ceiling", "256 samples fit (no larger size was tried)")],
)
def test_the_memory_title_says_what_was_found(name: str, title: str) -> None:
    assert figure_of(memory, name).get_title(loc="left") == title


def test_a_capacity_far_above_the_peaks_is_not_drawn_but_said() -> None:
    ax = figure_of(memory, "ceiling")

    assert horizontals(ax) == []
    assert ax.get_ylim()[1] < 10 * GIB


def test_sizes_that_failed_far_out_do_not_squeeze_the_rest() -> None:
    ax = figure_of(memory, "bent")

    assert ax.get_xlim()[1] < 1.2 * 1107
    assert max(size for size, _ in marks(ax, "x", color=VERMILLION)) == 6000


def test_no_headroom_has_no_line_of_its_own() -> None:
    records = resnet()
    ax = drawn(memory, replace(records, run=replace(records.run, headroom=0.0)))

    assert horizontals(ax) == [512 * MIB]
    assert not any("headroom" in said for said in words(ax))


@pytest.mark.parametrize("name", [name for name, make in SHAPES.items() if make().throughput])
def test_the_throughput_figure_shows_its_frame(name: str) -> None:
    records = SHAPES[name]()
    frame, ax = throughput_frame(records), figure_of(throughput, name)

    assert marks(ax, "o", color=BLUE) == rows(frame, "micro_batch_size", "samples_per_second")
    ends = [rows(frame, "micro_batch_size", f"samples_per_second_{end}") for end in ("low", "high")]
    assert marks(ax, "_", color=BLUE) == [end for pair in zip(*ends, strict=True) for end in pair]


def test_the_throughput_figure_names_the_knee_the_fastest_and_the_chosen() -> None:
    ax = figure_of(throughput, "resnet")

    assert words(ax) == {"128 knee", "171 chosen", "212 fastest (227/s)"}
    assert ax.get_title(loc="left") == "128 samples reach 95 % of the top speed"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("micro-batch size (samples)", "samples/s")


def test_a_size_with_several_parts_has_one_label() -> None:
    assert words(figure_of(throughput, "gpu")) == {"256 chosen, knee", "514 fastest (2,834/s)"}
    assert words(figure_of(throughput, "only_one")) == {"1 fastest (69.2/s), chosen"}
    assert figure_of(throughput, "only_one").get_title(loc="left") == "Fastest with 1 sample"


COLORS = {"whole_batch": (BLUE, "^"), "summed_loss": (VERMILLION, "s"), "accumulation": (GREEN, "o")}


@pytest.mark.parametrize("name", [name for name, make in SHAPES.items() if make().comparison])
def test_the_summed_loss_figure_shows_its_frame(name: str) -> None:
    records = SHAPES[name]()
    frame, ax = summed_loss_frame(records), figure_of(summed_loss, name)

    for strategy, (color, marker) in COLORS.items():
        fits = rows(frame, "accumulation_steps", "peak_bytes", strategy=strategy, outcome="fits")
        failed = frame[(frame["strategy"] == strategy) & (frame["outcome"] == "out_of_memory")]
        assert marks(ax, marker, color=color) == fits
        assert [count for count, _ in marks(ax, "x", color=color)] == list(failed["accumulation_steps"])
    crosses = [point for color, _ in COLORS.values() for point in marks(ax, "x", color=color)]
    assert all(records.run.capacity_bytes < height < ax.get_ylim()[1] for _, height in crosses)
    assert len(crosses) == len(set(crosses))


def test_the_summed_loss_figure_says_where_each_way_ends() -> None:
    ax = figure_of(summed_loss, "fast_small")

    assert words(ax) == {
        "whole batch fails at 16",
        "summed loss fails at 16",
        "a backward each",
        "capacity 512 MiB",
    }
    assert ax.get_title(loc="left") == "Summed loss fails at 16 micro-batches"
    assert ax.get_xlabel() == "micro-batches of 16 samples"


def test_where_no_way_failed_the_title_says_how_much_more_it_takes() -> None:
    assert figure_of(summed_loss, "ceiling").get_title(loc="left") == "Summed loss takes 2.4 times the memory"


def test_figures_are_written_with_the_data_behind_them(tmp_path: Path) -> None:
    paths = save_figures(resnet(), tmp_path)

    assert [path.name for path in paths] == [
        f"{name}.{kind}" for name in ("memory", "throughput", "summed_loss", "soak") for kind in ("png", "csv")
    ]
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    for name, frame in (
        ("memory", trials_frame(resnet())),
        ("throughput", throughput_frame(resnet())),
        ("summed_loss", summed_loss_frame(resnet())),
    ):
        assert (tmp_path / f"{name}.csv").read_text() == frame.to_csv(index=False)
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_evaluation_has_a_figure_of_its_own(tmp_path: Path) -> None:
    paths, alone = save_figures(evaluated(), tmp_path), tmp_path / "alone"
    alone.mkdir()

    assert [path.name for path in paths][:4] == ["memory.png", "memory.csv", "evaluation.png", "evaluation.csv"]
    assert (tmp_path / "evaluation.csv").read_text() == trials_frame(evaluated().of_evaluation).to_csv(index=False)
    assert (tmp_path / "memory.csv").read_text() == trials_frame(resnet()).to_csv(index=False)
    assert [path.name for path in save_figures(evaluated_alone(), alone)] == ["evaluation.png", "evaluation.csv"]


def test_the_memory_of_evaluation_is_drawn_over_its_own_sizes_and_without_a_plans_headroom() -> None:
    figure = Figure(figsize=SIZE_INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    ax, frame = figure.add_subplot(), trials_frame(evaluated().of_evaluation)
    plot_memory(ax, frame, capacity_bytes=512 * MIB, headroom=0, size="batch size in evaluation")

    assert ax.get_title(loc="left") == "2,441 samples fit in 512 MiB"
    assert ax.get_xlabel() == "batch size in evaluation (samples)"
    assert {"2,441 fits", "2,442 out of memory", "capacity 512 MiB"} <= {text.get_text() for text in ax.texts}
    assert not any("headroom" in text.get_text() for text in ax.texts)


def test_what_has_nothing_to_show_is_not_written(tmp_path: Path) -> None:
    assert save_figures(nothing_fits(), tmp_path) == []
    assert save_figures(Records(run=resnet().run), tmp_path) == []
    assert [path.name for path in save_figures(SHAPES["no_plan"](), tmp_path)] == ["memory.png", "memory.csv"]


def test_a_comparison_of_one_size_has_no_memory_figure(tmp_path: Path) -> None:
    compared = Records(run=resnet().run, trials=resnet().trials[-1:], comparison=resnet().comparison)

    assert [path.name for path in save_figures(compared, tmp_path)] == ["summed_loss.png", "summed_loss.csv"]


def test_no_global_style_is_changed_and_no_window_is_opened(tmp_path: Path) -> None:
    before = repr(mpl.rcParams)
    save_figures(SHAPES["only_one"](), tmp_path)

    assert repr(mpl.rcParams) == before


@settings(max_examples=5, deadline=None)
@given(
    base=st.floats(0, 0.97),
    bend=st.floats(0, 0.9),
    largest=st.integers(1, 20_000),
    chosen_share=st.floats(0.001, 1),
    capacity=st.sampled_from([3 * MIB, 512 * MIB, 16 * GIB, 80 * GIB]),
    speed=st.floats(0.01, 1e6),
)
def test_any_shape_is_readable(
    base: float, bend: float, largest: int, chosen_share: float, capacity: int, speed: float
) -> None:
    floor = base * capacity
    slope = (capacity - floor) / (largest + 0.5)

    def curve(size: int) -> float:
        return max(floor + slope * size, floor + bend * (capacity - floor))

    ladder = [2**power for power in range(15) if 2**power < largest]
    chosen = ladder[int(chosen_share * (len(ladder) - 1))] if ladder else largest
    records = records_like(
        curve, [*ladder, largest, largest + 1], capacity=capacity, chosen=chosen, rate=speed, effective=chosen
    )

    for draw in (memory, throughput, summed_loss):
        assert_readable(drawn(draw, records))
