"""The CTC loss on a GPU, by PyTorch's own kernel (LossCTC.cpp and LossCTC.cu)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from profiler.dry_run.unknown import ValueOf, needed_values

_MEAN, _SUM = 1, 2


def ctc_loss(
    value_of: ValueOf,
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor | Sequence[int],
    target_lengths: Tensor | Sequence[int],
    blank: int = 0,
    reduction: int = _MEAN,
    zero_infinity: bool = False,
) -> Tensor:
    """As torch puts it together; WorkloadError for lengths whose values nobody has."""
    batched = log_probs if log_probs.dim() == 3 else log_probs.unsqueeze(1)
    numbers = [_numbers(value_of, lengths) for lengths in (input_lengths, target_lengths)]
    losses: Tensor = torch.ops.aten._ctc_loss(batched, targets, *numbers, blank, zero_infinity)[0]
    if zero_infinity:
        losses = torch.where(losses == float("inf"), torch.zeros_like(losses), losses)
    if reduction == _MEAN:
        return (losses / torch.ones_like(losses)).mean()
    return losses.sum() if reduction == _SUM else losses


def _numbers(value_of: ValueOf, lengths: Tensor | Sequence[int]) -> list[int]:
    if not isinstance(lengths, Tensor):
        return list(lengths)
    return [int(number) for number in needed_values(value_of, lengths, "ctc_loss").reshape(-1).tolist()]


def losses_and_alphas(
    log_probs: Tensor, targets: Tensor, input_lengths: Sequence[int], target_lengths: Sequence[int], *_: object
) -> tuple[Tensor, Tensor]:
    """What `_ctc_loss` gives: a number for each sample; and one for each step before, in and behind each target."""
    steps, samples, _classes = log_probs.shape
    return log_probs.new_empty((samples,)), log_probs.new_empty((samples, steps, 2 * max(target_lengths) + 1))
