"""Summed loss against a backward per micro-batch: what each way to the same gradient needs in memory."""

from __future__ import annotations

from profiler.errors import UsageError
from profiler.events import Compared, Started
from profiler.outcomes import Outcome, Strategy, Trial
from profiler.prober import Prober
from profiler.schedules import Schedule

DEFAULT_MOST_STEPS = 32


def check_comparison(micro_batch_size: int, most_steps: int) -> None:
    """Raise UsageError unless there is something to compare."""
    if micro_batch_size < 1 or most_steps < 1:
        raise UsageError(
            f"cannot compare {most_steps} micro-batches of {micro_batch_size} samples: both must be at least 1."
        )


def compare(prober: Prober, micro_batch_size: int, *, most_steps: int = DEFAULT_MOST_STEPS) -> tuple[Trial, ...]:
    """The peaks of k = 1, 2, 4, ... micro-batches as one whole batch, as a summed loss, and accumulated.

    It ends at `most_steps`, or earlier at the first k at which both the whole batch and the summed loss are out of memory
    (accumulation is still run there). A way that failed is not run with more micro-batches.
    """
    check_comparison(micro_batch_size, most_steps)
    rows: list[Trial] = []
    failed: set[Strategy] = set()
    steps = 1
    while steps <= most_steps and not failed >= {Strategy.WHOLE_BATCH, Strategy.SUMMED_LOSS}:
        for strategy in Strategy:
            if strategy not in failed:
                # Of one micro-batch all three are the same step.
                known = rows[0].outcome if steps == 1 and rows else None
                rows.append(_row(prober, strategy, micro_batch_size, steps, known))
                failed |= set() if rows[-1].fits else {strategy}
        steps *= 2
    return tuple(rows)


def _row(prober: Prober, strategy: Strategy, size: int, steps: int, known: Outcome | None) -> Trial:
    recorded = prober.replay.compared(strategy, steps, size)
    if recorded is not None:
        prober.observe(Compared(trial=recorded))
        return recorded
    prober.observe(Started(what=f"{strategy.value.replace('_', ' ')}, {steps} × {size}", why="to compare peaks"))
    parts = (size * steps,) if strategy is Strategy.WHOLE_BATCH else (size,) * steps
    # The first step creates the optimizer's state, with a part as large as those to come: libraries keep memory for every
    # shape that they have seen.
    schedule = Schedule(strategy=strategy, steps=(parts[:1], parts))
    alive = size if strategy is Strategy.ACCUMULATION else size * steps
    trial = Trial(
        micro_batch_size=size,
        outcome=known or prober.run(schedule, alive),
        strategy=strategy,
        accumulation_steps=steps,
        why="to compare peaks",
    )
    prober.observe(Compared(trial=trial))
    return trial
