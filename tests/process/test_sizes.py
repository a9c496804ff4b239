"""Models that take some sizes only, and data that end: the right answer, or a clear sentence."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from process.workloads import Scale, prober_of, rows, sgd, squares
from profiler import Options, Purpose, find_accumulation_plan, probe
from profiler.batches import batches_of
from profiler.errors import ShortBatch, WorkloadError
from profiler.events import Event, Noted
from profiler.finder import climb, find_largest
from profiler.outcomes import Finding, Refused
from profiler.prober import Prober
from profiler.units import MIB
from profiler.workers.runner import ProcessRunner
from profiler.workload import Workload

WIDTH = 2**14


class Normed(nn.Module):
    """One value a channel and sample: BatchNorm has no variance of a single sample."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, batch: Tensor) -> Tensor:
        normed: Tensor = self.norm(batch)
        return normed


class Fours(Scale):
    def forward(self, batch: Tensor) -> Tensor:
        fours: Tensor = super().forward(batch).unflatten(0, (-1, 4))
        return fours.sum(1)


def short_rows(size: int) -> Tensor:
    return torch.ones(size, WIDTH)


def nine_rows(size: int) -> Tensor:
    return rows(min(size, 9))


def rows_by_index(size: int) -> Tensor:
    stored = [torch.ones(2**16)] * 9
    return torch.stack([stored[index] for index in range(size)])


def rows_in_turn() -> Iterator[Tensor]:
    return iter([torch.ones(2**16)] * 9)


def rows_to_the_end(size: int) -> Tensor:
    left = rows_in_turn()
    return torch.stack([next(left) for _ in range(size)])


def rows_to_the_end_of_a_generator(size: int) -> Tensor:
    left = rows_in_turn()
    return torch.stack(list(next(left) for _ in range(size)))  # noqa: C400  # a generator, on purpose


def rows_without_repeats(size: int) -> Tensor:
    return torch.stack(random.sample([torch.ones(2**16)] * 9, size))


def wordless_rows(size: int) -> Tensor:
    if size > 9:
        raise IndexError
    return rows(size)


def no_rows(size: int) -> Tensor:
    left: Iterator[Tensor] = iter([])
    return torch.stack([next(left) for _ in range(size)])


def limited(model: nn.Module, batch: Tensor) -> Tensor:
    if len(batch) > 11:
        raise RuntimeError("the batch must be at most 65,535")
    return squares(model, batch)


def workload(**changes: Any) -> Workload:
    return replace(Workload(model=Scale, make_batch=rows, loss=squares, optimizer=sgd, name="sized"), **changes)


def watched(runner: ProcessRunner, sized: Workload, events: list[Event], limit_bytes: int = 16 * MIB) -> Prober:
    prober = prober_of(sized, runner, limit_bytes)
    prober.observe = events.append
    return prober


def test_batch_norm_starts_at_two(runner: ProcessRunner) -> None:
    events: list[Event] = []
    prober = watched(runner, workload(model=Normed, make_batch=short_rows), events)
    finding = find_largest(prober)
    climb(prober, finding.largest_fit)

    assert prober.smallest_size == 2
    assert finding.limited_by == "memory"
    assert finding.largest_fit > 8
    assert min(prober.trials) == 2
    assert [size for size in prober.trials if size & (size - 1) == 0 and size <= finding.largest_fit] != []
    (note,) = [event.text for event in events if isinstance(event, Noted) and "start at" in event.text]
    assert note.startswith("sizes start at 2: ")
    assert "Expected more than 1 value per channel" in note


def test_batch_norm_below_its_smallest_size_is_the_users_error(runner: ProcessRunner) -> None:
    prober = watched(runner, workload(model=Normed, make_batch=short_rows), [])

    with pytest.raises(WorkloadError, match="at micro-batch size 1, in its forward: ValueError: Expected more than 1"):
        find_largest(prober, ceiling=1)


def test_a_model_of_fours_is_searched_in_fours(runner: ProcessRunner) -> None:
    prober = watched(runner, workload(model=Fours), [])
    prober.multiple_of = prober.smallest_size = 4
    finding = find_largest(prober)

    assert finding.limited_by == "memory"
    assert finding.largest_fit >= 4
    assert finding.smallest_misfit == finding.largest_fit + 4
    assert all(size % 4 == 0 for size in prober.trials)


def test_a_model_of_fours_says_so_where_nobody_did(runner: ProcessRunner) -> None:
    with pytest.raises(WorkloadError, match=r"Micro-batches of 4 run: .* --multiple-of 4\.") as raised:
        find_largest(watched(runner, workload(model=Fours), []))

    assert "unflatten" in (raised.value.user_traceback or "")


@pytest.mark.parametrize(
    ("changes", "most", "said"),
    [
        pytest.param({"make_batch": nine_rows}, 9, "returned a batch of 9 samples", id="fewer samples"),
        pytest.param({"make_batch": rows_by_index}, 9, "list index out of range", id="an index too far"),
        pytest.param({"make_batch": wordless_rows}, 9, "IndexError", id="an error without words"),
        pytest.param({"make_batch": rows_to_the_end}, 9, "ended by StopIteration", id="the end of an iterator"),
        pytest.param({"make_batch": rows_to_the_end_of_a_generator}, 9, "ended by StopIteration", id="in a generator"),
        pytest.param({"loss": limited}, 11, "at most 65,535", id="a kernel's limit"),
    ],
)
@pytest.mark.parametrize("purpose", Purpose)
def test_another_limit_than_memory_is_found_and_named(
    runner: ProcessRunner, purpose: Purpose, changes: dict[str, Callable[..., Tensor]], most: int, said: str
) -> None:
    finding: Finding = find_largest(watched(runner, workload(**changes), [], 64 * MIB), purpose=purpose)

    assert (finding.largest_fit, finding.smallest_misfit, finding.limited_by) == (most, most + 1, "refusal")
    misfit = finding.trial_of(most + 1)
    assert misfit is not None
    assert isinstance(misfit.outcome, Refused)
    assert said in misfit.outcome.message
    assert not misfit.outcome.message.endswith((":", " "))
    assert misfit.outcome.label == "refused"


def test_a_plan_is_made_of_multiples(kept_servers: None) -> None:
    plan = find_accumulation_plan(
        workload(model=Fours), 40, device="cpu", memory_limit=16 * MIB, multiple_of=4, check=False
    )

    assert sum(plan.micro_batch_sizes) == 40
    assert all(size % 4 == 0 for size in plan.micro_batch_sizes)
    assert plan.verified_steps == 5


def heavier_below_eight(model: nn.Module, batch: Tensor) -> Tensor:
    copies = torch.ones(2**20, 4) if 4 <= len(batch) < 8 else torch.ones(1)
    return squares(model, batch) + 0 * copies.sum()


def test_memory_that_falls_with_the_size_is_said(runner: ProcessRunner) -> None:
    events: list[Event] = []
    prober = watched(runner, workload(loss=heavier_below_eight), events, 64 * MIB)
    climb(prober, find_largest(prober, ceiling=16).largest_fit)

    (note,) = [event.text for event in events if isinstance(event, Noted)]
    assert note.startswith("memory does not rise with the micro-batch size everywhere: ")
    assert " and 8 needs " in note


def test_evaluation_memory_that_falls_with_the_size_is_said_of_batches(kept_servers: None) -> None:
    options = Options(device="cpu", memory_limit=64 * MIB, train=False, evaluate=True, ceiling=16)
    (note,) = probe(workload(loss=heavier_below_eight), options).notes

    assert re.match(
        r"memory in evaluation does not rise with the batch size everywhere: [4-7] needs .*, and 16 needs ", note
    )
    assert "micro-batch" not in note


def test_what_was_run_is_no_plan_where_there_is_none(kept_servers: None) -> None:
    options = Options(device="cpu", memory_limit=64 * MIB, ceiling=16)
    notes = probe(workload(loss=heavier_below_eight), options, comparison=False, check=False).notes

    (note,) = [note for note in notes if note.startswith("memory does not rise")]
    assert "16 was run; sizes in between" in note
    assert "plan" not in note


def test_data_without_a_single_sample_are_the_users_error(runner: ProcessRunner) -> None:
    with pytest.raises(ShortBatch, match=r"make_batch\(1\) ended by StopIteration: .* Begin them again"):
        find_largest(watched(runner, workload(make_batch=no_rows), []))


@pytest.mark.parametrize("purpose", Purpose)
def test_a_batch_maker_that_fails_after_smaller_sizes_ran_is_an_error_that_names_the_last_of_them(
    runner: ProcessRunner, purpose: Purpose
) -> None:
    with pytest.raises(WorkloadError) as raised:
        find_largest(watched(runner, workload(make_batch=rows_without_repeats), [], 64 * MIB), purpose=purpose)

    said = str(raised.value)
    assert "in its batch: ValueError: Sample larger than population" in said
    assert said.endswith("Where the data end there, stop at the largest size that ran: --ceiling 4.")


def test_a_batch_maker_that_always_fails_is_not_told_to_stop_earlier(runner: ProcessRunner) -> None:
    with pytest.raises(WorkloadError, match="TypeError") as raised:
        find_largest(watched(runner, workload(make_batch=len), []))

    assert "--ceiling" not in str(raised.value)


def ones_or_evens(model: nn.Module, batch: Tensor) -> Tensor:
    if len(batch) > 1:
        batch = batch.unflatten(0, (2, len(batch) // 2)).flatten(0, 1)
    return squares(model, batch)


def test_a_model_of_evens_that_also_takes_one_says_so_where_the_search_meets_an_odd_size(runner: ProcessRunner) -> None:
    # At 33.3 MiB the line's crossing is odd.
    with pytest.raises(WorkloadError) as raised:
        find_largest(watched(runner, workload(loss=ones_or_evens), [], 33 * MIB))

    assert re.search(r"at micro-batch size \d*[13579], in its forward: RuntimeError", str(raised.value))
    assert re.search(r"\. Micro-batches of \d*[02468] run.*: where .* --multiple-of 8\.$", str(raised.value))
    assert "unflatten" in (raised.value.user_traceback or "")


def eights(model: nn.Module, batch: Tensor) -> Tensor:
    return squares(model, batch.unflatten(0, (-1, 8)).flatten(0, 1))


@pytest.mark.parametrize(("purpose", "batches"), [(Purpose.TRAINING, "Micro-batches"), (Purpose.EVALUATION, "Batches")])
def test_multiples_of_the_number_that_was_passed_are_tried(
    runner: ProcessRunner, purpose: Purpose, batches: str
) -> None:
    prober = watched(runner, workload(loss=eights), [], 64 * MIB)
    prober.multiple_of = prober.smallest_size = prober.smallest_evaluation = 4
    with pytest.raises(WorkloadError, match=rf"\. {batches} of 8 run: .* --multiple-of 8\.$"):
        find_largest(prober, purpose=purpose)


def fails_from_five(model: nn.Module, batch: Tensor) -> Tensor:
    if len(batch) > 4:
        raise KeyError("labels")
    return squares(model, batch)


def test_a_bug_at_larger_sizes_is_no_matter_of_multiples(runner: ProcessRunner) -> None:
    with pytest.raises(WorkloadError, match=r"KeyError: 'labels'$"):
        find_largest(watched(runner, workload(loss=fails_from_five), [], 64 * MIB))


def test_evaluation_of_batch_norm_starts_at_one_where_training_starts_at_two(kept_servers: None) -> None:
    normed = workload(model=Normed, make_batch=short_rows)
    alone = probe(normed, Options(device="cpu", memory_limit=16 * MIB, train=False, evaluate=True))
    both = probe(normed, Options(device="cpu", memory_limit=16 * MIB, evaluate=True), comparison=False, check=False)

    (note,) = alone.notes
    assert note.startswith("the training step before an evaluation takes 2 samples: ")
    for report in (alone, both):
        assert report.evaluation is not None
        assert report.evaluation.trials[0].micro_batch_size == 1
        assert report.evaluation.largest_fit > 2
    assert both.finding is not None
    assert min(trial.micro_batch_size for trial in both.finding.trials) == 2
    assert [note.split(":")[0] for note in both.notes if " 2" in note.split(":")[0]] == ["sizes start at 2"]


class Untracked(Normed):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH, track_running_stats=False)


def test_evaluation_by_the_batchs_own_statistics_starts_at_two(runner: ProcessRunner) -> None:
    events: list[Event] = []
    prober = watched(runner, workload(model=Untracked, make_batch=short_rows), events)
    finding = find_largest(prober, purpose=Purpose.EVALUATION)

    assert finding.trials[0].micro_batch_size == prober.smallest_evaluation == 2
    beginnings = [event.text.split(":")[0] for event in events if isinstance(event, Noted)]
    assert beginnings == [
        "the training step before an evaluation takes 2 samples",
        "batch sizes of evaluation start at 2",
    ]


def sum_of_squares(model: nn.Module, batch: tuple[Tensor]) -> Tensor:
    return squares(model, batch[0])


def stored(samples: int) -> Workload:
    dataset = TensorDataset(torch.ones(samples, 1).expand(samples, 2**16))
    return workload(make_batch=batches_of(dataset), loss=sum_of_squares)


def test_a_dataset_shorter_than_what_is_asked_and_found_is_said(kept_servers: None) -> None:
    options = Options(device="cpu", memory_limit=32 * MIB, effective_batch_size=12, ceiling=8)
    notes = probe(stored(5), options, comparison=False, check=False).notes

    (note,) = [note for note in notes if note.startswith("the Dataset has 5 samples, ")]
    assert "fewer than the effective batch of 12 and the largest micro-batch of 8: " in note
