from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = "import sys; sys.argv[0] = 'microbatch'; from profiler.commands import main; main()"


@pytest.mark.parametrize("subcommand", ["", "probe", "check", "compare", "plot", "devices"])
def test_help(subcommand: str, golden: Callable[[str], None]) -> None:
    variables = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", "PYTHONUTF8": "1"}
    arguments = [subcommand, "--help"] if subcommand else ["--help"]
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )

    assert (run.returncode, run.stderr) == (0, "")
    assert "\x1b" not in run.stdout
    golden(run.stdout)
