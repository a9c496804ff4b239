"""The optimizer steps of trials: what a size, or a batch for evaluation, is tried by; standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from profiler.outcomes import Purpose, Strategy

SIZING_MICRO_BATCHES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The optimizer steps of a trial: micro-batch sizes of each, run one after the other.

    evaluations: sizes of the batches that are evaluated after the last step (see `profiler.evaluation`).
    """

    strategy: Strategy
    steps: tuple[tuple[int, ...], ...]
    evaluations: tuple[int, ...] = ()


def schedule_for(purpose: Purpose, size: int, trained_size: int) -> Schedule:
    """The schedule of a sizing trial. trained_size: as in `evaluation_schedule`."""
    if purpose is Purpose.TRAINING:
        return sizing_schedule(size)
    return evaluation_schedule(size, trained_size=trained_size)


def sizing_schedule(size: int) -> Schedule:
    """A step that creates the optimizer's state, then one of two accumulated micro-batches.

    The second forward of that runs while the first one's gradients are alive, which is where accumulation peaks. The
    first step is as large as the others: libraries keep memory for every shape that they have seen, and a caching
    allocator cuts the optimizer's state out of what the first step's activations left behind.
    """
    return Schedule(strategy=Strategy.ACCUMULATION, steps=((size,), (size, size)))


def evaluation_schedule(size: int, *, trained_size: int = 1) -> Schedule:
    """A step that creates the optimizer's state and leaves its gradients, then the evaluation of two batches.

    trained_size: the samples of that step, as few as the model can be trained on, since its peak must not decide.
    """
    return Schedule(strategy=Strategy.ACCUMULATION, steps=((trained_size,),), evaluations=(size, size))
