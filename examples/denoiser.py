"""A training file as people have them, to probe: a U-Net that removes noise from images, in half precision.

    microbatch probe examples/denoiser.py:workload --device sim:rtx4090 --effective-batch 512

It asks torch which card it is on, and takes bf16 where that card computes in it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from profiler import Workload

SIDE, STEPS = 128, 1000
WIDTHS = (96, 192, 384)


class Block(nn.Module):
    """Two normalised convolutions around the moment of time, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, moments: int = 384) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(32, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.moment = nn.Linear(moments, outputs)
        self.second = nn.Sequential(
            nn.GroupNorm(32, outputs), nn.SiLU(), nn.Dropout(0.1), nn.Conv2d(outputs, outputs, 3, padding=1)
        )
        self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, images: Tensor, moments: Tensor) -> Tensor:
        """images: (n, inputs, height, width); moments: (n, 384)."""
        hidden = self.first(images) + self.moment(moments)[:, :, None, None]
        return self.shortcut(images) + self.second(hidden)  # type: ignore[no-any-return]  # torch's modules


class Attention(nn.Module):
    """Every place looks at every other, with six heads."""

    def __init__(self, width: int, heads: int = 6) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.GroupNorm(32, width)
        self.inner, self.outer = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, images: Tensor) -> Tensor:
        """images: (n, width, height, width of the image)."""
        parts = self.inner(self.norm(images)).flatten(2).chunk(3, dim=1)
        query, key, value = (part.unflatten(1, (self.heads, -1)).transpose(2, 3) for part in parts)
        seen = functional.scaled_dot_product_attention(query, key, value)
        return images + self.outer(seen.transpose(2, 3).reshape(images.shape))  # type: ignore[no-any-return]


class Denoiser(nn.Module):
    """Down to a quarter of the side and up again; what runs at the full side is computed again in backward."""

    def __init__(self) -> None:
        super().__init__()
        small, middle, large = WIDTHS
        self.moments = nn.Sequential(nn.Embedding(STEPS, large), nn.Linear(large, large), nn.SiLU())
        self.enter, self.leave = nn.Conv2d(3, small, 3, padding=1), nn.Conv2d(small, 3, 3, padding=1)
        self.down, self.lower = Block(small, middle), Block(middle, large)
        self.attention = Attention(large)
        self.upper, self.up = Block(large + middle, middle), Block(middle + small, small)

    def forward(self, images: Tensor, steps: Tensor) -> Tensor:
        """The noise in images of shape (n, 3, 128, 128) after `steps`, (n,), steps of noise."""
        moments = self.moments(steps)
        full = self.enter(images)
        half = checkpoint(self.down, functional.avg_pool2d(full, 2), moments, use_reentrant=False)
        quarter = self.attention(self.lower(functional.avg_pool2d(half, 2), moments))
        half = self.upper(torch.cat([functional.interpolate(quarter, scale_factor=2), half], dim=1), moments)
        full = torch.cat([functional.interpolate(half, scale_factor=2), full], dim=1)
        return self.leave(checkpoint(self.up, full, moments, use_reentrant=False))  # type: ignore[no-any-return]


def noise_loss(model: Callable[..., Tensor], batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """How far the noise that the model sees is from that which was added, squared and averaged (Ho et al. 2020, arXiv:2006.11239)."""
    images, noise, steps = batch
    kept = torch.cos(steps / STEPS * torch.pi / 2)[:, None, None, None]
    return functional.mse_loss(model(kept * images + (1 - kept**2).sqrt() * noise, steps).float(), noise)


def images_and_noise(size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images of (n, 3, 128, 128), the noise for each, and the steps of it."""
    shape = (size, 3, SIDE, SIDE)
    return torch.rand(shape), torch.randn(shape), torch.randint(STEPS, (size,))


def workload() -> Workload:
    """5.8 million parameters under AdamW."""
    old_card = torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False)
    return Workload(
        model=Denoiser,
        make_batch=images_and_noise,
        loss=noise_loss,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=2e-4),
        precision="fp16" if old_card else "bf16",
        name="denoiser",
    )
