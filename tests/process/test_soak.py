from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from process.workloads import WIDTH, Scale, prober_of, rows, sgd, squares, tiny
from profiler import Limits, Options, Workload, WorkloadError, probe
from profiler.soak import Soak
from profiler.units import MIB
from profiler.workers.protocol import TimedOut
from profiler.workers.runner import ProcessRunner


@dataclass(frozen=True, slots=True)
class Lengths(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Samples of these lengths."""

    lengths: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.ones(self.lengths[index]), torch.tensor(0.0)


def padded(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    inputs = nn.utils.rnn.pad_sequence([sample for sample, _ in samples], batch_first=True)
    return inputs, torch.stack([target for _, target in samples])


class Scalar(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, batch: Tensor) -> Tensor:
        return (batch * self.weight).square()


def slow_error(outputs: Tensor, targets: Tensor) -> Tensor:
    time.sleep(0.02)  # the fewest micro-batches are the fastest
    return (outputs.mean(dim=1) - targets).square().mean()


def of_lengths(*lengths: int) -> Workload:
    return Workload.supervised(Scalar, slow_error, Lengths(lengths), collate=padded, optimizer=sgd, name="lengths")


def soaked(workload: Workload, runner: ProcessRunner, sizes: tuple[int, ...], steps: int) -> Soak:
    soak = prober_of(workload, runner).soak(sizes, steps, why="a test")
    assert isinstance(soak, Soak)
    return soak


def test_a_soak_runs_batches_of_many_lengths_and_records_memory_after_each_step(runner: ProcessRunner) -> None:
    lengths = tuple(WIDTH * share // 16 for share in range(1, 17))
    soak = soaked(of_lengths(*lengths), runner, (2, 2), 12)

    assert soak.passed
    assert (soak.steps_run, [point.step for point in soak.points]) == (12, list(range(1, 13)))
    assert len({point.largest_elements for point in soak.points}) > 3
    assert soak.verified_elements == 2 * lengths[1] + 2
    peaks = [point.peak_bytes for point in soak.points]
    assert peaks == sorted(peaks)
    assert soak.peak_bytes == peaks[-1]
    # Sixteen lengths, and twelve times four samples: the longest has come, and takes more than the shortest.
    assert max(point.largest_elements or 0 for point in soak.points) == 2 * WIDTH + 2
    assert peaks[-1] > 2 * WIDTH * 4
    assert soak.not_finite_from is None


def test_what_malloc_holds_is_told_with_every_point(runner: ProcessRunner) -> None:
    soak = soaked(tiny(), runner, (1, 1), 3)

    for point in soak.points:
        assert point.allocated_bytes is not None
        assert point.reserved_bytes is not None
        assert point.unused_bytes == point.reserved_bytes - point.allocated_bytes
        # The parameters, 1 MiB of them, are in use after each step.
        assert MIB < point.allocated_bytes <= point.reserved_bytes < 16 * MIB
    assert soak.unused_bytes is not None
    assert soak.verified_elements is None


@dataclass
class Later:
    """A loss that at its third call is what `then` makes of it."""

    then: Any
    calls: int = 0

    def __call__(self, model: nn.Module, batch: Tensor) -> Tensor:
        self.calls += 1
        loss = squares(model, batch)
        return loss if self.calls < 3 else self.then(loss)


def no_number(loss: Tensor) -> Tensor:
    return loss * float("nan")


def a_bug(loss: Tensor) -> Tensor:
    raise KeyError("the third batch")


def test_a_loss_that_is_no_number_any_more_is_told_and_the_soak_goes_on(runner: ProcessRunner) -> None:
    soak = soaked(tiny(loss=Later(no_number)), runner, (1,), 5)

    assert soak.passed
    assert (soak.steps_run, soak.not_finite_from) == (5, 3)


def test_a_bug_that_only_later_batches_meet_is_that_bug(runner: ProcessRunner) -> None:
    with pytest.raises(WorkloadError, match="KeyError: 'the third batch'"):
        soaked(tiny(loss=Later(a_bug)), runner, (1,), 5)


def no_end(loss: Tensor) -> Tensor:
    time.sleep(60)
    return loss


def test_a_soak_ends_at_its_time_limit(runner: ProcessRunner) -> None:
    prober = prober_of(tiny(loss=Later(no_end)), runner)
    prober.limits = Limits(verification_seconds=2.0)

    assert isinstance(prober.soak((1,), 5, why="a test"), TimedOut)


def test_a_plan_that_only_the_first_samples_bear_out_gives_way_to_one_that_lasts(kept_servers: None) -> None:
    # Eight short samples, then long ones, which pad a micro-batch of eight to 2 MiB and its trial to more than 8.
    workload = of_lengths(*[WIDTH // 16] * 8, *[WIDTH] * 4)
    options = Options(
        device="cpu", memory_limit=8 * MIB, effective_batch_size=8, ceiling="target", soak_steps=12, headroom=0.0
    )
    report = probe(workload, options, comparison=False, check=False)

    assert report.plan is not None
    assert report.soak is not None
    assert report.soak.passed
    assert report.soak.micro_batch_sizes == report.plan.micro_batch_sizes
    assert sum(report.plan.micro_batch_sizes) == 8
    assert max(report.plan.micro_batch_sizes) < 8
    assert (report.plan.soaked_steps, report.plan.soaked_peak_bytes) == (12, report.soak.peak_bytes)
    assert report.soak.peak_bytes is not None
    assert report.soak.peak_bytes <= 8 * MIB
    (failed, *_) = (note for note in report.notes if "failed its soak" in note)
    assert failed.startswith("The plan 1 × 8 failed its soak: it ran out of memory in optimizer step ")
    assert f"16 times the {8 * (WIDTH // 16) + 8:,} that it was verified with" in failed
    assert failed in report.plan.notes
    assert sum("--worst-case sizes" in note.replace(" (worst_case=True)", "") for note in report.notes) == 1


def test_a_live_model_is_soaked_in_this_process_and_is_as_it_was(quick_collection: None) -> None:
    model = Scale()
    options = Options(
        device="cpu", memory_limit=64 * MIB, effective_batch_size=2, ceiling="target", isolation="none", soak_steps=3
    )
    workload = Workload(model=model, make_batch=rows, loss=squares, optimizer=sgd)
    report = probe(workload, options, comparison=False, check=False)

    assert report.plan is not None
    assert report.plan.soaked_steps == 3
    assert bool((model.weight == 1).all())
    assert model.weight.grad is None
