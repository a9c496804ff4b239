"""Operations of which torch does not know what they give without running them, or not for each release, and what that is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from profiler.dry_run.attention_memory import efficient_backward
from profiler.dry_run.ctc import losses_and_alphas
from profiler.dry_run.recurrent import backward

_aten = torch.ops.aten


WITHOUT_SHAPES: dict[Any, Callable[..., Any]] = {
    _aten._cudnn_rnn_backward.default: backward,
    _aten._ctc_loss.default: losses_and_alphas,
    _aten._scaled_dot_product_efficient_attention_backward.default: efficient_backward,
}
