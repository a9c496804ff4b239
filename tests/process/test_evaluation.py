from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from process.states import changes, model_state, optimizer_state, process_state
from process.workloads import WIDTH, adamw, prober_of, sgd, squares, tiny
from profiler import Finding, Fits, Options, OutOfMemory, Purpose, Report, Workload, WorkloadError, probe
from profiler.events import Event, Found, SizeTried, Started, unobserved
from profiler.finder import find_largest
from profiler.opening import open_prober
from profiler.outcomes import Outcome
from profiler.prober import Prober
from profiler.schedules import evaluation_schedule
from profiler.smallest import does_not_fit, why_nothing_fits
from profiler.units import MIB
from profiler.workers.runner import ProcessRunner

EVALUATION = Purpose.EVALUATION
LIMIT = 16 * MIB


def layers() -> nn.Module:
    """Half a MiB of parameters, and some KiB of activations a sample, of which training keeps every layer's."""
    return nn.Sequential(nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 1024), *(nn.Sigmoid() for _ in range(4)))


def features(size: int) -> Tensor:
    """32 KiB a sample, so that a page or two of noise in a peak is far less than a sample."""
    return torch.ones(size, 8, 1024)


def small(**changes: Any) -> Workload:
    return replace(Workload(model=layers, make_batch=features, loss=squares, optimizer=adamw, name="small"), **changes)


def evaluated(prober: Prober, size: int, trained_size: int = 1) -> Outcome:
    """What a trial of its own comes to, in a fresh worker as the CPU's are."""
    return prober.run(evaluation_schedule(size, trained_size=trained_size), size, EVALUATION)


def peak_mib(prober: Prober, size: int) -> float:
    outcome = evaluated(prober, size)
    assert isinstance(outcome, Fits), outcome
    return outcome.peak_bytes / MIB


def bisected(prober: Prober) -> int:
    """The largest size that fits, by halving, in fresh workers."""
    low, high = 0, 8192
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if isinstance(evaluated(prober, middle), Fits) else (low, middle)
    return low


@pytest.fixture(scope="module")
def prober(runner: ProcessRunner) -> Prober:
    return prober_of(small(), runner, LIMIT)


@pytest.fixture(scope="module")
def finding(prober: Prober) -> Finding:
    return find_largest(prober, purpose=EVALUATION)


def test_the_largest_evaluation_is_the_one_that_bisection_finds(runner: ProcessRunner, finding: Finding) -> None:
    assert finding.largest_fit == bisected(prober_of(small(), runner, LIMIT))
    assert (finding.smallest_misfit, finding.limited_by) == (finding.largest_fit + 1, "memory")


def test_it_is_larger_than_the_largest_micro_batch_and_found_by_trials_of_its_own(
    prober: Prober, finding: Finding
) -> None:
    trained = find_largest(prober)

    assert finding.largest_fit > 2 * trained.largest_fit > 0
    assert {trial.purpose for trial in finding.trials} == {EVALUATION}
    assert {trial.purpose for trial in trained.trials} == {Purpose.TRAINING}
    assert prober.evaluations.keys() == {trial.micro_batch_size for trial in finding.trials}
    assert prober.trials.keys() == {trial.micro_batch_size for trial in trained.trials}


def test_a_size_is_predicted_from_evaluations_alone(prober: Prober, finding: Finding) -> None:
    size = finding.largest_fit
    predicted, peak = prober.predicted_bytes(size, EVALUATION), peak_mib(prober, size)

    assert predicted is not None
    assert predicted / MIB == pytest.approx(peak, abs=0.5)


def test_the_edge_repeats(prober: Prober, finding: Finding) -> None:
    fits = [evaluated(prober, finding.largest_fit + more).label for more in (0, 1, 0, 1)]

    assert fits == ["fits", "out_of_memory"] * 2


def deep() -> nn.Module:
    """4 MiB of parameters, and 4 MiB of activations a layer for 256 samples."""
    return nn.Sequential(nn.Linear(256, 4096, bias=False), *(nn.Sigmoid() for _ in range(8)))


def small_rows(size: int) -> Tensor:
    return torch.ones(size, 256)


def deep_prober(runner: ProcessRunner, optimizer: Any) -> Prober:
    workload = Workload(model=deep, make_batch=small_rows, loss=squares, optimizer=optimizer)
    return prober_of(workload, runner, 128 * MIB)


def test_activations_are_freed_as_the_forward_goes_on(runner: ProcessRunner) -> None:
    prober = deep_prober(runner, sgd)
    small, large = (prober.try_size(size, "a test").peak_bytes for size in (256, 512))

    assert small is not None
    assert large is not None
    # An activation of 256 samples is 4 MiB. What goes into a layer and what comes out of it are alive, and no third one; what
    # libraries keep for themselves is no smaller at the smaller size.
    assert 4 * 1.5 < peak_mib(prober, 512) - peak_mib(prober, 256) < 4 * 2.5
    assert (large - small) / MIB > 4 * 6


def test_the_optimizers_state_is_counted(runner: ProcessRunner) -> None:
    plain, adam = (peak_mib(deep_prober(runner, optimizer), 1024) for optimizer in (sgd, adamw))

    # Two states of 4 MiB each; 1,024 samples need far more than the temporaries of the optimizer's step.
    assert adam - plain == pytest.approx(2 * 4, abs=0.5)


def test_the_size_of_the_step_is_chosen_apart_from_the_batches(runner: ProcessRunner) -> None:
    normed = tiny(model=lambda: nn.Sequential(nn.Linear(WIDTH, 4), nn.BatchNorm1d(4)))
    prober = prober_of(normed, runner)

    assert isinstance(evaluated(prober, 1, trained_size=2), Fits)
    with pytest.raises(WorkloadError, match="in the evaluation trial at batch size 1, in its forward: ValueError"):
        evaluated(prober, 1)


def failing_in_evaluation(model: nn.Module, batch: Tensor) -> Tensor:
    if not model.training and len(batch) > 1:
        raise KeyError("labels")
    return squares(model, batch)


def test_a_bug_that_evaluation_alone_has_surfaces_as_that_bug(runner: ProcessRunner) -> None:
    prober = prober_of(tiny(loss=failing_in_evaluation), runner)
    with pytest.raises(WorkloadError) as caught:
        find_largest(prober, purpose=EVALUATION)

    said = "the workload failed in the evaluation trial at batch size 4, in its evaluation forward: KeyError: 'labels'"
    assert str(caught.value) == said
    assert "failing_in_evaluation" in str(caught.value.user_traceback)


def test_a_ceiling_ends_the_search(runner: ProcessRunner) -> None:
    finding = find_largest(prober_of(tiny(), runner), ceiling=3, purpose=EVALUATION)

    assert (finding.largest_fit, finding.smallest_misfit, finding.limited_by) == (3, None, "ceiling")


def test_where_nothing_fits_it_says_what_one_sample_needs(runner: ProcessRunner) -> None:
    prober = prober_of(tiny(), runner, 2 * MIB)
    finding = find_largest(prober, purpose=EVALUATION)

    assert (finding.largest_fit, finding.smallest_misfit) == (0, 1)
    assert isinstance(finding.trials[0].outcome, OutOfMemory)
    said = why_nothing_fits(prober, finding)
    assert said.startswith("batch size 1, the smallest, does not fit in evaluation: it needs about ")
    assert said.startswith(does_not_fit(finding))


def probed(events: list[Event], **choices: Any) -> Report:
    return probe(tiny(), Options(device="cpu", memory_limit=8 * MIB, **choices), observe=events.append)


def test_evaluation_alone_trains_times_and_checks_nothing(kept_servers: None) -> None:
    events: list[Event] = []
    report = probed(events, train=False, evaluate=True)

    assert report.finding is None
    assert report.evaluation is not None
    assert report.evaluation.purpose is EVALUATION
    assert (report.throughput, report.comparison, report.equivalence, report.plan) == ((), (), None, None)
    assert (report.search_seconds, report.search_trials) == (0.0, 0)
    assert report.evaluation_search_trials == len(report.evaluation.trials)
    assert report.evaluation_search_seconds > 0
    tried = [event.trial for event in events if isinstance(event, SizeTried)]
    assert tuple(tried) == report.evaluation.trials
    started = [event.what for event in events if isinstance(event, Started)]
    assert started[1:] == [f"evaluation batch size {trial.micro_batch_size}" for trial in tried]


def test_both_are_found_in_one_run_each_under_the_ceiling(kept_servers: None) -> None:
    events: list[Event] = []
    report = probed(events, evaluate=True, ceiling=2)

    assert report.finding is not None
    assert report.evaluation is not None
    assert (report.finding.largest_fit, report.evaluation.largest_fit) == (2, 2)
    assert (report.finding.limited_by, report.evaluation.limited_by) == ("ceiling", "ceiling")
    found = [event.finding.purpose for event in events if isinstance(event, Found)]
    assert found == [Purpose.TRAINING, EVALUATION]
    assert len(report.throughput) == 2
    assert report.equivalence is not None


class Net(nn.Module):
    """A model with a buffer that training moves, dropout, and a part that its user froze."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(6, 4))

    def forward(self, batch: Tensor) -> Tensor:
        outputs: Tensor = self.body(batch)
        return outputs


def random_rows(size: int) -> Tensor:
    return torch.rand(size, 5, 8)


@pytest.fixture
def unbudgeted(quick_collection: None) -> Iterator[None]:
    yield
    torch.set_grad_enabled(True)


@pytest.mark.parametrize("fails", [False, True])
def test_in_this_process_everything_is_afterwards_as_it_was(unbudgeted: None, fails: bool) -> None:
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    squares(model, random_rows(3)).backward()
    optimizer.step()
    model.body[1].eval()
    seen: list[bool] = []

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        seen.append(model.training)
        if fails and not model.training:
            raise KeyError("labels")
        return squares(model, batch)

    workload = Workload(model=model, make_batch=random_rows, loss=loss, optimizer=lambda _: optimizer)
    options = Options(device="cpu", memory_limit=64 * MIB, isolation="none", train=False, evaluate=True)
    before = model_state(model) | optimizer_state(optimizer) | process_state()
    with open_prober(workload, options, unobserved) as (prober, _):
        if fails:
            with pytest.raises(WorkloadError, match="evaluation forward: KeyError"):
                prober.try_size(2, "a test", EVALUATION)
        else:
            assert prober.try_size(2, "a test", EVALUATION).fits

    assert seen == [True, False] + [False] * (not fails)
    assert changes(before, model_state(model) | optimizer_state(optimizer) | process_state()) == set()
