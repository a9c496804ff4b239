"""Workloads that only benchmarks use."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from profiler import Workload

WIDTH, INPUTS = 2048, 4096
# The recommender: 24.6 million parameters, of which a sample reads 16 rows.
TABLES, ROWS, ROW_WIDTH = 16, 24_000, 64
# The two views of the contrastive pair.
VIEW, EMBEDDED = 256, 128
# Sequences of the bucketed attention.
BUCKET, LENGTH, FEATURES, HEADS, LAYERS = 64, 32, 128, 4, 2


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


def wide_input() -> Workload:
    """One large first layer, trained by SGD with momentum: the line is good for long, and bends between two trials."""
    return Workload.supervised(
        lambda: nn.Sequential(nn.Linear(INPUTS, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10)),
        nn.CrossEntropyLoss(),
        lambda size: (torch.ones(size, INPUTS), torch.zeros(size, dtype=torch.long)),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
        name="wide-input",
    )


def recommender() -> Workload:
    """Embedding tables and a small head: parameters, gradients and AdamW's state take 375 MiB before the first sample."""
    return Workload.supervised(
        Recommender,
        nn.BCEWithLogitsLoss(),
        lambda size: (torch.randint(ROWS, (size, TABLES)), torch.ones(size, 1)),
        name="recommender",
    )


class Recommender(nn.Module):
    """A row of each table, joined, into an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(ROWS, ROW_WIDTH) for _ in range(TABLES))
        joined = TABLES * ROW_WIDTH
        self.head = nn.Sequential(
            nn.LayerNorm(joined), nn.Linear(joined, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 1)
        )

    def forward(self, rows: Tensor) -> Tensor:
        """(n, tables) numbers of rows to (n, 1) logits."""
        read = [table(column) for table, column in zip(self.tables, rows.unbind(dim=1), strict=True)]
        logits: Tensor = self.head(torch.cat(read, dim=1))
        return logits


def contrastive() -> Workload:
    """Every sample against every other of its batch, both ways: memory grows with the square of the batch."""
    return Workload(
        model=lambda: nn.Sequential(nn.Linear(VIEW, 256), nn.ReLU(), nn.Linear(256, EMBEDDED)),
        make_batch=lambda size: (torch.randn(size, VIEW), torch.randn(size, VIEW)),
        loss=_contrastive_loss,
        name="contrastive",
    )


def _contrastive_loss(model: nn.Module, views: tuple[Tensor, Tensor]) -> Tensor:
    first, second = (functional.normalize(model(view), dim=1) for view in views)
    similarity = first @ second.T / 0.1
    own = torch.arange(len(similarity), device=similarity.device)
    return (functional.cross_entropy(similarity, own) + functional.cross_entropy(similarity.T, own)) / 2


def bucketed_attention() -> Workload:
    """Attention that keeps its scores, on batches filled up to a multiple of 64: memory is a staircase."""
    return Workload.supervised(
        BucketedAttention,
        nn.CrossEntropyLoss(),
        lambda size: (torch.randn(size, LENGTH, FEATURES), torch.zeros(size, dtype=torch.long)),
        name="bucketed-attention",
    )


class BucketedAttention(nn.Module):
    """Two attention layers without a fused kernel; batches come in few sizes, as compiled or captured models want them."""

    def __init__(self) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(FEATURES, 3 * FEATURES) for _ in range(LAYERS))
        self.head = nn.Linear(FEATURES, 10)

    def forward(self, sequences: Tensor) -> Tensor:
        """(n, length, features) to (n, 10) logits."""
        size = len(sequences)
        features = functional.pad(sequences, (0, 0, 0, 0, 0, -size % BUCKET))
        for project in self.projections:
            heads = project(features).unflatten(-1, (3, HEADS, FEATURES // HEADS))
            queries, keys, values = (part.transpose(1, 2) for part in heads.unbind(dim=2))
            scores = (queries @ keys.transpose(-1, -2) / (FEATURES // HEADS) ** 0.5).softmax(dim=-1)
            features = features + (scores @ values).transpose(1, 2).flatten(-2)
        logits: Tensor = self.head(features.mean(dim=1))[:size]
        return logits
