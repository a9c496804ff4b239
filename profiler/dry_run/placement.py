"""A workload brought onto a simulated card: its model and batches as fake twins, its training under three modes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from profiler.batches import map_tensors
from profiler.dry_run.fakes import Twins, make_fake
from profiler.dry_run.kernels import Kernels
from profiler.dry_run.known import Known
from profiler.dry_run.libraries import Libraries
from profiler.dry_run.recorder import Recorder, out_of_memory
from profiler.dry_run.unknown import Assumptions
from profiler.placing import Placement
from profiler.simulation.allocator import CachingAllocator
from profiler.simulation.assumption import Assumption
from profiler.simulation.cards import Card
from profiler.simulation.ledger import Ledger


class SimulatedPlacement(Placement):
    """Fake twins whose memory is taken from `ledger`: a caching allocator with `capacity_bytes`, None for no limit.

    assumptions: what lines give that need values, as `Assumption.parsed` reads them.
    """

    def __init__(
        self,
        card: Card,
        capacity_bytes: int | None,
        assumptions: Sequence[str] = (),
        *,
        torch_version: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(torch.device("cpu"))
        self._card = card
        self.ledger = Ledger(CachingAllocator(capacity_bytes=capacity_bytes), out_of_memory)
        # Tensors that a model keeps beside its parameters and buffers are made fake where they are used.
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._known = Known(self._mode)
        self._recorder = Recorder(
            self.ledger,
            Libraries(self.ledger, card, torch_version or _this_torch()),
            self._known,
            Assumptions([Assumption.parsed(text) for text in assumptions]),
        )
        self._twins = Twins(self._mode, self._recorder.note)
        self._recorder.twin_of = self._twins.of

    def model(self, build: Callable[[], nn.Module]) -> nn.Module:
        """Built on the meta device, so that its weights take no memory, or for real where the builder needs their values."""
        try:
            with torch.device("meta"):
                model = build()
        except Exception:  # whatever the user's builder raises there, it raises below too if it is its own
            model = build()
        make_fake(model, self._twins)
        return model

    def batch(self, batch: Any) -> Any:
        def twin(tensor: Tensor) -> Tensor:
            fake = self._twins.once(tensor)
            self._known.tell(fake, tensor)
            return fake

        return map_tensors(twin, batch)

    def optimizer(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """With the multi-tensor implementation where the choice is torch's, which takes it for parameters on a GPU."""
        for group in optimizer.param_groups:
            if (
                "foreach" in group
                and group["foreach"] is None
                and not group.get("fused")
                and not group.get("differentiable")
            ):
                group["foreach"] = True
        return optimizer

    @contextmanager
    def training(self) -> Iterator[None]:
        with self._mode, self._recorder, Kernels(self._card.compute_capability, self._known.value_of):
            yield

    def host(self) -> AbstractContextManager[object]:
        return _disable_current_modes()


def _this_torch() -> tuple[int, int]:
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)
