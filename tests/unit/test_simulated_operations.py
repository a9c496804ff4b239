"""Operations, layers, losses and optimizers on a simulated card: each trains to its end, or says in words why it cannot."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

from profiler.outcomes import Strategy
from profiler.schedules import Schedule
from profiler.switches import Switches
from profiler.trial import Completed, Failed, Setting, run_schedule
from profiler.units import MIB
from profiler.workload import Precision, Workload

CUBLAS_BYTES = 8_519_680
ONE_STEP = Schedule(strategy=Strategy.ACCUMULATION, steps=((8,),))
SCHEDULE = Schedule(strategy=Strategy.ACCUMULATION, steps=((8,), (8, 8)), evaluations=(8, 8))


class Via(nn.Module):
    """A function of some layers and the input."""

    def __init__(self, function: Callable[..., Any], *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.function = function

    def forward(self, input: Any) -> Any:
        return self.function(input, *self.layers)


def via(function: Callable[..., Any], *layers: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: Via(function, *(layer() for layer in layers))


def linear() -> nn.Module:
    return nn.Linear(16, 16)


def rows(size: int) -> Tensor:
    return torch.ones(size, 16)


def images(size: int) -> Tensor:
    return torch.ones(size, 3, 16, 16)


def steps(size: int) -> Tensor:
    return torch.ones(size, 12, 32)


def tokens(size: int) -> Tensor:
    return torch.arange(size * 12).reshape(size, 12) % 100


def lengths(size: int) -> tuple[Tensor, Tensor]:
    return steps(size), torch.arange(size) % 12 + 1


def mean_of_squares(model: nn.Module, batch: Any) -> Tensor:
    output = model(batch)
    while isinstance(output, tuple | list):
        output = output[0]
    return output.float().square().mean()  # type: ignore[no-any-return]


class Given(NamedTuple):
    """A source that has its workload already."""

    workload: Workload

    def load(self) -> Workload:
        """It."""
        return self.workload


def ran(
    model: Callable[[], nn.Module] | nn.Module,
    batch: Callable[[int], Any] = rows,
    *,
    loss: Callable[[nn.Module, Any], Tensor] = mean_of_squares,
    optimizer: Callable[..., torch.optim.Optimizer] | None = None,
    precision: Precision = "fp32",
    compile: bool = False,
    assume: tuple[str, ...] = (),
    schedule: Schedule = SCHEDULE,
    device: str = "sim:rtx3090",
) -> Completed | Failed:
    workload = Workload(
        model=model, make_batch=batch, loss=loss, optimizer=optimizer, precision=precision, compile=compile
    )
    setting = Setting(
        source=Given(workload),
        device=device,
        limit_bytes=None,
        switches=Switches.of_caller(),
        assumptions=assume,
    )
    return run_schedule(setting, schedule).result


def peak(*args: Any, **options: Any) -> int:
    result = ran(*args, **options)
    assert isinstance(result, Completed), result.user_traceback
    assert result.fits.peak_allocated_bytes is not None
    return result.fits.peak_allocated_bytes


def tied() -> nn.Module:
    table, head = nn.Embedding(100, 16), nn.Linear(16, 100, bias=False)
    head.weight = table.weight
    return nn.Sequential(table, head)


class Exponential(torch.autograd.Function):
    """A function with a backward of its own."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.save_for_backward(input)
        return input.exp()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] * ctx.saved_tensors[0].exp()


def exponential(x: Tensor) -> Tensor:
    result: Tensor = Exponential.apply(x)  # type: ignore[no-untyped-call]  # torch's
    return result


class Remembering(nn.Module):
    """Keeps tensors that are no buffers, in attributes and containers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)
        self.scale = torch.ones(16)
        self.shifts = {"all": [torch.ones(16)]}

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = self.layer(x) * self.scale + self.shifts["all"][0]
        return scaled


class InPlace(nn.Module):
    """Writes into what it computed, and into its buffers."""

    seen: Tensor
    queue: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)
        self.register_buffer("seen", torch.zeros(1))
        self.register_buffer("queue", torch.zeros(4, 16))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        self.queue[0] = x[0].detach()
        output: Tensor = self.layer(x).relu_().clone()
        output[:, 0] = 0
        return output.mul_(2).add_(self.seen)


def packed(pair: tuple[Tensor, Tensor], layer: nn.Module) -> Tensor:
    sequence, sizes = pair
    states = layer(pack_padded_sequence(sequence, sizes, batch_first=True, enforce_sorted=False))[0]
    assert isinstance(states, PackedSequence)
    padded, back = pad_packed_sequence(states, batch_first=True)
    assert padded.shape[1] == max(sizes.tolist()) == max(back.tolist())
    return padded


def encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2)


def masked(x: Tensor, layer: nn.Module) -> Any:
    return layer(x, src_key_padding_mask=torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device))


def channels_last() -> nn.Module:
    model: Any = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    model.to(memory_format=torch.channels_last)
    return model  # type: ignore[no-any-return]


MODELS = [
    pytest.param(
        via(lambda x, m: m(x, x, x)[0], lambda: nn.MultiheadAttention(32, 4, batch_first=True)), steps, id="mha"
    ),
    pytest.param(encoder, steps, id="transformer encoder"),
    pytest.param(via(masked, encoder), steps, id="transformer encoder with a padding mask"),
    pytest.param(
        via(lambda x, m: m(x, x), lambda: nn.Transformer(32, 4, 1, 1, 64, batch_first=True)), steps, id="transformer"
    ),
    *(
        pytest.param(
            via(lambda x, m: m(x)[0], partial(kind, 32, 16, 2, dropout=0.1, bidirectional=True)),
            steps,
            id=name,
        )
        for name, kind in (("lstm", nn.LSTM), ("gru", nn.GRU), ("rnn", nn.RNN))
    ),
    *(
        pytest.param(via(packed, partial(kind, 32, 16, batch_first=True)), lengths, id=f"packed {name}")
        for name, kind in (("lstm", nn.LSTM), ("gru", nn.GRU), ("rnn", nn.RNN))
    ),
    pytest.param(via(lambda x, m: m(x)[0], lambda: nn.LSTM(32, 16, proj_size=8)), steps, id="lstm with projections"),
    pytest.param(via(lambda x, m: m(x)[0], lambda: nn.LSTMCell(16, 16)), rows, id="lstm cell"),
    pytest.param(
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.GroupNorm(2, 8),
            nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
            nn.LayerNorm([14, 14]),
            nn.RMSNorm(14),
        ),
        images,
        id="norms",
    ),
    pytest.param(lambda: nn.Embedding(100, 16, padding_idx=0), tokens, id="embedding with padding"),
    pytest.param(lambda: nn.EmbeddingBag(100, 16), tokens, id="embedding bag"),
    pytest.param(tied, tokens, id="tied weights"),
    pytest.param(lambda: weight_norm(nn.Linear(16, 16)), rows, id="weight norm"),
    pytest.param(lambda: spectral_norm(nn.Linear(16, 16)), rows, id="spectral norm"),
    pytest.param(lambda: orthogonal(nn.Linear(16, 16)), rows, id="orthogonal"),
    pytest.param(Remembering, rows, id="tensors that are no buffers"),
    pytest.param(InPlace, rows, id="in place"),
    pytest.param(via(lambda x, m: exponential(m(x)), linear), rows, id="a function with a backward of its own"),
    pytest.param(
        lambda: nn.Sequential(
            nn.ConvTranspose2d(3, 8, 3, stride=2),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            nn.PixelShuffle(2),
            nn.MaxPool2d(2),
            nn.AdaptiveAvgPool2d(4),
            nn.Upsample(scale_factor=2),
        ),
        images,
        id="transposed convolution and upsampling",
    ),
    pytest.param(
        channels_last,
        lambda size: images(size).to(memory_format=torch.channels_last),
        id="channels last",
    ),
    pytest.param(via(lambda x, m: torch.vmap(m)(x), linear), rows, id="vmap"),
    pytest.param(via(lambda x, m: torch.fft.irfft(torch.fft.rfft(m(x))), linear), rows, id="complex numbers"),
    pytest.param(lambda: nn.Linear(16, 4).double(), lambda size: rows(size).double(), id="float64"),
    pytest.param(lambda: nn.Linear(16, 4, device="cuda"), rows, id="built on a GPU by name"),
    pytest.param(
        via(lambda x, m: m(x.cuda()) + torch.ones(16, device="cuda"), linear), rows, id="a GPU in the forward"
    ),
    pytest.param(linear, lambda size: torch.ones(size, 16, device="cuda"), id="a GPU in the batch maker"),
]


@pytest.mark.parametrize(("model", "batch"), MODELS)
def test_it_trains_and_evaluates(model: Callable[[], nn.Module], batch: Callable[[int], Any]) -> None:
    assert peak(model, batch) > 0


@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
@pytest.mark.parametrize(
    "model",
    [
        pytest.param(encoder, id="encoder"),
        pytest.param(via(lambda x, m: m(x)[0], lambda: nn.LSTM(32, 16)), id="lstm"),
    ],
)
def test_it_trains_in_each_precision(model: Callable[[], nn.Module], precision: Precision) -> None:
    assert peak(model, steps, precision=precision) > 0


def cross_entropy(**options: Any) -> Callable[[nn.Module, Any], Tensor]:
    return lambda model, batch: functional.cross_entropy(model(batch), torch.arange(len(batch)), **options)


def ctc(of_lengths: Callable[[int], Any]) -> Callable[[nn.Module, Any], Tensor]:
    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        scores, size = model(batch).log_softmax(-1).transpose(0, 1), len(batch)
        targets = torch.ones(size, 5, dtype=torch.int64, device=batch.device)
        return functional.ctc_loss(scores, targets, of_lengths(size), of_lengths(size))

    return loss


@pytest.mark.parametrize(
    ("loss", "batch"),
    [
        pytest.param(cross_entropy(), rows, id="cross entropy"),
        pytest.param(cross_entropy(ignore_index=3, label_smoothing=0.1), rows, id="smoothed cross entropy"),
        pytest.param(
            lambda m, x: functional.binary_cross_entropy_with_logits(m(x), x, pos_weight=x[0]), rows, id="binary"
        ),
        pytest.param(lambda m, x: functional.nll_loss(m(x).log_softmax(-1), torch.arange(8)), rows, id="nll"),
        pytest.param(lambda m, x: functional.huber_loss(m(x), x), rows, id="huber"),
        pytest.param(lambda m, x: functional.kl_div(m(x), x, reduction="batchmean"), rows, id="kl"),
        pytest.param(lambda m, x: functional.triplet_margin_loss(m(x), m(x * 2), m(x * 3)), rows, id="triplet"),
        pytest.param(
            lambda m, x: functional.cosine_embedding_loss(m(x), m(x), torch.ones(len(x))), rows, id="cosine embedding"
        ),
        pytest.param(
            ctc(lambda size: torch.full((size,), 5)), lambda size: torch.ones(size, 20, 16), id="ctc with tensors"
        ),
        pytest.param(ctc(lambda size: [5] * size), lambda size: torch.ones(size, 20, 16), id="ctc with lists"),
    ],
)
def test_it_trains_on_each_loss(loss: Callable[[nn.Module, Any], Tensor], batch: Callable[[int], Any]) -> None:
    assert peak(linear, batch, loss=loss) > 0


class Clipping(torch.optim.SGD):
    """Clips gradients before it steps, as wrappers do."""

    def step(self, closure: Any = None) -> Any:
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        if torch.nn.utils.clip_grad_norm_(parameters, 1.0, error_if_nonfinite=True) > 10:
            raise ValueError("exploded")
        return super().step(closure)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(
    ("optimizer", "states"),
    [
        pytest.param(lambda p: torch.optim.SGD(p, lr=0.1), 0, id="sgd"),
        pytest.param(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), 1, id="sgd with momentum"),
        pytest.param(torch.optim.AdamW, 2, id="adamw"),
        pytest.param(lambda p: torch.optim.AdamW(p, fused=True), 2, id="fused adamw"),
        pytest.param(lambda p: torch.optim.AdamW(p, capturable=True), 2, id="capturable adamw"),
        pytest.param(lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.1)), 2, id="a learning rate in a tensor"),
        pytest.param(lambda p: torch.optim.Adam(p, amsgrad=True), 3, id="amsgrad"),
        pytest.param(torch.optim.Adagrad, 1, id="adagrad"),
        pytest.param(lambda p: torch.optim.RMSprop(p, momentum=0.9), 2, id="rmsprop"),
        pytest.param(torch.optim.Adafactor, 0, id="adafactor"),
        pytest.param(lambda p: Clipping(p, lr=0.1), 0, id="one that clips"),
    ],
)
def test_an_optimizer_has_its_state_after_its_first_step(
    optimizer: Callable[..., torch.optim.Optimizer], states: int, precision: Precision
) -> None:
    def wide() -> nn.Module:
        return nn.Linear(2048, 2048, bias=False)

    schedule = Schedule(strategy=Strategy.ACCUMULATION, steps=((1,), (1,)))
    taken = peak(wide, lambda size: torch.ones(size, 2048), optimizer=optimizer, precision=precision, schedule=schedule)

    # Weights, gradients and state, and what a step takes while it runs: two more copies at most, three for amsgrad's.
    copy = 16 * MIB
    held = (2 + states) * copy
    assert held <= taken - 2 * CUBLAS_BYTES <= held + 3.5 * copy


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(torch.optim.SparseAdam, id="sparse adam"),
        pytest.param(lambda p: torch.optim.SGD(p, lr=0.1), id="sgd"),
        pytest.param(torch.optim.Adagrad, id="adagrad"),
    ],
)
def test_a_sparse_embedding_has_gradients_of_its_rows_alone(optimizer: Callable[..., torch.optim.Optimizer]) -> None:
    table = 2**16 * 64 * 4
    schedule = Schedule(strategy=Strategy.ACCUMULATION, steps=((1,), (1,)))

    def growth(sparse: bool) -> int:
        return peak(
            lambda: nn.Embedding(2**16, 64, sparse=sparse),
            tokens,
            optimizer=optimizer if sparse else lambda p: torch.optim.SGD(p, lr=0.1),
            schedule=schedule,
        )

    states = {torch.optim.SparseAdam: 2, torch.optim.Adagrad: 1}.get(optimizer, 0)  # type: ignore[call-overload]
    assert growth(sparse=True) < (1 + states) * table + MIB
    assert growth(sparse=False) >= 2 * table


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_checkpoint_keeps_its_input_alone(reentrant: bool, precision: Precision) -> None:
    def block() -> nn.Module:
        layers = [nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.1), nn.GELU()) for _ in range(8)]
        return nn.Sequential(nn.Linear(64, 64), *layers)

    def saved(x: Tensor, layer: nn.Module) -> Any:
        assert isinstance(layer, nn.Sequential)
        for part in list(layer)[1:]:
            x = checkpoint(part, x if x.requires_grad else layer[0](x), use_reentrant=reentrant)
        return x

    def train(function: Callable[..., Any]) -> int:
        model = via(function, block)
        taken = peak(model, lambda size: torch.ones(size, 64), precision=precision, schedule=schedule)
        return taken - 2 * CUBLAS_BYTES

    schedule = Schedule(strategy=Strategy.ACCUMULATION, steps=((16384,), (16384,)))
    kept, recomputed = train(lambda x, layer: layer(x)), train(saved)

    assert recomputed < 0.7 * kept


def test_dropout_that_a_checkpoint_runs_again_keeps_a_mask_of_bools() -> None:
    names: list[str] = []

    def inner(x: Tensor) -> Tensor:
        dropped = functional.dropout(x, 0.5)
        names.append("" if dropped.grad_fn is None else dropped.grad_fn.name())
        return dropped

    peak(via(lambda x, m: checkpoint(inner, m(x), use_reentrant=True), linear), schedule=ONE_STEP)

    assert names == ["", "NativeDropoutBackward0"]


def test_a_packed_sequence_takes_memory_for_its_steps_alone() -> None:
    def short(size: int) -> tuple[Tensor, Tensor]:
        return torch.ones(size, 512, 32), torch.ones(size, dtype=torch.int64)

    def full(size: int) -> tuple[Tensor, Tensor]:
        return torch.ones(size, 512, 32), torch.full((size,), 512)

    model = via(packed, lambda: nn.LSTM(32, 64, batch_first=True))

    assert peak(model, full) > peak(model, short) + 8 * 511 * 64 * 6 * 4


def test_an_lstm_under_autocast_keeps_half() -> None:
    def train(precision: Precision) -> int:
        many = Schedule(strategy=Strategy.ACCUMULATION, steps=((256,),))
        return peak(via(lambda x, m: m(x)[0], lambda: nn.LSTM(32, 256)), steps, precision=precision, schedule=many)

    # Twelve steps of 256 samples, of which each keeps six numbers and its output.
    assert train("fp32") - train("bf16") > 0.6 * 256 * 12 * 256 * 6 * 2


@pytest.mark.parametrize(
    ("autocast", "dtype"),
    [
        pytest.param(lambda: torch.autocast("cuda", dtype=torch.bfloat16), torch.bfloat16, id="bf16"),
        pytest.param(lambda: torch.autocast("cuda"), torch.float16, id="the GPU's own default"),
        pytest.param(lambda: torch.autocast("cuda", enabled=False), torch.float32, id="off"),
    ],
)
def test_autocast_for_a_gpu_in_the_loss_is_autocast(autocast: Callable[[], Any], dtype: torch.dtype) -> None:
    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        with autocast():
            output = model(batch)
        seen.add(output.dtype)
        return output.float().mean()  # type: ignore[no-any-return]

    seen: set[torch.dtype] = set()
    before = torch.autocast.__init__

    assert peak(linear, loss=loss) > 0
    assert seen == {dtype}
    assert torch.autocast.__init__ is before


def test_a_compiled_model_is_predicted_as_it_is() -> None:
    assert peak(linear, compile=True) == peak(linear)


def value_of_a_loss(model: nn.Module, batch: Tensor) -> Tensor:
    loss = mean_of_squares(model, batch)
    f"{loss:.3f}"
    return loss


def question(model: nn.Module, batch: Tensor) -> Tensor:
    loss = mean_of_squares(model, batch)
    if loss > 100:
        raise ValueError("diverged")
    return loss


def ask(function: Callable[[Tensor], Any]) -> Callable[[nn.Module, Tensor], Tensor]:
    return lambda model, batch: (model(batch).sum(1) * function(model(batch))).mean()


ASKING = [
    pytest.param(value_of_a_loss, 1, "=N for the number it gives", "3.5", id="a number in a text"),
    pytest.param(question, 1, "=1 for true or =0 for false", "0", id="a question"),
    pytest.param(ask(lambda x: x.nonzero().sum()), 0, "=N for how many", "25%", id="nonzero"),
    pytest.param(ask(lambda x: torch.where(x > 0)[0].sum()), 0, "=N for how many", "12", id="where"),
    pytest.param(ask(lambda x: x[x > 0].sum()), 0, "=N for how many", "25%", id="a mask"),
    pytest.param(ask(lambda x: x.masked_select(x > 0).sum()), 0, "=N for how many", "25%", id="masked_select"),
    pytest.param(ask(lambda x: torch.unique(x).numel()), 0, "=N for how many", "7", id="unique"),
    pytest.param(ask(lambda x: torch.unique(x, dim=0).shape[0]), 0, "=N for how many", "50%", id="unique rows"),
    pytest.param(ask(lambda x: torch.unique_consecutive(x).numel()), 0, "=N for how many", "5", id="unique neighbours"),
    pytest.param(ask(lambda x: torch.bincount(x.argmax(1)).sum()), 0, "=N for how many", "16", id="bincount"),
    pytest.param(
        ask(lambda x: x.repeat_interleave((x[:, 0] > 0).long() + 1, 0).sum()), 0, "=N for how many", "12", id="repeats"
    ),
    pytest.param(ask(lambda x: float(torch.allclose(x, x))), 0, "=1 for true", "1", id="allclose"),
    pytest.param(
        ask(lambda x: float(x.detach().cpu().numpy().sum())), 0, "=N for the number in every", "0.5", id="numpy"
    ),
]


def line_of(loss: Callable[..., Any], below: int) -> int:
    inner = (loss.__closure__ or ())[0].cell_contents if loss.__closure__ else loss
    return inner.__code__.co_firstlineno + (below and below + 1)


@pytest.mark.parametrize(("loss", "below", "hint", "value"), ASKING)
def test_what_needs_values_names_the_line_and_is_answered_by_an_assumption(
    loss: Callable[[nn.Module, Tensor], Tensor], below: int, hint: str, value: str
) -> None:
    place = f"test_simulated_operations.py:{line_of(loss, below)}"
    refused = ran(linear, loss=loss)

    assert isinstance(refused, Failed)
    assert f"{place} needs the values" in refused.message
    assert f"--assume {place}{hint}" in refused.message
    assert peak(linear, loss=loss, assume=(f"{place}={value}",)) > 0


@pytest.mark.parametrize(
    ("model", "said"),
    [
        pytest.param(
            via(lambda x, m: torch.nested.nested_tensor([m(x)]).to_padded_tensor(0.0), linear),
            "torch cannot tell what it gives",
            id="nested tensors",
        ),
        pytest.param(lambda: nn.LazyLinear(4), "has no shape yet", id="lazy modules"),
        pytest.param(
            via(lambda x, m: m.half()(x.half()), linear),
            "gives weight another type or layout",
            id="weights that change",
        ),
        pytest.param(
            via(lambda x, m: flex_attention(*[m(x)[None, None]] * 3), linear), "runs flex_attention", id="FlexAttention"
        ),
    ],
)
def test_what_cannot_be_simulated_is_refused_in_words(model: Callable[[], nn.Module], said: str) -> None:
    refused = ran(model)

    assert isinstance(refused, Failed)
    assert refused.refusal is not None
    assert said in refused.message


def test_weights_that_stay_as_they_are_may_be_converted_in_a_forward() -> None:
    def converted(x: Tensor, layer: nn.Module) -> Tensor:
        result: Tensor = layer.to(x.dtype).float().to(x.device)(x)
        return result

    assert peak(via(converted, linear)) == peak(via(lambda x, layer: layer(x), linear))


@pytest.mark.parametrize("known", [pytest.param(True, id="of the batch"), pytest.param(False, id="of the model")])
def test_whole_numbers_are_counted_in_a_histogram(known: bool) -> None:
    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        output = model(batch.float())
        numbers = batch[:, 0].int() if known else output.argmax(1).int()
        counts.append(torch.histc(numbers, bins=16, min=0, max=15))
        result: Tensor = output.square().mean()
        return result

    counts: list[Tensor] = []
    peak(lambda: nn.Linear(12, 16), tokens, loss=loss)

    assert (counts[0].shape, counts[0].dtype) == ((16,), torch.int32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_experts_are_multiplied_in_groups_of_every_type(dtype: torch.dtype) -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(4, 16, 32, dtype=dtype))

        def forward(self, x: Tensor) -> Tensor:
            ends = torch.full((4,), len(x) // 4, dtype=torch.int32).cumsum(0, dtype=torch.int32)
            output: Tensor = torch._grouped_mm(x.to(dtype), self.weight, offs=ends)
            assert (output.shape, output.dtype) == ((len(x), 32), dtype)
            return output

    assert peak(Experts) > 0


@pytest.mark.parametrize(
    ("teacher", "batch"),
    [
        pytest.param(lambda: nn.Conv2d(3, 4096, 32, padding=16), images, id="convolution"),
        pytest.param(lambda: nn.Linear(16, 1 << 20, bias=False), rows, id="linear"),
        pytest.param(lambda: nn.Embedding(1 << 20, 16), tokens, id="embedding"),
    ],
)
def test_weights_of_a_network_beside_the_model_are_on_the_card(
    teacher: Callable[[], nn.Module], batch: Callable[[int], Tensor]
) -> None:
    beside = teacher().requires_grad_(False)
    weight_bytes = sum(parameter.nbytes for parameter in beside.parameters())

    def loss(model: nn.Module, batch: Tensor, *others: nn.Module) -> Tensor:
        for other in others:
            other.to(batch.device)(batch[:1])
        return mean_of_squares(model, batch.float().flatten(1)[:, :12])

    alone = peak(lambda: nn.Linear(12, 12), batch, loss=loss)
    with_it = peak(lambda: nn.Linear(12, 12), batch, loss=lambda model, batch: loss(model, batch, beside))

    assert weight_bytes <= with_it - alone < 1.5 * weight_bytes


def test_a_triton_kernel_is_refused_in_words() -> None:
    jit = pytest.importorskip("triton.runtime.jit")
    kernel = jit.JITFunction(triton_kernel)
    refused = ran(via(lambda x, m: kernel[(1,)](m(x)), linear))

    assert isinstance(refused, Failed)
    assert f"{__file__}:" in refused.message
    assert "runs a Triton kernel" in refused.message


def triton_kernel(source: Any) -> None:
    """Nothing."""


def test_numbers_of_the_batch_leave_torch_with_their_values() -> None:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        seen.append((batch[1].tolist(), batch[1].cpu().numpy().sum(), f"{batch[1].sum()}"))
        return mean_of_squares(model, batch[0])

    seen: list[Any] = []
    peak(linear, lambda size: (rows(size), torch.arange(size)), loss=loss)

    assert {repr(each) for each in seen} == {repr(([0, 1, 2, 3, 4, 5, 6, 7], seen[0][1], "28"))}
    assert seen[0][1] == 28


def test_a_live_models_counters_have_their_values() -> None:
    class Queue(nn.Module):
        pointer: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 16)
            self.register_buffer("pointer", torch.tensor(5))

        def forward(self, x: Tensor) -> Tensor:
            pointers.append(int(self.pointer))
            self.pointer += len(x)
            output: Tensor = self.layer(x)
            return output

    pointers: list[int] = []
    peak(Queue(), schedule=Schedule(strategy=Strategy.ACCUMULATION, steps=((8,), (8, 8))))

    assert pointers == [5, 13, 21]


def test_a_live_optimizer_has_a_state_too() -> None:
    def taken(live: bool) -> int:
        model = nn.Linear(1024, 1024)
        made = torch.optim.AdamW(model.parameters())
        return peak(
            model, lambda size: torch.ones(size, 1024), optimizer=(lambda _: made) if live else torch.optim.AdamW
        )

    assert taken(live=True) == taken(live=False)


def test_a_trial_leaves_no_tensor_behind() -> None:
    def fakes() -> int:
        gc.collect()
        return sum(type(each) is FakeTensor for each in gc.get_objects())

    peak(linear)
    before = fakes()
    peak(linear)

    assert fakes() <= before
