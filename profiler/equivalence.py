"""Whether accumulation equals the whole batch, as data: what was run, what differed, why, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from profiler.outcomes import Strategy

# 16 samples split as 4 x 4, as 3 x 5 + 1 and as 16 x 1.
DEFAULT_CHECKED_SAMPLES = 16


class Decomposition(StrEnum):
    """How the loss of a batch follows from the losses of its parts, as measured.

    SAMPLES: their mean, weighted by samples. ITEMS: weighted by a count of items, such as tokens. WEIGHTED: by weights
    that samples have of their own, such as those of their classes. SUM: their sum. NO: it does not follow from them.
    """

    SAMPLES = "samples"
    ITEMS = "items"
    WEIGHTED = "weighted"
    SUM = "sum"
    NO = "no"


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to the gradient of the checked batch, compared with the whole batch in one backward.

    split: samples of each part, in order. precision: "fp64", or the one that the workload trains in.
    loss: of the whole batch by this way. parameter_sum: of all parameters after a step of SGD with learning rate 0.001.
    gradient_difference: the norm of the difference of the two gradients over all parameters, relative to the norm of the
    whole batch's. bound: what it may be and still be the same to training, likewise; no parameter's may be more beside what
    its own parts contribute. Where the way could not be run, numbers are None and `why` says what happened.
    """

    strategy: Strategy
    split: tuple[int, ...]
    precision: str
    loss: float | None
    gradient_difference: float | None
    bound: float
    parameter_sum: float | None
    equal: bool
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Equivalence:
    """Whether accumulation reaches the whole batch's gradient, for one workload's model and loss, as trained.

    equal: every way that could be run is within its bound, random layers switched off. decomposes: how the loss follows
    from its parts, measured with what breaks it switched off; items: with which weights, in words or as an expression of
    `batch`, None for samples. modules: the names of the modules that break it; random_modules: of those that draw random
    numbers, "the loss" for the loss function. verdict: one sentence. reasons: what was found, a sentence each.
    advice: what to do. notes: what else should be known.
    """

    batch_size: int
    equal: bool
    decomposes: Decomposition
    items: str | None
    modules: tuple[str, ...]
    random_modules: tuple[str, ...]
    ways: tuple[Way, ...]
    verdict: str
    reasons: tuple[str, ...]
    advice: str
    notes: tuple[str, ...] = ()
