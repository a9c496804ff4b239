from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.readme import README, ROOT, updated

TEXT = README.read_text()
BLOCKS = re.findall(r"(?s)```python\n(.*?)```", TEXT)


def test_what_it_says_was_measured_is_what_the_results_have() -> None:
    assert updated(TEXT) == TEXT


def test_its_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)", TEXT)

    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_its_five_lines_print_a_plan() -> None:
    result = subprocess.run(
        [sys.executable, "-"], input=BLOCKS[0], cwd=ROOT, capture_output=True, text=True, check=True, timeout=300
    )
    sizes = re.match(r"\(([\d, ]+)\) \(", result.stdout)

    assert sizes is not None, result.stdout
    assert sum(int(size) for size in sizes[1].split(",") if size.strip()) == 512


def test_its_workload_of_your_own_is_probed(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(BLOCKS[1])
    command = ["probe", "train.py:workload", "--effective-batch", "512", "--memory-limit", "64MiB", "--ceiling", "64"]
    result = subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), *command, "--no-compare", "--output", "run"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )

    assert "Plan for an effective batch of 512" in result.stdout
    assert (tmp_path / "run" / "plan.json").exists()


@pytest.mark.parametrize("target", ["probe", "test"])
def test_its_two_commands_are_there(target: str) -> None:
    assert re.search(rf"^    make {target}\b", TEXT, re.MULTILINE)
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_its_loops_train() -> None:
    script = BLOCKS[2] + "\nprint(float(loss), plan.micro_batch_sizes, plan.equivalence)\n"
    result = subprocess.run(
        [sys.executable, "-"], input=script, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300
    )

    assert re.match(r"\d\.\d+ \([\d, ]+\) equal", result.stdout), result.stdout
