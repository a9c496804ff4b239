"""Jobs in the caller's own process, which afterwards is as it was, bit for bit."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from profiler.batches import map_tensors
from profiler.devices import open_device
from profiler.switches import Switches
from profiler.trial import Done, Setting
from profiler.workload import Workload

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldSource:
    """A workload of this process, handed over as it is."""

    workload: Workload

    def load(self) -> Workload:
        """The workload itself."""
        return self.workload


class InProcessRunner:
    """Runs every job in this process; time limits cannot be kept here, and a crash is the caller's own."""

    def start(self) -> None:
        """Nothing to start."""

    def close(self) -> None:
        """Nothing to end."""

    def size(self, function: Callable[..., Done[T]], *arguments: Any, timeout_seconds: float, fresh: bool) -> T | Any:
        """Call `function(*arguments)`, whose first argument is the Setting, and restore what training changed."""
        setting, *rest = arguments
        with preserved(setting) as held:
            result = function(held, *rest).result
        del held  # and with it the optimizer, whose memory goes back to the device here
        open_device(setting.device).release()
        return result

    def time(self, function: Callable[..., Done[T]], *arguments: Any, timeout_seconds: float, fresh: bool) -> T | Any:
        """The same: there is no second kind of worker here."""
        return self.size(function, *arguments, timeout_seconds=timeout_seconds, fresh=fresh)


@contextmanager
def preserved(setting: Setting) -> Iterator[Setting]:
    """`setting` for use inside the block; at its end, error or not, all that training touches is bit-identical.

    That is: parameters, buffers, gradients, requires_grad and train/eval modes of a live model; the state of an
    optimizer that the workload hands out; random states of torch, CUDA, Python and NumPy; torch's global switches.
    Attributes that a model keeps outside its parameters and buffers are its own affair.
    """
    workload = setting.source.load()
    switches = Switches.of_caller()
    restore_random = _random_states()
    restore_model = _model_state(workload.build_model()) if workload.model_is_live else (lambda: None)
    restore_optimizers: list[Callable[[], None]] = []

    def optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        given = workload.optimizer(parameters) if workload.optimizer else torch.optim.AdamW(parameters)
        restore_optimizers.append(_optimizer_state(given))
        return given

    try:
        yield replace(setting, source=HeldSource(workload=replace(workload, optimizer=optimizer)))
    finally:
        restore_model()
        for restore in restore_optimizers:
            restore()
        switches.apply()
        restore_random()


def _model_state(model: nn.Module) -> Callable[[], None]:
    """A function that puts the model back; copies are kept in host memory, since the device's is being measured."""
    parameters = [
        (parameter, parameter.data, _copy(parameter), parameter.requires_grad, parameter.grad, _copy(parameter.grad))
        for parameter in model.parameters()
    ]
    buffers = [
        (module, name, buffer, _copy(buffer))
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    modes = [(module, module.training) for module in model.modules()]

    def restore() -> None:
        with torch.no_grad():
            for parameter, data, content, requires_grad, gradient, gradient_content in parameters:
                parameter.data = data  # the same storage, on the same device
                parameter.copy_(content)
                parameter.requires_grad_(requires_grad)
                parameter.grad = gradient
                if gradient is not None and gradient_content is not None:
                    gradient.copy_(gradient_content)
            for module, name, buffer, content in buffers:
                buffer.copy_(content)
                module._buffers[name] = buffer
        for module, mode in modes:
            module.training = mode

    return restore


def _optimizer_state(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    saved = map_tensors(_copy, optimizer.state_dict())

    def restore() -> None:
        optimizer.load_state_dict(saved)

    return restore


def _random_states() -> Callable[[], None]:
    python, cpu = random.getstate(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    numpy = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy is not None else None

    def restore() -> None:
        random.setstate(python)
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        if numpy is not None:
            numpy.random.set_state(numpy_state)

    return restore


def _copy(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.detach().to("cpu", copy=True)
