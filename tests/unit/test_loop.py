from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from sample_plans import (
    Recorded,
    TinyModel,
    assert_close,
    count_targets,
    gradients,
    plan_of,
    plans,
    sample_loss,
    token_batches,
    token_loss,
    tokens_of,
    whole_gradients,
)
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from profiler.batches import to_device
from profiler.errors import UsageError, WorkloadError
from profiler.loop import accumulate
from profiler.plan import AccumulationPlan
from profiler.workload import Precision, Workload

PLAN = plan_of((3, 2, 2))
BATCH = tokens_of(
    [[1, 2, 3], [4, 0, 1], [2, 2, 2], [3, 1, 0], [0, 4, 4], [1, 3, 2], [4, 2, 0]],
    [[True, False, True]] * 3 + [[False] * 3] * 2 + [[True, True, True], [False, True, False]],
)
NO_ITEMS = {**BATCH, "targets": torch.full_like(BATCH["targets"], -100)}


def workload_of(precision: Precision = "fp32") -> Workload:
    return Workload(
        model=TinyModel, make_batch=lambda size: BATCH, loss=token_loss, loss_items=count_targets, precision=precision
    )


def rows_of(batch: dict[str, Tensor], stop: int) -> dict[str, Tensor]:
    return {name: tensor[:stop] for name, tensor in batch.items()}


def failing_at(number: int, loss: Callable[..., Tensor] = token_loss) -> Callable[..., Tensor]:
    """A loss that raises at its call of that number, from 1."""
    calls = Recorded(loss)

    def failing(model: nn.Module, batch: Any) -> Tensor:
        value: Tensor = calls(model, batch)
        if len(calls.calls) == number:
            raise RuntimeError("the user's bug")
        return value

    return failing


# The gradient and the loss of the whole batch


@pytest.mark.parametrize(("loss", "loss_items"), [(token_loss, count_targets), (sample_loss, None)])
@given(data=st.data(), plan=plans())
def test_it_is_the_gradient_and_the_loss_of_the_whole_batch(
    data: st.DataObject, plan: AccumulationPlan, loss: Any, loss_items: Any
) -> None:
    batch = data.draw(token_batches(data.draw(st.integers(1, plan.effective_batch_size))))
    model = TinyModel()
    whole, expected = whole_gradients(model, loss, batch)
    value = accumulate(model, batch, loss, plan, loss_items=loss_items)

    torch.testing.assert_close(value, whole, rtol=1e-12, atol=0, equal_nan=True)
    assert_close(gradients(model), expected)


def test_a_workload_brings_its_loss_and_counts_its_items() -> None:
    model = TinyModel()
    whole, expected = whole_gradients(model, token_loss, BATCH)
    value = accumulate(model, BATCH, workload_of(), PLAN)

    assert value.item() == pytest.approx(whole.item(), rel=1e-12)
    assert_close(gradients(model), expected)


def test_the_mean_of_the_parts_would_not_be_the_batchs() -> None:
    model = TinyModel()
    _, expected = whole_gradients(model, token_loss, BATCH)
    accumulate(model, rows_of(BATCH, 3), token_loss, plan_of((2, 1)))

    assert not torch.allclose(gradients(model)[0], expected[0], rtol=0.01)


def test_the_loss_is_a_detached_scalar_in_the_losss_own_type() -> None:
    for dtype in (torch.float32, torch.float64):
        value = accumulate(TinyModel(dtype), BATCH, workload_of(), PLAN)

        assert (value.shape, value.dtype, value.requires_grad) == ((), dtype, False)


def test_gradients_add_to_those_that_are_there() -> None:
    model = TinyModel()
    _, expected = whole_gradients(model, token_loss, BATCH)
    for _ in range(2):
        accumulate(model, BATCH, workload_of(), PLAN)

    assert_close(gradients(model), [2 * gradient for gradient in expected])


def test_a_short_last_batch_is_its_own_whole() -> None:
    model, short = TinyModel(), rows_of(BATCH, 4)
    whole, expected = whole_gradients(model, token_loss, short)
    loss = Recorded(token_loss)
    value = accumulate(model, short, loss, PLAN, loss_items=count_targets)

    assert [len(part["tokens"]) for part in loss.calls] == [2, 2]
    assert value.item() == pytest.approx(whole.item(), rel=1e-12)
    assert_close(gradients(model), expected)


def test_a_part_without_items_is_not_run() -> None:
    loss = Recorded(token_loss)
    accumulate(TinyModel(), BATCH, loss, PLAN, loss_items=count_targets)

    assert [count_targets(part) for part in loss.calls] == [6, 4]


def test_a_batch_that_slicing_cannot_cut_is_cut_by_a_function() -> None:
    model = TinyModel()
    whole, expected = whole_gradients(model, token_loss, BATCH)
    rows = [{name: tensor[row] for name, tensor in BATCH.items()} for row in range(7)]

    def stacked_loss(model: nn.Module, batch: list[dict[str, Tensor]]) -> Tensor:
        return token_loss(model, {name: torch.stack([row[name] for row in batch]) for name in BATCH})

    value = accumulate(
        model,
        rows,
        stacked_loss,
        PLAN,
        loss_items=lambda part: sum(map(count_targets, part)),
        split=lambda batch, sizes: [batch[:3], batch[3:5], batch[5:]],
        samples=len,
    )

    assert value.item() == pytest.approx(whole.item(), rel=1e-12)
    assert_close(gradients(model), expected)


def test_a_criterion_is_of_the_models_outputs_and_the_targets() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 4, dtype=torch.float64)
    inputs, targets = torch.randn(7, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0, 1, 2])
    criterion = nn.CrossEntropyLoss()
    whole, expected = whole_gradients(
        model, lambda model, batch: criterion(model(batch[0]), batch[1]), (inputs, targets)
    )

    for batch in ((inputs, targets), [inputs, targets]):
        value = accumulate(model, batch, criterion, PLAN)
        assert value.item() == pytest.approx(whole.item(), rel=1e-12)
        assert_close(gradients(model), expected)
        model.zero_grad()


def test_the_items_of_a_criterion_are_counted_as_those_of_a_function() -> None:
    class Flat(TinyModel):
        def forward(self, tokens: Tensor) -> Tensor:
            return super().forward(tokens).transpose(1, 2)

    model = Flat()
    criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0, 0.5, 1.5], dtype=torch.float64))
    pair = (BATCH["tokens"], BATCH["targets"])
    whole, expected = whole_gradients(model, lambda model, batch: criterion(model(batch[0]), batch[1]), pair)

    def class_weights(part: tuple[Tensor, Tensor]) -> float:
        weight: Any = criterion.weight
        return float(weight[part[1][part[1] != -100]].sum())

    value = accumulate(model, pair, criterion, PLAN, loss_items=class_weights)

    assert value.item() == pytest.approx(whole.item(), rel=1e-12)
    assert_close(gradients(model), expected)


def test_a_batch_that_is_no_pair_is_none_for_a_criterion() -> None:
    with pytest.raises(WorkloadError, match=r"the batch is a dict, and .* needs a pair \(inputs, targets\)"):
        accumulate(TinyModel(), BATCH, nn.CrossEntropyLoss(), PLAN)


def test_parts_of_other_sizes_than_asked_for_have_the_gradient_of_the_whole_batch() -> None:
    model = TinyModel()
    whole, expected = whole_gradients(model, sample_loss, BATCH)

    def chunks(batch: dict[str, Tensor], sizes: tuple[int, ...]) -> list[dict[str, Tensor]]:
        return [{name: tensor[start : start + 3] for name, tensor in batch.items()} for start in (0, 3, 6)]

    value = accumulate(model, BATCH, sample_loss, PLAN, split=chunks)

    assert value.item() == pytest.approx(whole.item(), rel=1e-12)
    assert_close(gradients(model), expected)


def test_fifty_steps_by_parts_are_fifty_steps_by_the_whole_batch() -> None:
    curves = []
    for plan in (plan_of((7,)), PLAN):
        model = TinyModel()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
        losses = []
        for _ in range(50):
            optimizer.zero_grad()
            losses.append(accumulate(model, BATCH, workload_of(), plan))
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
        curves.append(torch.stack(losses))

    assert curves[0][-1] < curves[0][0] / 2
    torch.testing.assert_close(curves[1], curves[0], rtol=1e-10, atol=0)


# A batch without any items


def test_without_any_items_the_gradient_is_zero_and_the_loss_nan() -> None:
    model = TinyModel()
    value = accumulate(model, NO_ITEMS, workload_of(), PLAN)

    assert value.isnan()
    assert [gradient.abs().max().item() for gradient in gradients(model)] == [0.0] * 3


def test_a_loss_whose_gradient_is_nan_without_items_does_no_harm() -> None:
    def divided(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        kept = (batch["targets"] != -100).unsqueeze(-1)
        total: Tensor = (model(batch["tokens"]).square() * kept).sum()
        return total / kept.sum()

    model = TinyModel()
    divided(model, NO_ITEMS).backward()
    assert gradients(model)[0].isnan().any()

    model.zero_grad()
    accumulate(model, NO_ITEMS, divided, PLAN, loss_items=count_targets)
    assert [gradient.abs().max().item() for gradient in gradients(model)] == [0.0] * 3


def test_a_scaler_steps_after_a_batch_without_items_too() -> None:
    model = TinyModel(torch.float32)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scaler = torch.amp.GradScaler("cpu")
    accumulate(model, NO_ITEMS, workload_of(), PLAN, scaler=scaler)
    scaler.step(optimizer)
    scaler.update()

    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_whose_outputs_are_not_found_runs_by_its_loss() -> None:
    class Opaque(TinyModel):
        def forward(self, tokens: Tensor) -> Any:
            logits = super().forward(tokens)
            return lambda: logits

    model = Opaque()
    accumulate(model, NO_ITEMS, lambda model, batch: model(batch["tokens"])().mean(), PLAN, loss_items=count_targets)

    assert [gradient.abs().max().item() for gradient in gradients(model)] == [0.0] * 3


# Precision


@pytest.mark.parametrize("how", ["workload", "caller"])
def test_forwards_run_in_the_autocast_of_the_workload_or_of_the_caller(how: str) -> None:
    model = TinyModel(torch.float32)
    dtypes: list[torch.dtype] = []
    model.register_forward_hook(lambda module, arguments, output: dtypes.append(output.dtype))
    if how == "workload":
        value = accumulate(model, BATCH, workload_of("bf16"), PLAN)
    else:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = accumulate(model, BATCH, token_loss, PLAN, loss_items=count_targets)
    found = gradients(model)

    assert dtypes == [torch.bfloat16] * 2
    model.zero_grad()
    losses = []
    for part, weight in PLAN.split(BATCH, count_targets):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = token_loss(model, part) * weight
        loss.backward()
        losses.append(loss)
    assert value.item() == pytest.approx(sum(losses).item())  # type: ignore[union-attr]
    assert_close(found, gradients(model), tolerance=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_other_precisions_leave_types_and_switches_alone(precision: Precision) -> None:
    model = TinyModel(torch.float32)
    dtypes: list[torch.dtype] = []
    model.register_forward_hook(lambda module, arguments, output: dtypes.append(output.dtype))
    before = torch.get_float32_matmul_precision()
    accumulate(model, BATCH, workload_of(precision), PLAN)

    assert dtypes == [torch.float32] * 2
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_a_scaler_scales_each_parts_gradient_and_not_the_loss_that_is_returned(autocast: torch.dtype | None) -> None:
    def run(scaler: torch.amp.GradScaler | None) -> tuple[Tensor, list[Tensor]]:
        model = TinyModel(torch.float32)
        with torch.autocast("cpu", dtype=autocast) if autocast else nullcontext():
            value = accumulate(model, BATCH, token_loss, PLAN, loss_items=count_targets, scaler=scaler)
        return value, gradients(model)

    plain, expected = run(None)
    value, found = run(torch.amp.GradScaler("cpu", init_scale=1024.0))

    assert torch.equal(value, plain)
    # Scaling by a power of two rounds nothing.
    assert_close([gradient / 1024 for gradient in found], expected, tolerance=1e-7)


def test_the_loop_with_a_scaler_and_clipping_is_the_loop_without() -> None:
    states = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=1024.0)):
        model = TinyModel(torch.float32)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        for _ in range(5):
            optimizer.zero_grad()
            accumulate(model, BATCH, workload_of(), PLAN, scaler=scaler)
            if scaler is not None:
                scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            if scaler is not None:
                scaler.step(optimizer)
                scaler.update()
            else:
                optimizer.step()
        states.append(list(model.parameters()))

    torch.testing.assert_close(states[1], states[0])


@pytest.mark.parametrize("scaler", [None, torch.amp.GradScaler("cpu", enabled=False)], ids=["none", "disabled"])
def test_fp16_without_a_scaler_is_refused(scaler: torch.amp.GradScaler | None) -> None:
    with pytest.raises(UsageError, match=r"fp16, in which small gradients.* pass scaler=torch\.amp\.GradScaler\(\)"):
        accumulate(TinyModel(torch.float32), BATCH, workload_of("fp16"), PLAN, scaler=scaler)


# What it leaves as it was, and what it never does


def test_it_changes_nothing_but_gradients() -> None:
    model = nn.Sequential(TinyModel(), nn.Dropout(0.0)).train()
    model[1].eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = copy.deepcopy(model.state_dict())
    batch = copy.deepcopy(BATCH)
    for each in (batch, NO_ITEMS):
        accumulate(model, each, workload_of(), PLAN)

    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == [True, True, True, True, False]
    assert [len(module._forward_hooks) for module in model.modules()] == [0] * 5
    assert optimizer.state == {}
    assert all(torch.equal(batch[name], BATCH[name]) for name in BATCH)


def test_each_part_is_moved_by_itself_and_is_the_only_one_there_in_a_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    there: list[weakref.ref[Tensor]] = []

    def moved(batch: Any, device: torch.device) -> Any:
        copied = {name: tensor.clone() for name, tensor in to_device(batch, device).items()}
        there.append(weakref.ref(copied["tokens"]))
        return copied

    def alive(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        held.append(sum(each() is not None for each in there))
        return sample_loss(model, batch)

    held: list[int] = []
    monkeypatch.setattr("profiler.loop.to_device", moved)
    gc.disable()
    try:
        accumulate(TinyModel(), BATCH, alive, PLAN)
    finally:
        gc.enable()

    assert held == [1, 1, 1]
    assert len(there) == 3


def test_parts_go_to_the_device_of_the_parameters() -> None:
    devices: list[str] = []

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        devices.append(batch["tokens"].device.type)
        return sample_loss(model, batch)

    value = accumulate(TinyModel().to("meta"), BATCH, loss, PLAN)

    assert devices == ["meta"] * 3
    assert value.device.type == "meta"


class NoReading(TorchDispatchMode):
    """Fails where a tensor's value is read into Python, which waits for the device."""

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        assert "_local_scalar_dense" not in str(function), "a tensor was read"
        assert "is_nonzero" not in str(function), "a tensor was read"
        return function(*arguments, **(named or {}))


@pytest.mark.parametrize(("batch", "counts"), [(BATCH, [6, 0, 4]), (NO_ITEMS, [0, 0, 0])])
def test_no_tensor_is_read(batch: dict[str, Tensor], counts: list[int]) -> None:
    known = iter(counts)
    no_reading: TorchDispatchMode = NoReading()  # type: ignore[no-untyped-call]
    with pytest.raises(AssertionError, match="a tensor was read"), no_reading:
        torch.ones(()).item()

    with no_reading:
        accumulate(TinyModel(), batch, token_loss, PLAN, loss_items=lambda part: next(known))


def test_a_compiled_model_is_run_as_it_is() -> None:
    model = TinyModel()
    _, expected = whole_gradients(model, token_loss, BATCH)
    compiled: Any = torch.compile(model, backend="eager")
    accumulate(compiled, BATCH, workload_of(), PLAN)
    assert_close(gradients(model), expected)

    accumulate(compiled, NO_ITEMS, workload_of(), PLAN)
    assert_close(gradients(model), expected)


# What cannot be used


def test_an_error_in_a_part_comes_out_as_it_is() -> None:
    with pytest.raises(RuntimeError, match="the user's bug"):
        accumulate(TinyModel(), BATCH, failing_at(2), PLAN)


def test_a_loss_that_is_no_scalar_is_the_users_bug() -> None:
    with pytest.raises(WorkloadError, match="it must be a scalar, averaged over the batch"):
        accumulate(TinyModel(), BATCH, lambda model, batch: model(batch["tokens"]), PLAN)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workload_or_loss": 5}, r"the loss is a int: pass a Workload, a function loss\(model, batch\), or"),
        ({"plan": "plan"}, "the plan is a str: pass an AccumulationPlan, such as find_accumulation_plan returns"),
        ({"workload_or_loss": workload_of(), "loss_items": count_targets}, "a Workload counts its own loss items"),
        ({"loss_items": 5}, "loss_items is a int, which cannot be called"),
        ({"split": 5}, "split is a int, which cannot be called"),
        ({"samples": 5}, "samples is a int, which cannot be called"),
        ({"synchronize": "never"}, "synchronize is 'never': use one of last, every"),
        ({"model": nn.ReLU()}, r"the model \(ReLU\) has no parameters"),
        ({"batch": {}}, "no array with samples along dimension 0"),
        ({"batch": rows_of(BATCH, 0)}, "the batch has 0 samples"),
        ({"plan": plan_of((3, 3))}, "the batch has 7 samples, and the plan has 6"),
        ({"plan": plan_of((7,), (7,))}, r"for 2 replicas, and this model \(TinyModel\) is not data parallel: wrap it"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_before_anything_runs(arguments: dict[str, Any], message: str) -> None:
    loss = Recorded(token_loss)
    given = {"model": TinyModel(), "batch": BATCH, "workload_or_loss": loss, "plan": PLAN, **arguments}

    with pytest.raises(UsageError, match=message):
        accumulate(**given)
    assert loss.calls == []


# Wrappers for data parallelism, here around a single process


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    meeting = tmp_path_factory.mktemp("one") / "meeting"
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def count_reductions(model: DistributedDataParallel) -> list[int]:
    """Grows by one with each gradient bucket that is reduced; all of a tiny model's gradients are one."""
    reductions: list[int] = []

    def reduced(buffer: Tensor) -> torch.futures.Future[Tensor]:
        reductions.append(1)
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        future.set_result(buffer)
        return future

    model.register_comm_hook(None, lambda state, bucket: reduced(bucket.buffer()))
    return reductions


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize(("synchronize", "reduced"), [("last", 1), ("every", 3)])
def test_gradients_are_reduced_with_the_last_part_or_with_every_one(synchronize: Any, reduced: int) -> None:
    model = TinyModel()
    _, expected = whole_gradients(model, sample_loss, BATCH)
    wrapped = DistributedDataParallel(model)
    reductions = count_reductions(wrapped)
    for step in (1, 2):
        model.zero_grad()
        accumulate(wrapped, BATCH, sample_loss, PLAN, synchronize=synchronize)
        assert len(reductions) == step * reduced
    assert_close(gradients(model), expected)


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_part_that_fails_leaves_the_reduction_on(number: int) -> None:
    wrapped = DistributedDataParallel(TinyModel())
    # What was caught keeps all frames alive, so that it is not their end which puts it back.
    with pytest.raises(RuntimeError, match="the user's bug") as caught:
        accumulate(wrapped, BATCH, failing_at(number, sample_loss), PLAN)

    assert wrapped.require_backward_grad_sync
    assert caught.tb is not None


@pytest.mark.usefixtures("one_process")
def test_a_reduction_that_the_caller_held_back_stays_so() -> None:
    wrapped = DistributedDataParallel(TinyModel())
    reductions = count_reductions(wrapped)
    with wrapped.no_sync():
        accumulate(wrapped, BATCH, sample_loss, PLAN)
        assert not wrapped.require_backward_grad_sync

    assert reductions == []


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize(("synchronize", "flags"), [("last", [False, True, False, True]), ("every", [])])
def test_fsdp2_is_told_to_reduce_with_the_last_part_or_never_told(synchronize: Any, flags: list[bool]) -> None:
    model = TinyModel()
    _, expected = whole_gradients(model, sample_loss, BATCH)
    told: list[bool] = []

    class Told(TinyModel):
        def set_requires_gradient_sync(self, requires_gradient_sync: bool, *, recurse: bool = True) -> None:
            told.append(requires_gradient_sync)
            FSDPModule.set_requires_gradient_sync(self, requires_gradient_sync, recurse=recurse)  # type: ignore[arg-type]

    sharded: Any = fully_shard(Told(), mesh=init_device_mesh("cpu", (1,)))
    # The class that fully_shard makes has FSDPModule's own method before this one.
    type(sharded).set_requires_gradient_sync = Told.set_requires_gradient_sync
    accumulate(sharded, BATCH, sample_loss, PLAN, synchronize=synchronize)

    assert told == flags
    assert_close([gradient.full_tensor() for gradient in gradients(sharded)], expected)  # type: ignore[attr-defined]


@pytest.mark.usefixtures("one_process")
def test_a_part_that_fails_leaves_the_reduction_of_fsdp2_on() -> None:
    sharded: Any = fully_shard(TinyModel(), mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(RuntimeError, match="the user's bug"):
        accumulate(sharded, BATCH, failing_at(2, sample_loss), PLAN)

    state = sharded._get_fsdp_state()
    groups = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]  # one, before torch 2.13
    assert all(group.reduce_grads for group in groups)


@pytest.mark.usefixtures("one_process")
def test_a_plan_for_more_replicas_than_there_are_is_refused() -> None:
    plan = replace(PLAN, effective_batch_size=14, replicas=PLAN.replicas * 2)

    with pytest.raises(
        UsageError, match="the plan is for 2 replicas, and the gradients of this model are averaged over 1"
    ):
        accumulate(DistributedDataParallel(TinyModel()), BATCH, sample_loss, plan)


@pytest.mark.usefixtures("one_process")
def test_a_process_group_says_the_replicas_where_the_model_does_not() -> None:
    model = TinyModel()
    _, expected = whole_gradients(model, sample_loss, BATCH)
    accumulate(model, BATCH, sample_loss, PLAN, process_group=dist.group.WORLD)

    assert_close(gradients(model), expected)
