"""What the check measured, and what follows from it at once."""

from __future__ import annotations

from dataclasses import dataclass

from profiler.checking.causes import Cause, Kind
from profiler.checking.decomposition import DECLARED, Found
from profiler.checking.draws import LOSS
from profiler.equivalence import Decomposition, Way

PYTHON, NUMPY = "Python's random", "NumPy's random"
NAMES_SHOWN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything that the check measured.

    samples: of the checked batch. precision: of the ways that decide. declares: whether the workload has `loss_items`.
    counted: what it declares for the whole batch, and for its samples together. too_small: which micro-batches cannot be
    run, and why. why_not_exact: why fp64 could not be used. padded: micro-batches that are collated by themselves, where that
    gives other shapes. shows_no_padding: whether rows of integers in the batch leave open what a loss would ignore in them.
    steady: whether the whole batch has the same loss twice. alike: whether all samples hold the same numbers.
    """

    samples: int
    precision: str
    declares: bool
    counted: tuple[float, float]
    ways: tuple[Way, ...]
    found: Found
    causes: tuple[Cause, ...]
    random_modules: tuple[str, ...]
    too_small: str
    why_not_exact: str
    padded: Way | None = None
    shows_no_padding: bool = False
    steady: bool = True
    alike: bool = False

    @property
    def declared_right(self) -> bool:
        """Whether the weights that the workload declares are those by which its loss decomposes."""
        if self.declares:
            return self.found.items == DECLARED
        return self.found.decomposes is Decomposition.SAMPLES

    @property
    def mixed(self) -> bool:
        """Whether any module lets samples see each other."""
        return any(cause.kind is Kind.MIXING for cause in self.causes)

    @property
    def hidden(self) -> bool:
        """Whether how the loss decomposes cannot be seen: behind modules that mix samples, or where runs differ anyway."""
        return self.found.decomposes is Decomposition.NO and (self.mixed or not self.steady)

    @property
    def other_draws(self) -> tuple[str, ...]:
        """The sources of random numbers beside torch that a forward draws from, and that cannot be switched off."""
        return tuple(name for name in self.random_modules if name in (PYTHON, NUMPY))

    @property
    def doubtful(self) -> bool:
        """Whether a difference may come from numbers that could not be switched off."""
        apart = self.found.decomposes is Decomposition.NO or self.mixed
        return apart and (bool(self.other_draws) or not self.steady)


def listed(names: tuple[str, ...]) -> str:
    """The first few names, quoted, for a module may be called 0."""
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(name if name == LOSS else f"'{name}'" for name in names[:NAMES_SHOWN]) + more
