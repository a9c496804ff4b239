from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sample_plans import TinyModel, assert_close, token_loss, whole_gradients

from process.data_parallel import BATCHES, PLAN, REPLICAS, cases, whole_of

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
SECONDS = 120

Result = Callable[[str], list[Any]]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """What each replica saved for a case; two processes that meet over gloo run all of them."""
    folder = tmp_path_factory.mktemp("replicas")
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, TESTS, TESTS / "unit"))),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "process.data_parallel", str(rank), str(folder)],
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(REPLICAS)
    ]
    try:
        errors = [process.communicate(timeout=SECONDS)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * REPLICAS, "\n".join(errors)
    return lambda name: [torch.load(folder / f"{name}, {rank}.pt") for rank in range(REPLICAS)]


def named(beginning: str) -> list[str]:
    return [name for name in cases(0) if name.startswith(beginning)]


@pytest.mark.parametrize("name", [name for name in cases(0) if name.endswith(tuple(BATCHES))])
def test_every_replica_has_the_gradient_of_all_samples_in_one_batch(ran: Result, name: str) -> None:
    whole, expected = whole_gradients(TinyModel(), token_loss, whole_of(name.split(", ")[-1]))
    results = ran(name)

    for result in results:
        assert_close(result["gradients"], expected, tolerance=1e-12)
    loss = sum(result["loss"] for result in results) / REPLICAS
    torch.testing.assert_close(loss, whole, rtol=1e-12, atol=0, equal_nan=True)


def test_the_replicas_items_are_unequal_and_averaging_their_own_means_would_be_wrong(ran: Result) -> None:
    means = [whole_gradients(TinyModel(), token_loss, batch)[1] for batch in BATCHES["unequal items"]]
    first = ran("ddp, last, unequal items")[0]["gradients"][0]

    assert not torch.allclose(first, (means[0][0] + means[1][0]) / REPLICAS, rtol=0.01)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("unequal items", (3, 3)),
        ("parts without items", (1, 1)),
        ("a replica without items", (3, 1)),
        ("a short batch", (3, 1)),
        ("no items", (1, 1)),
    ],
)
def test_ddp_reduces_once_with_the_last_part_however_many_parts_each_replica_has(
    ran: Result, name: str, parts: tuple[int, int]
) -> None:
    results = ran(f"ddp, last, {name}")

    assert tuple(result["parts"] for result in results) == parts
    assert [result["reduced"] for result in results] == [[parts[0]], [parts[1]]]


@pytest.mark.parametrize("name", named("ddp, every"))
def test_ddp_reduces_with_every_part_of_which_all_replicas_then_run_as_many(ran: Result, name: str) -> None:
    steps = PLAN.accumulation_steps

    assert [result["reduced"] for result in ran(name)] == [list(range(1, steps + 1))] * REPLICAS


@pytest.mark.parametrize("name", [*named("fsdp2, last"), *named("fsdp2 by layer"), *named("hsdp")])
def test_fsdp2_has_no_reduced_gradient_before_the_last_part(ran: Result, name: str) -> None:
    assert [result["had_gradients"] for result in ran(name)] == [[False] * PLAN.accumulation_steps] * REPLICAS


@pytest.mark.parametrize("name", named("fsdp2, every"))
def test_fsdp2_has_shards_of_the_gradient_from_the_first_part_on(ran: Result, name: str) -> None:
    assert [result["had_gradients"] for result in ran(name)] == [[False, True, True]] * REPLICAS


@pytest.mark.parametrize("name", [*named("ddp"), *named("fsdp2")])
def test_items_are_summed_by_one_small_all_reduce(ran: Result, name: str) -> None:
    assert [result["sums"] for result in ran(name)] == [1] * REPLICAS


def test_a_plan_for_another_number_of_replicas_is_refused(ran: Result) -> None:
    assert (
        ran("a plan for one")
        == [
            "the plan is for 1 replica, and the gradients of this model are averaged over 2: make a plan with "
            "data_parallel_size=2."
        ]
        * REPLICAS
    )


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("a mesh of several kinds", "the model lies on the mesh DeviceMesh("),
        ("several groups of the older fsdp", "the model is sharded by ShardingStrategy.HYBRID_SHARD"),
    ],
)
def test_a_model_that_does_not_say_its_replicas_is_refused(ran: Result, name: str, why: str) -> None:
    for message in ran(name):
        assert message.startswith(why)
        assert message.endswith("pass process_group, the group over which its gradients are averaged.")
