"""A workload brought onto a simulated card: its model and batches as fake twins, its training under three modes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import _disable_current_modes

from profiler.batches import made_batch, map_tensors
from profiler.dry_run import weightless
from profiler.dry_run.answers import StandIn
from profiler.dry_run.attention_choice import Target
from profiler.dry_run.autocast import autocast_of_gpu
from profiler.dry_run.fakes import Twins, make_fake
from profiler.dry_run.kernels import Kernels
from profiler.dry_run.known import Known
from profiler.dry_run.libraries import Libraries
from profiler.dry_run.named_devices import NoGpu
from profiler.dry_run.optimizers import as_on_gpu, of_twins
from profiler.dry_run.recorder import Recorder, out_of_memory
from profiler.dry_run.standing_in import standing_in
from profiler.dry_run.unknown import Assumptions
from profiler.errors import WorkloadError
from profiler.placing import Placement
from profiler.simulation.allocator import CachingAllocator
from profiler.simulation.assumption import Assumption
from profiler.simulation.cards import Card
from profiler.simulation.ledger import Ledger
from profiler.simulation.settings import Settings


class SimulatedPlacement(Placement):
    """Fake twins whose memory is taken from `ledger`: a caching allocator with `capacity_bytes`, None for no limit.

    assumptions: what lines give that need values, as `Assumption.parsed` reads them. settings: of torch's allocator,
    cuBLAS and attention, None for their defaults. torch_version: of the torch that is simulated, None for the one that runs.
    """

    def __init__(
        self,
        card: Card,
        capacity_bytes: int | None,
        assumptions: Sequence[str] = (),
        *,
        settings: Settings | None = None,
        torch_version: tuple[int, int] | None = None,
    ) -> None:
        settings = settings or Settings()
        super().__init__(torch.device("cpu"))
        version = torch_version or _this_torch()
        target = Target(
            compute_capability=card.compute_capability,
            torch_version=version,
            prefers_cudnn=settings.prefers_cudnn_attention,
        )
        self.ledger = Ledger(
            CachingAllocator(capacity_bytes=capacity_bytes, expandable=settings.expandable_segments), out_of_memory
        )
        self._stand_in = StandIn(card=card, ledger=lambda: self.ledger)
        # Tensors that a model keeps beside its parameters and buffers are made fake where they are used.
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._known = Known(self._mode)
        assumed = Assumptions([Assumption.parsed(text) for text in assumptions])
        self._kernels = Kernels(target, self._known.value_of, assumed.filled)
        self._recorder = Recorder(
            self.ledger,
            Libraries(self.ledger, card, version, settings),
            self._known,
            assumed,
        )
        self._twins = Twins(self._mode, self._recorder.note)
        self._recorder.twin_of = self._twins.of

    def model(self, build: Callable[[], nn.Module]) -> nn.Module:
        """Built on the meta device, so that its weights take no memory, or for real where the builder needs their values."""
        with standing_in(self._stand_in):
            try:
                with torch.device("meta"), NoGpu():
                    model = build()
            except Exception:  # whatever the user's builder raises there, it raises below too if it is its own
                with NoGpu():
                    model = build()
        _check_shapes(model)
        real = [buffer for buffer in model.buffers() if not buffer.is_meta]
        make_fake(model, self._twins)
        for buffer in real:
            self._known.tell(self._twins.of(buffer), buffer)
        return model

    def batch(self, batch: Any) -> Any:
        def twin(tensor: Tensor) -> Tensor:
            fake = self._twins.once(tensor)
            self._known.tell(fake, tensor)
            return fake

        return map_tensors(twin, batch)

    def optimizer(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        return as_on_gpu(of_twins(optimizer, self._twins))

    def compiled(self, model: nn.Module) -> nn.Module:
        """The model itself: what a compiler makes of it is not known without its kernels."""
        return model

    @contextmanager
    def training(self) -> Iterator[None]:
        with (
            standing_in(self._stand_in),
            autocast_of_gpu(),
            self._mode,
            self._recorder,
            self._kernels,
        ):
            yield

    def made(self, make_batch: Callable[[int], Any], size: int) -> Any:
        with self._host():
            return weightless.made(lambda: made_batch(make_batch, size))

    @contextmanager
    def _host(self) -> Iterator[None]:
        """What code for the host runs in while training runs."""
        self._kernels.rests = True
        try:
            with _disable_current_modes(), NoGpu():
                yield
        finally:
            self._kernels.rests = False


def _check_shapes(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise WorkloadError(
                f"{name} has no shape yet, as lazy modules have until their first forward: run one on a small batch where the "
                "model is built, or give the layer its sizes."
            )


def _this_torch() -> tuple[int, int]:
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)
