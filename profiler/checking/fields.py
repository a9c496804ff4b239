"""Random numbers that follow a sample: drawn once for the whole batch, and given to its samples in whichever part they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

SEED = 0
Shape = tuple[int, ...]
# Looks an operator's argument up by its name.
Look = Callable[[str], Any]


@dataclass(frozen=True, slots=True)
class Along:
    """Where the samples of a draw lie: in `dimension`, `each` elements to a sample."""

    dimension: int
    each: int


@dataclass(slots=True, kw_only=True)
class Fields:
    """The draws of a forward over `samples`, by a key that torch's own generator gives.

    The generator begins at the same seed in each forward, so the same draw has the same key; and activation checkpointing,
    which puts the generator back, finds the same numbers again. along: where samples lie in each draw, None where in no
    dimension; a draw that is missing has no place for samples, and is not drawn here. places: those of the samples that
    are run. key: of the draw that is being made. seen: the shapes that a forward drew, while it is learned where samples lie.
    """

    samples: int
    along: dict[int, Along | None] = field(default_factory=dict)
    whole: dict[int, Shape] = field(default_factory=dict)
    places: Sequence[int] = ()
    key: int = 0
    seen: dict[int, Shape] | None = None

    def begin(self, places: Sequence[int]) -> None:
        """A forward of the samples at those places begins."""
        self.places = places
        torch.default_generator.manual_seed(SEED)  # not torch.manual_seed, which formats a traceback at each call

    def learn(self, whole: dict[int, Shape], part: dict[int, Shape], samples_of_part: int) -> None:
        """Where samples lie, from the shapes of the same draws in a forward of all of them and in one of fewer."""
        self.seen = None
        for key in whole.keys() & part.keys():
            differing = [
                place for place, pair in enumerate(zip(whole[key], part[key], strict=False)) if pair[0] != pair[1]
            ]
            if len(whole[key]) != len(part[key]) or len(differing) > 1:
                continue
            along = Along(differing[0], whole[key][differing[0]] // self.samples) if differing else None
            lengths = (whole[key][along.dimension], part[key][along.dimension]) if along else (0, 0)
            if lengths[0] * samples_of_part == lengths[1] * self.samples and lengths[0] % self.samples == 0:
                self.along[key], self.whole[key] = along, whole[key]

    @contextmanager
    def draw(self) -> Iterator[None]:
        """One draw: it takes a single number from torch's generator, its key, however many it has."""
        self.key = int(torch.randint(2**31 - 1, (), generator=torch.default_generator))
        state = torch.default_generator.get_state()
        try:
            yield
        finally:
            torch.default_generator.set_state(state)

    def uniform(self, like: Tensor) -> Tensor | None:
        """Numbers from 0 to 1 of the shape and on the device of `like`, in fp64; None where they cannot follow samples."""
        key = self.key
        if self.seen is not None:
            self.seen[key] = tuple(like.shape)
        if key not in self.along:
            return None
        generator = torch.Generator().manual_seed(key)
        numbers = torch.rand(self.whole[key], generator=generator, dtype=torch.float64)
        along = self.along[key]
        if along is not None:
            index = [place * along.each + step for place in self.places for step in range(along.each)]
            numbers = numbers.index_select(along.dimension, torch.tensor(index))
        return numbers.to(like.device) if numbers.shape == like.shape else None


def _normal(uniform: Tensor) -> Tensor:
    numbers: Tensor = torch.special.ndtri(uniform.clamp(1e-12, 1 - 1e-12))
    return numbers


def _between(look: Look, uniform: Tensor) -> Tensor:
    low, high = float(look("from")), float(look("to"))
    return low + (high - low) * uniform


def _integer(look: Look, uniform: Tensor) -> Tensor:
    low, high = int(look("low") or 0), int(look("high"))
    return low + (uniform * (high - low)).floor()


def probability(look: Look) -> Any:
    """Of a coin that comes up 1: its own argument, or the tensor that is given in its place."""
    given = look("p")
    return look("self") if given is None else given


def _coin(look: Look, uniform: Tensor) -> Tensor:
    coins: Tensor = uniform < probability(look)
    return coins


# What an operator draws, from numbers between 0 and 1.
FROM_UNIFORM: dict[str, Callable[[Look, Tensor], Tensor]] = {
    "bernoulli": _coin,
    "uniform": _between,
    "uniform_": _between,
    "normal": lambda look, uniform: look("mean") + look("std") * _normal(uniform),
    "normal_": lambda look, uniform: look("mean") + look("std") * _normal(uniform),
    "exponential": lambda look, uniform: -torch.log1p(-uniform) / look("lambd"),
    "exponential_": lambda look, uniform: -torch.log1p(-uniform) / look("lambd"),
    "rand": lambda look, uniform: uniform,
    "rand_like": lambda look, uniform: uniform,
    "randn": lambda look, uniform: _normal(uniform),
    "randn_like": lambda look, uniform: _normal(uniform),
    "randint": _integer,
    "randint_like": _integer,
}
