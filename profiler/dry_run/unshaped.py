"""Operations of which torch does not know what they give without running them, and what that is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from profiler.dry_run.ctc import losses_and_alphas
from profiler.dry_run.recurrent import backward

_aten = torch.ops.aten


WITHOUT_SHAPES: dict[Any, Callable[..., Any]] = {
    _aten._cudnn_rnn_backward.default: backward,
    _aten._ctc_loss.default: losses_and_alphas,
}
