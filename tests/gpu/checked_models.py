"""Models with random layers of CUDA's own kernels, and the check of them in a worker."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from profiler.checking.check import equivalence_of
from profiler.checking.draws import FixedDraws
from profiler.placing import Placement
from profiler.steps import Phase, Training
from profiler.trial import Done
from profiler.workload import Workload

DEVICE = torch.device("cuda:0")
WIDTH, CLASSES = 32, 3


class Attending(nn.Module):
    """Attention with dropout by the fused function, whichever back end it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(WIDTH, 3 * WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        queries, keys, values = self.project(inputs).unflatten(-1, (3, 4, WIDTH // 4)).unbind(2)
        attended = functional.scaled_dot_product_attention(
            queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2), dropout_p=0.2
        )
        logits: Tensor = self.head(functional.dropout(attended.transpose(1, 2).flatten(-2).mean(1), 0.3))
        return logits


class Recurrent(nn.Module):
    """Two recurrent layers with dropout between them."""

    def __init__(self, kind: type[nn.LSTM | nn.GRU], dropout: float) -> None:
        super().__init__()
        self.layers = kind(WIDTH, WIDTH, 2, dropout=dropout, batch_first=True)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(inputs)[0][:, -1])
        return logits


MODELS = {
    "attention": Attending,
    "lstm": lambda: Recurrent(nn.LSTM, 0.3),
    "gru": lambda: Recurrent(nn.GRU, 0.3),
    "encoder": lambda: nn.Sequential(
        nn.TransformerEncoderLayer(WIDTH, 4, 64, batch_first=True), nn.Flatten(), nn.Linear(6 * WIDTH, CLASSES)
    ),
}


def batch(samples: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(samples, 6, WIDTH, generator=generator), torch.randint(CLASSES, (samples,), generator=generator)


def checked(name: str, precision: Any) -> Done[Any]:
    """The check's answer for the model of that name."""
    torch.manual_seed(0)
    workload = Workload.supervised(MODELS[name], nn.CrossEntropyLoss(), batch, precision=precision)
    found = equivalence_of(Training.start(workload, Placement(DEVICE), Phase()), 16, thorough=True)
    return Done(result=found, worker_is_clean=False)


def difference_of_dropout(kind: type[nn.LSTM | nn.GRU]) -> Done[Any]:
    """How far recurrent layers with their dropout switched off are from the same without any."""
    with_dropout, without = (Recurrent(kind, dropout).to(DEVICE) for dropout in (0.3, 0.0))
    without.load_state_dict(with_dropout.state_dict())
    inputs = batch(4)[0].to(DEVICE)
    with FixedDraws():
        outputs = with_dropout(inputs)
    return Done(result=float((outputs - without(inputs)).detach().abs().max()), worker_is_clean=False)
