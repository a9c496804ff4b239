"""Accumulation in the user's own loop: forward and backward of a batch part by part, on one device or on replicas."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from profiler.batches import tensors_of, to_device
from profiler.errors import UsageError
from profiler.parts import Count, Share, Split, check_functions, count_items, cut, weigh
from profiler.plan import AccumulationPlan
from profiler.replicas import Replicas
from profiler.steps import Passes, accumulation, autocast_dtype
from profiler.workload import SupervisedLoss, Workload

Loss = Callable[[nn.Module, Any], Tensor]
Synchronize = Literal["last", "every"]


def accumulate(
    model: nn.Module,
    batch: Any,
    workload_or_loss: Workload | Loss | nn.Module,
    plan: AccumulationPlan,
    *,
    scaler: torch.amp.GradScaler | None = None,
    loss_items: Count | None = None,
    split: Split | None = None,
    samples: Count | None = None,
    synchronize: Synchronize = "last",
    process_group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Add the gradient of the whole batch's loss to `.grad`, by a forward and a backward of each of the plan's parts.

        for batch in loader:
            optimizer.zero_grad()
            loss = accumulate(model, batch, workload, plan, scaler=scaler)
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()

    Without a scaler the loop has no `unscale_` and no `update`, and `optimizer.step()`. This function neither zeroes,
    unscales nor clips gradients, and does not step. It moves each part to the model's device when its turn comes, so keep
    the batch in host memory.

    model: as it is trained: compiled, or wrapped by DistributedDataParallel or either FSDP.
    batch, loss_items, split, samples: as in `AccumulationPlan.split`.
    workload_or_loss: a Workload, for its loss, loss_items and precision (tf32, a switch of torch's own, is left as it is);
        or a function `loss(model, batch)`, averaged over `loss_items(batch)` items and run in the caller's autocast; or a
        torch.nn.Module, such as CrossEntropyLoss(), for `module(model(inputs), targets)` of batches (inputs, targets), the
        rest as for a function.
    synchronize: "last" holds the reduction of gradients over replicas back until the last part. "every" reduces those of
        each part, for FSDP, which then keeps shards of them instead of whole ones.
    process_group: the replicas, where the wrapper does not say which they are; gradients must be averaged over them.

    The items of all replicas are summed by one small all-reduce, so each must call this equally often. A replica without
    items runs a part all the same, with a gradient of zero: the others wait for it. Where every forward or backward
    communicates (FSDP, "every"), each runs as many parts as the plan has steps.

    Returns the loss of this batch, detached, on the device; it waits for the device nowhere. The loss of the effective
    batch is its mean over the replicas. Without any items the gradient is zero and the loss NaN, a mean over nothing.

    Raises UsageError for arguments that do not fit each other, WorkloadError for a loss or counts that cannot be right.
    Gradients are incomplete after an error: zero them.
    """
    if not isinstance(plan, AccumulationPlan):
        raise UsageError(
            f"the plan is a {type(plan).__name__}: pass an AccumulationPlan, such as find_accumulation_plan returns."
        )
    objective = _Objective.of(workload_or_loss, loss_items, scaler)
    check_functions(loss_items=loss_items, split=split, samples=samples)
    if synchronize not in get_args(Synchronize):
        raise UsageError(f"synchronize is {synchronize!r}: use one of {', '.join(get_args(Synchronize))}.")
    device, dtype = _where(model)
    replicas = Replicas.of(model, process_group)
    replicas.check(plan.data_parallel_size)
    share = Share.of(plan.replicas, replicas.rank)
    parts, sizes = cut(batch, share, split=split, samples=samples)
    items = count_items(parts, sizes, objective.loss_items)
    total = replicas.sum(sum(items), device, dtype) if replicas.count > 1 else sum(items)
    weighted = weigh(parts, items, total, replicas.count)
    # Where replicas wait for each other in every part, they must run equally many.
    waits = replicas.count > 1 and (replicas.gathers or synchronize == "every")
    weighted += [(_Silent(parts[0]), 1.0)] * ((plan.accumulation_steps if waits else 1) - len(weighted))
    moved = _on_device(weighted, device, replicas.held_back if synchronize == "last" else nullcontext)
    passes = Passes(model=model, loss=objective, device=device, autocast_dtype=objective.autocast_dtype, scaler=scaler)
    # Closed at once where a part fails, so that nothing stays held back.
    with closing(moved):
        loss = accumulation(passes, moved)
    if sum(items):
        return loss
    return loss + (0.0 / total if isinstance(total, Tensor) else math.nan)


@dataclass(frozen=True, slots=True)
class _Silent:
    """A part that is run for what it communicates; its gradient is zero."""

    batch: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class _Objective:
    """What a part's gradient is of; callable as `Passes.loss`."""

    loss: Loss
    loss_items: Count | None
    autocast_dtype: torch.dtype | None = None

    @classmethod
    def of(cls, given: Any, loss_items: Count | None, scaler: torch.amp.GradScaler | None) -> _Objective:
        if not isinstance(given, Workload):
            if not callable(given):
                raise UsageError(
                    f"the loss is a {type(given).__name__}: pass a Workload, a function loss(model, batch), or a criterion, "
                    "a torch.nn.Module of outputs and targets."
                )
            loss = SupervisedLoss(criterion=given) if isinstance(given, nn.Module) else given
            return cls(loss=loss, loss_items=loss_items)
        if loss_items is not None:
            raise UsageError("a Workload counts its own loss items: pass Workload(loss_items=...), or its loss alone.")
        if given.precision == "fp16" and (scaler is None or not scaler.is_enabled()):
            raise UsageError(
                f"the precision of {given.name} is fp16, in which small gradients become zero unless the loss is scaled: "
                "pass scaler=torch.amp.GradScaler(), enabled, or use bf16."
            )
        return cls(loss=given.loss, loss_items=given.loss_items, autocast_dtype=autocast_dtype(given.precision))

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        if isinstance(batch, _Silent):
            return _without_gradient(self.loss, model, batch.batch)
        return self.loss(model, batch)


def _without_gradient(loss: Loss, model: nn.Module, batch: Any) -> Tensor:
    """Zero, by a graph through the whole model; what communicates in the backward of `loss` does in that of this."""
    outputs: list[Any] = []
    hook = model.register_forward_hook(lambda module, arguments, output: outputs.append(output))
    try:
        value = loss(model, batch)
    finally:
        hook.remove()
    # Not by way of the loss: of no items it is 0/0, and so would be its gradient.
    ends = [tensor for tensor in tensors_of(outputs) if tensor.requires_grad] or [value]
    return torch.stack([(end.sum() * 0).real.nan_to_num(0.0) for end in ends]).sum()


def _where(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """The device that a model computes on, and the type for its weights of losses."""
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise UsageError(f"the model ({type(model).__name__}) has no parameters: there is nothing to train.")
    device = parameter.device
    # FSDP may keep its shards in host memory; its mesh says where it computes.
    mesh = getattr(parameter, "device_mesh", None)
    if mesh is not None and mesh.device_type != device.type:
        device = torch.device(mesh.device_type)
    return device, torch.float64 if parameter.dtype is torch.float64 else torch.float32


def _on_device(
    parts: Sequence[tuple[Any, Any]], device: torch.device, held_back: Callable[[], AbstractContextManager[None]]
) -> Generator[tuple[Any, Any], None, None]:
    """The parts, each moved when it is asked for; up to the last one, while it is in use the reduction is held back."""
    for number, (part, weight) in enumerate(parts, start=1):
        with held_back() if number < len(parts) else nullcontext():
            yield to_device(part, device), weight
