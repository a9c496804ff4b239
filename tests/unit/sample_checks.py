"""Checks that came out in different ways, for the tests of records, documents and tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from profiler.equivalence import Decomposition, Equivalence, Way
from profiler.outcomes import Strategy

SPLITS = ((4, 4, 4, 4), (5, 5, 5, 1), (1,) * 16)
PARTS = (Strategy.SUMMED_LOSS, Strategy.ACCUMULATION)
BOUND = {"fp64": 3.6e-12, "fp32": 4.9e-4, "bf16": 0.25}
EXACT = (2.302585092994046, -1234.567890123456)
NORMS = "BatchNorm normalises each micro-batch by itself (9 layers)"
# What fp32 makes of the same sums.
ROUNDED = (2.3025851249694824, -1234.567886352539)


def ways(precision: str, *, difference: float, numbers: tuple[float, float]) -> tuple[Way, ...]:
    """The whole batch, and three splits as a summed loss and accumulated, each as far from it."""
    loss, total = numbers
    whole = Way(
        strategy=Strategy.WHOLE_BATCH,
        split=(16,),
        precision=precision,
        loss=loss,
        gradient_difference=0.0,
        bound=BOUND[precision],
        parameter_sum=total,
        equal=True,
    )
    parts = [
        Way(
            strategy=strategy,
            split=split,
            precision=precision,
            loss=loss + difference,
            gradient_difference=difference,
            bound=BOUND[precision],
            parameter_sum=total - difference,
            equal=difference <= BOUND[precision],
        )
        for strategy in PARTS
        for split in SPLITS
    ]
    return (whole, *parts)


def explained(way: Way, why: str) -> Way:
    """`way` with its reason, where it is not equal."""
    return way if way.equal else replace(way, why=why)


def unrun(way: Way, why: str) -> Way:
    """`way`, had it ended in an error."""
    return replace(way, loss=None, gradient_difference=None, parameter_sum=None, equal=False, why=why)


def equal_check() -> Equivalence:
    """A loss that averages over samples, dropout that was switched off, and a precision that rounds much."""
    return Equivalence(
        batch_size=16,
        equal=True,
        decomposes=Decomposition.SAMPLES,
        items=None,
        modules=(),
        random_modules=("body.1", "body.4"),
        ways=(
            *ways("fp64", difference=1.23e-16, numbers=EXACT),
            *(
                explained(way, "the rounding of fp32: equal in fp64")
                for way in ways("fp32", difference=6.1e-4, numbers=ROUNDED)
            ),
        ),
        verdict="equal",
        reasons=(
            "the loss is averaged over samples: f(batch) = sum of (samples of the part / samples) f(part).",
            "random numbers are drawn in body.1, body.4: each micro-batch draws its own.",
        ),
        advice="Weight each micro-batch's loss by its share of the samples: plan.weights.",
        notes=("in the training precision some ways differ by more than the bound, so it is rounding.",),
    )


def unequal_check() -> Equivalence:
    """Many BatchNorms, which a part of one sample cannot even run."""
    why = "could not be run: ValueError: Expected more than 1 value per channel when training"
    found = [
        unrun(way, why) if way.split == SPLITS[-1] else explained(way, NORMS)
        for way in (
            *ways("fp64", difference=0.31, numbers=EXACT),
            *ways("bf16", difference=0.34, numbers=(2.296875, -1234.5)),
        )
    ]
    return Equivalence(
        batch_size=16,
        equal=False,
        decomposes=Decomposition.ITEMS,
        items="(batch[1] != -100).sum()",
        modules=tuple(f"layers.{number}.norm" for number in range(9)),
        random_modules=(),
        ways=tuple(found),
        verdict=f"not equal: {NORMS}; equal with their statistics frozen",
        reasons=(
            "the loss is averaged over items, counted by (batch[1] != -100).sum().",
            "layers.0.norm, layers.1.norm and 7 more (BatchNorm2d) normalise with the statistics of the batch.",
        ),
        advice="Freeze their statistics, or use GroupNorm.",
    )


def unweighted_check() -> Equivalence:
    """The fewest samples, only in fp64, and numbers of unusual lengths."""
    part = Way(
        strategy=Strategy.ACCUMULATION,
        split=(1, 1),
        precision="fp64",
        loss=1.5e-9,
        gradient_difference=None,
        bound=3.6e-12,
        parameter_sum=None,
        equal=False,
        why="its loss or gradient is not a number",
    )
    whole = replace(
        part,
        strategy=Strategy.WHOLE_BATCH,
        split=(2,),
        loss=123456789.123,
        gradient_difference=0.0,
        parameter_sum=0.0,
        equal=True,
        why="",
    )
    return Equivalence(
        batch_size=2,
        equal=False,
        decomposes=Decomposition.NO,
        items=None,
        modules=("the loss",),
        random_modules=("the loss",),
        ways=(whole, part),
        verdict="not equal: the loss is not averaged over samples",
        reasons=(),
        advice="Use a loss that averages over samples.",
    )


CHECKS: dict[str, Callable[[], Equivalence]] = {
    make.__name__: make for make in (equal_check, unequal_check, unweighted_check)
}
