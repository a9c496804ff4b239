"""A simulated card through the interface that people call: searches, plans, live models, refusals, and the truth of a CPU."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from profiler import Options, Workload, compare_strategies, find_accumulation_plan, probe
from profiler.devices import open_device
from profiler.document import to_json_document
from profiler.dry_run.known import tensors_in
from profiler.dry_run.placement import SimulatedPlacement
from profiler.errors import NothingFits, UsageError
from profiler.outcomes import Fits, Strategy
from profiler.plots import save_figures
from profiler.report import Report
from profiler.simulation.cards import SIMULATED, card_of, catalogue
from profiler.simulation.replay import Event
from profiler.steps import Phase, Training, run_step
from profiler.units import GIB, MIB

CARD = "sim:rtx3060"
CONTEXT = card_of("rtx3060").context_bytes
# A limit under which some hundred samples of `wide` fit.
LIMIT = CONTEXT + 96 * MIB


def wide() -> Workload:
    return Workload(
        model=lambda: nn.Sequential(nn.Linear(1024, 256), nn.ReLU(), nn.Linear(256, 1024)),
        make_batch=lambda size: torch.ones(size, 64, 1024),
        loss=lambda model, batch: model(batch).square().mean(),
        optimizer=torch.optim.AdamW,
        name="wide",
    )


def probed(workload: Workload | None = None, **options: Any) -> Report:
    options = {"device": CARD, "memory_limit": LIMIT, "isolation": "none", **options}
    return probe(workload or wide(), Options(**options))


@pytest.fixture(scope="module")
def report() -> Report:
    return probed(effective_batch_size=256, evaluate=True, multiple_of=4, data_parallel_size=2)


def test_the_edge_is_found_and_both_sides_of_it_were_simulated(report: Report) -> None:
    finding = report.finding
    assert finding is not None
    edge = finding.trial_of(finding.largest_fit), finding.trial_of(finding.largest_fit + 4)

    assert [each is not None and each.fits for each in edge] == [True, False]
    assert finding.limited_by == "memory"


def test_a_size_fits_where_its_least_capacity_says(report: Report) -> None:
    assert report.finding is not None
    fits = [trial.outcome for trial in report.finding.trials if isinstance(trial.outcome, Fits)]

    assert fits
    for outcome in fits:
        assert outcome.least_capacity_bytes is not None
        assert outcome.least_capacity_bytes <= LIMIT
        assert outcome.peak_bytes <= LIMIT


@pytest.mark.parametrize(("more", "status"), [(0, True), (-2 * MIB, False)])
def test_a_trial_runs_in_its_least_capacity_and_in_no_less(more: int, status: bool) -> None:
    size = 48
    roomy = compare_strategies(
        wide(), size, Options(device=CARD, memory_limit=GIB, isolation="none"), most_steps=1
    ).trials[0]
    assert isinstance(roomy.outcome, Fits)
    least = roomy.outcome.least_capacity_bytes
    assert least is not None
    tight = Options(device=CARD, memory_limit=least + more, isolation="none")

    if status:
        assert compare_strategies(wide(), size, tight, most_steps=1).trials[0].fits
    else:
        with pytest.raises(NothingFits, match="does not fit"):
            compare_strategies(wide(), size, tight, most_steps=1)


def test_a_plan_is_predicted_and_nothing_is_timed_or_checked(report: Report) -> None:
    plan = report.plan
    assert plan is not None

    assert sum(plan.micro_batch_sizes) == 128
    assert plan.peak_bytes is not None
    assert plan.peak_bytes <= LIMIT * 0.95
    assert plan.step_seconds is None
    assert report.throughput == ()
    assert report.equivalence is None
    assert any("every number is predicted" in note for note in report.notes)


def test_a_summed_loss_keeps_every_graph_where_accumulation_keeps_one(report: Report) -> None:
    peaks = {
        (row.strategy, row.accumulation_steps): row.outcome.peak_bytes
        for row in report.comparison
        if isinstance(row.outcome, Fits)
    }
    steps = max(steps for strategy, steps in peaks if strategy is Strategy.SUMMED_LOSS)

    assert steps > 1
    assert peaks[Strategy.ACCUMULATION, steps] < peaks[Strategy.SUMMED_LOSS, steps]


def test_evaluation_takes_larger_batches_than_training(report: Report) -> None:
    assert report.finding is not None
    assert report.evaluation is not None

    assert report.evaluation.largest_fit > report.finding.largest_fit


def test_what_is_written_says_that_it_was_predicted(report: Report) -> None:
    assert to_json_document(report, [])["predicted"] is True


def test_the_figures_axes_say_that_it_was_predicted(report: Report, tmp_path: Path, monkeypatch: Any) -> None:
    labels: list[str] = []
    save = Figure.savefig

    def saved(figure: Figure, *args: Any, **kwargs: Any) -> None:
        labels.extend(ax.get_ylabel() for ax in figure.axes)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", saved)
    save_figures(report, tmp_path)

    assert {path.name for path in tmp_path.glob("*.png")} == {"memory.png", "evaluation.png", "summed_loss.png"}
    assert labels
    assert all(label.startswith("predicted ") for label in labels)


def test_a_probe_in_a_worker_comes_to_the_same() -> None:
    here, there = (probed(ceiling=4, isolation=isolation, effective_batch_size=8) for isolation in ("none", "process"))

    def peaks(report: Report) -> dict[int, int | None]:
        assert report.finding is not None
        return {trial.micro_batch_size: trial.peak_bytes for trial in report.finding.trials}

    assert peaks(here) == peaks(there)
    assert here.plan is not None
    assert there.plan is not None
    assert here.plan.micro_batch_sizes == there.plan.micro_batch_sizes


def norm() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.Dropout(), nn.Linear(32, 4))


def tied() -> nn.Module:
    first, second = nn.Linear(16, 16), nn.Linear(16, 16)
    second.weight = first.weight
    return nn.Sequential(first, second)


def first_of(output: Any) -> Tensor:
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor


def mean(model: nn.Module, batch: Tensor) -> Tensor:
    return first_of(model(batch)).square().mean()


class Keeping(nn.Module):
    """Keeps a tensor of its last forward."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.layer(x)
        return self.last


def held_by(module: nn.Module) -> dict[str, list[int]]:
    """Which objects its attributes hold, and which are in them where they are lists; but for what an RNN looks up anew."""
    return {
        name: [id(value), *(map(id, value) if isinstance(value, list) else ())]
        for name, value in module.__dict__.items()
        if name != "_flat_weight_refs"
    }


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(norm, id="norm"),
        pytest.param(tied, id="tied"),
        pytest.param(lambda: nn.LSTM(16, 16), id="lstm"),
        pytest.param(Keeping, id="one that keeps a tensor"),
    ],
)
@pytest.mark.parametrize("live", [pytest.param(True, id="a live optimizer"), pytest.param(False, id="a new one")])
def test_a_live_model_is_afterwards_what_it_was(build: Callable[[], nn.Module], live: bool) -> None:
    model = build()
    optimizer = torch.optim.AdamW(model.parameters())
    mean(model, torch.ones(4, 16)).backward()
    optimizer.step()
    before = [(tensor, tensor.data_ptr(), tensor.clone()) for tensor in (*model.parameters(), *model.buffers())]
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    attributes = [held_by(module) for module in model.modules()]
    state, random = str(optimizer.state_dict()), torch.get_rng_state()

    def given(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return optimizer if live else torch.optim.AdamW(parameters)

    find_accumulation_plan(
        Workload(model=model, make_batch=lambda size: torch.ones(size, 16), loss=mean, optimizer=given),
        32,
        device="sim:24GiB",
        ceiling=8,
        isolation="none",
    )

    after = [*model.parameters(), *model.buffers()]
    assert len(after) == len(before)
    for now, (then, address, content) in zip(after, before, strict=True):
        assert now is then
        assert now.data_ptr() == address
        assert torch.equal(now, content)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradient)
    assert [held_by(module) for module in model.modules()] == attributes
    assert str(optimizer.state_dict()) == state
    assert [id(p) for group in optimizer.param_groups for p in group["params"]] == [id(p) for p in model.parameters()]
    assert torch.equal(torch.get_rng_state(), random)
    mean(model, torch.ones(4, 16)).backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        pytest.param({"device": "sim:rtx409"}, "no simulated card 'rtx409'.*'rtx4090'", id="unknown card"),
        pytest.param({"device": "sim:"}, "no simulated card ''", id="no card"),
        pytest.param({"device": "sim:24XB"}, "not an amount of memory", id="no size"),
        pytest.param({"memory_limit": "30GiB"}, "more than the 11.8 GiB of NVIDIA GeForce RTX 3060", id="above the card"),
        pytest.param({"memory_limit": "100MiB"}, "does not even hold a CUDA context", id="below the context"),
        pytest.param({"soak_steps": 9, "effective_batch_size": 8}, "is simulated: soak on the card", id="soak"),
        pytest.param({"assume": ("nonsense",)}, "write FILE:LINE=VALUE", id="assumption"),
        pytest.param({"assume": ("a.py:3=150%",)}, "from 0 to 100 %", id="share above all"),
        pytest.param({"assume": ("a.py:3=1",), "device": "cpu"}, "leave it out", id="assumption elsewhere"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_for_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        probed(**options)


@pytest.mark.parametrize("name", catalogue())
def test_every_card_of_the_catalogue_opens(name: str) -> None:
    device = open_device(f"{SIMULATED}{name}")
    card = catalogue()[name]

    assert device.facts().total_bytes == device.open(None) == card.total_bytes
    assert 0 < card.context_low_bytes <= card.context_high_bytes < card.total_bytes


def test_capitals_and_any_size_name_a_card() -> None:
    assert card_of("RTX4090") == card_of("rtx4090")
    assert card_of("24GiB").total_bytes == 24 * GIB


def test_a_compiled_model_is_said_to_run_uncompiled() -> None:
    workload = wide()
    compiled = Workload(model=workload.model, make_batch=workload.make_batch, loss=workload.loss, compile=True)

    notes = probed(compiled, ceiling=2).notes

    assert any("runs it uncompiled" in note for note in notes)


def test_what_was_assumed_is_named_beside_the_numbers() -> None:
    notes = probed(wide(), ceiling=2, assume=("model.py:42=7", "model.py:50=12.5%")).notes

    assert any("rest on what was assumed: model.py:42=7, model.py:50=12.5%." in note for note in notes)
    assert not any("assumed" in note for note in probed(wide(), ceiling=2).notes)


class Real(TorchDispatchMode):
    """Sees the storages of a real step come into being, and go."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.sizes: list[int] = []
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_in(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._seen:
                self._seen.add(storage._cdata)
                weakref.finalize(storage, self._seen.discard, storage._cdata).atexit = False
                self.sizes.append(storage.nbytes())
        return result


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.GELU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(48, 96), nn.ReLU(), nn.LayerNorm(96), nn.Linear(96, 96), nn.Tanh(), nn.Linear(96, 7))


def table() -> nn.Module:
    return nn.Sequential(nn.Embedding(50, 24), nn.Linear(24, 24), nn.GroupNorm(2, 6), nn.Linear(24, 11))


def sizes_of(events: Iterable[Event]) -> list[int]:
    return [event.size_bytes for event in events if event.kind == "allocate"]


@pytest.mark.parametrize(
    ("build", "batch"),
    [
        pytest.param(cnn, lambda size: torch.randn(size, 3, 12, 12), id="convolutions"),
        pytest.param(mlp, lambda size: torch.randn(size, 48), id="linear layers"),
        pytest.param(table, lambda size: torch.randint(50, (size, 6)), id="an embedding"),
    ],
)
@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=True), id="sgd"),
        pytest.param(lambda p: torch.optim.AdamW(p, foreach=True), id="adamw"),
    ],
)
def test_a_step_allocates_what_it_really_allocates_on_a_cpu(
    build: Callable[[], nn.Module], batch: Callable[[int], Tensor], optimizer: Callable[..., torch.optim.Optimizer]
) -> None:
    workload = Workload(model=build, make_batch=batch, loss=mean, optimizer=optimizer)
    simulated = Training.start(workload, placement := SimulatedPlacement(card_of("rtx3060"), None), Phase())
    with placement.training():
        given = simulated.batch(5)
        before = len(placement.ledger.events)
        simulated.passes.backward(simulated.passes.forward(given))
        simulated.optimizer_step()
    predicted = sizes_of(placement.ledger.events[before:])

    model = build()
    real_batch, stepping = batch(5), optimizer(model.parameters())
    with Real([*model.parameters(), *model.buffers(), real_batch]) as real:
        mean(model, real_batch).backward()
        stepping.step()

    assert larger_than_a_number(predicted) == larger_than_a_number(real.sizes)


def larger_than_a_number(sizes: list[int]) -> list[int]:
    """Without counters of steps, which lie in host memory and on a card are none, and without the workspaces of cuBLAS."""
    return [size for size in sizes if 8 < size < MIB]


def test_a_step_by_run_step_leaves_no_more_than_weights_gradients_and_state() -> None:
    placement = SimulatedPlacement(card_of("rtx3060"), None)
    training = Training.start(wide(), placement, Phase())
    with placement.training():
        run_step(training, Strategy.ACCUMULATION, (2, 2))
        run_step(training, Strategy.ACCUMULATION, (2, 2))
    weights = sum(-(-parameter.numel() * 4 // 512) * 512 for parameter in training.model.parameters())

    assert placement.ledger.allocator.allocated_bytes == 4 * weights + 2 * 8_519_680
