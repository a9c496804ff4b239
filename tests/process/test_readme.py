from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks.readme import README, ROOT, updated
from process.commands import environment

TEXT = README.read_text()
BLOCKS = re.findall(r"(?s)```python\n(.*?)```", TEXT)


def test_what_it_says_was_measured_is_what_the_results_have() -> None:
    assert updated(TEXT) == TEXT


def test_its_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)", TEXT)

    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """What each block prints; they run side by side, for most of their time is start-up."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "train.py").write_text(BLOCKS[1])
    probe = ["probe", "train.py:workload", "--effective-batch", "512", "--memory-limit", "64MiB", "--ceiling", "64"]
    loops = BLOCKS[2] + "\nprint(float(loss), plan.micro_batch_sizes, plan.equivalence)\n"
    running = {
        "five lines": started([sys.executable, "-"], BLOCKS[0], ROOT),
        "loops": started([sys.executable, "-"], loops, ROOT),
        "own": started([sys.executable, str(ROOT / "cli.py"), *probe, "--no-compare", "--output", "run"], "", folder),
    }
    outputs = {name: process.communicate(timeout=300)[0] for name, process in running.items()}
    assert {name: process.returncode for name, process in running.items()} == dict.fromkeys(running, 0)
    assert (folder / "run" / "plan.json").exists()
    return outputs


def started(command: list[str], given: str, folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        command, cwd=folder, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    process.stdin.write(given)
    process.stdin.close()
    process.stdin = None  # so that communicate does not flush it again
    return process


def test_its_five_lines_print_a_plan(printed: Mapping[str, str]) -> None:
    sizes = re.match(r"\(([\d, ]+)\) \(", printed["five lines"])

    assert sizes is not None, printed
    assert sum(int(size) for size in sizes[1].split(",") if size.strip()) == 512


def test_its_workload_of_your_own_is_probed(printed: Mapping[str, str]) -> None:
    assert "Plan for an effective batch of 512" in printed["own"]


def test_its_loops_train(printed: Mapping[str, str]) -> None:
    assert re.match(r"\d\.\d+ \([\d, ]+\) equal", printed["loops"]), printed["loops"]


@pytest.mark.parametrize("target", ["probe", "test"])
def test_its_two_commands_are_there(target: str) -> None:
    assert re.search(rf"^    make {target}\b", TEXT, re.MULTILINE)
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
