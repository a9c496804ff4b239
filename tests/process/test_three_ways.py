from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from profiler import Strategy, Workload, check_equivalence

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "three_ways.py"


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


@pytest.mark.parametrize("strategy", [Strategy.SUMMED_LOSS, Strategy.ACCUMULATION])
def test_each_way_gives_the_loss_and_the_parameters_of_the_whole_batch(
    example: dict[str, Any], strategy: Strategy
) -> None:
    whole, other = example["step"](Strategy.WHOLE_BATCH), example["step"](strategy)

    assert other.loss == pytest.approx(whole.loss, rel=1e-6)
    assert other.parameter_sum == pytest.approx(whole.parameter_sum, rel=1e-6)


def test_its_batch_is_the_documented_one(example: dict[str, Any]) -> None:
    torch.manual_seed(1)
    inputs, targets = torch.randn(32, 3, 10, 10), torch.randint(0, 2, (32, 5)).float()
    made = example["make_batch"](32)

    assert torch.equal(made[0], inputs)
    assert torch.equal(made[1], targets)
    assert 0 < float(targets.mean()) < 1


def test_the_step_moves_the_parameters(example: dict[str, Any]) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        start = sum(float(parameter.double().sum()) for parameter in example["Net"]().parameters())

    assert example["step"](Strategy.ACCUMULATION).parameter_sum != pytest.approx(start, rel=1e-9)


def test_the_script_prints_them_with_the_memory_of_each() -> None:
    ended = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=True, timeout=300)
    rows = [re.split(r"\s{2,}", line) for line in ended.stdout.replace(" each ", " each  ").splitlines()]
    ways, losses, sums, peaks = (list(column) for column in zip(*rows[1:], strict=True))

    assert ways == ["whole batch of 32", "8 losses, one backward", "8 losses, a backward each"]
    assert len(set(losses)) == len(set(sums)) == 1
    whole, summed, accumulated = (float(peak.split()[0]) for peak in peaks)
    assert accumulated < min(whole, summed)


def test_the_check_says_of_it_that_it_is_equal(example: dict[str, Any]) -> None:
    workload = Workload.supervised(example["Net"], example["criterion"], example["make_batch"])
    found = check_equivalence(workload, 32)

    assert found.equal
    assert found.decomposes == "samples"
    assert (4,) * 8 in [way.split for way in found.ways]
    sums = {way.parameter_sum for way in found.ways if way.precision == "fp64"}
    assert max(sums) - min(sums) < 1e-12  # type: ignore[operator, type-var]  # every way ran
