"""Workloads that only benchmarks use."""

from __future__ import annotations

import torch
from torch import nn

from profiler import Workload

WIDTH = 2048


def wide_mlp() -> Workload:
    """Three wide hidden layers: parameters and optimizer state dominate, so that memory is flat at first and then bends."""
    return Workload.supervised(
        _build,
        nn.CrossEntropyLoss(),
        lambda size: (torch.ones(size, 64), torch.zeros(size, dtype=torch.long)),
        name="wide-mlp",
    )


def _build() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, 10),
    )
