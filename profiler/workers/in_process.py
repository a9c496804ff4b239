"""Jobs in the caller's own process, which afterwards is as it was, bit for bit."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from profiler.devices import open_device
from profiler.nests import leaves_of
from profiler.switches import Switches
from profiler.trial import Done, Failed, Setting, release
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

    def close(self) -> None:
        """Nothing to end."""

    def with_environment(self, environment: Mapping[str, str]) -> None:
        """None: this process has read its variables already."""

    def size(self, function: Callable[..., Done[T]], *arguments: Any, timeout_seconds: float, fresh: bool) -> T | Any:
        """Call `function(*arguments)`, whose first argument is the Setting, and restore what training changed."""
        with open_device(arguments[0].device).exact_here():
            return _run(function, *arguments)

    def time(self, function: Callable[..., Done[T]], *arguments: Any, timeout_seconds: float, fresh: bool) -> T | Any:
        """The same with the allocator as it is."""
        return _run(function, *arguments)


def _run(function: Callable[..., Done[T]], setting: Setting, *rest: Any) -> T | Failed:
    result = _restoring(function, setting, *rest)
    # What the job held has ended with it, the optimizer too, whose memory goes back to the device here.
    release(open_device(setting.device))
    return result


def _restoring(function: Callable[..., Done[T]], setting: Setting, *rest: Any) -> T | Failed:
    result: T | Failed | None = None
    try:
        with preserved(setting) as held:
            result = function(held, *rest).result
    except RuntimeError:  # tensors on a device that was lost cannot be put back; the job's own error says what happened
        if not isinstance(result, Failed):
            raise
    assert result is not None, "a job has a result"
    return result


@contextmanager
def preserved(setting: Setting) -> Iterator[Setting]:
    """`setting` for use inside the block; at its end, error or not, all that training touches is bit-identical.

    That is: modules, parameters, buffers, gradients, requires_grad and train/eval modes of a live model; the state and
    settings of an optimizer that the workload hands out; random states of torch, CUDA, Python and NumPy; torch's global
    switches; the current directory. Tensors are the same objects in the same memory. Attributes that a model keeps
    elsewhere are its own affair, but no tensor of a simulated card stays in one.
    """
    workload = setting.source.load()
    switches, records_gradients = Switches.of_caller(), torch.is_grad_enabled()
    with ExitStack() as restore, directory_kept():
        restore.callback(_random_states())
        restore.callback(torch.set_grad_enabled, records_gradients)
        restore.callback(switches.apply)

        def optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
            own = list(parameters)
            given = workload.build_optimizer(own)
            # A simulated card's modes would make fake copies, and the caller's tensors are real.
            with _disable_current_modes():
                restore.callback(_optimizer_state(given, own))
            return given

        if workload.model_is_live:
            restore.callback(_model_state(workload.build_model()))
        yield replace(setting, source=HeldSource(workload=replace(workload, optimizer=optimizer)))


@contextmanager
def directory_kept() -> Iterator[None]:
    """The current directory is afterwards what it was: results are written below it."""
    before = os.open(os.curdir, os.O_RDONLY)
    try:
        yield
    finally:
        os.fchdir(before)
        os.close(before)


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Whatever is drawn inside the block, torch, CUDA, Python and NumPy draw after it what they would have drawn."""
    restore = _random_states()
    try:
        yield
    finally:
        restore()


def _model_state(model: nn.Module) -> Callable[[], None]:
    """A function that puts the model back; copies are kept in host memory, since the device's is being measured."""
    modes = [(module, module.training) for module in model.modules()]
    attributes = [(module.__dict__, dict(module.__dict__)) for module in model.modules()]
    members: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (now, dict(now)) for module in model.modules() for now in (module._parameters, module._buffers, module._modules)
    ]
    tensors = [_tensor_state(tensor) for tensor in (*model.parameters(), *model.buffers())]

    def restore() -> None:
        for module, mode in modes:
            module.training = mode
        for now, before in attributes:
            _without_fakes(now, before)
        for now, before in members:
            now.clear()
            now.update(before)
        for restore_tensor in tensors:
            restore_tensor()

    return restore


def _without_fakes(now: dict[str, Any], before: dict[str, Any]) -> None:
    """Puts back the attributes that hold a simulated card's tensors: nn.LSTM keeps its weights in a list as well."""
    for name in [name for name, value in now.items() if any(isinstance(leaf, FakeTensor) for leaf in leaves_of(value))]:
        if name in before:
            now[name] = before[name]
        else:
            del now[name]


def _tensor_state(tensor: Tensor) -> Callable[[], None]:
    """A function that gives `tensor` its memory, content and gradient back."""
    data, content, requires_grad = tensor.data, _copy(tensor), tensor.requires_grad
    gradient = tensor.grad if tensor.is_leaf else None
    gradient_content = None if gradient is None else _copy(gradient)

    def restore() -> None:
        if not tensor.is_leaf:  # a buffer that was changed by what has a gradient
            tensor.detach_()
        tensor.data = data  # the same memory, on the same device
        data.copy_(content)
        tensor.requires_grad_(requires_grad)
        tensor.grad = gradient
        if gradient is not None and gradient_content is not None:
            gradient.data.copy_(gradient_content)

    return restore


def _optimizer_state(optimizer: torch.optim.Optimizer, own: list[nn.Parameter]) -> Callable[[], None]:
    """A function that puts the optimizer back, and those of its parameters that are not the model's `own`.

    Not by load_state_dict, which casts state to its parameter's type, makes new tensors of it and runs the user's hooks.
    """
    known = {id(parameter) for parameter in own}
    others = [
        _tensor_state(parameter)
        for group in optimizer.param_groups
        for parameter in group["params"]
        if id(parameter) not in known
    ]
    state, groups = _held(optimizer.state), _held(optimizer.param_groups)

    def restore() -> None:
        for restore_parameter in others:
            restore_parameter()
        state()
        groups()

    return restore


def _held(value: Any) -> Callable[[], Any]:
    """A function that gives `value` back as it is now: the same tensors, dicts and lists, with what they hold now."""
    if isinstance(value, nn.Parameter):  # restored with the model
        return lambda: value
    if isinstance(value, Tensor):
        return _held_tensor(value)
    if isinstance(value, MutableMapping):
        items = {key: _held(item) for key, item in value.items()}
        return lambda: _refilled(value, {key: item() for key, item in items.items()})
    if isinstance(value, list):
        parts = [_held(part) for part in value]
        return lambda: _refilled(value, [part() for part in parts])
    if isinstance(value, tuple):
        parts = [_held(part) for part in value]
        return lambda: (value, [part() for part in parts])[0]
    return lambda: value


def _held_tensor(tensor: Tensor) -> Callable[[], Tensor]:
    restore = _tensor_state(tensor)

    def give() -> Tensor:
        restore()
        return tensor

    return give


def _refilled(container: Any, content: Any) -> Any:
    """`container`, a dict or list, which now holds `content`."""
    container.clear()
    (container.extend if isinstance(container, list) else container.update)(content)
    return container


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


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)
