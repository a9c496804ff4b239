"""Training steps on a simulated card take the bytes that they take in CUDA builds of torch.

tests/data/cuda_dispatch.csv was made by the steps of this file on fake tensors of device cuda, compute capability 8.6, in the CUDA 13
builds of PyTorch, with a library in the place of CUDA's that answers and computes nothing. So CUDA's own dispatch chose the
operations; a mode below autograd noted each storage that came and went, by the bytes that were asked for. What kernels take for
themselves is on neither side.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from profiler.dry_run.libraries import Libraries
from profiler.dry_run.placement import SimulatedPlacement
from profiler.simulation.cards import card_of
from profiler.simulation.replay import Event

DATA = Path(__file__).parents[1] / "data" / "cuda_dispatch.csv"
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
PHASES = ("forward", "backward", "step")


class Scaled(nn.Module):
    """A function of a layer and the input, which has a gradient."""

    def __init__(self, layer: nn.Module, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.layer, self.function = layer, function

    def forward(self, input: Tensor) -> Tensor:
        return self.function(self.layer, input * self.scale)


def images() -> Tensor:
    return torch.empty(4, 16, 20, 20, device="meta")


def steps() -> Tensor:
    return torch.empty(4, 30, 64, device="meta")


def rows() -> Tensor:
    return torch.empty(40, 64, device="meta")


def called(layer: nn.Module, x: Tensor) -> Tensor:
    result: Any = layer(x)
    output: Tensor = result[0] if isinstance(result, tuple) else result
    return output


def classes(x: Tensor) -> Tensor:
    return torch.zeros(len(x), dtype=torch.int64, device=x.device)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Dropout(0.1), nn.Linear(128, 64))


def of(
    layer: Callable[[], nn.Module], batch: Callable[[], Tensor], function: Callable[..., Tensor] = called
) -> tuple[Callable[[], nn.Module], Callable[[], Tensor]]:
    return lambda: Scaled(layer(), function), batch


def on_rows(function: Callable[[Tensor], Tensor]) -> tuple[Callable[[], nn.Module], Callable[[], Tensor]]:
    return of(lambda: nn.Linear(64, 64), rows, lambda layer, x: function(layer(x)))


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "convolution, batch norm": of(
        lambda: nn.Sequential(nn.Conv2d(16, 24, 3, bias=False), nn.BatchNorm2d(24), nn.ReLU(inplace=True)), images
    ),
    "depthwise convolution": of(lambda: nn.Conv2d(16, 16, 3, groups=16), images),
    "transposed convolution": of(lambda: nn.ConvTranspose2d(16, 24, 3, stride=2), images),
    "even kernel, same size": of(lambda: nn.Conv2d(16, 24, 4, padding="same"), images),
    "group norm": of(lambda: nn.GroupNorm(4, 16), images),
    "instance norm": of(lambda: nn.InstanceNorm2d(16, affine=True), images),
    "layer norm": of(lambda: nn.LayerNorm(64), steps),
    "rms norm": of(lambda: nn.RMSNorm(64), steps),
    "max pool": of(lambda: nn.MaxPool2d(3, 2, 1), images),
    "bilinear upsampling": of(lambda: nn.Upsample(scale_factor=2, mode="bilinear"), images),
    "replication": of(lambda: nn.ReplicationPad2d(2), images),
    "dropout": of(lambda: nn.Dropout(0.3), images),
    "dropout of channels": of(lambda: nn.Dropout2d(0.3), images),
    "mlp": of(mlp, steps),
    "checkpoint": of(mlp, steps, lambda layer, x: checkpoint(layer, x, use_reentrant=False)),
    "log-sigmoid": of(nn.LogSigmoid, rows),
    "softplus": of(nn.Softplus, rows),
    "parametric relu": of(nn.PReLU, rows),
    "lstm cell": of(lambda: nn.LSTMCell(64, 48), rows),
    "attention": of(
        lambda: nn.MultiheadAttention(64, 4, dropout=0.1, batch_first=True),
        steps,
        lambda layer, x: layer(x, x, x, need_weights=False)[0],
    ),
    "attention with weights": of(
        lambda: nn.MultiheadAttention(64, 4, batch_first=True), steps, lambda layer, x: layer(x, x, x)[0]
    ),
    "encoder": of(lambda: nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), steps),
    "decoder": of(
        lambda: nn.TransformerDecoderLayer(64, 4, 128, norm_first=True, batch_first=True), steps, lambda layer, x: layer(x, x)
    ),
    "cross entropy": on_rows(lambda x: functional.cross_entropy(x, classes(x))),
    "smoothed cross entropy": on_rows(lambda x: functional.cross_entropy(x, classes(x), label_smoothing=0.1)),
    "divergence": on_rows(lambda x: functional.kl_div(x.log_softmax(-1), x.detach().softmax(-1), reduction="batchmean")),
    "binary cross entropy": on_rows(lambda x: functional.binary_cross_entropy_with_logits(x, torch.ones_like(x))),
    "smooth l1": on_rows(lambda x: functional.smooth_l1_loss(x, torch.ones_like(x))),
    "hinge embedding": on_rows(lambda x: functional.hinge_embedding_loss(x, torch.ones_like(x))),
    "many labels": on_rows(lambda x: functional.multilabel_soft_margin_loss(x, torch.ones_like(x))),
    "cosine": on_rows(lambda x: functional.cosine_similarity(x, x + 1)),
    "distance": on_rows(lambda x: functional.pairwise_distance(x, x + 1)),
    "softmax": on_rows(lambda x: x.softmax(-1)),
    "norm": on_rows(lambda x: functional.normalize(x, dim=-1)),
    "product": on_rows(lambda x: torch.einsum("nd,md->nm", x, x)),
    "sums": on_rows(lambda x: x.cumsum(-1) + x.sum(-1, keepdim=True)),
    "powers": on_rows(lambda x: x**3 + torch.exp(x) + torch.rsqrt(x.abs() + 1)),
    "both types": on_rows(lambda x: torch.cat([x, x.float()], 1)),
}  # fmt: skip
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adamw": torch.optim.AdamW,
    "fused adamw": lambda parameters: torch.optim.AdamW(parameters, fused=True),
    "adamw one by one": lambda parameters: torch.optim.AdamW(parameters, foreach=False),
    "rmsprop": torch.optim.RMSprop,
    "adafactor": torch.optim.Adafactor,
}


def optimizer_of(case: str) -> Callable[..., torch.optim.Optimizer]:
    """Each in its turn."""
    return list(OPTIMIZERS.values())[list(CASES).index(case) % len(OPTIMIZERS)]


def train(placement: Any, case: str, dtype: torch.dtype | None, ended: Callable[[str], None]) -> None:
    """Two steps, the second with the optimizer's state; `ended` is told of the end of each phase."""
    build, batch = CASES[case]
    given = [batch() for _ in range(2)]
    model = placement.model(build).train()
    with placement.training():
        optimizer = placement.optimizer(optimizer_of(case)(model.parameters()))
        scaler = torch.amp.GradScaler(placement.device.type, enabled=dtype is torch.float16)
        for each in given:
            x = placement.batch(each)
            optimizer.zero_grad()
            with torch.autocast(placement.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
                loss = model(x).float().square().mean()
            ended("forward")
            scaler.scale(loss).backward()
            ended("backward")
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            del x, loss
            ended("step")


def bytes_by_phase(events: Iterable[Event], ends: Iterable[int]) -> list[int]:
    """The peak of live bytes in each phase and what is live at its end, one after the other; `ends` counts events."""
    live, peak, found = dict[int, int](), 0, list[int]()
    following = list(ends)
    for place, event in enumerate((*events, None)):
        while following and following[0] == place:
            found += [max(peak, sum(live.values())), sum(live.values())]
            peak = sum(live.values())
            following.pop(0)
        if event is None:
            break
        if event.kind == "allocate":
            live[event.storage] = event.size_bytes
        else:
            del live[event.storage]
        peak = max(peak, sum(live.values()))
    return found


def _rows() -> list[dict[str, str]]:
    with DATA.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize("row", [pytest.param(row, id=f"{row['case']}-{row['precision']}") for row in _rows()])
def test_a_step_takes_the_bytes_that_cuda_takes(row: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Libraries, "use", lambda *_: None)
    placement = SimulatedPlacement(card_of("rtx3090"), None)
    ends: list[int] = []

    train(placement, row["case"], DTYPES[row["precision"]], lambda phase: ends.append(len(placement.ledger.events)))

    assert " ".join(map(str, bytes_by_phase(placement.ledger.events, ends))) == row["bytes"]


def test_the_data_has_every_case_in_every_precision() -> None:
    assert {(row["case"], row["precision"]) for row in _rows()} == {(case, name) for case in CASES for name in DTYPES}
