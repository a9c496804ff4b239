"""Which implementation an optimizer takes for parameters on a GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def as_on_gpu(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """`optimizer` with the multi-tensor implementation where the choice is torch's (_default_to_fused_or_foreach).

    Steps that CUDA graphs can capture run as those that they cannot: their counters of a few bytes are in host memory here.
    """
    for group in optimizer.param_groups:
        captured = bool(group.get("capturable"))
        if captured:
            group["capturable"] = False
            if isinstance(group.get("lr"), Tensor):
                group["lr"] = float(group["lr"])
        if _is_left_to_torch(group):
            group["foreach"] = True
    return optimizer


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
    return isinstance(parameter, torch._subclasses.fake_tensor.FakeTensor)
