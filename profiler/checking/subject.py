"""What is checked, in one precision: its gradient for any parts of the batch, from the same state each time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from profiler.batches import map_tensors
from profiler.checking.draws import FixedDraws, InFloat64, seed_everything
from profiler.checking.gradients import Gradients, gradients_of, norm, sketch
from profiler.devices.out_of_memory import Failure, Verdict, classify
from profiler.errors import MicrobatchError
from profiler.nests import slice_nest
from profiler.outcomes import Strategy
from profiler.steps import GRADIENT, Passes

T = TypeVar("T")

# Rounding may move a gradient by this many units in the last place, relative to what its samples contribute. The deepest
# models tried stay well below (benchmarks/LOG.md); what breaks the identity moves it by a thousandth and more.
ROUNDING_UNITS = {"fp64": 2.0**14, "fp32": 2.0**12, "tf32": 2.0**3, "fp16": 2.0**3, "bf16": 2.0**3}
UNIT = {"fp64": 2.0**-52, "fp32": 2.0**-23, "tf32": 2.0**-10, "fp16": 2.0**-10, "bf16": 2.0**-7}
# In fp64, what is below eight units of fp32 is equal for training in fp32 or coarser: weights that fp32 has summed, or a
# mean that is guarded by a small constant, are right, and not exact.
NEARLY = 2.0**-20


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Some samples of the batch by themselves: their averaged loss, a sketch of its gradient, and the gradient's norm."""

    samples: tuple[int, ...]
    loss: float
    sketch: Tensor
    norm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """The loss and gradient of the whole batch, reached in some way."""

    loss: float
    gradients: Gradients


@dataclass(slots=True, kw_only=True)
class Subject:
    """A model and its loss on a device, the checked batch there, and the precision in which they are run.

    samples: how many the batch holds. before_forward: called before each forward, to put back what it is not to see.
    before_part: called with the places of the samples that are run by themselves next.
    draws: what random numbers are replaced by.
    """

    passes: Passes
    model: nn.Module
    batch: Any
    samples: int
    precision: str
    before_forward: tuple[Callable[[], None], ...] = ()
    before_part: Callable[[Sequence[int]], None] = lambda places: None
    draws: FixedDraws = field(default_factory=FixedDraws)

    @property
    def exact(self) -> float:
        """What rounding may move a gradient by, relative to what its samples contribute."""
        return ROUNDING_UNITS[self.precision] * UNIT[self.precision]

    @property
    def tolerance(self) -> float:
        """What a gradient may differ by and still be the same to training, likewise."""
        return max(self.exact, NEARLY)

    def take(self, samples: Sequence[int]) -> Any:
        """The batch of those samples, in that order."""
        start, stop = samples[0], samples[-1] + 1
        if list(samples) == list(range(start, stop)):
            return slice_nest(self.batch, start, stop, self.samples)
        index = torch.tensor(samples, device=self.passes.device)
        return map_tensors(lambda t: t[index] if t.dim() and t.shape[0] == self.samples else t, self.batch)

    def total(self, strategy: Strategy, parts: Sequence[tuple[Any, float]]) -> Total:
        """The gradient of the weighted parts, computed as training with that strategy would, from the model as it was."""
        with self._computing():
            loss = GRADIENT[strategy](self._passes(), parts)
        return Total(loss=float(loss), gradients=gradients_of(self.model))

    def part(self, samples: Sequence[int]) -> Part:
        """Those samples by themselves."""
        self.before_part(samples)
        total = self.total(Strategy.WHOLE_BATCH, [(self.take(samples), 1.0)])
        lengths = [parameter.numel() * (2 if parameter.is_complex() else 1) for parameter in self.model.parameters()]
        return Part(
            samples=tuple(samples),
            loss=total.loss,
            sketch=sketch(total.gradients, lengths),
            norm=norm(total.gradients),
        )

    def forward(self, samples: Sequence[int], *, keep_buffers: bool = True) -> None:
        """One forward of those samples, for what it does to buffers and what hooks see of it."""
        self.before_part(samples)
        with self._computing(keep_buffers=keep_buffers):
            self._passes().forward(self.take(samples))

    @contextmanager
    def _computing(self, *, keep_buffers: bool = True) -> Iterator[None]:
        """Without gradients at the start, with buffers put back at the end, draws fixed, and in fp64 where that is due."""
        with ExitStack() as stack:
            if keep_buffers:
                stack.enter_context(buffers_kept(self.model))
            self.model.zero_grad(set_to_none=True)
            if self.precision == "fp64":
                stack.enter_context(default_dtype(torch.float64))
                stack.enter_context(InFloat64())  # type: ignore[no-untyped-call]  # torch's __init__ has no types
            stack.enter_context(self.draws)
            yield

    def _passes(self) -> Passes:
        passes = self.passes

        def loss(model: nn.Module, batch: Any) -> Tensor:
            # The same numbers for each part: a draw that one part alone has made must not shift the next part's.
            seed_everything()
            for prepare in self.before_forward:
                prepare()
            return passes.loss(model, batch)

        return Passes(
            model=passes.model,
            loss=loss,
            device=passes.device,
            autocast_dtype=passes.autocast_dtype,
            phase=passes.phase,
        )


def tried(run: Callable[[], T], device_type: str) -> T | str:
    """What `run` gives; where it raises for another reason than memory, what it raised, in a line."""
    try:
        return run()
    except Exception as error:
        if classify(Failure.of(error), device_type=device_type).verdict is Verdict.CERTAIN:
            raise
        text = next(iter(str(error).strip().splitlines()), "")
        return text if isinstance(error, MicrobatchError) else f"{type(error).__name__}: {text}"


def buffers_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all buffers, by qualified name."""
    return {name: buffer.detach().clone() for name, buffer in model.named_buffers()}


def put_buffers(model: nn.Module, buffers: dict[str, Tensor]) -> None:
    """Give the buffers back what they held."""
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name in buffers and buffer.shape == buffers[name].shape:
                buffer.copy_(buffers[name])


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """At the end of the block the model's buffers hold what they held before."""
    before = buffers_of(model)
    try:
        yield
    finally:
        put_buffers(model, before)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Another default type of torch, inside the block."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def in_float64(model: nn.Module, batch: Any) -> Iterator[Any]:
    """The model in fp64 inside the block, in place, so that hooks on its parameters stay; gives the batch in fp64."""
    tensors = [(tensor, tensor.data) for tensor in model.parameters()]
    buffers = [(module._buffers, dict(module._buffers)) for module in model.modules()]
    model.zero_grad(set_to_none=True)
    try:
        model.double()
        yield _doubled(batch)
    finally:
        model.zero_grad(set_to_none=True)
        for tensor, data in tensors:
            tensor.data = data
        for now, before in buffers:
            now.update(before)


def in_precision_of(subject: Subject, batch: Any) -> Any:
    """Another batch in the type that the subject's own is in."""
    return _doubled(batch) if subject.precision == "fp64" else batch


def _doubled(batch: Any) -> Any:
    return map_tensors(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor, batch)
