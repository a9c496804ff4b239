"""Training on fake tensors, recorded as a card would see it: each storage that comes into being, and that goes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    UnsupportedOperatorException,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from profiler.dry_run.known import Known, tensors_in
from profiler.dry_run.libraries import Libraries
from profiler.dry_run.unknown import Assumptions, shapes_missing
from profiler.dry_run.unshaped import WITHOUT_SHAPES
from profiler.simulation.ledger import Ledger
from profiler.units import format_bytes

_aten = torch.ops.aten
# Asked by autograd, in C++, two times and more for every operation.
_DEVICE = torch.ops.prim.device.default
_SCALAR = _aten.scalar_tensor.default


class Recorder(TorchDispatchMode):
    """Sees every operation below autograd, runs it on fake tensors, and tells `ledger` of the storages that it made.

    Entered after (so above) the FakeTensorMode. Storages are known by their identity, and leave when the last tensor and
    the last graph that hold them do. libraries: what cuBLAS and cuDNN take beside the outputs. known: values that are
    carried along because they cost nothing. assumptions: the answer where an operation needs a value that nobody has. twin_of:
    the fake twin of a tensor that is not fake.

    Raises what the ledger raises where the card is full, and what `assumptions` raises.
    """

    twin_of: Callable[[Tensor], Tensor]

    def __init__(self, ledger: Ledger, libraries: Libraries, known: Known, assumptions: Assumptions) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self._ledger, self._libraries, self._known, self._assumptions = ledger, libraries, known, assumptions
        # By the address of the storage's C++ object, which no other has while it lives; None lies in host memory.
        self._numbers: dict[int, int | None] = {}
        self._sizes: dict[int, int] = {}
        # Not the recorder itself: through the twins it holds the weights, and what is told of their end must not.
        self._gone_by = weakref.WeakMethod(self._gone)

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is _DEVICE and isinstance(args[0], FakeTensor):
            return args[0].fake_device
        args, kwargs = self._on_card(args), self._on_card(kwargs or {})
        result = self._result_of(func, args, kwargs)
        result = self._libraries.completed(func, args, result)
        on_host = _is_on_host(func, kwargs)
        for tensor in tensors_in(result):
            self.note(tensor, on_host=on_host)
        self._libraries.use(func, args, result)
        self._known.follow(func, args, kwargs, result)
        return result

    def _on_card(self, nest: Any) -> Any:
        """`nest` with twins in the place of what is to be on the card and is not: tensors on the meta device, which a model that
        was built there keeps for itself, and real weights, of networks that are used beside the model, such as a teacher.
        """
        if any(map(_lacks_a_twin, tensors_in(nest))):
            return tree_map_only(Tensor, lambda tensor: self.twin_of(tensor) if _lacks_a_twin(tensor) else tensor, nest)
        return nest

    def _result_of(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func in WITHOUT_SHAPES:
            return WITHOUT_SHAPES[func](*args, **kwargs)
        try:
            return func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            result = self._known.result_of(func, args, kwargs)
            return self._assumptions.result_of(func, args, kwargs) if result is None else result
        except UnsupportedOperatorException as error:
            raise shapes_missing(func) from error

    def note(self, tensor: Tensor, *, on_host: bool = False) -> None:
        """Tell the ledger of the storage of `tensor` if it is new, or has another size than it had."""
        # A sparse tensor's indices and values have the storages, and were made before it.
        if tensor.layout is not torch.strided:
            return
        storage = tensor.untyped_storage()
        key, size_bytes = storage._cdata, storage.nbytes()
        if key not in self._numbers:
            self._numbers[key] = None if on_host else self._ledger.take(size_bytes)
            self._sizes[key] = size_bytes
            weakref.finalize(storage, _tell, self._gone_by, key).atexit = False
            return
        number = self._numbers[key]
        if number is not None and self._sizes[key] != size_bytes:  # resized
            self._ledger.give_back(number)
            self._numbers[key] = self._ledger.take(size_bytes)
            self._sizes[key] = size_bytes

    def _gone(self, key: int) -> None:
        number = self._numbers.pop(key)
        del self._sizes[key]
        if number is not None:
            self._ledger.give_back(number)


def _is_on_host(func: Any, kwargs: dict[str, Any]) -> bool:
    """Whether host memory has what `func` makes: `torch.tensor(1.0)`, as optimizers keep their step counts, and scalars.

    But for scalars for which torch names the device, that of a tensor, as where a backward replaces others by zero.
    """
    return func is _aten.lift_fresh.default or (func is _SCALAR and kwargs.get("device") is None)


def _tell(gone_by: Callable[[], Callable[[int], None] | None], key: int) -> None:
    """Tell the recorder, if there still is one, that the storage of that key is gone."""
    gone = gone_by()
    if gone is not None:
        gone(key)


def _lacks_a_twin(tensor: Tensor) -> bool:
    return not isinstance(tensor, FakeTensor) and (tensor.is_meta or isinstance(tensor, nn.Parameter))


def out_of_memory(requested_bytes: int, allocated_bytes: int, reserved_bytes: int) -> Exception:
    """What CUDA's allocator raises, for a `Ledger`."""
    requested, allocated, reserved = map(format_bytes, (requested_bytes, allocated_bytes, reserved_bytes))
    return torch.OutOfMemoryError(
        f"CUDA out of memory, as predicted. Tried to allocate {requested} with {allocated} allocated and {reserved} reserved."
    )
