"""Which modules break the identity: those that look at the whole micro-batch, keep state, or change gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from profiler.checking.state import changed_names, state_kept
from profiler.checking.subject import Subject


def batch_norms(subject: Subject) -> dict[str, _BatchNorm]:
    """The BatchNorm layers that normalise by the batch they are given, by qualified name."""
    return {
        name: module
        for name, module in subject.modules().items()
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)
    }


@contextmanager
def frozen_statistics(subject: Subject) -> Iterator[None]:
    """Inside the block those layers normalise by fixed statistics, which are those of the checked batch.

    Those that a new model has (mean 0, variance 1) would let activations grow from layer to layer.
    """
    layers = list(batch_norms(subject).values())
    if not layers:
        yield
        return
    with ExitStack() as stack:
        stack.enter_context(state_kept(subject.model))
        for layer in layers:
            stack.callback(_layer_state(layer))
            _take_statistics(layer, subject.passes.device)
        subject.forward(range(subject.samples), keep_state=False)
        for layer in layers:
            layer.training = False
        yield


def _take_statistics(layer: _BatchNorm, device: torch.device) -> None:
    """Let the next forward replace the running statistics by its batch's."""
    layer.training, layer.momentum, layer.track_running_stats = True, 1.0, True
    if layer.running_mean is None or layer.running_var is None:
        dtype = next((parameter.dtype for parameter in layer.parameters()), None)
        layer.running_mean = torch.zeros(layer.num_features, dtype=dtype, device=device)
        layer.running_var = torch.ones(layer.num_features, dtype=dtype, device=device)


def _layer_state(layer: _BatchNorm) -> Callable[[], None]:
    training, momentum, track = layer.training, layer.momentum, layer.track_running_stats
    mean, variance = layer.running_mean, layer.running_var

    def restore() -> None:
        layer.training, layer.momentum, layer.track_running_stats = training, momentum, track
        layer.running_mean, layer.running_var = mean, variance

    return restore


def keeping_state(subject: Subject) -> tuple[str, ...]:
    """The modules whose buffers or parameters a forward changes, by qualified name, but for those of `batch_norms`."""
    known = set(batch_norms(subject))
    with state_kept(subject.model) as before:
        subject.forward(range(subject.samples), keep_state=False)
        changed = [name.rpartition(".")[0] for name in changed_names(subject.model, before)]
    return tuple(name for name in dict.fromkeys(changed) if name not in known)


def hooked_parameters(model: nn.Module) -> tuple[str, ...]:
    """The parameters with hooks on their gradient, which run once for every backward."""
    return tuple(name for name, parameter in model.named_parameters() if any(map(bool, _hooks_of(parameter))))


def _hooks_of(parameter: Tensor) -> tuple[dict[Any, Any], dict[Any, Any]]:
    after: dict[Any, Any] = getattr(parameter, "_post_accumulate_grad_hooks", None) or {}
    return parameter._backward_hooks or {}, after


@contextmanager
def without_hooks(model: nn.Module) -> Iterator[None]:
    """Inside the block no hook sees a parameter's gradient."""
    held = [(hooks, dict(hooks)) for parameter in model.parameters() for hooks in _hooks_of(parameter)]
    for hooks, _ in held:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, before in held:
            hooks.update(before)
