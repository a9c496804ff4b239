"""A contrastive loss by parts, with the gradient of the whole batch, by gradient caching.

Such a loss compares samples with each other, so no weights make the losses of parts add up: `microbatch check` says so. What
does work (Gao et al. 2021, arXiv:2101.06983): embed all parts without graphs, backpropagate the loss to the embeddings, which
are small, and then each embedding's gradient through its own part, with a second forward.

    python examples/contrastive_by_parts.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

BATCH, PART = 32, 8
TEMPERATURE = 0.1


def info_nce(images: Tensor, texts: Tensor) -> Tensor:
    """Each of n images against all n texts (van den Oord et al. 2018, arXiv:1807.03748); embeddings of shape (n, width)."""
    similarities = functional.normalize(images, dim=1) @ functional.normalize(texts, dim=1).T
    return functional.cross_entropy(similarities / TEMPERATURE, torch.arange(len(images)))


class TwoTowers(nn.Module):
    """An embedding of width 16 for images of 64 numbers, and one for texts of 48."""

    def __init__(self) -> None:
        super().__init__()
        self.images = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 16))
        self.texts = nn.Sequential(nn.Linear(48, 128), nn.ReLU(), nn.Linear(128, 16))

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Both embeddings, of shape (n, 16)."""
        return self.images(images), self.texts(texts)


def by_whole_batch(model: nn.Module, images: Tensor, texts: Tensor) -> Tensor:
    """One forward and one backward."""
    loss = info_nce(*model(images, texts))
    loss.backward()
    return loss.detach()


def by_parts(model: nn.Module, images: Tensor, texts: Tensor) -> Tensor:
    """Two forwards and a backward of each part; one part's graph is alive at a time."""
    parts = list(zip(images.split(PART), texts.split(PART), strict=True))
    with torch.no_grad():
        embedded = [model(*part) for part in parts]
    whole = [torch.cat(column).requires_grad_() for column in zip(*embedded, strict=True)]
    loss = info_nce(*whole)
    loss.backward()
    gradients = zip(*(embeddings.grad.split(PART) for embeddings in whole if embeddings.grad is not None), strict=True)
    for part, gradient in zip(parts, gradients, strict=True):
        torch.autograd.backward(model(*part), gradient)
    return loss.detach()


def differences() -> tuple[float, float]:
    """How far the two losses are apart, and the two gradients relative to the whole one's norm, in fp64."""
    torch.manual_seed(0)
    model = TwoTowers().double()
    images, texts = torch.randn(BATCH, 64).double(), torch.randn(BATCH, 48).double()
    results = []
    for way in (by_whole_batch, by_parts):
        model.zero_grad()
        loss = way(model, images, texts)
        flat = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        results.append((loss, flat))
    (loss, gradient), (other_loss, other_gradient) = results
    return float((loss - other_loss).abs()), float((gradient - other_gradient).norm() / gradient.norm())


def main() -> None:
    """Print both differences."""
    loss, gradient = differences()
    print(f"losses differ by {loss:.1e}, gradients by {gradient:.1e} of their norm")


if __name__ == "__main__":
    main()
