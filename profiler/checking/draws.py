"""Random numbers switched off wherever they are drawn: in modules, in functional calls, inside of torch's own layers."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from profiler.checking.fields import FROM_UNIFORM, SEED, Fields, Look, probability
from profiler.checking.state import to_float64

LOSS = "the loss"
# Operators that draw and that torch does not tag as such.
_UNTAGGED = {"aten::binomial", "aten::_sample_dirichlet"}
# Arguments that are a probability of dropout, in forwards and in their backwards.
_DROPOUT = ("dropout_p", "dropout")
FINE = {torch.float64, torch.complex128}
COARSE = {torch.float32, torch.bfloat16, torch.float16, torch.complex64}


class FixedDraws(TorchDispatchMode):
    """Inside of it nothing is left to chance: dropout is off, and a sample sees the same numbers in whichever part it is.

    It works on operators, below modules and functions, in forward and backward. A mode that only looked for modules would
    miss functional calls and the dropout inside nn.LSTM and attention. Coins that make a float mask give their expected
    value, so that inverted dropout, of whatever make, is the identity. Other draws come from `fields`, where they can follow
    samples; else, or without fields, they give their expected value too. A permutation comes out reversed, so that what
    mixes samples at random still mixes them. `drew` are the names given by `where` at each draw.
    """

    def __init__(self, where: Callable[[], str] = lambda: LOSS, fields: Fields | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's has no types
        self.drew: dict[str, None] = {}
        self.fields = fields
        self._where = where

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        name = function._schema.name
        if name == "aten::native_dropout_backward":
            return args[0] * args[1]
        args, named, was_on = _without_dropout(function, args, named)
        draws = torch.Tag.nondeterministic_seeded in function.tags or name in _UNTAGGED
        if was_on:
            self.drew[self._where()] = None
        if not draws or was_on is not None:
            return function(*args, **named)
        with self.fields.draw() if self.fields is not None else nullcontext():
            drawn = self._from_fields(function, args, named)
            if drawn is None:
                drawn = _EXPECTED.get(name.removeprefix("aten::"), _first_everywhere)(function, args, named)
            if drawn is None:
                return function(*args, **named)
        self.drew[self._where()] = None
        return drawn

    def _from_fields(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The operator's result with numbers that follow samples; None where it is to give its expected value."""
        make = FROM_UNIFORM.get(function._schema.name.removeprefix("aten::"))
        if self.fields is None or make is None:
            return None
        result = function(*args, **kwargs)
        uniform = self.fields.uniform(result)
        if uniform is None:
            return None
        return result.copy_(make(_look(function, args, kwargs), uniform))


def _without_dropout(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any], bool | None]:
    """The arguments with the dropout of fused layers set to 0; whether it was on, None where there is no such argument."""
    for place, argument in enumerate(function._schema.arguments):
        if argument.name in _DROPOUT and str(argument.type) == "float":
            if place < len(args):
                return (*args[:place], 0.0, *args[place + 1 :]), kwargs, bool(args[place])
            return args, {**kwargs, argument.name: 0.0}, bool(kwargs.get(argument.name))
    return args, kwargs, None


def _look(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Look:
    """The arguments of a call by name, with their defaults; None for one that the operator does not have."""

    def look(name: str) -> Any:
        for place, argument in enumerate(function._schema.arguments):
            if argument.name == name:
                return args[place] if place < len(args) else kwargs.get(name, argument.default_value)
        return None

    return look


Expected = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]


def _filled(value_of: Callable[[Look], Any]) -> Expected:
    """The operator's own result, every number of it replaced; `value_of` is given a look-up of arguments by name."""

    def expected(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = value_of(_look(function, args, kwargs))
        result = function(*args, **kwargs)
        if isinstance(value, Tensor):
            return result.copy_(value)
        return result.fill_(value)

    return expected


def _integer(look: Look) -> int:
    return int(((look("low") or 0) + look("high") - 1) // 2)


def _permutation(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return function(*args, **kwargs).copy_(torch.arange(args[0] - 1, -1, -1))


def _chosen(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The likeliest, over and over or, without replacement, one after the other."""
    probabilities, count = args[:2]
    if _look(function, args, kwargs)("replacement"):
        return probabilities.argmax(dim=-1, keepdim=True).expand(*probabilities.shape[:-1], count).clone()
    return probabilities.topk(count, dim=-1).indices


def _dropout(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    source, p, train = args[:3]
    if train is False or not p:
        return None
    return source.clone(), torch.ones_like(source, dtype=torch.bool)


def _rrelu(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    look = _look(function, args, kwargs)
    if not look("training"):
        return None
    source, noise = args[:2]  # the noise is what the backward multiplies by
    slope = (look("lower") + look("upper")) / 2
    noise.copy_(torch.where(source <= 0, slope, 1.0))
    result = source * noise
    return source.copy_(result) if function._schema.name.endswith("_") else result


def _first_everywhere(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """For operators without an entry: the first number of a draw with a fixed seed, in every place."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        result = function(*args, **kwargs)
    for tensor in result if isinstance(result, tuple) else (result,):
        if isinstance(tensor, Tensor) and tensor.numel():
            tensor.fill_(tensor.flatten()[0])
    return result


_EXPECTED: dict[str, Expected] = {
    "bernoulli": _filled(probability),
    "bernoulli_": _filled(probability),
    "uniform": _filled(lambda look: (look("from") + look("to")) / 2),
    "uniform_": _filled(lambda look: (look("from") + look("to")) / 2),
    "normal": _filled(lambda look: look("mean")),
    "normal_": _filled(lambda look: look("mean")),
    "exponential": _filled(lambda look: 1 / look("lambd")),
    "exponential_": _filled(lambda look: 1 / look("lambd")),
    "rand": _filled(lambda look: 0.5),
    "rand_like": _filled(lambda look: 0.5),
    "randn": _filled(lambda look: 0.0),
    "randn_like": _filled(lambda look: 0.0),
    "randint": _filled(_integer),
    "randint_like": _filled(_integer),
    "randperm": _permutation,
    "multinomial": _chosen,
    "native_dropout": _dropout,
    "poisson": _filled(lambda look: look("self")),
    "_standard_gamma": _filled(lambda look: look("self")),
    "_sample_dirichlet": _filled(lambda look: look("self") / look("self").sum(dim=-1, keepdim=True)),
    "binomial": _filled(lambda look: look("count") * look("prob")),
    "rrelu_with_noise": _rrelu,
    "rrelu_with_noise_": _rrelu,
}


class InFloat64(TorchDispatchMode):
    """Inside of it nothing falls back to a coarser type: casts to one give fp64, and mixed operands meet in fp64.

    Models cast to fp32 in places (norms, losses), and losses hold fp32 constants such as class weights; both would leave
    fp32's rounding in a run that is to be exact.
    """

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        dtype = named.get("dtype")
        if isinstance(dtype, torch.dtype):
            named["dtype"] = (
                torch.float64 if dtype.is_floating_point else torch.complex128 if dtype.is_complex else dtype
            )
        flat = [*args, *named.values()]
        nested = [part for value in flat if isinstance(value, list | tuple) for part in value]
        dtypes = {value.dtype for value in (*flat, *nested) if isinstance(value, Tensor)}
        if dtypes & FINE and dtypes & COARSE and not function._schema.is_mutable:
            args = tuple(_promoted(value) for value in args)
            named = {name: _promoted(value) for name, value in named.items()}
        return function(*args, **named)


def _promoted(value: Any) -> Any:
    if isinstance(value, Tensor):
        return to_float64(value)
    if isinstance(value, list | tuple):
        return type(value)(_promoted(part) for part in value)
    return value


def seed_others() -> None:
    """Begin Python's and NumPy's random numbers at the same place; torch's are fixed by `FixedDraws`."""
    random.seed(SEED)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(SEED)


@contextmanager
def module_names(model: nn.Module) -> Iterator[Callable[[], str]]:
    """A function that says which module of `model` is running: its qualified name, the class's for the model itself."""
    running: list[str] = []

    def entered(shown: str) -> Callable[..., None]:
        return lambda *_: running.append(shown)

    def left(*_: Any) -> None:
        running.pop()

    hooks = []
    for name, module in hookable(model):
        hooks.append(module.register_forward_pre_hook(entered(name or type(module).__name__)))
        hooks.append(module.register_forward_hook(left, always_call=True))
    try:
        yield lambda: running[-1] if running else LOSS
    finally:
        for hook in hooks:
            hook.remove()


def hookable(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that take hooks, by qualified name; those of TorchScript do not."""
    for name, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):
            yield name, module
