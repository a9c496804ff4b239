"""The attention kernel that a call gets, against what each release's CUDA build itself chose.

tests/data/attention_choices.csv was recorded without a GPU: the CUDA 13 builds of PyTorch 2.11.0, 2.12.0, 2.13.0 and 2.14.1
were given a stand-in for the CUDA runtime, which reports one device of a compute capability and the version of cuDNN that the
build requires, and the operation was read that `scaled_dot_product_attention` ran on fake tensors. So it holds what torch
decides, and nothing of what kernels take. A letter for each of CAPABILITIES: C cuDNN, F flash, E memory-efficient, M math,
and the errors I "Invalid backend" and N "No viable backend".
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from profiler.dry_run.attention_choice import Call, Kernel, Target, chosen

CAPABILITIES = ((6, 0), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0))
LETTERS = {Kernel.CUDNN: "C", Kernel.FLASH: "F", Kernel.EFFICIENT: "E", Kernel.MATH: "M"}
RECORDED = Path(__file__).parents[1] / "data" / "attention_choices.csv"
ROWS = list(csv.DictReader(RECORDED.read_text().splitlines()))


@pytest.fixture(autouse=True)
def _switches_as_they_were() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)
    _switch_off([])


def _switch_off(names: list[str]) -> None:
    for name in ("flash", "mem_efficient", "math", "cudnn"):
        getattr(torch.backends.cuda, f"enable_{name}_sdp")(name not in names)


def _shape(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split("x")))


def _tensor(text: str, dtype: str, layout: str) -> Tensor:
    shape, kind = _shape(text), getattr(torch, dtype)
    if layout == "offset":  # one element into its memory
        return torch.empty(torch.Size(shape).numel() + 1, dtype=kind, device="meta")[1:].view(shape)
    order = {"bshd": (0, 2, 1, 3), "bhds": (0, 1, 3, 2)}.get(layout, tuple(range(len(shape))))
    return torch.empty_permuted(shape, order, dtype=kind, device="meta")


def _mask(options: list[str]) -> Tensor | None:
    named = dict(option.split("=") for option in options if "=" in option)
    if "mask" not in named:
        return None
    shape, dtype = named["mask"].split(":")
    mask = torch.empty(_shape(shape), dtype=getattr(torch, dtype), device="meta")
    return mask.expand(_shape(named["expand"])) if "expand" in named else mask


def _call(row: dict[str, str], version: tuple[int, int]) -> Call:
    options = [option for option in row["options"].split(";") if option]
    named = dict(option.split("=") for option in options if "=" in option)
    key = row["key"] or row["query"]
    tensors = [
        _tensor(text, row["dtype"], named.get("layout", "")) for text in (row["query"], key, row["value"] or key)
    ]
    mask = _mask(options)
    if version >= (2, 14) and tensors[0].dim() == 3:  # as `attention` does it
        tensors = [tensor[None] for tensor in tensors]
        mask = None if mask is None else mask[(None,) * (4 - mask.dim())]
    if mask is not None:
        mask.requires_grad_("mask_grad" in options)
    _switch_off([option.removeprefix("off=") for option in options if option.startswith("off=")])
    torch.use_deterministic_algorithms("deterministic" in options)
    query, key_tensor, value = (tensor.requires_grad_("no_grad" not in options) for tensor in tensors)
    return Call(
        query=query,
        key=key_tensor,
        value=value,
        mask=mask,
        dropout_p=float(named.get("dropout", 0)),
        is_causal="causal" in options,
        enable_gqa="grouped" in options,
    )


def _letter(row: dict[str, str], target: Target) -> str:
    try:
        return LETTERS[chosen(_call(row, target.torch_version), target)]
    except RuntimeError as error:
        return str(error)[0]


@pytest.mark.parametrize("capability", CAPABILITIES, ids=lambda capability: "sm{}{}".format(*capability))
@pytest.mark.parametrize("release", ["2.11", "2.12", "2.13", "2.14"])
def test_every_recorded_call_gets_the_kernel_that_torch_chose(release: str, capability: tuple[int, int]) -> None:
    major, minor = map(int, release.split("."))
    target = Target(compute_capability=capability, torch_version=(major, minor))
    column = CAPABILITIES.index(capability)

    wrong = [(row, got) for row in ROWS if (got := _letter(row, target)) != row[release][column]]

    assert wrong == []


def _plain(dtype: torch.dtype = torch.bfloat16) -> Call:
    tensor = torch.empty(2, 8, 128, 64, dtype=dtype, device="meta")
    return Call(query=tensor, key=tensor, value=tensor)


HOPPER = Target(compute_capability=(9, 0), torch_version=(2, 13))
AMPERE = Target(compute_capability=(8, 0), torch_version=(2, 13))


@pytest.mark.parametrize(
    ("backends", "kernel"),
    [
        pytest.param([SDPBackend.MATH], Kernel.MATH, id="math"),
        pytest.param([SDPBackend.FLASH_ATTENTION], Kernel.FLASH, id="flash"),
        pytest.param([SDPBackend.EFFICIENT_ATTENTION], Kernel.EFFICIENT, id="memory-efficient"),
        pytest.param([SDPBackend.CUDNN_ATTENTION], Kernel.CUDNN, id="cuDNN"),
        pytest.param([SDPBackend.MATH, SDPBackend.EFFICIENT_ATTENTION], Kernel.EFFICIENT, id="two"),
    ],
)
@pytest.mark.parametrize("target", [HOPPER, AMPERE], ids=["hopper", "ampere"])
def test_only_what_sdpa_kernel_names_is_taken(target: Target, backends: list[SDPBackend], kernel: Kernel) -> None:
    with sdpa_kernel(backends):
        assert chosen(_plain(), target) is kernel


def test_an_order_that_the_user_sets_comes_before_the_cards() -> None:
    with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION], set_priority=True):
        assert chosen(_plain(), HOPPER) is Kernel.EFFICIENT
    assert chosen(_plain(), HOPPER) is Kernel.CUDNN


def test_where_no_kernel_is_left_the_error_is_torchs() -> None:
    with (
        sdpa_kernel([SDPBackend.FLASH_ATTENTION]),
        pytest.raises(RuntimeError, match=r"No available kernel. Aborting execution."),
    ):
        chosen(_plain(torch.float64), HOPPER)


def test_cudnn_is_last_where_the_user_says_so_and_where_there_is_none() -> None:
    deprioritized = Target(compute_capability=(9, 0), torch_version=(2, 13), prefers_cudnn=False)
    amd = Target(compute_capability=(9, 4), torch_version=(2, 13))

    assert chosen(_plain(), deprioritized) is Kernel.FLASH
    assert chosen(_plain(), amd) is Kernel.FLASH
