"""What trials ask and what they came to, as data; standard library only, so that pure code can use it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from statistics import median, quantiles


class Strategy(StrEnum):
    """The three ways to the gradient of one optimizer step."""

    WHOLE_BATCH = "whole_batch"
    SUMMED_LOSS = "summed_loss"
    ACCUMULATION = "accumulation"


class Purpose(StrEnum):
    """What a size is tried for: micro-batches of training, or batches of evaluation, without gradients."""

    TRAINING = "training"
    EVALUATION = "evaluation"

    @property
    def size(self) -> str:
        """What a size is called that is tried for it."""
        return "micro-batch size" if self is Purpose.TRAINING else "evaluation batch size"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fits:
    """A trial that ran to its end.

    peak_bytes: the peak in the unit of the device's capacity, which decides.
    peak_allocated_bytes, peak_reserved_bytes: live tensors and the caching allocator's segments; None on the CPU.
    peak_device_used_bytes: what the driver saw in use on the whole device (NVML); None where it does not say.
    peak_resident_bytes: pages touched in host memory (VmHWM); None off the CPU.
    unlimited_reserved_bytes, least_capacity_bytes: what the caching allocator would hold with all the memory in the world,
        and the least capacity in which the trial still runs; known on a simulated card alone.
    allocator_retries: how often the allocator gave its cache back to find room; a size that needs it is too big.
    seconds: the trial's wall time in its worker.
    """

    peak_bytes: int
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    peak_device_used_bytes: int | None = None
    peak_resident_bytes: int | None = None
    unlimited_reserved_bytes: int | None = None
    least_capacity_bytes: int | None = None
    allocator_retries: int = 0
    seconds: float

    @property
    def label(self) -> str:
        """ "fits", or "fits_after_retry" where the allocator had to give its cache back."""
        return "fits_after_retry" if self.allocator_retries else "fits"

    @property
    def needed_bytes(self) -> int:
        """What the size needs, for the line: its peak without the room that the allocator merely held.

        At capacity the caching allocator gives back what it merely holds, so the reserved peak overstates the need. On a
        simulated card the need itself is known.
        """
        if self.least_capacity_bytes is not None:
            return self.least_capacity_bytes
        if self.peak_reserved_bytes is None or self.peak_allocated_bytes is None:
            return self.peak_bytes
        return self.peak_bytes - (self.peak_reserved_bytes - self.peak_allocated_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutOfMemory:
    """A trial that the device had no memory for.

    phase: where it failed: "model", "batch", "forward", "backward", "optimizer step", "evaluation forward", or "worker"
        where it died.
    message: the first line of what the device said. evidence: why that counts as out of memory.
    peak_bytes: the peak up to the failure, None where the worker died before it could say.
    """

    phase: str
    message: str
    evidence: str
    peak_bytes: int | None = None
    seconds: float

    @property
    def label(self) -> str:
        """Always "out_of_memory"."""
        return "out_of_memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A size that cannot be run whatever the memory, where smaller ones ran: a kernel's limit, or no more data.

    phase, message, seconds: as in `OutOfMemory`. evidence: why that is a limit on the size, and no bug.
    peak_bytes: always None, since it says nothing about memory.
    at_most: the size that the refusal itself names as the largest, None where it names none.
    """

    phase: str
    message: str
    evidence: str
    peak_bytes: int | None = None
    at_most: int | None = None
    seconds: float

    @property
    def label(self) -> str:
        """Always "refused"."""
        return "refused"


Outcome = Fits | OutOfMemory | Refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One schedule tried once in a worker: the sizes of the micro-batches of its measured step, and what it came to.

    A sizing trial is `accumulation` of two micro-batches of `micro_batch_size`; `why` says why this size was tried.
    purpose: where it is evaluation, `micro_batch_size` counts the samples of each of its two batches, and `strategy` and
    `accumulation_steps` mean nothing.
    """

    micro_batch_size: int
    outcome: Outcome
    strategy: Strategy = Strategy.ACCUMULATION
    accumulation_steps: int = 2
    why: str = ""
    purpose: Purpose = Purpose.TRAINING

    @property
    def fits(self) -> bool:
        """Whether it ran to its end, with or without allocator retries."""
        return isinstance(self.outcome, Fits)

    @property
    def peak_bytes(self) -> int | None:
        """The peak in the capacity's unit, None where the worker died before it could say."""
        return self.outcome.peak_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """How long forward and backward of one micro-batch take, and the optimizer's step.

    micro_step_seconds: one value a window, each the mean over that window's micro-steps.
    optimizer_seconds: one value for each optimizer step that was timed.
    joules_per_sample: None where the device does not count energy; `energy_note` then says why.
    """

    micro_batch_size: int
    micro_step_seconds: tuple[float, ...]
    optimizer_seconds: tuple[float, ...]
    joules_per_sample: float | None = None
    energy_note: str | None = None

    @property
    def median_micro_step_seconds(self) -> float:
        """Median over windows."""
        return median(self.micro_step_seconds)

    @property
    def median_optimizer_seconds(self) -> float:
        """Median over optimizer steps."""
        return median(self.optimizer_seconds)

    @property
    def samples_per_second(self) -> float:
        """Samples through forward and backward in a second, at the median; the optimizer's step is not in it."""
        return self.micro_batch_size / self.median_micro_step_seconds

    @property
    def spread(self) -> float:
        """Interquartile range of the windows over their median: 0.1 means that the middle half lies within 10 %."""
        if len(self.micro_step_seconds) < 2:
            return 0.0
        first, _, third = quantiles(self.micro_step_seconds, n=4, method="inclusive")
        return (third - first) / self.median_micro_step_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The largest micro-batch size, or batch of evaluation, that ran, and how the search ended.

    limited_by "memory": `largest_fit + 1` (or the next multiple that was asked for) ran out of memory, and is
    `smallest_misfit`. limited_by "refusal": that size cannot be run for another reason. limited_by "ceiling": the
    ceiling itself was tried, and fits. `largest_fit` is 0 where nothing fits. It cannot be built with a `largest_fit` that
    has no trial that fitted, nor `smallest_misfit` without its failure.
    """

    largest_fit: int
    smallest_misfit: int | None
    limited_by: str
    capacity_bytes: int
    trials: tuple[Trial, ...]
    purpose: Purpose = Purpose.TRAINING

    def __post_init__(self) -> None:
        fitting = {trial.micro_batch_size for trial in self.trials if trial.fits}
        failing = {trial.micro_batch_size for trial in self.trials if not trial.fits}
        assert self.largest_fit == 0 or self.largest_fit in fitting, f"{self.largest_fit} was never run"
        assert self.smallest_misfit is None or self.smallest_misfit in failing, f"{self.smallest_misfit} never failed"
        assert self.smallest_misfit is None or self.largest_fit < self.smallest_misfit, "the misfit is no larger"
        assert self.limited_by in ("memory", "refusal", "ceiling"), f"limited by {self.limited_by}"
        assert (self.limited_by == "ceiling") == (self.smallest_misfit is None), f"{self.limited_by} without a misfit"
        assert self.largest_fit or self.limited_by == "memory", "a ceiling that fits is a size, and so is what ran"

    def trial_of(self, micro_batch_size: int) -> Trial | None:
        """The trial of that size, None where it was not run."""
        return next((trial for trial in self.trials if trial.micro_batch_size == micro_batch_size), None)
