"""Everything that training can change in a process, as values that can be compared."""

from __future__ import annotations

import random
import resource
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from profiler.switches import Switches


def bits(tensor: Tensor) -> tuple[Any, ...]:
    """What a tensor is, to the bit: NaN is equal to itself, and 0.0 is not -0.0."""
    content = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return (tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.requires_grad, tensor.is_leaf, content)


def identity(tensor: Tensor) -> tuple[int, int]:
    """Which tensor it is, and which memory it stands for."""
    return id(tensor), tensor.data_ptr()


def model_state(model: nn.Module) -> dict[str, Any]:
    """Parameters, gradients, buffers and modes, each with its identity."""
    state: dict[str, Any] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        state[f"parameter {name}"] = (bits(parameter), identity(parameter))
        gradient = parameter.grad
        state[f"gradient {name}"] = None if gradient is None else (bits(gradient), identity(gradient))
    for path, module in model.named_modules():
        state[f"mode {path}"] = module.training
        for name, buffer in module._buffers.items():
            state[f"buffer {path}.{name}"] = None if buffer is None else (bits(buffer), identity(buffer))
    return state


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Every parameter's state, and every group's settings."""
    state: dict[str, Any] = {}
    for number, group in enumerate(optimizer.param_groups):
        state |= {f"group {number} {key}": value for key, value in group.items() if key != "params"}
        state[f"group {number} params"] = [id(parameter) for parameter in group["params"]]
    numbers = {parameter: n for n, parameter in enumerate(p for g in optimizer.param_groups for p in g["params"])}
    for parameter, entries in optimizer.state.items():
        state |= {f"optimizer {numbers[parameter]}{name}": value for name, value in _flat(entries)}
    return state


def process_state() -> dict[str, Any]:
    """Random states, torch's global switches, and what this process may use."""
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch random": torch.get_rng_state().numpy().tobytes(),
        "python random": random.getstate(),
        "numpy random": (name, np.asarray(keys).tobytes(), *rest),
        **{f"switch {name}": value for name, value in Switches.of_caller().values.items()},
        "gradients are recorded": torch.is_grad_enabled(),
        "data limit": resource.getrlimit(resource.RLIMIT_DATA),
    }


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> set[str]:
    """The names of what differs."""
    return {name for name in before.keys() | after.keys() if before.get(name, ...) != after.get(name, ...)}


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Tensor):
        yield name, (bits(value), identity(value))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _flat(item, f"{name}.{index}")
    else:
        yield name, value
