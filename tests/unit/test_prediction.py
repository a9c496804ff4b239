from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.prediction import DATA, words
from benchmarks.prediction_figure import figure
from benchmarks.prediction_loop import BETWEEN, FIRST, card_of, image_batches, simulate, text_batches
from benchmarks.prediction_models import build, cache_of, is_cnn
from benchmarks.prediction_rows import (
    CHECK,
    FIT,
    FIT_MODELS,
    OURS,
    Run,
    Simulated,
    constants,
    from_csv,
    row_of,
    runs_of,
    score,
    scores,
    summary_csv,
    to_csv,
)
from benchmarks.readme import ESTIMATORS, ROOT, prediction, simulated
from benchmarks.simulated_runs import CARDS, SIMULATED, TARGETS
from profiler.units import MIB

RUNS = runs_of(DATA.read_text())
RUN = Run(
    model="VGG16",
    optimizer="SGD",
    batch_size=8,
    zero_grad_mode=None,
    gpu="NVIDIA GeForce RTX 3060",
    total_bytes=1000,
    real_oom=False,
    ground_bytes=500,
    estimates={"xmem": 550.0},
    estimated_oom={"xmem": False, "dnnmem": True},
)
RESULT = Simulated(reserved_bytes=460, allocated_bytes=400, capacity_bytes=900, within_bytes=460, seconds=1.5)


def test_the_data_has_every_measured_run() -> None:
    assert len(RUNS) == 109
    assert sum(run.real_oom for run in RUNS) == 13
    assert {run.zero_grad_mode for run in RUNS} == {None, 0, 1, 2}


def test_every_second_model_of_the_alphabet_is_fitted_on() -> None:
    models = {run.model for run in RUNS}

    for cnn in (True, False):
        in_order = sorted((name for name in models if is_cnn(name) == cnn), key=str.casefold)
        assert [name for name in in_order if name in FIT_MODELS] == in_order[::2]


def test_every_run_has_a_card_of_its_memory() -> None:
    assert all(card_of(run).total_bytes == run.total_bytes for run in RUNS)


def test_an_estimate_is_no_peak_where_the_estimator_ran_out_of_memory() -> None:
    for run in RUNS:
        assert ("xmem" in run.estimates) != run.estimated_oom["xmem"]


def test_a_model_that_an_estimator_does_not_know_counts_as_out_of_memory() -> None:
    unknown = [run for run in RUNS if run.model == "T5-small"]

    assert unknown
    assert all(run.estimated_oom["llmem"] and "llmem" not in run.estimates for run in unknown)


def test_constants_are_the_medians_of_fitted_runs_that_ran() -> None:
    runs = [
        replace(RUN, ground_bytes=480),
        replace(RUN, ground_bytes=500, model="ConvNeXtTiny"),
        replace(RUN, ground_bytes=900, real_oom=True),
        replace(RUN, ground_bytes=800, model="ResNet101"),
        replace(RUN, gpu="another card", model="ResNet101"),
    ]

    assert constants(runs, [RESULT] * 5) == {"NVIDIA GeForce RTX 3060": 30, "another card": 0}


@pytest.mark.parametrize(
    ("grounds", "models"),
    [
        pytest.param((480, 500), ("VGG16", "VGG16"), id="one model alone"),
        pytest.param((430, 450), ("VGG16", "ConvNeXtTiny"), id="less than was simulated"),
    ],
)
def test_there_is_no_constant_of_one_model_and_none_below_0(grounds: tuple[int, ...], models: tuple[str, ...]) -> None:
    runs = [replace(RUN, ground_bytes=ground, model=model) for ground, model in zip(grounds, models, strict=True)]

    assert constants(runs, [RESULT] * 2) == {RUN.gpu: 0}


def test_a_row_is_the_reserved_peak_and_the_constant_beside_what_was_measured() -> None:
    row = row_of(RUN, RESULT, 15, mode=1)

    assert (row.part, row.residual_bytes, row.predicted_bytes, row.predicted_oom, row.is_right) == (
        FIT,
        40,
        475,
        False,
        True,
    )
    assert row.error == pytest.approx(-0.05)


def test_a_run_that_was_out_of_memory_has_a_decision_and_no_error() -> None:
    row = row_of(replace(RUN, real_oom=True, model="ResNet101"), replace(RESULT, within_bytes=None), 15, mode=1)

    assert (row.part, row.residual_bytes, row.error, row.predicted_oom, row.is_right) == (CHECK, None, None, True, True)


def test_a_peak_on_the_card_is_what_is_reserved_within_its_memory() -> None:
    assert replace(RESULT, within_bytes=440).peak_bytes == 440
    assert replace(RESULT, within_bytes=None).peak_bytes == 460


def test_a_score_takes_errors_without_their_sign() -> None:
    pairs = [(error / 100, True) for error in (-1, 2, -3, 4, -5, 6, -7, 8, -9, 10)]

    found = score(OURS, [*pairs, (None, False), (None, None)])

    assert (found.peaks, found.judged, found.wrong) == (10, 11, 1)
    assert [found.median_error, found.high_error] == pytest.approx([0.055, 0.09])


def test_estimators_are_scored_on_the_same_runs() -> None:
    found = {each.estimator: each for each in scores([row_of(RUN, RESULT, 15, mode=1)], [RUN])}

    assert found[OURS].median_error == pytest.approx(0.05)
    assert found["xmem"].median_error == pytest.approx(0.1)
    assert (found["dnnmem"].peaks, found["dnnmem"].judged, found["dnnmem"].wrong) == (0, 1, 1)
    assert (found["llmem"].peaks, found["llmem"].judged, found["llmem"].wrong) == (0, 0, 0)
    assert words(found["llmem"]) == "llmem: no peaks; 0 of 0 decisions wrong"


def test_the_published_estimators_score_as_their_data_say() -> None:
    rows = [row_of(run, RESULT, 0, mode=1) for run in RUNS]
    xmem = next(each for each in scores(rows, RUNS) if each.estimator == "xmem")

    assert (xmem.peaks, xmem.judged, xmem.wrong) == (94, 109, 2)
    assert xmem.median_error == pytest.approx(0.03153, abs=1e-4)


def test_rows_come_back_from_the_table() -> None:
    rows = [
        row_of(RUN, RESULT, 15, mode=1, other_reserved_bytes=430),
        row_of(replace(RUN, real_oom=True), replace(RESULT, within_bytes=None), 15, mode=0),
    ]

    assert from_csv(to_csv(rows)) == rows


def test_the_summary_has_every_part_model_and_optimizer() -> None:
    lines = summary_csv([row_of(RUN, RESULT, 15, mode=1)], [RUN]).splitlines()

    ours = [line.split(",")[:3] for line in lines if f",{OURS}," in line]
    assert ours == [["all", "all", "all"], ["fit", "VGG16", "all"], ["fit", "all", "SGD"], ["fit", "all", "all"]]


def test_the_figure_is_a_picture() -> None:
    rows = [row_of(run, replace(RESULT, reserved_bytes=run.ground_bytes), 15, mode=1) for run in RUNS]

    assert figure(rows).startswith(b"\x89PNG")


def test_batches_have_the_sizes_that_ran_without_the_memory_of_images() -> None:
    images, targets = next(image_batches(7))
    text = next(text_batches(3, 100))

    assert (images.shape, images.device.type, targets.shape) == ((7, 3, 86, 86), "meta", (7,))
    assert text["input_ids"].shape == text["labels"].shape == (3, 128)
    assert text["attention_mask"].sum(1).tolist() == [128, 64, 64]
    assert (text["labels"] == -100).sum().item() == 128


def test_keys_and_values_of_a_step_live_as_long_as_its_output() -> None:
    model = build("distilbert/distilgpt2")

    output = model(torch.arange(6).reshape(1, 6), past_key_values=cache_of("distilbert/distilgpt2"))

    layer = output.past_key_values.layers[0]
    assert layer.keys.shape == (1, 12, 6, 64)
    assert (
        layer.keys.untyped_storage().data_ptr() == layer.values.untyped_storage().data_ptr()
    )  # of one projection, not copied


def test_gradients_that_live_through_a_forward_cost_memory() -> None:
    run = replace(RUN, model="MobeNetV3Small", optimizer="Adam", batch_size=2, total_bytes=12_622_168_064)

    between, first = simulate(run, BETWEEN), simulate(run, FIRST)

    assert between.within_bytes == between.reserved_bytes
    assert between.allocated_bytes > first.allocated_bytes > 3 * 4 * 1_528_106
    assert between.capacity_bytes < 12_622_168_064 - 15 * MIB


def test_the_readme_has_a_row_for_each_estimator() -> None:
    summary = (ROOT / "results" / "prediction" / "summary.csv").read_text()
    rows = prediction(summary).splitlines()[2:]

    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == list(ESTIMATORS)
    assert all(row.count("|") == 6 for row in rows)


def test_the_readme_shows_predicted_plans_alone(tmp_path: Path) -> None:
    plans = {ROOT / folder / "plan.json": target for folder, (target, _) in SIMULATED.items()}
    measured = tmp_path / "plan.json"
    measured.write_text(next(iter(plans)).read_text().replace('"predicted": true', '"predicted": false'))

    assert [row.split(" | ")[:2] for row in simulated(plans).splitlines()[2:]] == [
        [f"| `{target}`", f"sim:{card}"] for target in TARGETS.values() for card in CARDS
    ]
    with pytest.raises(AssertionError, match="was measured"):
        simulated({measured: "a model"})
