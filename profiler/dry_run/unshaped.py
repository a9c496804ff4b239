"""Operations of which torch does not know what they give without running them, and what that is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from profiler.dry_run.recurrent import backward

_aten = torch.ops.aten


def _ctc_loss(
    log_probs: Tensor, targets: Tensor, input_lengths: Sequence[int], target_lengths: Sequence[int], *_: Any
) -> tuple[Tensor, Tensor]:
    """A number for each sample, and for each step a number before, in and behind every target (LossCTC.cu)."""
    steps, samples, _ = log_probs.shape
    return log_probs.new_empty((samples,)), log_probs.new_empty((samples, steps, 2 * max(target_lengths) + 1))


WITHOUT_SHAPES: dict[Any, Callable[..., Any]] = {
    _aten._cudnn_rnn_backward.default: backward,
    _aten._ctc_loss.default: _ctc_loss,
}
