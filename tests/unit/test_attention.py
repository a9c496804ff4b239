"""What attention on a simulated card keeps for backward and takes at its peak, by hand from shapes."""

from __future__ import annotations

from itertools import accumulate
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from profiler.dry_run.placement import SimulatedPlacement
from profiler.simulation.cards import Card, card_of
from profiler.simulation.replay import Event
from profiler.simulation.settings import Settings, settings_of

AMPERE, HOPPER, BLACKWELL, ADA = (card_of(name) for name in ("a100-40gb", "h100-80gb", "b200", "rtx4090"))
HEADS, GROUPED = (2, 8, 256, 64), (2, 2, 256, 64)
ELEMENTS, ROWS = 2 * 8 * 256 * 64, 2 * 8 * 256
GROUPED_ELEMENTS = ELEMENTS // 4
SQUARE = ROWS * 256
SEEDS = 2 * 512


class Trained(NamedTuple):
    """kernel: the node's in the graph. kept_bytes: beside the inputs. backward_bytes: the most in backward beyond what was kept."""

    kernel: str
    kept_bytes: int
    backward_bytes: int


def attend(
    *shapes: tuple[int, ...],
    card: Card = AMPERE,
    release: tuple[int, int] = (2, 13),
    dtype: torch.dtype = torch.bfloat16,
    mask: tuple[int, ...] | None = None,
    settings: Settings | None = None,
    **options: Any,
) -> Trained:
    """`scaled_dot_product_attention` and its backward, of a query and keys and values of those shapes, or all of one."""
    placement = SimulatedPlacement(card, None, torch_version=release, settings=settings)
    full = (shapes[0], shapes[-1], shapes[-1])
    inputs = [_heads(placement, shape, dtype) for shape in full]
    attn_mask = None if mask is None else placement.batch(torch.empty(mask, dtype=torch.bool, device="meta"))
    allocator, events = placement.ledger.allocator, placement.ledger.events
    with placement.training():
        inputs = [each.requires_grad_() for each in inputs]
        before = allocator.allocated_bytes
        output = functional.scaled_dot_product_attention(inputs[0], inputs[1], inputs[2], attn_mask, **options)
        kept, kernel = allocator.allocated_bytes - before, _kernel_of(output)
        gradient = torch.empty_like(output)
        forward = len(events)
        torch.autograd.backward(output, gradient)
    assert [tuple(each.grad.shape) for each in inputs if each.grad is not None] == list(full)
    return Trained(kernel, kept, _most_beyond(events, forward))


def _heads(placement: SimulatedPlacement, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Heads as layers make them, one token after the other, in which gradients come too."""
    *batch, heads, tokens, head = shape
    by_token = placement.batch(torch.empty(*batch, tokens, heads, head, dtype=dtype, device="meta"))
    transposed: Tensor = by_token.transpose(-3, -2)
    return transposed


def _most_beyond(events: list[Event], start: int) -> int:
    sizes = {event.storage: block(event.size_bytes, 1) for event in events if event.kind == "allocate"}
    changes = (sizes[event.storage] * (1 if event.kind == "allocate" else -1) for event in events[start:])
    return max(accumulate(changes, initial=0))


def block(elements: int, size: int) -> int:
    """The bytes of a block for so many elements of that size."""
    return -(-elements * size // 512) * 512


def _kernel_of(output: Tensor) -> str:
    waiting = [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node.name().startswith("ScaledDotProduct"):
            return node.name().removeprefix("ScaledDotProduct").removesuffix("AttentionBackward0")
        waiting += [] if node is None else [following for following, _ in node.next_functions]
    return "Math"


def test_cudnn_keeps_its_output_and_one_number_a_row() -> None:
    trained = attend(HEADS, card=HOPPER, is_causal=True)

    assert trained.kernel == "Cudnn"
    assert 0 <= trained.kept_bytes - block(ELEMENTS, 2) - block(ROWS, 4) <= SEEDS
    assert trained.backward_bytes == 3 * block(ELEMENTS, 2)


def test_cudnn_keeps_a_mask_of_bools_as_numbers() -> None:
    plain, masked = (attend(HEADS, card=HOPPER, mask=mask) for mask in (None, (2, 1, 256, 256)))

    assert masked.kernel == "Cudnn"
    assert masked.kept_bytes - plain.kept_bytes == block(2 * 256 * 256, 2)


def test_cudnn_has_gradients_of_the_groups_alone() -> None:
    trained = attend(HEADS, GROUPED, card=HOPPER, enable_gqa=True)

    assert trained.kernel == "Cudnn"
    assert trained.backward_bytes == block(ELEMENTS, 2) + 2 * block(GROUPED_ELEMENTS, 2)


def test_values_of_another_head_size_give_cudnns_output_theirs() -> None:
    placement = SimulatedPlacement(HOPPER, None, torch_version=(2, 13))
    shapes = ((2, 256, 8, 192), (2, 256, 8, 192), (2, 256, 8, 128))
    query, key, value = (
        placement.batch(torch.empty(shape, dtype=torch.float16, device="meta")).transpose(1, 2) for shape in shapes
    )
    with placement.training():
        output = functional.scaled_dot_product_attention(query, key, value)

    assert output.shape == (2, 8, 256, 128)
    assert output.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize(
    ("card", "release", "kernel"),
    [
        pytest.param(HOPPER, (2, 11), "Cudnn", id="hopper"),
        pytest.param(BLACKWELL, (2, 14), "Cudnn", id="blackwell"),
        pytest.param(AMPERE, (2, 14), "Flash", id="ampere"),
        pytest.param(ADA, (2, 14), "Flash", id="ada"),
    ],
)
def test_cudnn_comes_first_on_datacenter_cards_alone(card: Card, release: tuple[int, int], kernel: str) -> None:
    assert attend(HEADS, card=card, release=release).kernel == kernel


def test_a_variable_puts_cudnn_last() -> None:
    settings = settings_of({"TORCH_CUDNN_SDPA_DEPRIORITIZED": "1"})

    assert attend(HEADS, card=HOPPER, settings=settings).kernel == "Flash"


def test_flash_takes_the_queries_gradient_in_fp32_while_its_backward_runs() -> None:
    trained = attend(HEADS)

    assert trained.kernel == "Flash"
    assert trained.backward_bytes == 3 * block(ELEMENTS, 2) + block(ELEMENTS, 4) + block(ROWS, 4)


def test_flash_expands_grouped_heads_in_backward_alone() -> None:
    trained = attend(HEADS, GROUPED, enable_gqa=True)
    gradients = block(ELEMENTS, 2) + 2 * block(GROUPED_ELEMENTS, 2)

    assert trained.kernel == "Flash"
    assert 0 <= trained.kept_bytes - block(ELEMENTS, 2) - block(ROWS, 4) <= SEEDS
    assert trained.backward_bytes == gradients + block(ELEMENTS, 4) + block(ROWS, 4) + 2 * block(ELEMENTS, 2)


def test_flash_rounds_rows_and_heads_up_while_its_backward_runs() -> None:
    trained = attend((2, 8, 200, 40))
    rows = 2 * 8 * 256

    assert trained.backward_bytes == 3 * block(2 * 8 * 200 * 40, 2) + block(rows * 64, 4) + block(rows, 4)


def test_grouped_heads_in_fp32_are_squares_until_the_efficient_kernel_takes_them() -> None:
    before, since = (
        attend(HEADS, GROUPED, release=release, dtype=torch.float32, enable_gqa=True) for release in ((2, 13), (2, 14))
    )

    assert (before.kernel, since.kernel) == ("Math", "Efficient")
    assert before.kept_bytes >= block(SQUARE, 4)
    assert 0 <= since.kept_bytes - block(ELEMENTS, 4) - block(ROWS, 4) <= SEEDS
    assert since.backward_bytes == block(ELEMENTS, 4) + 2 * block(GROUPED_ELEMENTS, 4)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("card", [AMPERE, ADA], ids=["a100", "4090"])
def test_heads_of_200_train_by_flash_where_a_block_has_room_for_them(card: Card, dropout: float) -> None:
    kernel = attend((2, 8, 128, 200), card=card, dropout_p=dropout).kernel

    assert kernel == ("Flash" if card is AMPERE else "Efficient")


def test_causal_attention_over_longer_keys_is_not_flashs() -> None:
    assert attend(HEADS, (2, 8, 512, 64), is_causal=True).kernel == "Efficient"
    assert attend(HEADS, (2, 8, 512, 64)).kernel == "Flash"


@pytest.mark.parametrize(
    ("rows", "padded"),
    [
        pytest.param(256, 0, id="aligned"),
        pytest.param(120, 0, id="a multiple of eight"),
        pytest.param(100, 104, id="not aligned"),
    ],
)
def test_a_mask_is_padded_to_rows_of_a_multiple_of_eight(rows: int, padded: int) -> None:
    shape = (2, 8, rows, 64)
    plain, masked = (attend(shape, dtype=torch.float32, mask=mask) for mask in (None, (2, 1, rows, rows)))

    assert masked.kernel == "Efficient"
    assert masked.kept_bytes - plain.kept_bytes == block(2 * rows * (padded or rows), 4)


def test_a_sample_without_a_batch_gets_a_fused_kernel_since_2_14() -> None:
    before, since = (attend((8, 256, 64), dtype=torch.float32, release=release) for release in ((2, 13), (2, 14)))

    assert (before.kernel, since.kernel) == ("Math", "Efficient")


def test_sdpa_kernel_and_the_switches_are_obeyed() -> None:
    with sdpa_kernel([SDPBackend.MATH]):
        assert attend(HEADS).kernel == "Math"
    torch.backends.cuda.enable_flash_sdp(False)
    try:
        assert attend(HEADS).kernel == "Efficient"
    finally:
        torch.backends.cuda.enable_flash_sdp(True)
    with (
        sdpa_kernel([SDPBackend.FLASH_ATTENTION]),
        pytest.raises(RuntimeError, match=r"No available kernel. Aborting execution."),
    ):
        attend(HEADS, dtype=torch.float32)


@pytest.mark.parametrize(
    ("card", "release", "refused"),
    [
        pytest.param(AMPERE, (2, 13), False, id="both taken by the kernel"),
        pytest.param(AMPERE, (2, 14), True, id="since 2.14"),
    ],
)
def test_a_mask_beside_is_causal_is_an_error_since_2_14(card: Card, release: tuple[int, int], refused: bool) -> None:
    def run() -> Trained:
        return attend(HEADS, card=card, release=release, mask=(256, 256), is_causal=True)

    if refused:
        with pytest.raises(RuntimeError, match="should not be set when is_causal=True"):
            run()
    else:
        assert run().kernel == "Efficient"


def test_heads_that_do_not_divide_are_an_error() -> None:
    with pytest.raises(RuntimeError, match="must divide the number of heads"):
        attend(HEADS, (2, 3, 256, 64), enable_gqa=True)


def test_squares_are_in_half_precision_where_the_user_allows_it() -> None:
    with sdpa_kernel([SDPBackend.MATH]):
        full = attend(HEADS).kept_bytes
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
        try:
            half = attend(HEADS).kept_bytes
        finally:
            torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(False)

    assert full - half >= block(SQUARE, 4) - block(SQUARE, 2)


def test_autocast_casts_a_mask_of_numbers_too() -> None:
    placement = SimulatedPlacement(AMPERE, None, torch_version=(2, 13))
    inputs = [placement.batch(torch.empty(HEADS, device="meta")) for _ in range(3)]
    mask = placement.batch(torch.empty(2, 1, 256, 256, device="meta"))
    allocator = placement.ledger.allocator
    with placement.training(), torch.autocast("cuda", dtype=torch.bfloat16):
        inputs = [each.requires_grad_() for each in inputs]
        before = allocator.allocated_bytes
        output = functional.scaled_dot_product_attention(inputs[0], inputs[1], inputs[2], mask)
        kept = allocator.allocated_bytes - before

    assert output.dtype is torch.bfloat16
    inputs_and_output = 4 * block(ELEMENTS, 2) + block(ROWS, 4)
    assert 0 <= kept - inputs_and_output - block(2 * 256 * 256, 2) <= SEEDS
