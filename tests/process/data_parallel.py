"""One of two replicas on the CPU: runs the cases that it is named, and saves what each came to.

python -m process.data_parallel RANK FOLDER
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from sample_plans import TinyModel, count_targets, gradients, plan_of, token_loss, tokens_of
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from profiler.errors import UsageError
from profiler.loop import accumulate

REPLICAS = 2
PLAN = plan_of((3, 2, 2), (2, 2, 2))
YES, NO = [True] * 3, [False] * 3
ONE = [True, False, False]
TOKENS = [[1, 2, 3], [4, 0, 1], [2, 2, 2], [3, 1, 0], [0, 4, 4], [1, 3, 2], [4, 2, 0]]

# What each replica has, by the name of the case. Items are as unequal as they can be.
BATCHES: dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]] = {
    "unequal items": (tokens_of(TOKENS, [YES] * 7), tokens_of(TOKENS[:6], [ONE] * 6)),
    "parts without items": (tokens_of(TOKENS, [YES] * 3 + [NO] * 4), tokens_of(TOKENS[:6], [NO] * 4 + [ONE] * 2)),
    "a replica without items": (tokens_of(TOKENS, [ONE] * 7), tokens_of(TOKENS[:6], [NO] * 6)),
    "a short batch": (tokens_of(TOKENS, [YES] * 7), tokens_of(TOKENS[:1], [YES])),
    "no items": (tokens_of(TOKENS, [NO] * 7), tokens_of(TOKENS[:6], [NO] * 6)),
}


def whole_of(name: str) -> dict[str, Tensor]:
    """What both replicas have, in one batch."""
    return {key: torch.cat([batch[key] for batch in BATCHES[name]]) for key in ("tokens", "targets")}


class Watched:
    """The loss of a part; remembers whether there were gradients before each."""

    def __init__(self) -> None:
        self.had_gradients: list[bool] = []

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        self.had_gradients.append(any(parameter.grad is not None for parameter in model.parameters()))
        return token_loss(model, batch)


class SmallSums:
    """Counts the all-reduces of a single number."""

    def __init__(self) -> None:
        self.number = 0
        self._all_reduce = dist.all_reduce

    def __call__(self, tensor: Tensor, *arguments: Any, **named: Any) -> Any:
        self.number += tensor.numel() == 1
        return self._all_reduce(tensor, *arguments, **named)

    def __enter__(self) -> SmallSums:
        dist.all_reduce = self
        return self

    def __exit__(self, *error: object) -> None:
        dist.all_reduce = self._all_reduce


def result(loss: Tensor, found: list[Tensor], **more: Any) -> dict[str, Any]:
    return {"loss": loss, "gradients": [gradient.detach().clone() for gradient in found], **more}


def wrapped_by_ddp(batch: Any, synchronize: Any) -> dict[str, Any]:
    model = DistributedDataParallel(TinyModel())
    reduced: list[int] = []

    def average(buffer: Tensor) -> torch.futures.Future[Tensor]:
        reduced.append(len(watched.had_gradients))
        work: Any = dist.all_reduce(buffer.div_(REPLICAS), async_op=True)
        averaged: torch.futures.Future[Tensor] = work.get_future().then(lambda future: future.value()[0])
        return averaged

    model.register_comm_hook(None, lambda state, bucket: average(bucket.buffer()))
    # Twice: after the first backward the buckets are made anew, and buffers are sent again.
    for _ in range(2):
        model.zero_grad()
        watched = Watched()
        reduced.clear()
        with SmallSums() as sums:
            loss = accumulate(model, batch, watched, PLAN, loss_items=count_targets, synchronize=synchronize)
    parts = len(watched.had_gradients)
    return result(loss, gradients(model), reduced=reduced, parts=parts, sums=sums.number)


def sharded(
    batch: Any, synchronize: Any, *, mesh: tuple[int, ...] = (REPLICAS,), by_layer: bool = False
) -> dict[str, Any]:
    model: Any = TinyModel()
    grid = init_device_mesh("cpu", mesh, mesh_dim_names=("replicate", "shard")[-len(mesh) :])
    if by_layer:
        fully_shard(model.embedding, mesh=grid)
    fully_shard(model, mesh=grid)
    watched = Watched()
    with SmallSums() as sums:
        loss = accumulate(model, batch, watched, PLAN, loss_items=count_targets, synchronize=synchronize)
    found: list[Any] = gradients(model)
    return result(loss, [each.full_tensor() for each in found], had_gradients=watched.had_gradients, sums=sums.number)


def sharded_by_the_older_fsdp(batch: Any, synchronize: Any) -> dict[str, Any]:
    model: Any = FullyShardedDataParallel(TinyModel(), device_id=torch.device("cpu"), use_orig_params=True)
    loss = accumulate(model, batch, token_loss, PLAN, loss_items=count_targets, synchronize=synchronize)
    with FullyShardedDataParallel.summon_full_params(model, with_grads=True):
        return result(loss, gradients(model))


def averaged_by_the_user(batch: Any) -> dict[str, Any]:
    model = TinyModel()
    loss = accumulate(
        model,
        batch,
        token_loss,
        PLAN,
        loss_items=count_targets,
        process_group=dist.distributed_c10d._get_default_group(),
    )
    for gradient in [parameter.grad for parameter in model.parameters()]:
        assert gradient is not None
        dist.all_reduce(gradient)
        gradient /= REPLICAS
    return result(loss, gradients(model))


def sum_over_replicas(items: float) -> Tensor:
    total = torch.tensor(float(items), dtype=torch.float64)
    dist.all_reduce(total)
    return total


def in_the_users_loop(batch: Any, rank: int) -> dict[str, Any]:
    """The loop that `windows` is for, over a loader of micro-batches."""
    model = DistributedDataParallel(TinyModel())
    sampler = PLAN.batch_sampler(range(len(batch["tokens"])), replica=rank)
    loader = [{key: batch[key][indices] for key in batch} for indices in sampler]
    total = torch.zeros((), dtype=torch.float64)
    windows = PLAN.windows(loader, count_targets, replica=rank, sum_over_replicas=sum_over_replicas)
    for part, weight, is_last in windows:
        with nullcontext() if is_last else model.no_sync():
            loss = token_loss(model, part) * weight
            loss.backward()
        total += loss.detach()
    return result(total, gradients(model))


def several_groups_of_the_older_fsdp(batch: Any) -> str:
    model: Any = FullyShardedDataParallel(TinyModel(), device_id=torch.device("cpu"), use_orig_params=True)
    # As if it were: a real one needs more processes.
    model.sharding_strategy = ShardingStrategy.HYBRID_SHARD
    return refused(lambda: accumulate(model, batch, token_loss, PLAN, loss_items=count_targets))


def a_plan_for_one(batch: Any) -> str:
    model = DistributedDataParallel(TinyModel())
    return refused(lambda: accumulate(model, batch, token_loss, plan_of((7,)), loss_items=count_targets))


def refused(run: Callable[[], Any]) -> str:
    try:
        run()
    except UsageError as error:
        return str(error)
    return "nothing was refused"


def a_mesh_of_several_kinds(batch: Any) -> str:
    """Sharded in both dimensions, one of which is no data parallelism."""
    from torch.distributed.tensor import Shard, distribute_tensor

    model: Any = TinyModel()
    grid = init_device_mesh("cpu", (1, REPLICAS), mesh_dim_names=("data", "tensor"))
    for layer in (model.embedding, model.layer):
        for name, parameter in list(layer.named_parameters()):
            parted = distribute_tensor(parameter.detach(), grid["tensor"], [Shard(0)])
            setattr(layer, name, nn.Parameter(parted))
    fully_shard(model, mesh=grid["data"])
    return refused(lambda: accumulate(model, batch, token_loss, PLAN, loss_items=count_targets))


def cases(rank: int) -> dict[str, Callable[[], Any]]:
    """What this replica runs, by name; the other runs the same at the same time."""
    found: dict[str, Callable[[], Any]] = {}
    for name, batches in BATCHES.items():
        batch = batches[rank]
        for synchronize in ("last", "every"):
            found[f"ddp, {synchronize}, {name}"] = partial(wrapped_by_ddp, batch, synchronize)
            found[f"fsdp2, {synchronize}, {name}"] = partial(sharded, batch, synchronize)
            found[f"fsdp1, {synchronize}, {name}"] = partial(sharded_by_the_older_fsdp, batch, synchronize)
        found[f"fsdp2 by layer, last, {name}"] = partial(sharded, batch, "last", by_layer=True)
        found[f"hsdp, last, {name}"] = partial(sharded, batch, "last", mesh=(REPLICAS, 1))
    unequal = BATCHES["unequal items"][rank]
    found["averaged by the user, unequal items"] = partial(averaged_by_the_user, unequal)
    found["windows, unequal items"] = partial(in_the_users_loop, unequal, rank)
    found["a mesh of several kinds"] = partial(a_mesh_of_several_kinds, unequal)
    found["several groups of the older fsdp"] = partial(several_groups_of_the_older_fsdp, unequal)
    found["a plan for one"] = partial(a_plan_for_one, unequal)
    return found


def main(rank: int, folder: Path) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=REPLICAS)
    for name, case in cases(rank).items():
        torch.save(case(), folder / f"{name}, {rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
