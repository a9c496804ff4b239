"""Which implementation an optimizer takes for parameters on a GPU."""

from __future__ import annotations

import sys
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from profiler.dry_run.fakes import Twins


def as_on_gpu(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """`optimizer` with the multi-tensor implementation where the choice is torch's (_default_to_fused_or_foreach).

    Steps that CUDA graphs can capture run as those that they cannot: their counters of a few bytes are in host memory here.
    """
    leaves_to_torch = _leaves_to_torch(optimizer)
    for group in optimizer.param_groups:
        captured = bool(group.get("capturable"))
        if captured:
            group["capturable"] = False
            if isinstance(group.get("lr"), Tensor):
                group["lr"] = float(group["lr"])
        if leaves_to_torch and _is_left_to_torch(group):
            group["foreach"] = True
    return optimizer


def of_twins(optimizer: torch.optim.Optimizer, twins: Twins) -> torch.optim.Optimizer:
    """`optimizer`, or one like it over the twins of its parameters where it was made over real ones, as for a live model.

    Its state comes into being anew.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if all(_is_fake(parameter) for parameter in parameters):
        return optimizer
    alike = object.__new__(type(optimizer))
    # Without a scheduler's step, which would step the other; copy() leaves attributes of a subclass out.
    alike.__dict__.update({name: value for name, value in optimizer.__dict__.items() if name != "step"})
    alike.state = defaultdict(dict)
    alike.param_groups = [
        {**group, "params": [each if _is_fake(each) else twins.of(each) for each in group["params"]]}
        for group in optimizer.param_groups
    ]
    return alike


def _leaves_to_torch(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its code asks torch for the implementation, which Adafactor's does not: it takes parameters one by one."""
    owners = (kind for kind in type(optimizer).__mro__ if kind not in (torch.optim.Optimizer, object))
    return any(hasattr(sys.modules.get(kind.__module__), "_default_to_fused_or_foreach") for kind in owners)


def _is_left_to_torch(group: dict[str, Any]) -> bool:
    """Whether nobody chose, and nothing keeps torch from it: a learning rate that is a tensor, or parameters of other kinds."""
    return (
        "foreach" in group
        and group["foreach"] is None
        and not group.get("fused")
        and not group.get("differentiable")
        and not isinstance(group.get("lr"), Tensor)
        and all(type(parameter) in (Tensor, nn.Parameter) or _is_fake(parameter) for parameter in group["params"])
    )


def _is_fake(parameter: Tensor) -> bool:
    return isinstance(parameter, FakeTensor)
