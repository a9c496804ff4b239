"""What cuBLAS, cuDNN and attention take from the caching allocator beside the outputs of an operation.

cuBLAS: a workspace for each handle, made at its first matrix product and kept. Through torch 2.14 a handle is a thread's,
and backward runs in a thread of its own, so that there are two (aten/src/ATen/cuda/CublasHandlePool.cpp); in 2.15 it is taken
and given back with each product. cuDNN: a workspace during a convolution; see `workspaces`. Attention: see `attention_memory`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from profiler.dry_run.attention_memory import temporaries
from profiler.dry_run.workspaces import forward_workspace
from profiler.simulation.cards import Card
from profiler.simulation.ledger import Ledger
from profiler.simulation.settings import Settings
from profiler.units import MIB

_aten = torch.ops.aten
_PRODUCTS = frozenset(
    {
        _aten.mm.default,
        _aten.addmm.default,
        _aten.bmm.default,
        _aten.baddbmm.default,
        _aten.addmv.default,
        _aten.mv.default,
        _aten.dot.default,
        _aten._addmm_activation.default,
    }
)
_CUBLAS_BYTES = 8_519_680  # 4096 KiB x 2 + 16 KiB x 8, torch's default but for Hopper
_CUBLAS_HOPPER_BYTES = 33_554_432
_CUBLASLT_BYTES = MIB
_GIVES_BACK_FROM = (2, 15)


class Libraries:
    """The libraries of one process on one card, with what they hold.

    torch_version: of the torch that is simulated.
    """

    def __init__(self, ledger: Ledger, card: Card, torch_version: tuple[int, int], settings: Settings) -> None:
        self._ledger = ledger
        default_bytes = _CUBLAS_HOPPER_BYTES if card.compute_capability == (9, 0) else _CUBLAS_BYTES
        set_bytes = settings.cublas_workspace_bytes
        self._cublas_bytes = default_bytes if set_bytes is None else set_bytes
        self._keeps = torch_version < _GIVES_BACK_FROM
        self._handles: set[bool] = set()

    def use(self, func: Any, args: tuple[Any, ...], result: Any) -> None:
        """Takes, and gives back where that is done at once, what `func` needs beside its outputs.

        Raises as `Ledger.take` does where there is no memory for cuBLAS. A convolution falls back to another algorithm.
        """
        if func in _PRODUCTS:
            self._use_cublas(func)
        elif func is _aten.convolution.default and (size_bytes := forward_workspace(args[0], result, groups=args[8])):
            self._ledger.pass_through(size_bytes)
        for number in [self._ledger.take(size_bytes) for size_bytes in temporaries(func, args, result)]:
            self._ledger.give_back(number)

    def _use_cublas(self, func: Any) -> None:
        in_backward = torch._C._current_graph_task_id() != -1
        if self._keeps and in_backward not in self._handles:
            self._ledger.take(self._cublas_bytes)
            self._handles.add(in_backward)
        elif not self._keeps:
            self._ledger.give_back(self._ledger.take(self._cublas_bytes))
        if func is _aten.addmm.default:  # with a bias, by cuBLASLt
            self._ledger.pass_through(_CUBLASLT_BYTES)

    def completed(self, func: Any, args: tuple[Any, ...], result: Any) -> Any:
        """`result` with what the meta kernel leaves out: the reserve space of cuDNN's RNNs, of which it says 0 bytes."""
        if func is not _aten._cudnn_rnn.default:
            return result
        reserve: Tensor = result[3]
        return (*result[:3], reserve.new_empty((rnn_reserve_bytes(args),)), *result[4:])


def rnn_reserve_bytes(args: tuple[Any, ...]) -> int:
    """What cuDNN keeps of an RNN's forward for its backward: every gate and state of every step, layer and direction.

    An estimate: the layout is cuDNN's own. An LSTM keeps its four gates, the cell state and its tanh, a GRU its three gates
    and one product; between layers dropout keeps a mask and a copy.
    """
    source, mode, hidden, layers, dropout, train, bidirectional = (
        args[0], args[6], args[7], args[9], args[11], args[12], args[13],
    )  # fmt: skip
    if not train:
        return 0
    kept = {2: 6, 3: 5}.get(mode, 1)
    steps = source.numel() // source.shape[-1]
    directions = 2 if bidirectional else 1
    elements = steps * hidden * directions * layers * kept
    if dropout > 0 and layers > 1:
        elements += 2 * steps * hidden * directions * (layers - 1)
    size_bytes: int = int(elements) * source.element_size()
    return size_bytes
