"""What is checked, in one precision: its gradient for any parts of the batch, from the same state each time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from profiler.checking.draws import FixedDraws, InFloat64, seed_others
from profiler.checking.gradients import Gradients, distance, gradients_of, norm, norms, sketch
from profiler.checking.state import copied, default_dtype, modules_in, state_kept
from profiler.devices.out_of_memory import Failure, Verdict, classify
from profiler.errors import MicrobatchError
from profiler.nests import map_samples, slice_nest
from profiler.outcomes import Strategy
from profiler.steps import GRADIENT, Passes

T = TypeVar("T")

# What rounding may move a gradient by, relative to what its samples contribute: in fp64, and in units of the last place of
# other types, the least and the most. Between them it is measured, for ReLUs that switch make it a hundred times larger in
# one model than in another (benchmarks/LOG.md). What breaks the identity moves gradients by a thousandth and more.
FP64_ROUNDING = 2.0**-38
ROUNDING_UNITS = {"fp32": (2.0**5, 2.0**12), "tf32": (1.0, 8.0), "fp16": (1.0, 8.0), "bf16": (1.0, 8.0)}
UNIT = {"fp32": 2.0**-23, "tf32": 2.0**-10, "fp16": 2.0**-10, "bf16": 2.0**-7}
MARGIN = 8.0
# In fp64, what is below eight units of fp32 is equal for training in fp32 or coarser: weights that fp32 has summed, or a
# mean that is guarded by a small constant, are right, and not exact.
NEARLY = 2.0**-20


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Samples to be run: their places in the batch, and the batch of them."""

    places: Sequence[int]
    batch: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Some samples of the batch by themselves: their averaged loss, and its gradient.

    sketch: a row of the gradient's sketch for each parameter. norms: the gradient's norm for each parameter; both in fp64.
    """

    samples: tuple[int, ...]
    loss: float
    sketch: Tensor
    norms: Tensor

    @property
    def norm(self) -> float:
        """The norm of the whole gradient."""
        return float(self.norms.norm())


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """The loss and gradient of the whole batch, reached in some way."""

    loss: float
    gradients: Gradients


@dataclass(slots=True, kw_only=True)
class Subject:
    """A model and its loss on a device, the checked batch there, and the precision in which they are run.

    samples: how many the batch holds. rounding: as `measure_rounding` gives it, for other precisions than fp64.
    before_forward: called before each forward, to put back what it is not to see. before_part: called with the places of
    the samples of each forward. draws: what random numbers are replaced by. known: parts that were run by themselves already.
    """

    passes: Passes
    model: nn.Module
    batch: Any
    samples: int
    precision: str
    rounding: float = 0.0
    before_forward: tuple[Callable[[], None], ...] = ()
    before_part: Callable[[Sequence[int]], None] = lambda places: None
    draws: FixedDraws = field(default_factory=FixedDraws)
    known: dict[tuple[int, ...], Part] = field(default_factory=dict)

    @property
    def exact(self) -> float:
        """What rounding may move a gradient by, relative to what its samples contribute."""
        if self.precision == "fp64":
            return FP64_ROUNDING
        least, most = (units * UNIT[self.precision] for units in ROUNDING_UNITS[self.precision])
        return min(max(least, MARGIN * self.rounding), most)

    @property
    def tolerance(self) -> float:
        """What a gradient may differ by and still be the same to training, likewise."""
        return max(self.exact, NEARLY)

    def tried(self, run: Callable[[], T]) -> T | str:
        """What `run` gives; where it raises for another reason than memory, what it raised, in a line."""
        try:
            return run()
        except Exception as error:
            if classify(Failure.of(error), device_type=self.passes.device.type).verdict is Verdict.CERTAIN:
                raise
            return in_a_line(error)

    def modules(self) -> dict[str, nn.Module]:
        """The modules of the model by qualified name, and those that the loss holds, such as a discriminator, by "loss.name"."""
        held = [module for module in modules_in(self.passes.loss) if module is not self.model]
        of_loss = {f"loss.{name}".rstrip("."): each for module in held for name, each in module.named_modules()}
        return {**of_loss, **dict(self.model.named_modules())}

    def is_steady(self) -> bool:
        """Whether the whole batch has the same loss twice, from the same start."""
        samples = range(self.samples)
        once, again = self.forward(samples), self.forward(samples)
        return not isfinite(once - again) or abs(once - again) <= self.tolerance * (abs(once) + abs(again))

    def measure_rounding(self) -> float:
        """How far the same samples in reverse order move the whole gradient, relative to its norm."""
        samples = range(self.samples)
        forth, back = (
            self.total(Strategy.WHOLE_BATCH, [(self.piece(order), 1.0)]) for order in (samples, samples[::-1])
        )
        length = norm(forth.gradients)
        return distance(forth.gradients, back.gradients) / length if length else 0.0

    def take(self, samples: Sequence[int]) -> Any:
        """A copy of the batch of those samples, in that order: a model may write into what it is given."""
        start, stop = samples[0], samples[-1] + 1
        if list(samples) == list(range(start, stop)):
            return copied(slice_nest(self.batch, start, stop, self.samples))
        index = list(samples)

        def chosen(held: Any) -> Any:
            return [held[place] for place in index] if isinstance(held, list | tuple) else held[index]

        return copied(map_samples(chosen, self.batch, self.samples))

    def piece(self, samples: Sequence[int]) -> Piece:
        """Those samples, cut out of the batch."""
        return Piece(places=samples, batch=self.take(samples))

    def total(self, strategy: Strategy, parts: Sequence[tuple[Piece, float]]) -> Total:
        """The gradient of the weighted parts, computed as training with that strategy would, from the model as it was."""
        with self._computing():
            loss = GRADIENT[strategy](self._passes(), parts)
        return Total(loss=float(loss), gradients=gradients_of(self.model))

    def altered(self, **changes: Any) -> Subject:
        """The subject under other conditions, of which nothing is known yet."""
        return replace(self, known={}, **changes)

    def part(self, samples: Sequence[int]) -> Part:
        """Those samples by themselves; run once."""
        key = tuple(samples)
        if key not in self.known:
            total = self.total(Strategy.WHOLE_BATCH, [(self.piece(samples), 1.0)])
            self.known[key] = Part(
                samples=key,
                loss=total.loss,
                sketch=sketch(total.gradients, list(self.model.parameters())),
                norms=norms(total.gradients),
            )
        return self.known[key]

    def forward(self, samples: Sequence[int], *, keep_state: bool = True) -> float:
        """The loss of those samples by a forward alone; also for what it does to the model's state, and what hooks see."""
        with self._computing(keep_state=keep_state):
            return float(self._passes().forward(self.piece(samples)).detach())

    @contextmanager
    def _computing(self, *, keep_state: bool = True) -> Iterator[None]:
        """Without gradients at the start, with the model's state put back at the end, draws fixed, and in fp64 where that is due."""
        with ExitStack() as stack:
            if keep_state:
                stack.enter_context(state_kept(self.model))
            self.model.zero_grad(set_to_none=True)
            if self.precision == "fp64":
                stack.enter_context(default_dtype(torch.float64))
                stack.enter_context(InFloat64())  # type: ignore[no-untyped-call]  # torch's __init__ has no types
            stack.enter_context(self.draws)
            yield

    def _passes(self) -> Passes:
        passes = self.passes

        def loss(model: nn.Module, piece: Piece) -> Tensor:
            # The same numbers for each part: a draw that one part alone has made must not shift the next part's.
            seed_others()
            if self.draws.fields is not None:
                self.draws.fields.begin(piece.places)
            self.before_part(piece.places)
            for prepare in self.before_forward:
                prepare()
            return passes.loss(model, piece.batch)

        return Passes(
            model=passes.model,
            loss=loss,
            device=passes.device,
            autocast_dtype=passes.autocast_dtype,
            phase=passes.phase,
        )


def in_a_line(error: Exception) -> str:
    """What was raised; an error of this package's own says enough without its class."""
    text = next(iter(str(error).strip().splitlines()), "")
    return text if isinstance(error, MicrobatchError) else f"{type(error).__name__}: {text}"
