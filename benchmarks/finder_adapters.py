"""Finders that people use, each run on a workload of ours in this process, whose budget is in force.

accelerate and toma call a function with a batch size; theirs runs our sizing trial: a new model and optimizer, an optimizer
step, then one of two accumulated micro-batches. Lightning trains a module that holds the workload's model, loss, optimizer
and batches, with two accumulated micro-batches a step, since accumulation is what the answer is for.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from profiler import Workload
from profiler.devices import Device
from profiler.devices.out_of_memory import Failure, Verdict, classify
from profiler.schedules import sizing_schedule
from profiler.steps import Phase, Training, run_step

# toma has no default and never goes up; the edge should lie below. Its own example has 512.
TOMA_START = 4096
# More than Lightning's six micro-batches of its largest size, so that the length of the data caps nothing.
SAMPLES = 2**20
LIGHTNING_PRECISION = {"fp32": "32-true", "tf32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


@dataclass(slots=True, kw_only=True)
class Count:
    """What a finder did: forward passes begun, how often memory ran out, and the sizes tried ("7", or "8!" if it failed)."""

    steps: int = 0
    out_of_memory: int = 0
    tried: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A workload on an open device, and the count of what is done with it."""

    workload: Workload
    device: Device
    count: Count

    @classmethod
    def of(cls, workload: Workload, device: Device) -> Subject:
        """Its forward passes are counted."""
        count = Count()

        def loss(model: nn.Module, batch: Any) -> Tensor:
            count.steps += 1
            return workload.loss(model, batch)

        return cls(workload=replace(workload, loss=loss), device=device, count=count)

    @contextmanager
    def counted(self, size: Callable[[], int]) -> Iterator[None]:
        """The block is a trial of that size; what ends it passes."""
        try:
            yield
        except Exception as error:
            judged = classify(Failure.of(error), device_type=self.device.type).verdict
            self.count.out_of_memory += judged in (Verdict.CERTAIN, Verdict.SUSPECT)
            self.count.tried.append(f"{size()}!")
            raise
        self.count.tried.append(str(size()))


Finder = Callable[[Subject], int | None]


def accelerate(subject: Subject) -> int:
    """find_executable_batch_size with its default start of 128."""
    from accelerate.utils import find_executable_batch_size

    found: int = find_executable_batch_size(_trial_of(subject))()
    return found


def toma(subject: Subject) -> int:
    """The decorator `toma.batch`, from TOMA_START down."""
    from toma import toma as decorators

    found: int = decorators.batch(_trial_of(subject), initial_batchsize=TOMA_START)()
    return found


def _trial_of(subject: Subject) -> Callable[[int], int]:
    """Runs the sizing trial and gives the size back."""

    def trial(batch_size: int) -> int:
        with subject.counted(lambda: batch_size):
            _run_trial(subject, batch_size)
        return batch_size

    return trial


def _run_trial(subject: Subject, size: int) -> None:
    device, schedule = subject.device, sizing_schedule(size)
    keep_batches = not device.measures_host_memory
    training = Training.start(subject.workload, device.placement(), Phase(), keep_batches=keep_batches)
    for sizes in schedule.steps:
        run_step(training, schedule.strategy, sizes)
        device.charge_loaded()


def lightning_power(subject: Subject) -> int | None:
    """BatchSizeFinder by doubling."""
    return _lightning(subject, "power")


def lightning_bisection(subject: Subject) -> int | None:
    """BatchSizeFinder by doubling and bisection."""
    return _lightning(subject, "binsearch")


def lightning_unbounded(subject: Subject) -> int | None:
    """The same without its largest size, at which it stops without having run it."""
    return _lightning(subject, "binsearch", max_val=SAMPLES)


def _lightning(subject: Subject, mode: str, **options: int) -> int | None:
    """Its defaults but for the margin and `options`: from 2 on, three optimizer steps a size, no size above 8192."""
    from lightning.pytorch import Trainer
    from lightning.pytorch.tuner import Tuner

    device = subject.device
    _be_quiet()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu" if device.type == "cpu" else "gpu",
            devices=1 if device.type == "cpu" else [device.torch_device.index],
            precision=LIGHTNING_PRECISION[subject.workload.precision],
            accumulate_grad_batches=2,
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        module = _lightning_module(subject)
        run = trainer.fit_loop.run

        def counted_run() -> Any:
            with subject.counted(lambda: int(module.batch_size)):
                return run()

        trainer.fit_loop.run = counted_run  # the finder runs it once a size
        found: int | None = Tuner(trainer).scale_batch_size(module, mode=mode, margin=0.0, **options)
    return found


def _be_quiet() -> None:
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _lightning_module(subject: Subject) -> Any:
    from lightning.pytorch import LightningModule

    workload, device = subject.workload, subject.device
    kept: dict[int, Any] = {}

    def collate(numbers: list[int]) -> Any:
        size = len(numbers)
        if device.measures_host_memory:
            return workload.make_batch(size)
        if size not in kept:
            kept[size] = workload.make_batch(size)
        return kept[size]

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = workload.build_model()
            self.batch_size = 2

        def training_step(self, batch: Any) -> Tensor:
            return workload.loss(self.model, batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return workload.build_optimizer(_trainable(self.model.parameters()))

        def train_dataloader(self) -> DataLoader[int]:
            return DataLoader(_Numbers(), batch_size=self.batch_size, collate_fn=collate)

        def optimizer_step(self, *arguments: Any, **options: Any) -> None:
            super().optimizer_step(*arguments, **options)
            device.charge_loaded()

    return Module()


def _trainable(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return [parameter for parameter in parameters if parameter.requires_grad]


class _Numbers(Dataset[int]):
    """Only counts: what a batch holds is the workload's to make."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> int:
        return index


def warm_up(finder: Finder, device: Device) -> None:
    """Run `finder` on next to nothing without a budget, so that what it imports late is charged to nobody."""

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        if len(batch) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")  # as each of them knows it
        value: Tensor = model(batch).mean()
        return value

    toy = Workload(model=lambda: nn.Linear(2, 2), make_batch=lambda size: torch.ones(size, 2), loss=loss)
    device.open(None)
    try:
        finder(Subject.of(toy, device))
    finally:
        device.close()


# The library that each needs, and what runs it.
FINDERS: dict[str, tuple[str, Finder]] = {
    "lightning-binsearch": ("lightning", lightning_bisection),
    "lightning-power": ("lightning", lightning_power),
    "lightning-unbounded": ("lightning", lightning_unbounded),
    "accelerate": ("accelerate", accelerate),
    "toma": ("toma", toma),
}
