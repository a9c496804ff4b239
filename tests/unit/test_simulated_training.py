"""What a simulated card records of a training step: bytes that follow from shapes by hand, and from CUDA's operations."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from profiler.dry_run.placement import SimulatedPlacement
from profiler.errors import WorkloadError
from profiler.simulation.cards import Card, card_of
from profiler.simulation.ledger import Ledger
from profiler.simulation.replay import least_capacity, peak_live_bytes
from profiler.units import GIB, KIB, MIB

AMPERE = card_of("rtx3090")
HOPPER = card_of("h100-80gb")
TURING = card_of("t4")
CUBLAS_BYTES = 8_519_680


class Kept:
    """What `function` keeps alive for its backward, beside its inputs: bytes in blocks, and the dtype of what it gives."""

    def __init__(
        self,
        function: Callable[..., Tensor],
        *shapes: tuple[int, ...],
        card: Card = AMPERE,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        placement = SimulatedPlacement(card, None, torch_version=(2, 13))
        inputs = [placement.batch(torch.empty(shape, dtype=dtype, device="meta")) for shape in shapes]
        allocator = placement.ledger.allocator
        with placement.training():
            inputs = [each.requires_grad_() for each in inputs]
            before = allocator.allocated_bytes
            output = function(*inputs)
            self.dtype = output.dtype
            self.bytes = allocator.allocated_bytes - before
            del output


def block(elements: int, size: int = 4) -> int:
    """The bytes of a block for so many elements of that size."""
    return -(-elements * size // 512) * 512


def test_dropout_keeps_a_mask_of_one_byte_an_element() -> None:
    kept = Kept(lambda x: functional.dropout(x, 0.5, True), (1024, 100))

    assert kept.bytes == block(102_400) + block(102_400, 1)


def test_dropout_in_a_module_of_torch_is_seen_too() -> None:
    layer = nn.MultiheadAttention(16, 2, dropout=0.5, batch_first=True)
    placement = SimulatedPlacement(AMPERE, None)
    model = placement.model(lambda: layer)
    seen = placement.batch(torch.empty(4, 8, 16))
    with placement.training():
        output, _ = model(seen, seen, seen, need_weights=False)
        names = _graph(output)

    assert "ScaledDotProductEfficientAttentionBackward0" in names


def _graph(output: Tensor) -> set[str]:
    seen, waiting = set[Any](), [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
    return {node.name() for node in seen}


def attend(**options: Any) -> Callable[..., Tensor]:
    return lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, **options)


HEADS = (2, 4, 256, 64)
ELEMENTS = 2 * 4 * 256 * 64
SQUARE = 2 * 4 * 256 * 256
ROWS = 2 * 4 * 256


def test_attention_in_fp32_keeps_no_square() -> None:
    kept = Kept(attend(is_causal=True), HEADS, HEADS, HEADS)

    assert kept.bytes - block(ELEMENTS) - block(ROWS) <= 2 * 512  # and two seeds


def test_attention_in_half_precision_is_flash() -> None:
    kept = Kept(attend(is_causal=True), HEADS, HEADS, HEADS, dtype=torch.bfloat16)

    assert kept.dtype is torch.bfloat16
    assert kept.bytes - block(ELEMENTS, 2) - block(ROWS) <= 2 * 512


def test_bf16_attention_on_turing_keeps_squares_in_fp32() -> None:
    kept = Kept(attend(), HEADS, HEADS, HEADS, dtype=torch.bfloat16, card=TURING)

    assert kept.bytes >= block(SQUARE)


def test_heads_that_no_kernel_takes_are_computed_by_squares() -> None:
    odd = (2, 4, 256, 63)
    kept = Kept(attend(), odd, odd, odd)

    assert kept.bytes >= block(SQUARE)


def test_rms_norm_is_one_kernel() -> None:
    kept = Kept(lambda x: functional.rms_norm(x, (100,)), (64, 100))

    assert kept.bytes == block(6400) + block(64)


def test_an_rms_norm_with_a_weight_keeps_no_more() -> None:
    kept = Kept(lambda x, weight: functional.rms_norm(x, (100,), weight), (64, 100), (100,))

    assert kept.bytes == block(6400) + block(64)


def test_an_rms_norm_of_two_types_is_computed_by_steps() -> None:
    """The normed input is kept beside the output, in fp32."""
    kept = Kept(
        lambda x, weight: functional.rms_norm(x, (100,), weight.float()), (64, 100), (100,), dtype=torch.bfloat16
    )

    assert kept.bytes >= block(6400) * 2


def test_an_lstms_cell_keeps_its_gates_three_times() -> None:
    """Those of the input and of the hidden state, and what its kernel computes of both."""
    cell = nn.LSTMCell(32, 64, bias=False)
    kept = Kept(lambda x, hidden, state: cell(x, (hidden, state))[0], (8, 32), (8, 64), (8, 64))

    assert kept.bytes == block(4 * 8 * 64) * 3 + block(8 * 64) * 2 + _bytes_of(cell) + CUBLAS_BYTES


def test_a_grus_cell_keeps_its_gates_twice_and_five_numbers_a_hidden_one() -> None:
    cell = nn.GRUCell(32, 64, bias=False)
    kept = Kept(lambda x, hidden: cell(x, hidden), (8, 32), (8, 64))

    assert kept.bytes == block(3 * 8 * 64) * 2 + block(5 * 8 * 64) + block(8 * 64) + _bytes_of(cell) + CUBLAS_BYTES


def _bytes_of(model: nn.Module) -> int:
    return sum(block(parameter.numel()) for parameter in model.parameters())


def test_a_cell_lowers_its_weights_once() -> None:
    def steps(x: Tensor) -> Tensor:
        state = None
        with torch.autocast("cuda", dtype=torch.bfloat16):
            for _ in range(3):
                state = cell(x, state)
        return state[0]  # type: ignore[index, no-any-return]

    placement = SimulatedPlacement(AMPERE, None, torch_version=(2, 13))
    cell = placement.model(lambda: nn.LSTMCell(48, 64))
    x = placement.batch(torch.empty(8, 48, device="meta"))
    with placement.training():
        steps(x)

    assert [event.size_bytes for event in placement.ledger.events].count(4 * 64 * 64 * 2) == 1


def test_batch_norm_of_half_precision_keeps_its_statistics_in_fp32() -> None:
    kept = Kept(lambda x: functional.batch_norm(x, None, None, training=True), (8, 512, 10), dtype=torch.bfloat16)

    assert kept.bytes >= block(8 * 512 * 10, 2) + 2 * block(512)


def test_losses_under_autocast_are_in_fp32_as_on_cuda() -> None:
    def normed(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return functional.softmax(x, -1)

    assert Kept(normed, (8, 100), dtype=torch.bfloat16).dtype is torch.float32


@pytest.mark.parametrize(
    ("mode", "rows"), [pytest.param("sum", 0, id="sum"), pytest.param("max", 64 * 32, id="max-keeps-which-row")]
)
def test_an_embedding_bag_keeps_the_bag_of_each_index(mode: str, rows: int) -> None:
    def bags(weight: Tensor) -> Tensor:
        indices = torch.zeros((64, 100), dtype=torch.int64)
        return functional.embedding_bag(indices, weight, mode=mode)

    indices, offsets, sizes = block(6400, 8), block(64, 8), block(64, 8)

    assert Kept(bags, (1000, 32)).bytes == block(64 * 32) + 2 * indices + offsets + sizes + block(rows, 8)


def test_a_log_sigmoid_keeps_no_buffer_beside_its_output() -> None:
    assert Kept(functional.logsigmoid, (64, 100)).bytes == block(6400)


def test_the_zero_of_a_backward_lies_on_the_card() -> None:
    """A clamp's gradient is zero outside, by a scalar of 4 bytes that torch names the device for. The sum and its gradient are two more."""
    placement = SimulatedPlacement(AMPERE, None, torch_version=(2, 13))
    with placement.training():
        x = placement.batch(torch.empty(64, 100, device="meta")).requires_grad_()
        x.clamp_min(0.0).sum().backward()

    assert [event.size_bytes for event in placement.ledger.events].count(4) == 3


def test_an_lstm_keeps_a_reserve_space() -> None:
    def run(x: Tensor) -> Tensor:
        return layer(x)[0]  # type: ignore[no-any-return]

    layer = nn.LSTM(32, 64, batch_first=True)
    kept = Kept(run, (8, 50, 32))

    assert kept.bytes > block(8 * 50 * 64) + block(6 * 8 * 50 * 64)


class Twice(nn.Module):
    """One weight in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64, bias=False)
        self.second = nn.Linear(64, 64, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.second(self.first(x))
        return output


class Trained(NamedTuple):
    """What a training came to, with what it would hold on to."""

    ledger: Ledger
    held: tuple[nn.Module, torch.optim.Optimizer]

    @property
    def allocated_bytes(self) -> int:
        return self.ledger.allocator.allocated_bytes


def trained(
    build: Callable[[], nn.Module],
    batch: Tensor,
    *,
    card: Card = AMPERE,
    capacity_bytes: int | None = None,
    steps: int = 2,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
    assumptions: tuple[str, ...] = (),
    torch_version: tuple[int, int] = (2, 13),
) -> Trained:
    """The card after some optimizer steps of the mean of the model's output."""
    placement = SimulatedPlacement(card, capacity_bytes, assumptions, torch_version=torch_version)
    model = placement.model(build)
    with placement.training():
        stepping = placement.optimizer(optimizer(model.parameters()))
        for _ in range(steps):
            stepping.zero_grad()
            model(placement.batch(batch)).float().mean().backward()
            stepping.step()
    return Trained(placement.ledger, (model, stepping))


@pytest.fixture
def without_collections() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("without_collections")
def test_a_step_that_asks_for_numbers_leaves_nothing_behind() -> None:
    """Adafactor asks each weight for its norm, and computes in a tensor as large as the weight beside it."""
    placement = SimulatedPlacement(AMPERE, None, torch_version=(2, 13))
    model = placement.model(lambda: nn.Linear(64, 64, bias=False))
    x = placement.batch(torch.empty(8, 64, device="meta"))
    with placement.training():
        stepping = placement.optimizer(torch.optim.Adafactor(model.parameters()))
        model(x).sum().backward()
        before = placement.ledger.allocator.allocated_bytes
        stepping.step()

    assert placement.ledger.allocator.allocated_bytes == before + 2 * block(64)


def test_an_optimizer_that_asks_torch_for_no_implementation_keeps_its_own() -> None:
    placement = SimulatedPlacement(AMPERE, None, torch_version=(2, 13))
    weights = [nn.Parameter(torch.empty(4))]

    chosen = [
        placement.optimizer(kind(weights)).param_groups[0]["foreach"]
        for kind in (torch.optim.Adafactor, torch.optim.AdamW)
    ]

    assert chosen == [None, True]


def test_steps_are_counted_in_host_memory() -> None:
    placement = SimulatedPlacement(AMPERE, None, torch_version=(2, 13))
    with placement.training():
        counts = torch.zeros((), dtype=torch.float32), torch.zeros((), device="cuda")

    assert [event.size_bytes for event in placement.ledger.events] == [4]
    assert len(counts) == 2


def test_a_weight_in_two_places_counts_once() -> None:
    placement = SimulatedPlacement(AMPERE, None)
    placement.model(Twice)

    assert placement.ledger.allocator.allocated_bytes == 64 * 64 * 4


def test_views_of_one_buffer_count_once() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            whole = torch.zeros(2048)
            self.register_buffer("first", whole[:1024])
            self.register_buffer("second", whole[1024:])

    placement = SimulatedPlacement(AMPERE, None)
    placement.model(Halves)

    assert placement.ledger.allocator.allocated_bytes == 2048 * 4


def test_weights_gradients_and_state_are_what_is_left_after_a_step() -> None:
    card = trained(lambda: nn.Linear(256, 256, bias=False), torch.empty(8, 256, device="meta"))

    # The optimizer's counter of steps lies in host memory, as on a GPU.
    assert card.allocated_bytes == 4 * 256 * 256 * 4 + 2 * CUBLAS_BYTES


def test_a_step_of_adamw_takes_more_than_one_further_copy_as_its_multi_tensor_kernels_do() -> None:
    card = trained(lambda: nn.Linear(2048, 2048, bias=False), torch.empty(8, 2048, device="meta"))
    copy = 2048 * 2048 * 4

    assert 5 * copy <= card.ledger.allocator.peak_allocated_bytes - 2 * CUBLAS_BYTES < 6.2 * copy


def test_a_model_larger_than_this_machine_takes_none_of_its_memory() -> None:
    placement = SimulatedPlacement(AMPERE, None)
    placement.model(lambda: nn.Linear(2**19, 2**19, bias=False))

    assert placement.ledger.allocator.allocated_bytes == 1024 * GIB


def test_a_builder_that_needs_values_is_built_for_real() -> None:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            width = int(torch.tensor([3.0, 4.0]).norm().item())
            self.layer = nn.Linear(width, 7)

    model = SimulatedPlacement(AMPERE, None).model(Sized)

    assert [tuple(parameter.shape) for parameter in model.parameters()] == [(7, 5), (7,)]


@pytest.mark.parametrize(
    ("card", "torch_version", "held"),
    [
        pytest.param(AMPERE, (2, 13), 2 * CUBLAS_BYTES, id="a handle for each thread"),
        pytest.param(HOPPER, (2, 13), 2 * 32 * MIB, id="more on Hopper"),
        pytest.param(AMPERE, (2, 15), 0, id="given back from 2.15 on"),
    ],
)
def test_matrix_products_hold_workspaces(card: Card, torch_version: tuple[int, int], held: int) -> None:
    ran = trained(
        lambda: nn.Linear(256, 256, bias=False),
        torch.empty(8, 256, device="meta"),
        card=card,
        torch_version=torch_version,
    )

    assert ran.allocated_bytes == 4 * 256 * 256 * 4 + held


def test_it_runs_in_the_least_capacity_and_in_no_less() -> None:
    def train(capacity_bytes: int | None) -> Trained:
        return trained(
            lambda: nn.Sequential(nn.Linear(512, 2048), nn.ReLU(), nn.Linear(2048, 512)),
            torch.empty(4096, 512, device="meta"),
            capacity_bytes=capacity_bytes,
        )

    least = least_capacity(train(None).ledger.events)
    train(least)
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        train(least - 2 * MIB)


def test_nothing_that_training_let_go_of_stays_recorded() -> None:
    first = trained(lambda: nn.Linear(64, 64), torch.empty(8, 64, device="meta"), steps=2)
    longer = trained(lambda: nn.Linear(64, 64), torch.empty(8, 64, device="meta"), steps=9)

    assert longer.allocated_bytes == first.allocated_bytes
    assert peak_live_bytes(longer.ledger.events) == peak_live_bytes(first.ledger.events)


class Asking(nn.Module):
    """Asks for values: of its input, and of what it computed."""

    def __init__(self, ask: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.ask = ask

    def forward(self, x: Tensor) -> Tensor:
        return self.ask(self.layer(x.float()))


def scaled_by_a_value(x: Tensor) -> Tensor:
    return x * x.detach().abs().max().item()


def only_positive(x: Tensor) -> Tensor:
    return x[x > 0]


LINES = {function.__name__: function.__code__.co_firstlineno + 1 for function in (scaled_by_a_value, only_positive)}


@pytest.mark.parametrize(
    ("ask", "hint"),
    [
        pytest.param(scaled_by_a_value, "=N for the number it gives", id="a number"),
        pytest.param(only_positive, "=N for how many elements it selects", id="a selection"),
    ],
)
def test_a_value_that_nobody_has_names_the_line_and_the_hint(ask: Callable[[Tensor], Tensor], hint: str) -> None:
    place = f"test_simulated_training.py:{LINES[ask.__name__]}"
    with pytest.raises(WorkloadError, match=rf"{place} needs the values.*--assume {place}{hint}"):
        trained(lambda: Asking(ask), torch.empty(4, 8))


def test_an_assumption_stands_for_the_number() -> None:
    place = f"test_simulated_training.py:{LINES['scaled_by_a_value']}"

    assert trained(lambda: Asking(scaled_by_a_value), torch.empty(4, 8), assumptions=(f"{place}=7",)).ledger.events


@pytest.mark.parametrize(("value", "rows"), [("40", 40), ("25%", 16 * KIB)])
def test_an_assumption_says_how_many_elements_are_selected(value: str, rows: int) -> None:
    place = f"test_simulated_training.py:{LINES['only_positive']}"
    card = trained(
        lambda: Asking(only_positive),
        torch.empty(8 * KIB, 8, device="meta"),
        assumptions=(f"{place}={value}",),
        steps=1,
    )

    assert rows * 4 in {event.size_bytes for event in card.ledger.events}


def test_masks_and_token_numbers_of_the_batch_have_their_values() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(100, 16)

        def forward(self, ids: Tensor) -> Tensor:
            mask = ids != 0
            seen.append(int(mask.sum().item()))
            return self.table(ids)[mask]  # type: ignore[no-any-return]

    seen: list[int] = []
    trained(Masked, torch.tensor([[5, 6, 0, 0], [7, 8, 9, 0]]), steps=1)

    assert seen == [5]


@pytest.mark.parametrize(
    "is_bad",
    [
        pytest.param(lambda x: torch.isnan(x).any(), id="isnan"),
        pytest.param(lambda x: x.isinf().any(), id="isinf"),
        pytest.param(lambda x: not torch.isfinite(x).all(), id="isfinite"),
        pytest.param(lambda x: (x != x).any(), id="other than itself"),
    ],
)
def test_numbers_count_as_finite_where_code_guards_against_others(is_bad: Callable[[Tensor], Any]) -> None:
    def guarded(x: Tensor) -> Tensor:
        answers.append(bool(is_bad(x)))
        return x

    answers: list[bool] = []
    trained(lambda: Asking(guarded), torch.empty(4, 8), steps=1)

    assert answers == [False]


@pytest.mark.parametrize("samples", [1, 64])
def test_a_mask_of_numbers_is_known_in_batches_of_every_size(samples: int) -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(512, 8)

        def forward(self, mask: Tensor) -> Tensor:
            lengths.append(int(mask.sum(1).max()))
            return self.layer(mask)  # type: ignore[no-any-return]

    lengths: list[int] = []
    trained(Cut, torch.ones(samples, 512).tril(511 - samples), steps=1)

    assert lengths == [511]


def test_adam_counts_its_steps_as_it_does_for_real() -> None:
    class Remembering(torch.optim.AdamW):
        def step(self, closure: Any = None) -> Any:
            result = super().step(closure)
            (state,) = {int(entry["step"].item()) for entry in self.state.values()}
            counts.append(state)
            return result

    counts: list[int] = []
    trained(lambda: nn.Linear(8, 8), torch.empty(4, 8, device="meta"), steps=3, optimizer=Remembering)

    assert counts == [1, 2, 3]
