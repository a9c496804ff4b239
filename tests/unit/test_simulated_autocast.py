"""Autocast on a simulated card: what a GPU's casts, which the CPU's does not, and nothing of it afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from profiler.dry_run.autocast import autocast_of_gpu
from profiler.dry_run.placement import SimulatedPlacement
from profiler.simulation.cards import card_of

ROWS, CLASSES = 64, 1024
ELEMENTS = ROWS * CLASSES


class Cast:
    """What `function` of a matrix of logits in half precision takes under autocast, beside it: each block's bytes, and what it keeps."""

    def __init__(self, function: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.bfloat16) -> None:
        placement = SimulatedPlacement(card_of("rtx3090"), None, torch_version=(2, 13))
        logits = placement.batch(torch.empty(ROWS, CLASSES, dtype=dtype, device="meta"))
        ledger = placement.ledger
        before, events = ledger.allocator.allocated_bytes, len(ledger.events)
        with placement.training(), torch.autocast("cuda", dtype=dtype):
            result = function(logits.requires_grad_())
            self.dtype = result.dtype
            self.kept_bytes = ledger.allocator.allocated_bytes - before
        taken = [event.size_bytes for event in ledger.events[events:] if event.kind == "allocate"]
        self.taken_bytes = sorted(size for size in taken if size >= ELEMENTS)


def target() -> Tensor:
    return torch.zeros(ROWS, dtype=torch.int64)


def test_cross_entropy_keeps_its_softmax_in_half_precision_and_a_copy_in_fp32() -> None:
    cast = Cast(lambda logits: functional.cross_entropy(logits, target()))

    assert cast.taken_bytes == [2 * ELEMENTS, 4 * ELEMENTS]
    assert cast.kept_bytes >= 6 * ELEMENTS


@pytest.mark.parametrize(
    ("function", "dtype", "taken_bytes"),
    [
        pytest.param(lambda x: x.softmax(-1), torch.float16, [4 * ELEMENTS], id="fp16-is-read-as-it-is"),
        pytest.param(lambda x: x.softmax(-1), torch.bfloat16, [4 * ELEMENTS] * 2, id="bf16-is-copied"),
        pytest.param(
            lambda x: functional.log_softmax(x, -1, dtype=torch.float32), torch.float16, [4 * ELEMENTS], id="asked-for"
        ),
        pytest.param(
            lambda x: functional.softmax(x, -1, dtype=torch.float16), torch.float16, [2 * ELEMENTS], id="kept-low"
        ),
        pytest.param(lambda x: x.cumsum(-1), torch.bfloat16, [4 * ELEMENTS], id="a-sum-makes-no-copy"),
    ],
)
def test_what_computes_in_fp32_without_a_copy(
    function: Callable[[Tensor], Tensor], dtype: torch.dtype, taken_bytes: list[int]
) -> None:
    assert Cast(function, dtype).taken_bytes == taken_bytes


@pytest.mark.parametrize(
    ("function", "dtype"),
    [
        pytest.param(torch.exp, torch.float32, id="an-operation-that-the-CPU-leaves"),
        pytest.param(lambda x: x.norm(dim=-1), torch.float32, id="norm"),
        pytest.param(lambda x: functional.pad(x.unsqueeze(0), (1, 1), "replicate"), torch.bfloat16, id="one-that-only-the-CPU-casts"),
        pytest.param(lambda x: torch.addcmul(x, x, x.float()), torch.float32, id="the-widest"),
        pytest.param(lambda x: torch.mv(x.float(), x[0].float()), torch.bfloat16, id="lowered"),
        pytest.param(lambda x: functional.rms_norm(x, (CLASSES,)), torch.float32, id="rms-norm"),
    ],
)  # fmt: skip
def test_operations_give_the_type_that_a_gpu_gives(function: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    assert Cast(function).dtype is dtype


def test_what_an_operation_calls_is_cast_too() -> None:
    """A distance takes a norm within."""
    assert Cast(lambda x: functional.pairwise_distance(x, x + 1)).dtype is torch.float32


def test_a_loss_that_a_gpu_refuses_is_refused() -> None:
    with pytest.raises(RuntimeError, match="unsafe to autocast"):
        Cast(lambda x: functional.binary_cross_entropy(x.sigmoid(), torch.ones_like(x)))


@contextmanager
def _low() -> Iterator[Tensor]:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        yield torch.ones(4, 4, dtype=torch.bfloat16)


def test_afterwards_the_cpu_has_its_own_again() -> None:
    with autocast_of_gpu(), autocast_of_gpu(), _low() as low:
        assert low.exp().dtype is torch.float32

    with _low() as low:
        assert low.exp().dtype is torch.bfloat16
        assert torch.linalg.inv(torch.eye(2).bfloat16()).dtype is torch.float32


def test_it_ends_with_an_error_too() -> None:
    with pytest.raises(KeyError), autocast_of_gpu():
        raise KeyError

    with _low() as low:
        assert low.exp().dtype is torch.bfloat16
