"""`text-gpt`: a small GPT on the bytes of Python's own library sources, blocks of many lengths."""

from __future__ import annotations

import re
import sysconfig
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from profiler.errors import UsageError
from profiler.workload import Workload

SOURCES = ("argparse.py", "dataclasses.py", "difflib.py", "inspect.py", "textwrap.py")
BYTES = 256
PADDING = BYTES  # the input token after the last byte value
IGNORED = -100  # the target that cross-entropy leaves out
CONTEXT = 256
WIDTH = 128
HEADS = 4
LAYERS = 4


def text_gpt() -> Workload:
    """A small GPT that predicts the next byte; batches are padded to their longest sample.

    The loss is averaged over the targets that are no padding, and `loss_items` counts those. The text is the running
    Python's own, so another version of Python gives other lengths. Raises UsageError where its sources are missing.
    """
    return Workload.supervised(
        TextGPT, next_byte_loss, SourceBlocks(), collate=pad_batch, loss_items=count_targets, name="text-gpt"
    )


class SourceBlocks(Dataset[tuple[Tensor, Tensor]]):
    """Blocks of source text between blank lines, in the order of the files: (bytes, the byte after each).

    A block of more than 257 bytes is cut into samples of 256 inputs and a shorter last one.
    """

    def __init__(self, folder: Path | None = None) -> None:
        folder = Path(sysconfig.get_path("stdlib")) if folder is None else folder
        missing = [name for name in SOURCES if not (folder / name).is_file()]
        if missing:
            raise UsageError(
                f"text-gpt reads {len(SOURCES)} of Python's library sources, of which {', '.join(missing)} are missing "
                f"in {folder}: use a Python that has its sources, or another workload (digits-resnet)."
            )
        blocks = (block for name in SOURCES for block in re.split(rb"\n\s*\n", (folder / name).read_bytes()))
        self.samples = tuple(sample for block in blocks for sample in _samples_of(block))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        tokens = torch.tensor(list(self.samples[index]), dtype=torch.long)
        return tokens[:-1], tokens[1:]


def _samples_of(block: bytes) -> list[bytes]:
    # Neighbours share a byte, the last target of one and the first input of the next; a target needs two bytes.
    return [block[start : start + CONTEXT + 1] for start in range(0, len(block) - 1, CONTEXT)]


def pad_batch(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Inputs and targets of shape (n, longest), padded at the end."""
    inputs, targets = zip(*samples, strict=True)
    return (
        pad_sequence(list(inputs), batch_first=True, padding_value=PADDING),
        pad_sequence(list(targets), batch_first=True, padding_value=IGNORED),
    )


def next_byte_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy averaged over the targets that are no padding."""
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


def count_targets(batch: tuple[Tensor, Tensor]) -> int:
    """How many targets of the batch are no padding."""
    return int((batch[1] != IGNORED).sum())


class Attention(nn.Module):
    """Causal self-attention. Padding stands at the end, so the causal mask hides it from every byte before it."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(WIDTH, 3 * WIDTH)
        self.merge = nn.Linear(WIDTH, WIDTH)

    def forward(self, features: Tensor) -> Tensor:
        """(n, length, width) to the same shape."""
        parts = self.project(features).unflatten(-1, (3, HEADS, WIDTH // HEADS))
        queries, keys, values = (part.transpose(1, 2) for part in parts.unbind(dim=2))
        attended = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        merged: Tensor = self.merge(attended.transpose(1, 2).flatten(-2))
        return merged


class Block(nn.Module):
    """Pre-norm transformer block: attention, then two linear layers with GELU, each added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.attention = Attention()
        self.norm2 = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, features: Tensor) -> Tensor:
        """(n, length, width) to the same shape."""
        features = features + self.attention(self.norm1(features))
        added: Tensor = features + self.mlp(self.norm2(features))
        return added


class TextGPT(nn.Module):
    """Four pre-norm blocks of width 128 with four heads over embedded bytes and learned positions."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(BYTES + 1, WIDTH, padding_idx=PADDING)
        self.positions = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, BYTES)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """(n, length) tokens to (n, length, 256) logits of the next byte."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        features = self.blocks(self.tokens(tokens) + self.positions(positions))
        logits: Tensor = self.head(self.norm(features))
        return logits
