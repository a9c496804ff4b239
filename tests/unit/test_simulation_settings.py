from __future__ import annotations

import re

import pytest

from profiler.errors import UsageError
from profiler.simulation.settings import Settings, settings_of
from profiler.units import KIB


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        pytest.param({}, Settings(), id="nothing set"),
        pytest.param({"PYTORCH_CUDA_ALLOC_CONF": ""}, Settings(), id="empty"),
        pytest.param(
            {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}, Settings(expandable_segments=True), id="expandable"
        ),
        pytest.param(
            {"PYTORCH_ALLOC_CONF": "expandable_segments:False", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"},
            Settings(),
            id="the newer name comes first",
        ),
        pytest.param(
            {"PYTORCH_ALLOC_CONF": "backend:native, expandable_segments:true"},
            Settings(expandable_segments=True),
            id="several",
        ),
        pytest.param(
            {"TORCH_CUDNN_SDPA_DEPRIORITIZED": "1"},
            Settings(prefers_cudnn_attention=False),
            id="cuDNN's attention last",
        ),
        pytest.param({"TORCH_CUDNN_SDPA_DEPRIORITIZED": "0"}, Settings(), id="cuDNN's attention as it is"),
        pytest.param({"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}, Settings(cublas_workspace_bytes=32768 * KIB), id="cuBLAS"),
        pytest.param(
            {"CUBLAS_WORKSPACE_CONFIG": ":4096:2:16:8"},
            Settings(cublas_workspace_bytes=8_519_680),
            id="cuBLAS in two sizes",
        ),
    ],
)
def test_what_the_variables_set_is_followed(environment: dict[str, str], expected: Settings) -> None:
    assert settings_of(environment) == expected


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        pytest.param(
            {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:128"}, "max_split_size_mb:128", id="another setting"
        ),
        pytest.param(
            {"PYTORCH_ALLOC_CONF": "backend:cudaMallocAsync"}, "backend:cudaMallocAsync", id="another allocator"
        ),
        pytest.param({"CUBLAS_WORKSPACE_CONFIG": "4096"}, ":SIZE:COUNT", id="no workspace of cuBLAS"),
    ],
)
def test_what_is_not_followed_is_refused(environment: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        settings_of(environment)
