"""What cuDNN takes from the caching allocator while a convolution runs, and gives back at its end: a model, fitted.

cuDNN does not say which algorithm its heuristics take. Fitted on measured runs of four networks (benchmarks/prediction_rows.py,
the fit rows; benchmarks/LOG.md has what else was tried): convolutions of one group need next to nothing that the peak
shows, and the forward of one with groups needs about one copy of its activations, as for another memory layout.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

# Of the bytes of its input and output together.
_GROUPED_FORWARD_SHARE = 0.5


def forward_workspace(source: Tensor, output: Tensor, groups: int) -> int:
    """Bytes of the workspace of a convolution's forward, from its input and output."""
    if groups == 1:
        return 0
    return int(_GROUPED_FORWARD_SHARE * (_bytes_of(source) + _bytes_of(output)))


def _bytes_of(tensor: Any) -> int:
    size_bytes: int = tensor.numel() * tensor.element_size()
    return size_bytes
