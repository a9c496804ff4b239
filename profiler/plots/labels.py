"""Text beside what it names, placed where it covers nothing: no other text, no mark, no line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from math import ceil, hypot
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

Point = tuple[float, float]
# left, bottom, right, top, in pixels
Box = tuple[float, float, float, float]

_POINTS_PER_INCH = 72
# How far from its point a text may lie, the nearest first.
_GAPS_POINTS = (3, 6, 10, 14, 20, 30, 44, 60, 80, 105, 135, 170)
# Further away than this, a thin line leads from the text to its point.
_LEADER_POINTS = 15
# Texts keep this far away from everything, and leaders end this far from their point.
_CLEARANCE_POINTS = 1.5
_LEADER_END_POINTS = 9

Direction = tuple[float, float]
ABOVE: tuple[Direction, ...] = ((0, 1), (0.5, 1), (-0.5, 1), (1, 1), (-1, 1))
BELOW: tuple[Direction, ...] = ((1, -1), (0.5, -1), (0, -1), (-0.5, -1), (-1, -1))
RIGHT: tuple[Direction, ...] = ((1, 0), (1, -0.2), (1, 0.2), (1, -0.5), (1, 0.5))
LEFT: tuple[Direction, ...] = ((-1, 0), (-1, -0.2), (-1, 0.2), (-1, -0.5), (-1, 0.5))
ANYWHERE: tuple[Direction, ...] = (*BELOW, *RIGHT, *LEFT, *ABOVE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """Text that belongs to any one of `points`, in data coordinates, and lies in one of `directions` from it."""

    text: str
    points: tuple[Point, ...]
    color: str
    directions: tuple[Direction, ...] = ANYWHERE


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """One place for a text: its point, the way from there to the text's centre, its box, and the boxes of its leader."""

    point: Point
    offset: Point
    box: Box
    leader: tuple[Box, ...]


def place_labels(ax: Axes, labels: Iterable[Label], *, fontsize: float) -> list[Text]:
    """Writes the labels into `ax`, each as near to its point as it covers nothing that is drawn or written already.

    The limits of `ax` must be final. Where there is no free place, the one that covers least is taken.
    """
    figure = ax.figure.figure
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()  # the layout decides where a point lies in pixels
    scale = figure.dpi / _POINTS_PER_INCH
    canvas = _Canvas(
        frame=_grown(ax.bbox.extents, 0),
        lines=list(_lines(ax, scale)),
        marks=list(_marks(ax, scale)),
        texts=[_box(text) for text in ax.texts],
    )
    return [_write(ax, label, fontsize, scale, canvas) for label in labels]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Canvas:
    """What is drawn already, as boxes; the lists grow."""

    frame: Box
    lines: list[Box]
    marks: list[Box]
    texts: list[Box]

    def cost(self, place: _Place) -> int:
        """0 for a free place, 1 where only its leader crosses a line, then by what is covered, most for lying outside."""
        if not _inside(place.box, self.frame):
            return 1_000_000
        on_texts = sum(_overlap(place.box, text) for text in self.texts)
        texts_under_leader = sum(_overlap(part, text) for part in place.leader for text in self.texts)
        under_leader = sum(_overlap(part, mark) for part in place.leader for mark in self.marks)
        covered = sum(_overlap(place.box, other) for other in (*self.lines, *self.marks))
        if on_texts or texts_under_leader or under_leader or covered:
            return 10 * covered + 50 * under_leader + 200 * texts_under_leader + 100_000 * on_texts
        return int(any(_overlap(part, line) for part in place.leader for line in self.lines))


def _write(ax: Axes, label: Label, fontsize: float, scale: float, canvas: _Canvas) -> Text:
    """Writes one label where it costs least, and adds what it covers to `canvas`."""
    style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": fontsize, "color": label.color}
    sample = ax.text(*label.points[0], label.text, **style)
    left, bottom, right, top = _box(sample)
    sample.remove()
    place = _cheapest(_places(ax, label, right - left, top - bottom, scale), canvas.cost)
    canvas.texts.append(place.box)
    canvas.lines.extend(place.leader)
    arrow = {"arrowstyle": "-", "color": label.color, "linewidth": 1, "shrinkA": 1, "shrinkB": 5}
    return ax.annotate(
        label.text,
        place.point,
        (place.offset[0] / scale, place.offset[1] / scale),
        textcoords="offset points",
        arrowprops=arrow if place.leader else None,
        **style,
    )


def _cheapest(places: Iterable[_Place], cost: Callable[[_Place], int]) -> _Place:
    """The first place that costs nothing, else the cheapest; places after a free one are not looked at."""
    priced = []
    for place in places:
        priced.append((cost(place), place))
        if priced[-1][0] == 0:
            break
    return min(priced, key=lambda entry: entry[0])[1]


def _places(ax: Axes, label: Label, width: float, height: float, scale: float) -> Iterator[_Place]:
    """Where a text of that size in pixels may lie, the nearest first."""
    half_width, half_height = width / 2, height / 2
    for gap, point, (right, up) in product(_GAPS_POINTS, label.points, label.directions):
        x, y = ax.transData.transform(point)
        shift = gap * scale / hypot(right, up)
        offset = right * (half_width + shift), up * (half_height + shift)
        middle = x + offset[0], y + offset[1]
        box = middle[0] - half_width, middle[1] - half_height, middle[0] + half_width, middle[1] + half_height
        leader = _leader((x, y), middle, box, scale) if gap > _LEADER_POINTS else ()
        yield _Place(point=point, offset=offset, box=_grown(box, _CLEARANCE_POINTS * scale), leader=leader)


def _leader(point: Point, middle: Point, box: Box, scale: float) -> tuple[Box, ...]:
    """The boxes along the line from the text's middle to its point, outside of the text and off the point's own mark."""
    parts = _along([point, middle], 2 * scale)
    near = _around(point, _LEADER_END_POINTS * scale)
    return tuple(part for part in parts if not _overlap(part, box) and not _overlap(part, near))


def _marks(ax: Axes, scale: float) -> Iterator[Box]:
    for line in ax.lines:
        if line.get_marker() not in ("None", "", None):
            radius = (line.get_markersize() + line.get_markeredgewidth()) / 2
            yield from (_around(point, radius * scale) for point in _pixels(line))


def _lines(ax: Axes, scale: float) -> Iterator[Box]:
    for line in ax.lines:
        if line.get_linestyle() != "None":
            yield from _along(_pixels(line), max(2, line.get_linewidth() / 2) * scale)


def _pixels(line: Line2D) -> list[Point]:
    return [(float(x), float(y)) for x, y in line.get_transform().transform(line.get_xydata())]


def _along(points: Sequence[Sequence[float]], radius: float) -> Iterator[Box]:
    for (x0, y0), (x1, y1) in pairwise(points):
        count = ceil(hypot(x1 - x0, y1 - y0) / (2 * radius)) or 1
        for step in range(count + 1):
            share = step / count
            yield _around((x0 + share * (x1 - x0), y0 + share * (y1 - y0)), radius)


def _around(point: Sequence[float], radius: float) -> Box:
    return point[0] - radius, point[1] - radius, point[0] + radius, point[1] + radius


def _box(text: Text) -> Box:
    extent = text.get_window_extent()
    return extent.x0, extent.y0, extent.x1, extent.y1


def _grown(box: Sequence[float], by: float) -> Box:
    return box[0] - by, box[1] - by, box[2] + by, box[3] + by


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _inside(one: Box, other: Box) -> bool:
    return other[0] <= one[0] and other[1] <= one[1] and one[2] <= other[2] and one[3] <= other[3]
