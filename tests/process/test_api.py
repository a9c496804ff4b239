from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from torch import Tensor, nn

from process.states import changes, model_state, process_state
from process.workloads import WIDTH, Scale, even, rows, sgd, squares
from profiler import (
    AccumulationPlan,
    Decomposition,
    DeviceUnavailable,
    Equivalence,
    Limits,
    MicrobatchError,
    NothingFits,
    Options,
    Report,
    Strategy,
    TrialError,
    UsageError,
    Workload,
    WorkloadError,
    check_equivalence,
    compare_strategies,
    find_accumulation_plan,
    probe,
)
from profiler.events import (
    Began,
    Checked,
    Compared,
    Event,
    Found,
    Noted,
    Planned,
    SizeTried,
    Started,
    Timed,
    unobserved,
)
from profiler.opening import open_prober
from profiler.outcomes import Fits
from profiler.prober import Prober
from profiler.units import MIB

LIMIT = 8 * MIB
TARGET = 11

DEFINITIONS = """
import time

import torch
from torch import nn

from profiler import Workload, find_accumulation_plan


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2**16))

    def forward(self, batch):
        return batch * self.weight


def make_batch(size):
    return torch.ones(size, 2**16)


def loss(model, batch):
    time.sleep(0.01)  # the fewest micro-batches are the fastest
    return model(batch).square().mean()


def optimizer(parameters):
    return torch.optim.SGD(parameters, lr=0.001)


workload = Workload(model=Scale(), make_batch=make_batch, loss=loss, optimizer=optimizer, name="mine")
"""

CALL = """
import json, os
from pathlib import Path

plan = find_accumulation_plan(workload, 11, device="cpu", memory_limit="8MiB")
children = [
    entry.name
    for entry in Path("/proc").iterdir()
    if entry.name.isdigit()
    and (entry / "stat").exists()
    and (entry / "stat").read_text().rpartition(")")[2].split()[1] == str(os.getpid())
]
print(json.dumps({
    "sizes": plan.micro_batch_sizes,
    "weights": plan.weights,
    "replicas": plan.replicas,
    "peak_bytes": plan.peak_bytes,
    "verified_steps": plan.verified_steps,
    "untouched": bool((workload.model.weight == 1).all()) and workload.model.weight.grad is None,
    "children": children,
}))
"""


@dataclass(frozen=True, slots=True)
class Call:
    """What find_accumulation_plan came to somewhere else, and what it left there."""

    answer: dict[str, Any]
    files: set[str]
    temporary_files: set[str]
    processes: list[str]


def environment(place: Path) -> dict[str, str]:
    """A temporary folder of its own, and a mark by which every process that comes from it is known."""
    (place / "tmp").mkdir(parents=True)
    return {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(place / "tmp"), "MICROBATCH_TEST_MARK": str(place)}


def marked(place: Path) -> list[str]:
    """Processes that came from `place` and still run."""
    mark = f"MICROBATCH_TEST_MARK={place}\0".encode()
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes() + b"\0":
                found.append(f"{entry.name} {(entry / 'comm').read_text()}")
        except OSError:  # ended meanwhile, or another user's
            continue
    return found


def start(place: Path, *arguments: str, given: str | None = None) -> subprocess.Popen[str]:
    variables = environment(place)
    (place / "here").mkdir()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=place / "here",
        env=variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write(given or "")
    process.stdin.close()
    process.stdin = None  # which communicate would flush
    return process


def ended(place: Path, process: subprocess.Popen[str]) -> Call:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert err == ""
    return called(place, out)


def called(place: Path, out: str) -> Call:
    return Call(
        answer=json.loads(out),
        files={entry.name for entry in (place / "here").iterdir()},
        # torch makes an empty folder of its own when an optimizer is made.
        temporary_files={
            str(path.relative_to(place))
            for path in (place / "tmp").rglob("*")
            if not re.fullmatch(r"torchinductor_\w+", path.name)
        },
        processes=marked(place),
    )


def notebook(place: Path) -> str:
    """What the last cell printed; the model's class is defined in the first."""
    cells = [nbformat.v4.new_code_cell(source) for source in (DEFINITIONS, CALL)]  # type: ignore[no-untyped-call]
    book = nbformat.v4.new_notebook(cells=cells)  # type: ignore[no-untyped-call]
    variables = environment(place)
    (place / "here").mkdir()
    NotebookClient(book, timeout=120, resources={"metadata": {"path": str(place / "here")}}).execute(env=variables)
    outputs = book.cells[-1].outputs
    assert [output.get("name") for output in outputs] == ["stdout"], outputs
    return str(outputs[0].text)


@pytest.fixture(autouse=True)
def check_of_its_own(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check within a probe has tests of its own; the others, of which there are many, do without."""
    if "check" not in request.node.name:
        monkeypatch.setattr("profiler.api._checked", lambda *arguments: None)


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Call]:
    """The same call from a script without a __main__ guard, from standard input, and from a notebook."""
    places = {
        name: tmp_path_factory.mktemp(name.replace(" ", "-")) for name in ("script", "standard input", "notebook")
    }
    (places["script"] / "train.py").write_text(DEFINITIONS + CALL)
    running = {
        "script": start(places["script"], str(places["script"] / "train.py")),
        "standard input": start(places["standard input"], "-", given=DEFINITIONS + CALL),
    }
    printed = notebook(places["notebook"])
    return {
        **{name: ended(places[name], process) for name, process in running.items()},
        "notebook": called(places["notebook"], printed),
    }


each_way = pytest.mark.parametrize("way", ["script", "standard input", "notebook"])
# Jupyter's own.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:(jupyter|nbclient|nbformat|zmq|traitlets)")


@each_way
def test_the_plan_is_the_same_wherever_it_is_asked_for(calls: dict[str, Call], way: str) -> None:
    answer = calls[way].answer

    assert answer["sizes"] == [4, 4, 3]
    assert answer["replicas"] == [[4, 4, 3]]
    assert answer["weights"] == [4 / 11, 4 / 11, 3 / 11]
    assert answer["verified_steps"] == 5
    assert 0 < answer["peak_bytes"] <= 0.95 * LIMIT
    assert answer["untouched"]


@each_way
def test_nothing_is_left_wherever_it_was_asked_for(calls: dict[str, Call], way: str) -> None:
    assert calls[way].answer["children"] == []
    assert calls[way].files == set()
    assert calls[way].temporary_files == set()
    assert calls[way].processes == []


@pytest.fixture(scope="module")
def events() -> list[Event]:
    return []


@pytest.fixture(scope="module")
def plan(kept_servers: None, events: list[Event]) -> AccumulationPlan:
    return find_accumulation_plan(even(), TARGET, device="cpu", memory_limit=LIMIT, observe=events.append)


def test_a_plan_keeps_the_effective_batch_exactly_and_was_run(plan: AccumulationPlan) -> None:
    assert plan.micro_batch_sizes == (4, 4, 3)
    assert sum(plan.weights) == pytest.approx(1)
    assert (plan.accumulation_steps, plan.effective_batch_size, plan.data_parallel_size) == (3, TARGET, 1)
    assert plan.verified_steps == 5
    assert plan.peak_bytes is not None
    assert plan.predicted_peak_bytes is not None
    assert plan.peak_bytes <= 0.95 * LIMIT
    assert plan.peak_bytes == pytest.approx(plan.predicted_peak_bytes, abs=MIB / 4)
    # Three waits of a hundredth of a second each, and hardly anything else.
    assert plan.step_seconds is not None
    assert plan.predicted_step_seconds is not None
    assert 0.03 <= plan.step_seconds < 1
    assert 0.03 <= plan.predicted_step_seconds < 1
    assert "3 micro-batches, 2 of 4 and 1 of 3" in plan.reason


def kinds(events: list[Event]) -> list[type]:
    return [type(event) for event in events]


def test_an_observer_sees_what_happens_in_its_order(plan: AccumulationPlan, events: list[Event]) -> None:
    order = kinds(events)
    first, last = events[order.index(Began)], events[-1]

    assert order[:2] == [Started, Began]
    assert isinstance(first, Began)
    assert (first.run.workload, first.run.device, first.run.capacity_bytes) == ("even", "cpu", LIMIT)
    assert last == Planned(plan=plan)
    assert order.count(Planned) == order.count(Checked) == order.count(Found) == order.count(Began) == 1
    assert order.index(Timed) < order.index(Checked) < order.index(Planned)
    assert max(order.index(kind) for kind in (SizeTried, Started)) < order.index(Found) < order.index(Timed)
    for number, event in enumerate(events):
        if isinstance(event, SizeTried | Timed | Compared):
            before = events[number - 1]
            size = event.throughput.micro_batch_size if isinstance(event, Timed) else event.trial.micro_batch_size
            assert isinstance(before, Started)
            assert str(size) in before.what
            assert before.why


def test_the_search_tries_the_answer_and_one_more(plan: AccumulationPlan, events: list[Event]) -> None:
    found = next(event for event in events if isinstance(event, Found))
    tried = [event.trial.micro_batch_size for event in events if isinstance(event, SizeTried)]

    assert (found.finding.largest_fit, found.finding.smallest_misfit, found.finding.limited_by) == (4, 5, "memory")
    assert {1, 2, 4, 5} <= set(tried)
    assert len(tried) == len(set(tried))
    assert found.trials == len(tried[: kinds(events)[: events.index(found)].count(SizeTried)])


def test_headroom_leaves_room(kept_servers: None) -> None:
    plan = find_accumulation_plan(even(), 4, device="cpu", memory_limit=LIMIT, headroom=0.4)

    assert plan.micro_batch_sizes == (2, 2)
    assert plan.peak_bytes is not None
    assert plan.peak_bytes <= 0.6 * LIMIT


def test_no_micro_batch_leaves_a_headroom_that_is_too_large(kept_servers: None) -> None:
    with pytest.raises(
        NothingFits, match=r"headroom of 90%: the smallest peak is .* MiB and .* KiB of 8 MiB may be used"
    ):
        find_accumulation_plan(even(), 2, device="cpu", memory_limit=LIMIT, headroom=0.9)


def test_replicas_share_the_effective_batch(kept_servers: None) -> None:
    plan = find_accumulation_plan(even(), TARGET, device="cpu", memory_limit=LIMIT, data_parallel_size=2)

    assert plan.replicas == ((3, 3), (3, 2))
    assert (plan.accumulation_steps, plan.data_parallel_size, plan.replica_factor) == (2, 2, 2)
    assert sum(map(sum, plan.replicas)) == TARGET


def test_equal_micro_batches_of_a_prime_are_single_samples_and_say_what_divides_better(kept_servers: None) -> None:
    plan = find_accumulation_plan(even(), 5, device="cpu", memory_limit=LIMIT, equal=True)

    assert plan.micro_batch_sizes == (1, 1, 1, 1, 1)
    assert plan.verified_steps == 5
    assert any("an effective batch of 4 (2 × 2) or 6 (2 × 3) divides better" in note for note in plan.notes), plan.notes


def probed(workload: Workload | str, **choices: Any) -> Report:
    return probe(workload, Options(device="cpu", memory_limit=LIMIT, **choices), comparison=False)


@pytest.mark.parametrize(("ceiling", "replicas", "largest"), [(3, 1, 3), ("target", 1, 2), ("target", 2, 1)])
def test_a_ceiling_is_tried_and_is_the_answer(
    kept_servers: None, ceiling: int | Literal["target"], replicas: int, largest: int
) -> None:
    report = probed(even(), effective_batch_size=2, data_parallel_size=replicas, ceiling=ceiling)
    assert report.finding is not None
    tried = report.finding.trial_of(largest)

    assert (report.finding.largest_fit, report.finding.smallest_misfit) == (largest, None)
    assert report.finding.limited_by == "ceiling"
    assert tried is not None
    assert tried.fits
    assert max(trial.micro_batch_size for trial in report.finding.trials) == largest


def test_a_ceiling_limits_the_plan(kept_servers: None) -> None:
    plan = find_accumulation_plan(even(), 4, device="cpu", memory_limit=LIMIT, ceiling=1)

    assert plan.micro_batch_sizes == (1, 1, 1, 1)


def test_without_an_effective_batch_there_is_no_plan(kept_servers: None) -> None:
    report = probed(even(), ceiling=1)

    assert report.plan is None
    assert [timed.micro_batch_size for timed in report.throughput] == [1]


def test_a_comparison_tells_the_strategies_apart(kept_servers: None) -> None:
    comparison = compare_strategies(even(), 1, Options(device="cpu", memory_limit=LIMIT), most_steps=8)
    fits = {(trial.strategy, trial.accumulation_steps): trial.fits for trial in comparison.comparison}
    peaks = {(trial.strategy, trial.accumulation_steps): trial.peak_bytes for trial in comparison.comparison}

    assert comparison.trials[0].micro_batch_size == 1
    assert fits[Strategy.WHOLE_BATCH, 4]
    assert not fits[Strategy.WHOLE_BATCH, 8]
    assert fits[Strategy.ACCUMULATION, 8]
    accumulated, summed = peaks[Strategy.ACCUMULATION, 4], peaks[Strategy.SUMMED_LOSS, 4]
    assert accumulated is not None
    assert summed is not None
    assert accumulated < summed
    assert peaks[Strategy.ACCUMULATION, 8] == pytest.approx(peaks[Strategy.ACCUMULATION, 2], abs=MIB / 4)


def test_a_comparison_at_a_size_that_does_not_fit_is_refused(kept_servers: None) -> None:
    with pytest.raises(NothingFits, match="a micro-batch of 6 does not fit in 8 MiB"):
        compare_strategies(even(), 6, Options(device="cpu", memory_limit=LIMIT))


@dataclass(frozen=True, slots=True)
class Growing(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Samples that grow from a sixteenth of a row to a whole one."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.ones((index + 1) * WIDTH // 16), torch.tensor(0.0)


def padded(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    inputs = nn.utils.rnn.pad_sequence([sample for sample, _ in samples], batch_first=True)
    return inputs, torch.stack([target for _, target in samples])


class Scalar(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, batch: Tensor) -> Tensor:
        return (batch * self.weight).square()


def mean_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.mean(dim=1) - targets).square().mean()


def shortest(sample: tuple[Tensor, Tensor]) -> float:
    return -float(sample[0].numel())


def peak_of(workload: Workload | str, size: int = 1, limit: int = 64 * MIB, **choices: Any) -> float:
    """The peak of one trial, in MiB."""
    options = Options(device="cpu", memory_limit=limit, **choices)
    with open_prober(workload, options, unobserved) as (prober, _):
        outcome = prober.try_size(size, "a test").outcome
    assert isinstance(outcome, Fits), outcome
    return outcome.peak_bytes / MIB


def test_the_worst_case_takes_the_longest_samples(kept_servers: None) -> None:
    first, worst, chosen = (
        peak_of(Workload.supervised(Scalar, mean_error, Growing(), collate=padded, worst_case=case, optimizer=sgd), 4)
        for case in (False, True, shortest)
    )

    assert worst > 2 * first
    assert chosen == pytest.approx(first, abs=0.1)


def deep() -> nn.Module:
    """Hardly any parameters, and a quarter of a MiB of activations a layer in fp32."""
    return nn.Sequential(*(layer for _ in range(6) for layer in (nn.Linear(64, 64), nn.Sigmoid())))


def long_rows(size: int) -> Tensor:
    return torch.ones(size, 1024, 64)


def deep_workload(**changed: Any) -> Workload:
    return Workload(model=deep, make_batch=long_rows, loss=squares, optimizer=sgd, **changed)


def test_bf16_lowers_the_peak(kept_servers: None) -> None:
    full, half = (peak_of(deep_workload(precision=precision), 8) for precision in ("fp32", "bf16"))

    assert half < 0.85 * full


class Witness(torch.optim.SGD):
    """Notes whether a gradient scaler steps it."""

    # By which GradScaler gives an optimizer its scale, rather than scaling the gradients itself.
    _step_supports_amp_scaling = True

    def __init__(self, parameters: Any, seen: list[bool]) -> None:
        super().__init__(parameters, lr=0.001)
        self.seen = seen

    def step(self, closure: Any = None) -> Any:
        self.seen.append(hasattr(self, "grad_scale"))
        if self.seen[-1]:
            self.grad_scale = self.found_inf = None  # the plain SGD beneath would scale them itself
        return super().step(closure)


@pytest.mark.parametrize(
    ("precision", "dtype", "scaled"),
    [("fp32", torch.float32, False), ("bf16", torch.bfloat16, False), ("fp16", torch.float16, True)],
)
def test_autocast_and_the_gradient_scaler_go_with_the_precision(
    quick_collection: None, precision: Any, dtype: torch.dtype, scaled: bool
) -> None:
    seen, dtypes = list[bool](), set[torch.dtype]()

    def noted(model: nn.Module, batch: Tensor) -> Tensor:
        outputs: Tensor = model(batch)
        dtypes.add(outputs.dtype)
        return outputs.float().square().mean()

    workload = Workload(
        model=lambda: nn.Linear(64, 64),
        make_batch=long_rows,
        loss=noted,
        optimizer=lambda parameters: Witness(parameters, seen),
        precision=precision,
    )
    peak_of(workload, isolation="none")
    assert dtypes == {dtype}
    assert seen == [scaled, scaled]


def test_fp16_gives_a_plan(kept_servers: None) -> None:
    plan = find_accumulation_plan(even(precision="fp16"), 2, device="cpu", memory_limit=LIMIT)

    assert sum(plan.micro_batch_sizes) == 2
    assert plan.verified_steps == 5


def test_tf32_is_refused_on_the_cpu(kept_servers: None) -> None:
    with pytest.raises(UsageError, match="tf32 is a mode of NVIDIA GPUs and cpu has none: use fp32 or bf16"):
        peak_of(even(precision="tf32"))


def small() -> nn.Module:
    # Without a bias every kernel is a library's, and there is no C++ to compile, which takes a quarter of a minute.
    return nn.Linear(8, 8, bias=False)


def small_rows(size: int) -> Tensor:
    return torch.ones(size, 8)


def compiled_only(model: nn.Module, batch: Tensor) -> Tensor:
    kind = type(model).__name__
    if kind != "OptimizedModule":
        raise ArithmeticError(f"the model is a {kind}")
    return squares(model, batch)


def compilable(*, compile: bool) -> Workload:
    return Workload(
        model=small, make_batch=small_rows, loss=compiled_only, optimizer=sgd, compile=compile, name="compilable"
    )


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on the CPU needs a C++ compiler")
def test_compile_compiles_the_model(kept_servers: None) -> None:
    assert peak_of(compilable(compile=True), 3) < 16
    with pytest.raises(WorkloadError, match="the model is a Linear"):
        peak_of(compilable(compile=False), 3)


def telling(model: nn.Module, batch: Tensor) -> Tensor:
    words = (torch.get_default_dtype(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())
    raise ArithmeticError(" ".join(map(str, (*words, torch.backends.cudnn.benchmark))))


def test_workers_take_over_the_callers_global_switches(kept_servers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WorkloadError, match=r"torch\.float32 1 False False"):
        peak_of(even(loss=telling))
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(WorkloadError, match=r"torch\.float64 2 True True"):
            peak_of(even(loss=telling))
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(False)


def test_the_callers_default_dtype_changes_the_peak(kept_servers: None) -> None:
    single = peak_of(even(loss=squares), 4)
    torch.set_default_dtype(torch.float64)
    try:
        double = peak_of(even(loss=squares), 4)
    finally:
        torch.set_default_dtype(torch.float32)

    assert double == pytest.approx(2 * single, rel=0.15)


def test_workers_leave_a_live_model_and_the_caller_alone(kept_servers: None) -> None:
    model = Scale()
    squares(model, rows(2)).backward()
    model.eval()
    before = model_state(model) | process_state()
    peak_of(even(model=model, loss=squares))

    assert model.weight.grad is not None
    assert changes(before, model_state(model) | process_state()) == set()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"effective_batch_size": 0}, r"the effective batch is 0: it counts samples, so it must be at least 1"),
        ({"effective_batch_size": -3}, r"the effective batch is -3"),
        ({"data_parallel_size": 12}, r"an effective batch of 11 cannot be shared by 12 replicas"),
        ({"data_parallel_size": 0}, r"data_parallel_size is 0"),
        ({"headroom": 1.0}, r"headroom is 1\.0: it is a share of the memory, from 0 to below 1"),
        ({"headroom": -0.1}, r"headroom is -0\.1"),
        ({"ceiling": 0}, r"the ceiling is 0"),
        ({"isolation": "thread"}, r"isolation 'thread' is unknown: use 'process' or 'none'"),
        ({"memory_limit": "much"}, r"'much' is not an amount of memory"),
        ({"memory_limit": 0}, r"the memory limit is 0 bytes: it must be positive"),
        ({"device": "tpu"}, r"there is no device 'tpu'"),
        ({"memory_limit": "1000TiB"}, r"the memory limit of 1000 TiB is more than the .* that are available here"),
        ({"data_parallel_size": 2, "equal": True}, r"2 replicas cannot share 11 samples equally: use 10 or 12"),
    ],
)
def test_an_argument_out_of_range_is_a_usage_error(kept_servers: None, arguments: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"effective_batch_size": TARGET, "device": "cpu", "memory_limit": LIMIT} | arguments
    with pytest.raises(UsageError, match=message):
        find_accumulation_plan(even(), **given)


def test_a_limit_on_time_is_positive() -> None:
    with pytest.raises(UsageError, match=r"a time limit of 0 seconds lets nothing end"):
        Limits(trial_seconds=0)


def test_under_a_budget_below_the_models_size_nothing_fits(kept_servers: None) -> None:
    with pytest.raises(
        NothingFits, match=r"size 1, the smallest, does not fit: it needs about 2\.\d+ MiB, the limit is 200 KiB"
    ) as info:
        find_accumulation_plan(even(), TARGET, device="cpu", memory_limit="200KiB")
    assert info.value.exit_status == 3


def wrong(model: nn.Module, batch: Tensor) -> Tensor:
    if len(batch) == 4:
        raise ArithmeticError("seven is not eight")
    return squares(model, batch)


def test_a_users_bug_is_that_bug_at_once(kept_servers: None) -> None:
    tried: list[Event] = []
    with pytest.raises(WorkloadError, match="at micro-batch size 4, in its forward: ArithmeticError: seven") as info:
        find_accumulation_plan(even(loss=wrong), TARGET, device="cpu", memory_limit=LIMIT, observe=tried.append)

    assert info.value.user_traceback is not None
    assert "test_api.py" in info.value.user_traceback
    assert "profiler/" not in info.value.user_traceback
    assert [event.trial.micro_batch_size for event in tried if isinstance(event, SizeTried)] == [1]


def hang(model: nn.Module, batch: Tensor) -> Tensor:
    while True:
        pass


def test_a_hang_ends_at_the_time_limit(kept_servers: None) -> None:
    limits = Limits(trial_seconds=3.0)
    with pytest.raises(TrialError, match=r"size 1 did not end within 3(\.\d+)? s"):
        find_accumulation_plan(even(loss=hang), 4, device="cpu", memory_limit=LIMIT, limits=limits)


def test_a_device_that_is_not_there_is_unavailable(kept_servers: None) -> None:
    with pytest.raises(DeviceUnavailable, match="cuda:63 cannot be used: ") as info:
        find_accumulation_plan(even(), 4, device="cuda:63")
    assert info.value.exit_status == 4


def test_what_cannot_be_pickled_says_what_to_do(kept_servers: None) -> None:
    lock = threading.Lock()
    unsendable = even(make_batch=lambda size: (lock, rows(size))[1])
    with pytest.raises(UsageError, match=r"'even' cannot be sent to a worker process.*isolation=\"none\""):
        find_accumulation_plan(unsendable, 4, device="cpu", memory_limit=LIMIT)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_target_is_named_as_on_the_command_line(kept_servers: None, folder: Path) -> None:
    (folder / "train.py").write_text(DEFINITIONS)
    report = probed("train.py:workload", ceiling=2)

    assert report.run.workload == "mine"
    assert report.finding is not None
    assert report.finding.largest_fit == 2
    assert {entry.name for entry in folder.iterdir()} - {"__pycache__"} == {"train.py"}


def leave(model: nn.Module, batch: Tensor) -> Tensor:
    sys.exit(0)


def no_optimizer(parameters: Any) -> Any:
    return None


@pytest.mark.parametrize("isolation", ["process", "none"])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss": leave}, r"in its forward: SystemExit"),
        ({"optimizer": no_optimizer}, r"Workload.optimizer returned NoneType, which is no torch.optim.Optimizer"),
    ],
)
def test_what_ends_the_process_or_gives_no_optimizer_is_the_users_bug(
    kept_servers: None, changes: dict[str, Any], words: str, isolation: Literal["process", "none"]
) -> None:
    with pytest.raises(WorkloadError, match=words):
        find_accumulation_plan(even(**changes), 2, device="cpu", memory_limit=64 * MIB, isolation=isolation)


def test_a_comparison_that_hangs_does_not_lose_the_plan(kept_servers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*arguments: Any) -> Any:
        raise TrialError("it did not end")

    monkeypatch.setattr("profiler.api.compare", hang)
    report = probe(even(), Options(device="cpu", memory_limit=LIMIT, effective_batch_size=2, ceiling="target"))

    assert report.plan is not None
    assert report.comparison == ()
    assert report.notes[-1] == "the strategies could not be compared: it did not end"


def test_a_plan_that_does_not_end_in_time_is_said_and_the_next_is_tried(kept_servers: None) -> None:
    limits = Limits(verification_seconds=1e-3)
    options = Options(device="cpu", memory_limit=LIMIT, effective_batch_size=2, ceiling="target", limits=limits)
    report = probe(even(), options, comparison=False)

    assert report.plan is None
    assert "did not end 5 optimizer steps within" in report.notes[-1]
    assert "--verification-timeout" in report.notes[-1]


def test_an_endless_time_limit_is_one(kept_servers: None) -> None:
    limits = Limits(trial_seconds=float("inf"))
    plan = find_accumulation_plan(even(), 1, device="cpu", memory_limit=LIMIT, limits=limits)

    assert plan.micro_batch_sizes == (1,)


@pytest.mark.parametrize(("worst_case", "said"), [(False, True), (True, False)])
def test_samples_that_differ_in_size_are_noted(kept_servers: None, worst_case: bool, said: bool) -> None:
    notes: list[str] = []
    workload = Workload.supervised(Scalar, mean_error, Growing(), collate=padded, worst_case=worst_case)
    with open_prober(
        workload,
        Options(device="cpu", memory_limit=64 * MIB),
        lambda event: notes.extend([event.text] if isinstance(event, Noted) else []),
    ):
        pass

    assert any("samples differ in size" in note for note in notes) == said


def test_a_workload_is_checked_by_itself(kept_servers: None) -> None:
    told: list[Event] = []
    model = Scale()
    model.eval()
    before = model_state(model)
    found = check_equivalence(even(model=model, loss=squares), options=Options(device="cpu"), observe=told.append)

    assert (found.equal, found.verdict, found.batch_size) == (True, "equal", 16)
    assert {way.precision for way in found.ways} == {"fp64", "fp32"}
    assert [event for event in told if isinstance(event, Checked)] == [Checked(equivalence=found)]
    assert changes(before, model_state(model)) == set()


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (1, "the effective batch is 1: one sample cannot be split into micro-batches.* Use 2 or more"),
        (0, "the effective batch is 0: it counts samples"),
        (-3, "the effective batch is -3"),
        (4.0, r"the effective batch is 4\.0: it must be a whole number"),
    ],
)
def test_fewer_samples_than_two_cannot_be_checked(size: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_equivalence(even(), size)


def test_a_check_notes_nothing_that_only_sizes_depend_on(kept_servers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Prober, "check", lambda prober, size, *, thorough: replace(EQUIVALENCE, notes=("its own",)))
    workload = Workload.supervised(Scalar, mean_error, Growing(), collate=padded)
    told: list[Event] = []
    found = check_equivalence(workload, 4, Options(device="cpu"), observe=told.append)
    (began,) = (event for event in told if isinstance(event, Began))

    assert found.notes == ("its own",)
    assert began.run.capacity_bytes > 512 * MIB  # nobody asked for a budget


EQUIVALENCE = Equivalence(
    batch_size=8,
    equal=False,
    decomposes=Decomposition.NO,
    items=None,
    modules=(),
    random_modules=(),
    ways=(),
    verdict="not equal: it is a test's",
    reasons=(),
    advice="",
)


@pytest.mark.parametrize(
    ("ceiling", "effective_batch_size", "samples"),
    [(1, None, 2), (3, None, 3), (4, None, 4), (1, 2, 2), (4, 2, 2), (4, 3, 3), (4, 40, 4), (4, 1, 4)],
)
def test_a_probe_checks_as_many_samples_as_fit_and_are_wanted_but_two(
    kept_servers: None,
    monkeypatch: pytest.MonkeyPatch,
    ceiling: int,
    effective_batch_size: int | None,
    samples: int,
) -> None:
    asked: list[tuple[int, bool]] = []

    def check(prober: Prober, size: int, *, thorough: bool) -> Equivalence:
        asked.append((size, thorough))
        return EQUIVALENCE

    monkeypatch.setattr(Prober, "check", check)
    report = probed(even(loss=squares), ceiling=ceiling, effective_batch_size=effective_batch_size)

    assert asked == [(samples, False)]
    assert report.equivalence is EQUIVALENCE
    assert (report.plan is None) == (effective_batch_size is None)
    assert report.plan is None or report.plan.equivalence == EQUIVALENCE.verdict


def test_a_large_micro_batch_is_checked_on_four_samples(kept_servers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def check(prober: Prober, size: int, *, thorough: bool) -> Equivalence:
        asked.append(size)
        return EQUIVALENCE

    monkeypatch.setattr(Prober, "check", check)
    probe(even(loss=squares), Options(device="cpu", memory_limit=64 * MIB, ceiling=16), comparison=False)

    assert asked == [4]


@pytest.mark.parametrize(
    "error",
    [TrialError("it did not end."), WorkloadError("it has a bug."), NothingFits("it is full."), UsageError("no.")],
)
def test_a_check_that_fails_is_a_note_and_loses_nothing(
    kept_servers: None, monkeypatch: pytest.MonkeyPatch, error: MicrobatchError
) -> None:
    def fail(prober: Prober, size: int, *, thorough: bool) -> Equivalence:
        raise error

    monkeypatch.setattr(Prober, "check", fail)
    report = probed(even(loss=squares), ceiling=2, effective_batch_size=2)

    assert report.equivalence is None
    assert report.plan is not None
    assert report.plan.equivalence is None
    assert f"not checked: {error}" in report.notes


@pytest.mark.parametrize("check", [True, False])
def test_a_probe_without_a_check_runs_none(kept_servers: None, monkeypatch: pytest.MonkeyPatch, check: bool) -> None:
    monkeypatch.setattr(Prober, "check", lambda prober, size, *, thorough: EQUIVALENCE)
    plan = find_accumulation_plan(even(loss=squares), 2, device="cpu", memory_limit=LIMIT, check=check)

    assert plan.equivalence == (EQUIVALENCE.verdict if check else None)


def test_where_nothing_fits_nothing_is_checked(kept_servers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(prober: Prober, size: int, *, thorough: bool) -> Equivalence:
        raise AssertionError("there is no size to check")

    monkeypatch.setattr(Prober, "check", fail)
    report = probe(even(), Options(device="cpu", memory_limit="200KiB"))

    assert report.equivalence is None


def test_why_there_is_no_plan_is_the_last_note_whatever_else_is_noted(
    kept_servers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def varying(prober: Prober) -> None:
        prober.observe(Noted(text="timing varies."))

    def hang(*arguments: Any) -> Any:
        raise TrialError("it did not end")

    monkeypatch.setattr("profiler.api.note_spread", varying)
    monkeypatch.setattr("profiler.api.compare", hang)
    options = Options(device="cpu", memory_limit=LIMIT, effective_batch_size=2, ceiling="target", headroom=0.9)
    report = probe(even(loss=squares), options, check=False)

    assert report.plan is None
    assert "timing varies." in report.notes
    assert "headroom of 90%" in report.notes[-1]
