"""Runs with the shapes that real ones take, for the tests of records, figures and folders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from sample_soaks import ended_at_once, on_a_gpu, on_the_cpu, out_of_memory

from profiler.outcomes import Finding, Fits, OutOfMemory, Purpose, Strategy, Throughput, Trial
from profiler.plan import AccumulationPlan
from profiler.records import Records
from profiler.report import RunInfo
from profiler.units import GIB, KIB, MIB

Curve = Callable[[int], float]


def records_like(
    curve: Curve,
    sizes: Sequence[int],
    *,
    capacity: int,
    rate: float = 900.0,
    half_speed_at: float = 12.0,
    effective: int | None = 512,
    chosen: int | None = None,
    ceiling: bool = False,
    steps: int = 6,
    retries: Sequence[int] = (),
    timed: bool = True,
    wobble: float = 0.02,
    workload: str = "digits-resnet",
    device: str = "cpu",
) -> Records:
    """A run that tried `sizes` on a device where a micro-batch of n takes curve(n) bytes."""
    assert len(set(sizes)) == len(sizes)
    trials = tuple(
        Trial(micro_batch_size=size, outcome=outcome(curve(size), capacity, size in retries), why="the sample's shape")
        for size in sizes
    )
    fits = [trial.micro_batch_size for trial in trials if trial.fits]
    misfits = [trial.micro_batch_size for trial in trials if not trial.fits]
    plan = None
    if effective and chosen:
        parts = -(-effective // chosen)
        share, more = divmod(effective, parts)
        plan = AccumulationPlan(
            effective_batch_size=effective,
            replicas=((*[share + 1] * more, *[share] * (parts - more)),),
            reason="It has the least time per optimizer step.",
            peak_bytes=round(curve(chosen)),
            step_seconds=effective / rate,
            verified_steps=5,
        )
    return Records(
        run=RunInfo(
            workload=workload,
            device=device,
            capacity_bytes=capacity,
            headroom=0.05,
            effective_batch_size=effective,
            command="microbatch probe",
            started_at="2026-11-23T08:31:05+01:00",
            environment={"torch": "2.13.0"},
        ),
        trials=trials,
        throughput=tuple(timing(size, rate, half_speed_at, wobble) for size in sorted(fits)) if timed else (),
        comparison=comparison(curve, chosen, capacity, steps) if chosen else (),
        finding=Finding(
            largest_fit=max(fits, default=0),
            smallest_misfit=None if ceiling else min(misfits),
            limited_by="ceiling" if ceiling else "memory",
            capacity_bytes=capacity,
            trials=trials,
        ),
        search_seconds=12.5,
        search_trials=6,
        plan=plan,
    )


def outcome(needed: float, capacity: int, retry: bool = False) -> Fits | OutOfMemory:
    """What a trial that needs that many bytes comes to."""
    if needed <= capacity:
        return Fits(peak_bytes=round(needed), allocator_retries=3 if retry else 0, seconds=1.5)
    return OutOfMemory(phase="forward", message="out", evidence="certain", peak_bytes=capacity - MIB, seconds=0.5)


def timing(size: int, rate: float, half_speed_at: float, wobble: float) -> Throughput:
    """A size's windows: nearly `rate` from a few times `half_speed_at` samples on, the middle half within 2 wobbles."""
    seconds = (size + half_speed_at) / rate
    factors = (1 - 2 * wobble, 1 - wobble, 1.0, 1 + wobble, 1 + 3 * wobble)
    return Throughput(
        micro_batch_size=size,
        micro_step_seconds=tuple(seconds * factor for factor in factors),
        optimizer_seconds=(0.01, 0.011),
    )


def comparison(curve: Curve, size: int, capacity: int, steps: int) -> tuple[Trial, ...]:
    """The three strategies at 1, 2, 4, ... micro-batches, up to where both that keep every graph are out of memory."""
    fixed = curve(0)
    needed: dict[Strategy, Curve] = {
        Strategy.WHOLE_BATCH: lambda count: curve(size * count),
        Strategy.SUMMED_LOSS: lambda count: fixed + (curve(size * count) - fixed) * 1.02,
        Strategy.ACCUMULATION: lambda count: curve(size) + (fixed / 8 if count > 1 else 0),
    }
    trials: list[Trial] = []
    failed: set[Strategy] = set()
    for count in (2**power for power in range(steps)):
        if {Strategy.WHOLE_BATCH, Strategy.SUMMED_LOSS} <= failed:
            break
        for strategy in [strategy for strategy in Strategy if strategy not in failed]:
            result = outcome(needed[strategy](count), capacity)
            failed |= {strategy} if isinstance(result, OutOfMemory) else set()
            trials.append(Trial(micro_batch_size=size, outcome=result, strategy=strategy, accumulation_steps=count))
    return tuple(trials)


def resnet() -> Records:
    """212 fits in 512 MiB, 213 does not."""
    records = records_like(
        lambda n: 137.0 * MIB + 1.768 * MIB * n,
        (1, 4, 16, 213, 212, 2, 8, 32, 64, 128, 171),
        capacity=512 * MIB,
        chosen=171,
        rate=240.0,
    )
    return replace(records, soaks=(on_the_cpu(),))


def fast_small() -> Records:
    """The same memory, but a small micro-batch is the plan's: its mark lies at the left."""
    return records_like(
        lambda n: 137.0 * MIB + 1.768 * MIB * n,
        (1, 4, 16, 213, 212, 2, 8, 32, 64, 128),
        capacity=512 * MIB,
        chosen=16,
        effective=256,
    )


def tiny_cnn() -> Records:
    """9,633 samples fit."""
    return records_like(
        lambda n: 8.0 * MIB + 53.573 * KIB * n,
        (1, 4, 16, 9700, 9634, 9633, 2, 8, *(2**power for power in range(5, 14))),
        capacity=512 * MIB,
        chosen=256,
        effective=4096,
        rate=52_000,
        half_speed_at=150,
        steps=8,
    )


def bent() -> Records:
    """A flat beginning (the optimizer's temporaries), then a steep rise: the line from the flat part overshoots."""
    records = records_like(
        lambda n: max(300.0 * MIB + 0.01 * MIB * n, 180.0 * MIB + 0.3 * MIB * n),
        (1, 4, 16, 64, 6000, 2400, 1300, 1106, 1107, 2, 8, 32, 128, 256, 512, 1024),
        capacity=512 * MIB,
        chosen=1024,
        effective=4096,
        rate=8000,
        wobble=0.1,
    )
    return replace(records, soaks=(out_of_memory(),))


def gpu() -> Records:
    """A large card, with a size that fitted only after the allocator gave its cache back."""
    records = records_like(
        lambda n: 2.9 * GIB + 0.1482 * GIB * n,
        (1, 2, 4, 8, 520, 514, 515, 513, 512, 16, 32, 64, 128, 256),
        capacity=round(79.1 * GIB),
        chosen=256,
        effective=1024,
        rate=2900,
        retries=(512, 513, 514),
        workload="torchvision:resnet50",
        device="cuda:0",
        steps=5,
    )
    return replace(records, soaks=(on_a_gpu(reserved=70.0),))


def only_one() -> Records:
    """One sample fits and two do not."""
    records = records_like(lambda n: 20.0 * MIB + 41.5 * MIB * n, (1, 2), capacity=64 * MIB, chosen=1, effective=8)
    return replace(records, soaks=(ended_at_once(),))


def nothing_fits() -> Records:
    """Not even one sample fits."""
    return records_like(lambda n: 90.0 * MIB + MIB * n, (1,), capacity=64 * MIB, effective=8)


def ceiling() -> Records:
    """The search ended at a ceiling, far below the capacity."""
    return records_like(
        lambda n: 1.2 * GIB + 0.02 * GIB * n,
        (1, 4, 16, 256, 2, 8, 32, 64, 128),
        capacity=round(79.1 * GIB),
        chosen=64,
        effective=256,
        ceiling=True,
        steps=3,
    )


def no_plan() -> Records:
    """No effective batch was given, and the device gives no timing."""
    return records_like(
        lambda n: 470.0 * MIB + 0.2 * MIB * n,
        (1, 2, 4, 240, 210, 211, 8, 16, 32, 64, 128),
        capacity=512 * MIB,
        effective=None,
        timed=False,
    )


def chosen_is_largest() -> Records:
    """The ceiling, the plan's size and the fastest one are the same, and nearly fill the memory."""
    return records_like(
        lambda n: 100.0 * MIB + 3.0 * MIB * n,
        (1, 4, 16, 128, 2, 8, 32, 64),
        capacity=512 * MIB,
        chosen=128,
        effective=128,
        ceiling=True,
        half_speed_at=60,
    )


def with_evaluation(records: Records, curve: Curve, sizes: Sequence[int], *, ceiling: bool = False) -> Records:
    """The run that also tried batches of evaluation, of which n samples take curve(n) bytes."""
    found = records_like(curve, sizes, capacity=records.run.capacity_bytes, ceiling=ceiling).finding
    assert found is not None
    trials = tuple(replace(trial, purpose=Purpose.EVALUATION) for trial in found.trials)
    return replace(
        records,
        evaluations=trials,
        evaluation=replace(found, trials=trials, purpose=Purpose.EVALUATION),
        evaluation_search_seconds=9.5,
        evaluation_search_trials=len(trials),
    )


def evaluated() -> Records:
    """212 samples fit in training, and 2,441 in evaluation."""
    return with_evaluation(resnet(), lambda n: 4.0 * MIB + 0.2081 * MIB * n, (1, 4, 16, 64, 1024, 2441, 2442))


def evaluated_alone() -> Records:
    """A run that never looked for a micro-batch, and ended at a ceiling."""
    run = replace(no_plan().run, effective_batch_size=None)
    return with_evaluation(Records(run=run), lambda n: 30.0 * MIB + 0.05 * MIB * n, (1, 4, 16, 64), ceiling=True)


SHAPES: dict[str, Callable[[], Records]] = {
    make.__name__: make
    for make in (resnet, fast_small, tiny_cnn, bent, gpu, only_one, ceiling, no_plan, chosen_is_largest)
}
