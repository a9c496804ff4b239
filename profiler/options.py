"""How to probe: every choice a caller has, checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from profiler.errors import UsageError
from profiler.limits import Limits
from profiler.plan import check_effective_batch, check_equal_shares, check_multiple
from profiler.simulation.assumption import Assumption
from profiler.simulation.cards import is_simulated
from profiler.targets import TargetOptions
from profiler.units import parse_bytes

DEFAULT_HEADROOM = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to probe.

    train: whether to find the largest micro-batch for training, and with it all else that a probe finds.
    evaluate: whether to find the largest batch for evaluation, without gradients (see `profiler.evaluation`); the ceiling
        holds for both.
    device: "cpu", "cuda:N", or "sim:NAME" for a card that is not here, on which every number is predicted; None takes the
        first GPU that can be used, else the CPU.
    memory_limit: the budget in bytes, or text such as "2GiB"; None is all that is free on a GPU, 512 MiB on the CPU.
    headroom: the share of the capacity, 0 to below 1, that a plan leaves unused.
    ceiling: no larger size is tried; "target" is this replica's share of the effective batch; None has no end but memory.
    multiple_of: only multiples of it are tried and planned, for models that take no others.
    equal: only equal micro-batches, for frameworks that take one number.
    soak_steps: run the plan for so many optimizer steps on batches as training takes them; one that runs out of memory in
        them is no plan. None runs no soak.
    isolation: "process" runs trials in workers, "none" in this process, where on the CPU what libraries keep of earlier
        trials is not counted, so that an answer can be some MiB too large.
    assume: for a simulated card, what lines of the model give that need the values of tensors: "FILE:LINE=VALUE", such as
        "model.py:42=7" or, for the share of elements that a line selects, "model.py:42=12.5%".
    target_options: what a named target is loaded with.
    command: what to type to get the same results again.

    Raises UsageError for a value out of range.
    """

    train: bool = True
    evaluate: bool = False
    effective_batch_size: int | None = None
    device: str | None = None
    memory_limit: int | str | None = None
    headroom: float = DEFAULT_HEADROOM
    data_parallel_size: int = 1
    ceiling: int | Literal["target"] | None = None
    multiple_of: int = 1
    equal: bool = False
    soak_steps: int | None = None
    isolation: Literal["process", "none"] = "process"
    limits: Limits = field(default_factory=Limits)
    assume: tuple[str, ...] = ()
    target_options: TargetOptions = field(default_factory=TargetOptions)
    command: str | None = None

    def __post_init__(self) -> None:
        self._check_purposes()
        if not isinstance(self.headroom, int | float) or not 0 <= self.headroom < 1:
            raise UsageError(
                f"headroom is {self.headroom!r}: it is a share of the memory, from 0 to below 1, such as 0.05."
            )
        if self.effective_batch_size is not None:
            check_effective_batch(self.effective_batch_size, self.data_parallel_size)
        elif self.data_parallel_size < 1:
            raise UsageError(f"data_parallel_size is {self.data_parallel_size}: it counts replicas, at least 1.")
        if self.ceiling == "target" and self.effective_batch_size is None:
            raise UsageError(
                "the ceiling 'target' is a share of the effective batch, and no effective batch was given."
            )
        if self.ceiling is not None and self.ceiling != "target" and not _is_positive_whole(self.ceiling):
            raise UsageError(
                f"the ceiling is {self.ceiling!r}: it is the largest size to try, a whole number of at least 1, or 'target' for "
                "the share of the effective batch."
            )
        self._check_multiple()
        if self.equal and self.effective_batch_size is not None:
            check_equal_shares(self.effective_batch_size, self.data_parallel_size)
        _check_soak(self.soak_steps, self.effective_batch_size)
        self._check_simulated()
        if self.isolation not in ("process", "none"):
            raise UsageError(f"isolation {self.isolation!r} is unknown: use 'process' or 'none'.")
        if not isinstance(self.memory_limit, int | str | None):
            raise UsageError(f"the memory limit is {self.memory_limit!r}: it is whole bytes, or text such as '2GiB'.")
        limit = self.limit_bytes
        if limit is not None and limit < 1:
            raise UsageError(f"the memory limit is {limit} bytes: it must be positive.")

    def _check_simulated(self) -> None:
        simulated = is_simulated(self.device)
        for text in self.assume:
            Assumption.parsed(text)
        if self.assume and not simulated:
            raise UsageError(
                f"an assumption ({self.assume[0]}) stands for what a simulated card cannot compute, and the device is "
                f"{self.device or 'none of them'}: leave it out, or name a card with --device sim:NAME."
            )
        if self.soak_steps is not None and simulated:
            raise UsageError(
                f"a soak of {self.soak_steps} steps shows what many steps do to a real allocator, and {self.device} is "
                "simulated: soak on the card itself."
            )

    def _check_multiple(self) -> None:
        if not _is_positive_whole(self.multiple_of):
            raise UsageError(f"multiple_of is {self.multiple_of!r}: it is a whole number of at least 1, such as 8.")
        if isinstance(self.ceiling, int) and self.ceiling < self.multiple_of:
            raise UsageError(
                f"the ceiling is {self.ceiling}, and no multiple of {self.multiple_of} is as small: raise it, or use another "
                "--multiple-of."
            )
        if self.effective_batch_size is not None:
            check_multiple(self.effective_batch_size, self.multiple_of, self.data_parallel_size)

    def _check_purposes(self) -> None:
        if not self.train and not self.evaluate:
            raise UsageError("neither training nor evaluation is asked for: set train or evaluate to True.")
        if self.effective_batch_size is not None and not self.train:
            raise UsageError(
                f"an effective batch of {self.effective_batch_size} is for a plan of training, and only evaluation is asked "
                "for: ask for both (--train --eval), or leave the effective batch out."
            )

    @property
    def limit_bytes(self) -> int | None:
        """The budget in bytes, None where the device's default holds."""
        return parse_bytes(self.memory_limit) if isinstance(self.memory_limit, str) else self.memory_limit

    @property
    def largest_size(self) -> int | None:
        """The ceiling as a number, None where there is none."""
        if self.ceiling == "target":
            assert self.effective_batch_size is not None, "checked when the options were made"
            blocks = self.effective_batch_size // self.multiple_of
            return -(-blocks // self.data_parallel_size) * self.multiple_of
        return self.ceiling


def _check_soak(steps: object, effective_batch_size: int | None) -> None:
    if steps is None:
        return
    if not _is_positive_whole(steps):
        raise UsageError(
            f"the soak is {steps!r}: it counts optimizer steps, a whole number of at least 1, such as 200."
        )
    if effective_batch_size is None:
        raise UsageError(
            f"a soak of {steps} steps runs a plan, and there is none without an effective batch: give --effective-batch "
            "(effective_batch_size) too."
        )


def _is_positive_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
