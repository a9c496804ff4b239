"""The processes whose gradients are averaged with this one's, as the wrapper of the model has it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from profiler.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicas:
    """The replicas of a model, this process's among them.

    module: the wrapped model, not compiled. groups: one for each dimension of the replicas' grid; () where the model is
    alone. gathers: whether every forward and backward communicates, not only the reduction of gradients.
    """

    module: nn.Module
    groups: tuple[dist.ProcessGroup, ...] = ()
    gathers: bool = False

    @classmethod
    def of(cls, model: nn.Module, process_group: dist.ProcessGroup | None = None) -> Replicas:
        """The replicas of DistributedDataParallel and of either FSDP; of another model those of `process_group`.

        Raises UsageError where the wrapper has several groups of which not all need be replicas.
        """
        module = cast(nn.Module, getattr(model, "_orig_mod", model))  # what torch.compile wraps
        if not (dist.is_available() and dist.is_initialized()):
            return cls(module=module)
        # Slow to import, and of no use in one process.
        from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
        from torch.nn.parallel import DistributedDataParallel

        gathers = isinstance(module, FSDPModule | FullyShardedDataParallel)
        if process_group is not None:
            groups: tuple[dist.ProcessGroup, ...] = (process_group,)
        elif isinstance(module, FSDPModule):
            groups = _mesh_groups(cast(nn.Module, module))
        elif isinstance(module, FullyShardedDataParallel) and "HYBRID" in str(module.sharding_strategy):
            raise _several_groups(f"is sharded by {module.sharding_strategy}")
        elif isinstance(module, DistributedDataParallel | FullyShardedDataParallel):
            groups = (cast(dist.ProcessGroup, module.process_group),)
        else:
            groups = ()
        return cls(module=module, groups=groups, gathers=gathers)

    @property
    def count(self) -> int:
        """How many replicas there are."""
        return math.prod(group.size() for group in self.groups)

    @property
    def rank(self) -> int:
        """The number of this one, from 0."""
        rank = 0
        for group in self.groups:
            rank = rank * group.size() + group.rank()
        return rank

    def check(self, data_parallel_size: int) -> None:
        """Raise UsageError for a plan of another number of replicas."""
        if self.count == data_parallel_size:
            return
        planned = f"the plan is for {data_parallel_size} replica{'s' if data_parallel_size > 1 else ''}"
        if not self.groups:
            raise UsageError(
                f"{planned}, and this model ({type(self.module).__name__}) is not data parallel: wrap it "
                "(DistributedDataParallel, fully_shard), or pass the process_group over which its gradients are averaged, "
                "or make a plan with data_parallel_size=1."
            )
        raise UsageError(
            f"{planned}, and the gradients of this model are averaged over {self.count}: make a plan with "
            f"data_parallel_size={self.count}."
        )

    def sum(self, number: float, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The sum of `number` over the replicas, on the device; every replica must ask for it."""
        # Filled there, since a copy from the host would wait for the device; in fp64, so that counts stay exact.
        total = torch.full((), float(number), dtype=torch.float64, device=device)
        for group in self.groups:
            dist.all_reduce(total, group=group)
        return total.to(dtype)

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """Inside the block a backward adds to this process's gradients, and reduces nothing over the replicas."""
        module: Any = self.module
        if self.groups and hasattr(module, "no_sync"):
            with module.no_sync():
                yield
        elif self.groups and hasattr(module, "set_requires_gradient_sync"):
            module.set_requires_gradient_sync(False)
            try:
                yield
            finally:
                module.set_requires_gradient_sync(True)
        else:
            yield


def _mesh_groups(module: nn.Module) -> tuple[dist.ProcessGroup, ...]:
    parameter: Any = next((each for each in module.parameters() if hasattr(each, "device_mesh")), None)
    if parameter is None:
        raise _several_groups("has no sharded parameter")
    mesh, placements = parameter.device_mesh, parameter.placements
    # Replicated in the first dimension and sharded in the second, it is data parallel in both. Tensor parallelism would
    # stand in the last, with the first one sharded.
    if mesh.ndim == 1 or (mesh.ndim == 2 and placements[0].is_replicate() and placements[1].is_shard()):
        return tuple(mesh.get_group(dimension) for dimension in range(mesh.ndim))
    raise _several_groups(f"lies on the mesh {mesh} with placements {placements}")


def _several_groups(what: str) -> UsageError:
    return UsageError(
        f"the model {what}, which does not say which processes are its replicas: pass process_group, the group over "
        "which its gradients are averaged."
    )
