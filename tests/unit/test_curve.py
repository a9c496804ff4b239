from __future__ import annotations

import pytest

from profiler.curve import Line, falls, line_through_last


@pytest.mark.parametrize(
    ("peaks", "expected"),
    [
        # A neighbour is passed over for a size at most 0.8 of the largest.
        ({1: 100, 50: 300, 99: 790, 100: 800}, Line.through((50, 300), (100, 800))),
        ({1: 100, 2: 130}, Line.through((1, 100), (2, 130))),
        # No size is small enough: the smallest.
        ({9: 90, 10: 100}, Line.through((9, 90), (10, 100))),
        ({5: 100}, None),
        ({1: 100, 5: 100}, None),
        ({}, None),
    ],
)
def test_the_line_goes_through_the_last_sizes(peaks: dict[int, int], expected: Line | None) -> None:
    assert line_through_last(peaks.items()) == expected


def test_a_line_goes_through_its_points_and_crosses_a_limit() -> None:
    line = Line.through((4, 40), (16, 160))

    assert (line.at(4), line.at(16), line.at(32)) == (40, 160, 320)
    assert line.crossing(1000) == 100
    assert Line.through((1, 50), (4, 50)).crossing(1000) is None


@pytest.mark.parametrize(
    ("points", "found"),
    [
        pytest.param([], None, id="nothing"),
        pytest.param([(1, 100), (2, 100), (4, 300)], None, id="rising"),
        pytest.param([(1, 100), (2, 95), (4, 300)], None, id="within the noise"),
        pytest.param([(4, 300), (1, 100), (8, 250)], ((4, 300), (8, 250)), id="falling, in any order"),
        pytest.param([(1, 300), (2, 295), (4, 285)], ((1, 300), (4, 285)), id="falling slowly"),
    ],
)
def test_where_memory_falls_with_the_size(
    points: list[tuple[int, int]], found: tuple[tuple[int, int], tuple[int, int]] | None
) -> None:
    assert falls(points, 10) == found
