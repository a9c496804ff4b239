from __future__ import annotations

import ctypes
import random
import resource
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from process.states import changes, model_state, optimizer_state, process_state
from profiler import Options, WorkloadError, find_accumulation_plan, probe
from profiler.devices.glibc import Thresholds
from profiler.events import Event, Noted, unobserved
from profiler.finder import find_largest
from profiler.opening import open_prober
from profiler.outcomes import Finding, Fits, OutOfMemory, Trial
from profiler.units import MIB
from profiler.workload import Workload

Meddle = Callable[["Net", Tensor], None]
LIMIT = 64 * MIB


class Net(nn.Module):
    """A model with everything that training can touch."""

    seen: Tensor | None
    later: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 6)
        self.body = nn.Sequential(self.first, nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(6, 4))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.register_buffer("seen", torch.tensor([0.0, -0.0, float("nan")]))
        self.register_buffer("later", None)
        self.calls = 0

    def forward(self, batch: Tensor) -> Tensor:
        self.calls += 1
        outputs: Tensor = self.frozen(self.body(batch))
        return outputs


class Careless(torch.optim.AdamW):
    """Fails half-way through its step."""

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        raise ArithmeticError("seven is not eight")


@dataclass(frozen=True, slots=True)
class Lived:
    """A model and its optimizer in the middle of a training run."""

    model: Net
    optimizer: torch.optim.Optimizer

    def state(self) -> dict[str, Any]:
        return model_state(self.model) | optimizer_state(self.optimizer) | process_state()

    def workload(self, **changed: Any) -> Workload:
        workload = Workload(
            model=self.model, make_batch=batch_of, loss=squares, optimizer=lambda _: self.optimizer, name="lived in"
        )
        return replace(workload, **changed)


def batch_of(size: int) -> Tensor:
    return torch.rand(size, 5, 8)


def squares(model: nn.Module, batch: Tensor) -> Tensor:
    outputs: Tensor = model(batch)
    return outputs.square().mean()


def live(make: type[torch.optim.Optimizer] = torch.optim.AdamW) -> Lived:
    model = Net()
    with torch.random.fork_rng():
        optimizer = make(model.body.parameters(), lr=0.01)  # type: ignore[call-arg]  # every optimizer here has one
        for _ in range(2):
            optimizer.zero_grad()
            squares(model, batch_of(3)).backward()
            torch.optim.AdamW.step(optimizer) if isinstance(optimizer, Careless) else optimizer.step()
    model.body[1].eval()
    model.first.bias.grad = None
    model.frozen.weight.grad = torch.full((4, 4), float("nan"))
    return Lived(model=model, optimizer=optimizer)


@pytest.fixture(autouse=True)
def restored(quick_collection: None) -> Iterator[None]:
    """What a failing test leaves behind is not the next one's."""
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(False)
    torch.set_grad_enabled(True)
    torch.backends.cudnn.benchmark = False
    resource.setrlimit(resource.RLIMIT_DATA, limits)


def attempt(workload: Workload, size: int = 2, limit_bytes: int = LIMIT) -> Trial:
    options = Options(device="cpu", memory_limit=limit_bytes, isolation="none")
    with open_prober(workload, options, unobserved) as (prober, _):
        return prober.try_size(size, "a test")


def test_training_changes_what_is_restored() -> None:
    lived = live()
    lived.model.eval()  # so that all of it is put into training mode
    before, seen = lived.state(), list[set[str]]()

    def watching(model: nn.Module, batch: Tensor) -> Tensor:
        random.random()
        np.random.rand()
        seen.append(changes(before, lived.state()))
        return squares(model, batch)

    assert attempt(lived.workload(loss=watching)).fits
    assert seen[-1] >= {
        *("parameter body.0.weight", "parameter body.3.bias"),
        *("gradient body.0.weight", "gradient body.0.bias"),
        *("buffer body.1.running_mean", "buffer body.1.num_batches_tracked", "mode body.1"),
        *("torch random", "python random", "numpy random", "data limit"),
        *("optimizer 0.exp_avg", "optimizer 0.step"),
    }
    assert changes(before, lived.state()) == set()


def test_a_frozen_module_of_a_model_in_training_stays_frozen() -> None:
    lived = live()
    frozen = list[bool]()

    def watching(model: nn.Module, batch: Tensor) -> Tensor:
        frozen.append(model.training and not model.body[1].training)  # type: ignore[index, union-attr]  # a Sequential
        return squares(model, batch)

    assert attempt(lived.workload(loss=watching)).fits
    assert frozen
    assert all(frozen)


def modes(model: Net, batch: Tensor) -> None:
    model.eval()
    model.frozen.train()


def requires_grad(model: Net, batch: Tensor) -> None:
    model.frozen.requires_grad_()
    model.first.weight.requires_grad_(False)


def buffer_content(model: Net, batch: Tensor) -> None:
    assert model.seen is not None
    model.seen.fill_(7)


def buffer_replaced(model: Net, batch: Tensor) -> None:
    assert model.seen is not None
    model.seen = model.seen + 1


def buffer_of_another_shape(model: Net, batch: Tensor) -> None:
    model.seen = torch.zeros(len(batch), 9, dtype=torch.float64)


def buffer_filled_in(model: Net, batch: Tensor) -> None:
    model.later = batch.mean()


def buffer_let_go(model: Net, batch: Tensor) -> None:
    model.seen = None


def buffer_added(model: Net, batch: Tensor) -> None:
    model.register_buffer("added", torch.ones(3))


def buffer_of_the_graph(model: Net, batch: Tensor) -> None:
    assert model.seen is not None
    if not model.seen.requires_grad:
        model.seen.add_(model.first.weight.sum())


def content(model: Net, batch: Tensor) -> None:
    with torch.no_grad():
        model.frozen.weight.normal_()


def data_replaced(model: Net, batch: Tensor) -> None:
    model.frozen.weight.data = torch.zeros(4, 4)


def parameter_replaced(model: Net, batch: Tensor) -> None:
    model.frozen.weight = nn.Parameter(torch.zeros(4, 4))


def parameter_added(model: Net, batch: Tensor) -> None:
    model.register_parameter("added", nn.Parameter(torch.zeros(4, 4)))


def module_replaced(model: Net, batch: Tensor) -> None:
    model.frozen = nn.Linear(4, 4)


def gradient_replaced(model: Net, batch: Tensor) -> None:
    model.frozen.weight.grad = torch.ones(4, 4)


def gradient_content(model: Net, batch: Tensor) -> None:
    assert model.frozen.weight.grad is not None
    model.frozen.weight.grad.fill_(0)


def randomness(model: Net, batch: Tensor) -> None:
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)


def switches(model: Net, batch: Tensor) -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = True


def recording(model: Net, batch: Tensor) -> None:
    torch.set_grad_enabled(False)


MEDDLING: dict[Meddle, str] = {
    modes: "mode ",
    requires_grad: "parameter frozen.weight",
    buffer_content: "buffer .seen",
    buffer_replaced: "buffer .seen",
    buffer_of_another_shape: "buffer .seen",
    buffer_filled_in: "buffer .later",
    buffer_let_go: "buffer .seen",
    buffer_added: "buffer .added",
    buffer_of_the_graph: "buffer .seen",
    content: "parameter frozen.weight",
    data_replaced: "parameter frozen.weight",
    parameter_replaced: "parameter frozen.weight",
    parameter_added: "parameter added",
    module_replaced: "parameter frozen.weight",
    gradient_replaced: "gradient frozen.weight",
    gradient_content: "gradient frozen.weight",
    randomness: "python random",
    switches: "switch default_dtype",
    recording: "gradients are recorded",
}


@pytest.mark.parametrize("fails", [False, True], ids=["", "and fails"])
@pytest.mark.parametrize(("meddle", "what"), MEDDLING.items(), ids=[meddle.__name__ for meddle in MEDDLING])
def test_what_a_loss_meddles_with_is_bit_identical_afterwards(meddle: Meddle, what: str, fails: bool) -> None:
    lived = live()
    before, seen = lived.state(), set[str]()

    def loss(model: Net, batch: Tensor) -> Tensor:
        value = squares(model, batch.float())
        meddle(model, batch)
        seen.update(changes(before, lived.state()))
        if fails:
            raise ArithmeticError("seven is not eight")
        return value

    # Some of it makes the next step impossible, which is the loss's own error.
    with pytest.raises(WorkloadError, match="ArithmeticError: seven") if fails else suppress(WorkloadError):
        attempt(lived.workload(loss=loss))
    assert what in seen
    assert changes(before, lived.state()) == set()


class FailingBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise ArithmeticError("seven is not eight")


def failing_backward(model: nn.Module, batch: Tensor) -> Tensor:
    loss: Tensor = FailingBackward.apply(squares(model, batch))  # type: ignore[no-untyped-call]
    return loss


def failing_at(call: int) -> Callable[[nn.Module, Tensor], Tensor]:
    calls: list[int] = []

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == call:
            raise ArithmeticError("seven is not eight")
        return squares(model, batch)

    return loss


@pytest.mark.parametrize(
    ("phase", "loss"),
    [("forward", failing_at(1)), ("forward", failing_at(3)), ("backward", failing_backward)],
    ids=["at the first forward", "at the third forward", "in backward"],
)
def test_after_a_users_error_everything_is_bit_identical(phase: str, loss: Callable[..., Tensor]) -> None:
    lived = live()
    before = lived.state()

    with pytest.raises(WorkloadError, match=f"in its {phase}: ArithmeticError: seven is not eight") as info:
        attempt(lived.workload(loss=loss))
    assert "test_in_process.py" in (info.value.user_traceback or "")
    assert changes(before, lived.state()) == set()


def test_after_an_error_in_the_optimizers_step_everything_is_bit_identical() -> None:
    lived = live(Careless)
    before = lived.state()

    with pytest.raises(WorkloadError, match="in its optimizer step: ArithmeticError: seven is not eight"):
        attempt(lived.workload())
    assert changes(before, lived.state()) == set()


def test_after_an_interrupt_everything_is_bit_identical() -> None:
    lived = live()
    before = lived.state()

    def interrupted(model: nn.Module, batch: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attempt(lived.workload(loss=interrupted))
    assert changes(before, lived.state()) == set()


def hungry(call: int) -> Callable[[nn.Module, Tensor], Tensor]:
    calls: list[int] = []

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == call:
            torch.ones(2 * LIMIT)
        return squares(model, batch)

    return loss


@pytest.mark.parametrize("call", [1, 3])
def test_after_out_of_memory_everything_is_bit_identical(call: int) -> None:
    lived = live()
    before = lived.state()
    outcome = attempt(lived.workload(loss=hungry(call))).outcome

    assert isinstance(outcome, OutOfMemory)
    assert outcome.phase == "forward"
    assert changes(before, lived.state()) == set()


def test_memory_can_be_used_again_after_out_of_memory() -> None:
    assert not attempt(live().workload(loss=hungry(1))).fits
    assert torch.empty(2 * LIMIT, dtype=torch.uint8).numel() == 2 * LIMIT


def test_a_limit_that_the_caller_had_is_the_same_afterwards() -> None:
    soft, hard = 2**40, resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))

    assert attempt(live().workload()).fits
    assert resource.getrlimit(resource.RLIMIT_DATA) == (soft, hard)


def test_an_optimizer_that_never_stepped_has_no_state_afterwards() -> None:
    model = Net()
    lived = Lived(model=model, optimizer=torch.optim.SGD(model.body.parameters(), lr=0.1, momentum=0.9))
    before = lived.state()

    assert attempt(lived.workload()).fits
    assert changes(before, lived.state()) == set()
    assert len(lived.optimizer.state) == 0


def test_state_of_another_type_than_its_parameter_keeps_its_bits() -> None:
    lived = live()
    moments = lived.optimizer.state[lived.model.first.weight]
    moments["exp_avg"] = moments["exp_avg"].double() + 1e-12
    moments["exp_avg_sq"] = moments["exp_avg_sq"].double() + 1e-12
    before = lived.state()

    with pytest.raises(WorkloadError, match="optimizer step"):  # AdamW wants one type; what counts is what it leaves
        attempt(lived.workload())
    assert changes(before, lived.state()) == set()


def test_settings_and_nested_state_of_an_optimizer_are_restored() -> None:
    model = Net()
    lived = Lived(model=model, optimizer=torch.optim.LBFGS(model.body.parameters(), lr=0.1))
    lived.optimizer.step(lambda: squares_and_backward(model))
    group, before = lived.optimizer.param_groups[0], lived.state()

    def scheduled(model: nn.Module, batch: Tensor) -> Tensor:
        lived.optimizer.param_groups[0]["lr"] = 7.0
        lived.optimizer.state[next(iter(lived.optimizer.state))]["old_dirs"].append(torch.ones(2))
        raise ArithmeticError("seven is not eight")

    with pytest.raises(WorkloadError):
        attempt(lived.workload(loss=scheduled))
    assert changes(before, lived.state()) == set()
    assert lived.optimizer.param_groups[0] is group


def squares_and_backward(model: nn.Module) -> float:
    model.zero_grad()
    loss = squares(model, batch_of(3))
    loss.backward()
    return loss.item()


def test_parameters_of_an_optimizer_that_are_not_the_models_are_restored() -> None:
    lived = live()
    temperature = nn.Parameter(torch.tensor(2.0))
    lived.optimizer.add_param_group({"params": [temperature]})
    before = lived.state()

    def tempered(model: nn.Module, batch: Tensor) -> Tensor:
        return squares(model, batch) * temperature

    assert attempt(lived.workload(loss=tempered)).fits
    assert temperature.item() == 2.0
    assert temperature.grad is None
    assert changes(before, lived.state()) == set()


def test_hooks_and_attributes_of_the_model_are_its_own_affair() -> None:
    lived = live()
    hooked: list[int] = []
    lived.model.register_forward_hook(lambda *_: hooked.append(1))
    calls = lived.model.calls

    assert attempt(lived.workload()).fits
    assert lived.model.calls - calls == len(hooked) == 3


def test_a_builders_model_and_the_callers_random_state() -> None:
    before = process_state()

    assert attempt(Workload(model=Net, make_batch=batch_of, loss=squares)).fits
    assert changes(before, process_state()) == set()


FILE = """
import random, sys
sys.path.append({folder!r})
import numpy as np, torch
from process.test_in_process import Net, Workload, batch_of, squares

def make():
    random.random(); np.random.rand()
    return Workload(model=Net(), make_batch=batch_of, loss=squares)
"""


def test_loading_a_target_leaves_the_random_states_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "train.py").write_text(FILE.format(folder=str(Path(__file__).parents[1])))
    before = process_state()
    options = Options(device="cpu", memory_limit=LIMIT, isolation="none")

    with open_prober("train.py:make", options, unobserved) as (prober, run):
        assert prober.try_size(1, "a test").fits
    assert run.capacity_bytes == LIMIT
    assert changes(before, process_state()) == set()


def test_a_whole_probe_in_this_process_leaves_it_as_it_was() -> None:
    lived = live()
    before = lived.state()
    options = Options(effective_batch_size=4, device="cpu", memory_limit=LIMIT, isolation="none", ceiling="target")
    report = probe(lived.workload(), options)

    assert report.finding is not None
    assert report.finding.largest_fit == 4
    assert report.plan is not None
    assert (sum(report.plan.micro_batch_sizes), report.plan.verified_steps) == (4, 5)
    assert len(report.comparison) >= 3
    assert all(isinstance(trial.outcome, Fits) for trial in report.finding.trials)
    assert changes(before, lived.state()) == set()


def test_a_live_model_and_its_gradients_count() -> None:
    model = nn.Linear(10 * 2**20, 1, bias=False)
    workload = Workload(model=model, make_batch=rows, loss=squares, optimizer=sgd)
    before = model_state(model)
    outcome = attempt(workload, 1, 512 * MIB).outcome

    assert isinstance(outcome, Fits)
    # The model, its gradients, those of the second micro-batch before they are added, and the batch.
    assert outcome.peak_bytes / MIB == pytest.approx(4 * 40, abs=4)
    assert not attempt(workload, 1, 100 * MIB).fits
    assert changes(before, model_state(model)) == set()


def rows(size: int) -> Tensor:
    return torch.ones(size, 10 * 2**20)


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def test_a_plan_is_found_in_this_process() -> None:
    plan = find_accumulation_plan(
        Workload(model=Net, make_batch=batch_of, loss=squares), 3, device="cpu", memory_limit=LIMIT, isolation="none"
    )

    assert sum(plan.micro_batch_sizes) == 3
    assert plan.verified_steps == 5


def holes() -> None:
    """Leaves 64 MiB free in the heap, below a block that keeps them from being given back."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    Thresholds.of_process({}).apply()
    blocks = [libc.malloc(ctypes.c_size_t(MIB)) for _ in range(64)]
    libc.malloc(ctypes.c_size_t(1000))  # for good
    for address in blocks:
        libc.free(ctypes.c_void_p(address))


def found(workload: Workload, isolation: Literal["process", "none"]) -> tuple[Finding, list[str]]:
    options, notes = Options(device="cpu", memory_limit="24MiB", isolation=isolation), list[str]()
    with open_prober(
        workload, options, lambda event: notes.extend([event.text] if isinstance(event, Noted) else [])
    ) as (
        prober,
        _,
    ):
        return find_largest(prober), notes


def test_the_answer_in_this_process_is_that_of_workers_whatever_the_heap_holds_free(kept_servers: None) -> None:
    model = nn.Sequential(nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 10))
    workload = Workload(model=model, make_batch=wide, loss=squares, optimizer=torch.optim.AdamW, name="a live model")
    in_workers, _ = found(workload, "process")
    assert in_workers.largest_fit is not None
    for _ in range(2):
        holes()
        here, notes = found(workload, "none")

        assert here.largest_fit == pytest.approx(in_workers.largest_fit, rel=0.05)
        assert here.limited_by == "memory"
        for trial in here.trials:
            assert isinstance(trial.outcome, Fits | OutOfMemory)
            assert trial.outcome.peak_bytes is not None
            assert trial.outcome.peak_bytes <= here.capacity_bytes
        assert not [note for note in notes if "another process" in note]


def test_a_run_in_this_process_notes_that_it_is_not_exact(kept_servers: None) -> None:
    workload = Workload(model=Net, make_batch=batch_of, loss=squares, optimizer=sgd)

    def notes_of(options: Options) -> list[str]:
        events: list[Event] = []
        with open_prober(workload, options, events.append):
            pass
        return [event.text for event in events if isinstance(event, Noted) and "isolation none" in event.text]

    (note,) = notes_of(Options(device="cpu", memory_limit=LIMIT, isolation="none"))
    assert "not exact by some MiB" in note
    assert not notes_of(Options(device="cpu", memory_limit=LIMIT, isolation="process"))


def wide(size: int) -> Tensor:
    return torch.ones(size, 1024)
