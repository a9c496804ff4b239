from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console
from sample_checks import CHECKS

from profiler.commands.check_tables import check_lines, check_tables, verdict_line
from profiler.commands.tables import print_lines

WIDTH = 120


@pytest.mark.parametrize("name", CHECKS)
def test_check(name: str, golden: Callable[[str], None]) -> None:
    equivalence = CHECKS[name]()
    to = io.StringIO()
    console = Console(file=to, width=WIDTH, highlight=False, soft_wrap=True, color_system=None)
    tables = check_tables(equivalence, "digits-resnet", "cpu")
    for table in tables:
        table.print(console)
    widest = max(len(line.rstrip()) for line in to.getvalue().splitlines())
    print_lines(console, check_lines(equivalence))

    assert widest <= WIDTH
    assert sum(len(table.rows) for table in tables) == len(equivalence.ways)
    golden(to.getvalue())


def test_what_a_probe_says_of_a_check(golden: Callable[[str], None]) -> None:
    targets = ("digits-resnet", "my files/train.py:workload", "train.py:workload")
    lines = [verdict_line(make(), target) for make, target in zip(CHECKS.values(), targets, strict=True)]

    assert not any("\n" in line for line in lines)
    golden("\n".join(lines))
