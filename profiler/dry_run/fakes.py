"""Fake twins of models and batches: their shapes, types and strides without their memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode


class Twins:
    """Gives each tensor its fake twin, the same one every time; tensors that share memory have twins that share it.

    note: told of each piece of memory as it comes into being. Tensors may be real or on the meta device.
    """

    def __init__(self, mode: FakeTensorMode, note: Callable[[Tensor], None]) -> None:
        self._mode, self._note = mode, note
        self._memory: dict[int, Tensor] = {}
        # With the original, so that no other tensor gets its identity meanwhile.
        self._twins: dict[int, tuple[Tensor, Tensor]] = {}

    def of(self, tensor: Tensor) -> Tensor:
        """The twin of `tensor`: a parameter's is one, with the attributes that code of the user's gave it."""
        held = self._twins.get(id(tensor))
        if held is not None:
            return held[1]
        storage = tensor.untyped_storage()
        memory = self._memory.get(storage._cdata)
        if memory is None:
            memory = self._memory[storage._cdata] = self._new_memory(tensor)
        fake = self._view(memory, tensor)
        if isinstance(tensor, nn.Parameter):
            parameter: Any = nn.Parameter(fake, requires_grad=tensor.requires_grad)
            parameter.__dict__.update(tensor.__dict__)
            fake = parameter
        self._twins[id(tensor)] = tensor, fake
        return fake

    def once(self, tensor: Tensor) -> Tensor:
        """A twin that is not remembered, in memory of its own, which goes with it."""
        return self._view(self._new_memory(tensor), tensor)

    def _new_memory(self, tensor: Tensor) -> Tensor:
        """A fake tensor as long as the whole storage of `tensor`."""
        with self._mode:
            memory = torch.empty(-(-tensor.untyped_storage().nbytes() // tensor.element_size()), dtype=tensor.dtype)
        self._note(memory)
        return memory

    def _view(self, memory: Tensor, tensor: Tensor) -> Tensor:
        with self._mode, torch.no_grad():
            return memory.view(tensor.dtype).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def make_fake(model: nn.Module, twins: Twins) -> None:
    """Put twins in the place of the model's parameters and buffers, in the order in which `Module.to` moves them."""
    for module in _children_first(model):
        held: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for members in held:
            for name, tensor in members.items():
                if tensor is not None:
                    members[name] = twins.of(tensor)
        if isinstance(module, nn.RNNBase):  # which keeps its weights in a list too
            module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]


def _children_first(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        yield from _children_first(child)
    yield module
