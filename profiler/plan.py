"""From an effective batch to micro-batches and weights that add up to it exactly; pure, standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from profiler.errors import UsageError

# Two step times closer than this are a tie whatever their measured spread says.
TIE = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class AccumulationPlan:
    """How to reach an effective batch: which micro-batches, with which weights, and what that costs.

    effective_batch_size: samples per optimizer step over all replicas.
    replicas: each replica's micro-batch sizes; all replicas run the same number, so that none waits in a collective.
    reason: why this plan was chosen, in words. notes: what else the user should know, a sentence each.
    predicted_peak_bytes, predicted_step_seconds: from the trials of its largest micro-batch.
    peak_bytes, step_seconds: measured by running the plan itself for `verified_steps` optimizer steps; None before that.

    It refuses to exist (UsageError) if the sizes do not add up to the effective batch.
    """

    effective_batch_size: int
    replicas: tuple[tuple[int, ...], ...]
    reason: str
    notes: tuple[str, ...] = ()
    predicted_peak_bytes: int | None = None
    predicted_step_seconds: float | None = None
    peak_bytes: int | None = None
    step_seconds: float | None = None
    verified_steps: int = 0

    def __post_init__(self) -> None:
        sizes = [size for replica in self.replicas for size in replica]
        if sum(sizes) != self.effective_batch_size or any(size < 1 for size in sizes):
            raise UsageError(
                f"micro-batches {sizes} add up to {sum(sizes)}, not to the effective batch of {self.effective_batch_size}."
            )
        if len({len(replica) for replica in self.replicas}) != 1:
            raise UsageError(
                f"replicas run different numbers of micro-batches: {[len(replica) for replica in self.replicas]}."
            )

    @property
    def micro_batch_sizes(self) -> tuple[int, ...]:
        """The first replica's micro-batch sizes, largest first; no replica has a larger one."""
        return self.replicas[0]

    @property
    def accumulation_steps(self) -> int:
        """Micro-batches per optimizer step on one replica."""
        return len(self.micro_batch_sizes)

    @property
    def data_parallel_size(self) -> int:
        """How many replicas share the effective batch."""
        return len(self.replicas)

    @property
    def weights(self) -> tuple[float, ...]:
        """The share of the effective batch's samples in each of the first replica's micro-batches.

        Multiply a micro-batch's averaged loss by its weight before its backward. Where gradients are averaged over
        replicas, multiply by `replica_factor` too.
        """
        return tuple(size / self.effective_batch_size for size in self.micro_batch_sizes)

    @property
    def replica_factor(self) -> int:
        """The factor that undoes the averaging of gradients over replicas (DistributedDataParallel divides by it)."""
        return self.data_parallel_size
