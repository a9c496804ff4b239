"""How a workload is brought onto a device, and what its training runs in."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from profiler.batches import made_batch, to_device


class Placement:
    """Onto a device of torch's, as training code does it. A device that is not torch's overrides it.

    device: where tensors are, in torch's words.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def model(self, build: Callable[[], nn.Module]) -> nn.Module:
        """The model that `build` makes, on the device."""
        return build().to(self.device)

    def batch(self, batch: Any) -> Any:
        """`batch` with every tensor on the device."""
        return to_device(batch, self.device)

    def optimizer(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """The same optimizer, as it would be on the device."""
        return optimizer

    def compiled(self, model: nn.Module) -> Callable[..., Any]:
        """The model as `torch.compile` makes it."""
        compiled: Callable[..., Any] = torch.compile(model)
        return compiled

    def training(self) -> AbstractContextManager[object]:
        """What forwards, backwards and optimizer steps run in."""
        return nullcontext()

    def made(self, make_batch: Callable[[int], Any], size: int) -> Any:
        """A batch of `size` samples in host memory; raises what `batches.made_batch` raises."""
        return made_batch(make_batch, size)
