"""Three ways to the gradient of one optimizer step, with one signature: whole batch, summed loss, accumulation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from profiler.errors import WorkloadError
from profiler.outcomes import Strategy
from profiler.placing import Placement
from profiler.workload import Precision, Workload


@dataclass(slots=True)
class Phase:
    """What training was doing when it failed: "model", "batch", "forward", "backward", "optimizer step", "evaluation forward"."""

    name: str = "model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """A model's forward and backward, as its training runs them.

    model: the module, or what stands for it in training: compiled, or wrapped for data parallelism. loss: the averaged
    loss of a batch. autocast_dtype: what autocast computes in, None without it. scaler: None except in fp16.
    """

    model: Callable[..., Any]
    loss: Callable[[nn.Module, Any], Tensor]
    device: torch.device
    autocast_dtype: torch.dtype | None = None
    scaler: torch.amp.GradScaler | None = None
    phase: Phase = field(default_factory=Phase)

    def forward(self, batch: Any) -> Tensor:
        """The averaged loss of `batch`, a scalar with a graph; WorkloadError where it is not."""
        self.phase.name = "forward"
        loss = self._loss(batch)
        check_loss(loss)
        return loss

    def evaluate(self, batch: Any) -> Any:
        """What the loss gives for `batch` in evaluation, whatever that is."""
        self.phase.name = "evaluation forward"
        return self._loss(batch)

    def _loss(self, batch: Any) -> Tensor:
        dtype = self.autocast_dtype
        with torch.autocast(self.device.type, dtype=dtype) if dtype else contextlib.nullcontext():
            return self.loss(cast(nn.Module, self.model), batch)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss` to the parameters'."""
        self.phase.name = "backward"
        (self.scaler.scale(loss) if self.scaler is not None else loss).backward()


def autocast_dtype(precision: Precision) -> torch.dtype | None:
    """What autocast computes in at `precision`; None for the precisions that need no autocast."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A workload brought onto a device, ready to step.

    passes: the forward and backward of `model`, compiled where the workload asks for it. host_batches: those made so far,
    by size, so that making one is not timed as training; None where each is made anew.
    """

    workload: Workload
    model: nn.Module
    passes: Passes
    optimizer: torch.optim.Optimizer
    placement: Placement
    phase: Phase = field(default_factory=Phase)
    host_batches: dict[int, Any] | None = None

    @classmethod
    def start(cls, workload: Workload, placement: Placement, phase: Phase, *, keep_batches: bool = False) -> Training:
        """Build the model and its optimizer on the device of `placement`, in training mode.

        Modules in evaluation mode inside a model in training mode are frozen, and stay so.
        keep_batches: make a batch of each size once; training has data loaders for that.
        Raises WorkloadError for a model without trainable parameters, and whatever the user's builders raise.
        """
        phase.name = "model"
        model, device = placement.model(workload.build_model), placement.device
        _train(model)
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not trainable:
            raise WorkloadError(
                f"the model ({type(model).__name__}) has no parameter with requires_grad: there is nothing to train."
            )
        # Starting at torch's own 65,536, the first steps can all be skipped; the optimizer would have no state, and the
        # peak would be too low.
        scaler = torch.amp.GradScaler(device.type, init_scale=1.0) if workload.precision == "fp16" else None
        with placement.training():  # some optimizers make their state at once
            optimizer = placement.optimizer(workload.build_optimizer(trainable))
        return cls(
            workload=workload,
            model=model,
            passes=Passes(
                model=placement.compiled(model) if workload.compile else model,
                loss=workload.loss,
                device=device,
                autocast_dtype=autocast_dtype(workload.precision),
                scaler=scaler,
                phase=phase,
            ),
            optimizer=optimizer,
            placement=placement,
            phase=phase,
            host_batches={} if keep_batches else None,
        )

    def batch(self, size: int) -> Any:
        """A batch of `size` samples on the device; WorkloadError where the batch maker gives another number or ends."""
        self.phase.name = "batch"
        if self.host_batches is None:
            return self.placement.batch(self.placement.made(self.workload.make_batch, size))
        if size not in self.host_batches:
            self.host_batches[size] = self.placement.made(self.workload.make_batch, size)
        return self.placement.batch(self.host_batches[size])

    def optimizer_step(self) -> None:
        """Step the optimizer on the gradients as they are; WorkloadError where fp16 makes it skip the step."""
        self.phase.name = "optimizer step"
        scaler = self.passes.scaler
        if scaler is None:
            self.optimizer.step()
            return
        scaler.step(self.optimizer)
        before = scaler.get_scale()
        scaler.update()
        if scaler.get_scale() < before:
            raise WorkloadError(
                f"the gradients are not finite in fp16 even at a loss scale of {before:g}, so the optimizer skips its "
                "step and its memory cannot be measured: use bf16 or fp32, or lower the loss."
            )


def _train(model: nn.Module) -> None:
    """Training mode as the user's loop has it: `train()` is called, which may be theirs, and what they froze stays frozen."""
    frozen = [module for module in model.modules() if model.training and not module.training]
    model.train()
    for module in frozen:
        module.training = False


def check_loss(loss: Any) -> None:
    """Raise WorkloadError unless `loss` is a scalar tensor with a gradient."""
    if not isinstance(loss, Tensor):
        raise WorkloadError(f"loss returned a {type(loss).__name__}: it must return a scalar tensor.")
    if loss.numel() != 1:
        raise WorkloadError(
            f"loss returned a tensor of shape {tuple(loss.shape)}: it must be a scalar, averaged over the batch "
            "(reduction='mean')."
        )
    if not loss.requires_grad:
        raise WorkloadError(
            "the loss has no gradient: it was computed under no_grad, detached, or depends on no trainable parameter."
        )


Parts = Iterable[tuple[Any, float]]


def whole_batch(passes: Passes, parts: Parts) -> Tensor:
    """One forward and one backward over the only part; the loss, detached."""
    ((batch, _),) = parts
    loss = passes.forward(batch)
    passes.backward(loss)
    return loss.detach()


def summed_loss(passes: Passes, parts: Parts) -> Tensor:
    """A forward of every part, then one backward over the sum of weighted losses: every part's graph stays alive."""
    total: Tensor | None = None
    for batch, weight in parts:
        loss = passes.forward(batch) * weight
        total = loss if total is None else total + loss
    assert total is not None, "a step has at least one part"
    passes.backward(total)
    return total.detach()


def accumulation(passes: Passes, parts: Parts) -> Tensor:
    """A forward and a backward of every part by itself: each graph is freed, and gradients add up in .grad."""
    total: Tensor | None = None
    for batch, weight in parts:
        loss = passes.forward(batch) * weight
        passes.backward(loss)
        total = loss.detach() if total is None else total + loss.detach()
    assert total is not None, "a step has at least one part"
    return total


GRADIENT: dict[Strategy, Callable[[Passes, Parts], Tensor]] = {
    Strategy.WHOLE_BATCH: whole_batch,
    Strategy.SUMMED_LOSS: summed_loss,
    Strategy.ACCUMULATION: accumulation,
}


def run_step(training: Training, strategy: Strategy, sizes: Sequence[int]) -> Tensor:
    """One optimizer step over micro-batches of `sizes`, made one at a time; the loss of all their samples.

    Weights are shares of samples. Memory and time do not depend on the weights, so a loss that averages over tokens is
    measured as well by them.
    """
    training.optimizer.zero_grad(set_to_none=True)
    loss = GRADIENT[strategy](training.passes, _parts(training, sizes))
    training.optimizer_step()
    return loss


def _parts(training: Training, sizes: Sequence[int]) -> Iterator[tuple[Any, float]]:
    samples = sum(sizes)
    for size in sizes:
        yield training.batch(size), size / samples
