"""What a forward or a backward may change, kept and put back; and a model turned to fp64 for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import CellType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from profiler.batches import map_tensors
from profiler.nests import length_of, map_leaves

State = Mapping[str, Tensor]


def state_of(model: nn.Module) -> State:
    """Copies of all parameters and buffers, by qualified name.

    Parameters too: codebooks move in a forward, and an optimizer that steps in a hook moves the rest in a backward.
    """
    return {name: tensor.detach().clone() for name, tensor in _tensors(model)}


def put_state(model: nn.Module, state: State) -> None:
    """Give parameters and buffers back what they held."""
    with torch.no_grad():
        for name, tensor in _tensors(model):
            if name in state and tensor.shape == state[name].shape:
                tensor.copy_(state[name])


def changed_names(model: nn.Module, state: State) -> list[str]:
    """The parameters and buffers that hold something else than `state` says."""
    return [
        name
        for name, tensor in _tensors(model)
        if name in state and not torch.equal(tensor.detach().nan_to_num(), state[name].nan_to_num())
    ]


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for named in (model.named_parameters(), model.named_buffers()):
        yield from ((name, tensor) for name, tensor in named if not is_lazy(tensor))  # lazy ones hold nothing yet


@contextmanager
def state_kept(model: nn.Module) -> Iterator[State]:
    """At the end of the block the model's parameters and buffers hold what they held before, which is given."""
    before = state_of(model)
    try:
        yield before
    finally:
        put_state(model, before)


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
def in_float64(modules: Sequence[nn.Module]) -> Iterator[None]:
    """The modules in fp64 inside the block; in place, so that hooks on parameters stay where they are.

    Raises TypeError for modules of TorchScript, whose buffers cannot be put back.
    """
    if any(isinstance(each, torch.jit.ScriptModule) for module in modules for each in module.modules()):
        raise TypeError("modules of TorchScript keep their type")
    tensors = [(tensor, tensor.data) for module in modules for tensor in module.parameters()]
    buffers = [(each._buffers, dict(each._buffers)) for module in modules for each in module.modules()]
    for tensor, _ in tensors:
        tensor.grad = None
    try:
        for module in modules:
            module._apply(to_float64)
        yield
    finally:
        for tensor, data in tensors:
            tensor.grad = None
            tensor.data = data
        for now, before in buffers:
            now.update(before)


def to_float64(tensor: Tensor) -> Tensor:
    """The tensor in fp64, or complex of it; as it is where it holds whole numbers."""
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.double() if tensor.is_floating_point() else tensor


def batch_in_float64(batch: Any) -> Any:
    """The batch in fp64, apart from any graph."""
    return map_tensors(lambda tensor: to_float64(tensor.detach()).requires_grad_(tensor.requires_grad), batch)


def copied(batch: Any) -> Any:
    """The batch in memory of its own."""
    return map_leaves(_copy, batch)


def _copy(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.detach().clone().requires_grad_(leaf.requires_grad)
    return leaf.copy() if length_of(leaf) is not None and hasattr(leaf, "copy") else leaf


def modules_in(loss: Any) -> list[nn.Module]:
    """The modules that a loss function holds, such as a criterion with parameters of its own: in its fields or its closure."""
    cells = [cell.cell_contents for cell in getattr(loss, "__closure__", None) or () if cell != CellType()]
    fields = [getattr(loss, name, None) for name in (*getattr(loss, "__slots__", ()), *getattr(loss, "__dict__", ()))]
    return [held for held in (loss, *cells, *fields) if isinstance(held, nn.Module)]
