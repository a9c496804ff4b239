"""The check on CUDA's own kernels: fused attention and dropout, cuDNN's recurrent layers, backward in another thread."""

from __future__ import annotations

import pytest
from torch import nn

from gpu.checked_models import MODELS, checked, difference_of_dropout
from gpu.jobs import in_worker
from profiler.workers.runner import ProcessRunner

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_with_random_layers_is_equal_with_them_switched_off(
    runner: ProcessRunner, name: str, precision: str
) -> None:
    found = in_worker(runner, checked, name, precision)

    assert found.equal, found
    assert found.random_modules


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_without_their_dropout_are_those_that_never_had_any(
    runner: ProcessRunner, kind: type[nn.LSTM | nn.GRU]
) -> None:
    assert in_worker(runner, difference_of_dropout, kind) < 1e-6
