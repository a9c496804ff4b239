from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from process.commands import environment
from profiler import Decomposition, Workload, check_equivalence
from profiler.devices import open_device
from profiler.targets import TargetSource

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def curves() -> tuple[list[float], list[float]]:
    script: dict[str, Any] = runpy.run_path(str(EXAMPLES / "digits_by_plan.py"))
    by_whole, by_parts = script["curves"]()
    return by_whole, by_parts


def test_training_by_a_plan_of_unequal_parts_has_the_curve_of_the_whole_batch(
    curves: tuple[list[float], list[float]],
) -> None:
    by_whole, by_parts = curves

    assert len(by_whole) == len(by_parts) == 50
    assert max(abs(one - other) for one, other in zip(by_whole, by_parts, strict=True)) < 1e-12
    assert max(abs(one - other) / one for one, other in zip(by_whole, by_parts, strict=True)) < 1e-12


def test_the_model_of_the_example_learns(curves: tuple[list[float], list[float]]) -> None:
    assert curves[0][-1] < curves[0][0] / 4


def test_the_example_prints_both_curves_and_their_difference(
    tmp_path: Path, curves: tuple[list[float], list[float]]
) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / "digits_by_plan.py")],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    _, *steps, difference = result.stdout.splitlines()

    for step, (line, one, other) in enumerate(zip(steps, *curves, strict=True), start=1):
        assert [float(word) for word in line.split()] == pytest.approx([step, one, other], rel=1e-9)
    assert float(difference.removeprefix("largest difference: ")) < 1e-12


def test_a_contrastive_loss_by_cached_gradients_has_the_gradient_of_the_whole_batch() -> None:
    script: dict[str, Any] = runpy.run_path(str(EXAMPLES / "contrastive_by_parts.py"))
    loss, gradient = script["differences"]()

    assert loss < 1e-12
    assert gradient < 1e-12


def test_the_check_says_that_no_weights_of_parts_give_the_contrastive_loss() -> None:
    script: dict[str, Any] = runpy.run_path(str(EXAMPLES / "contrastive_by_parts.py"))
    workload = Workload(
        model=script["TwoTowers"],
        make_batch=lambda n: (torch.randn(n, 64), torch.randn(n, 48)),
        loss=lambda model, batch: script["info_nce"](*model(*batch)),
    )
    found = check_equivalence(workload, 8)

    assert not found.equal
    assert found.decomposes is Decomposition.NO
    assert "contrastive_by_parts.py" in found.advice


@pytest.mark.parametrize(
    ("device", "precision"),
    [
        pytest.param("sim:t4", "fp16", id="a card without bf16"),
        pytest.param("sim:rtx4090", "bf16", id="a card with bf16"),
    ],
)
def test_a_training_file_takes_the_precision_of_the_card_that_it_finds(device: str, precision: str) -> None:
    with open_device(device).standing_in():
        workload = TargetSource(f"{EXAMPLES / 'denoiser.py'}:workload").load()

    assert workload.precision == precision


def test_the_denoiser_learns_from_a_step() -> None:
    script: dict[str, Any] = runpy.run_path(str(EXAMPLES / "denoiser.py"))
    torch.manual_seed(0)
    model, batch = script["Denoiser"](), script["images_and_noise"](1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005)
    before = script["noise_loss"](model, batch)
    before.backward()
    optimizer.step()

    assert script["noise_loss"](model, batch).item() < before.item()
