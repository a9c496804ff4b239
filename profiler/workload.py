"""What is trained: a model, its batches, its loss, its optimizer, and in which precision."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from profiler.batches import batches_of, count_samples
from profiler.errors import UsageError, WorkloadError

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One training step's ingredients, enough to run it at any micro-batch size.

    model: a module, or a function without arguments that builds one. A builder is better for sizing: its memory is
        counted from the first byte.
    make_batch: `make_batch(n)` gives a batch of n samples: any nest of tensors with the samples along dimension 0.
    loss: `loss(model, batch)` gives a scalar tensor, averaged over `loss_items(batch)` items.
    optimizer: `optimizer(parameters)` gives a torch optimizer; None is AdamW with torch's defaults.
    loss_items: how many items the loss of `batch` averages over, or the sum of their weights; None means its samples.
    precision: "fp32" (torch's own defaults), "tf32", or autocast to "bf16" or "fp16" (fp16 with a GradScaler).
    compile: whether the model is passed through `torch.compile`.
    name: what records and folders call it.

    Raises UsageError for a field of the wrong kind.
    """

    model: nn.Module | Callable[[], nn.Module]
    make_batch: Callable[[int], Any]
    loss: Callable[[nn.Module, Any], Tensor]
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None
    loss_items: Callable[[Any], float] | None = None
    precision: Precision = "fp32"
    compile: bool = False
    name: str = "workload"

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(f"precision {self.precision!r} is unknown: use one of {', '.join(PRECISIONS)}.")
        for field in ("model", "make_batch", "loss"):
            if not callable(getattr(self, field)):
                raise UsageError(
                    f"Workload.{field} is a {type(getattr(self, field)).__name__}, which cannot be called."
                )
        for field in ("optimizer", "loss_items"):
            if getattr(self, field) is not None and not callable(getattr(self, field)):
                raise UsageError(
                    f"Workload.{field} is a {type(getattr(self, field)).__name__}: pass a function of "
                    f"{'the parameters' if field == 'optimizer' else 'the batch'}, or None."
                )

    @property
    def model_is_live(self) -> bool:
        """Whether `model` is a module that exists already, rather than a builder."""
        return isinstance(self.model, nn.Module)

    @property
    def lives_on_accelerator(self) -> bool:
        """Whether `model` is a module with parameters that are not in host memory."""
        return isinstance(self.model, nn.Module) and any(p.device.type != "cpu" for p in self.model.parameters())

    def build_model(self) -> nn.Module:
        """The live model, or a new one from the builder; UsageError where the builder gives no module."""
        if isinstance(self.model, nn.Module):
            return self.model
        model = self.model()
        if not isinstance(model, nn.Module):
            raise UsageError(f"the model builder returned {type(model).__name__}, which is no torch.nn.Module.")
        return model

    def build_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The user's optimizer over `parameters`, AdamW where none is given; WorkloadError where theirs is none."""
        if self.optimizer is None:
            return torch.optim.AdamW(parameters)
        optimizer = self.optimizer(parameters)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise WorkloadError(
                f"Workload.optimizer returned {type(optimizer).__name__}, which is no torch.optim.Optimizer: return one made "
                "from the parameters that it is given."
            )
        return optimizer

    def count_items(self, batch: Any) -> float:
        """How many items the loss of `batch` averages over, or the sum of their weights."""
        return self.loss_items(batch) if self.loss_items is not None else count_samples(batch)

    @classmethod
    def supervised(
        cls,
        model: nn.Module | Callable[[], nn.Module],
        criterion: Callable[[Any, Any], Tensor],
        data: Dataset[Any] | Callable[[int], Any],
        *,
        collate: Callable[[list[Any]], Any] | None = None,
        worst_case: bool | Callable[[Any], float] = False,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None,
        loss_items: Callable[[Any], float] | None = None,
        precision: Precision = "fp32",
        compile: bool = False,
        name: str = "workload",
    ) -> Workload:
        """A workload whose batches are (inputs, targets) and whose loss is `criterion(model(inputs), targets)`.

        `data` is a Dataset of (input, target) samples, with its `collate` function and `worst_case` as in
        `profiler.batches.batches_of`, or a function `make_batch(n)`.
        """
        make_batch: Callable[[int], Any]
        # Datasets of other libraries (Hugging Face's) are no subclass of torch's, and cannot be called.
        if isinstance(data, Dataset) or (hasattr(data, "__getitem__") and not callable(data)):
            make_batch = batches_of(data, collate=collate, worst_case=worst_case)
        elif collate is not None or worst_case is not False:
            raise UsageError(
                "collate and worst_case choose samples of a Dataset; this data is a batch maker, which chooses its own."
            )
        else:
            make_batch = data
        return cls(
            model=model,
            make_batch=make_batch,
            loss=SupervisedLoss(criterion=criterion),
            optimizer=optimizer,
            loss_items=loss_items,
            precision=precision,
            compile=compile,
            name=name,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisedLoss:
    """`criterion(model(inputs), targets)` for a batch that is a pair (inputs, targets)."""

    criterion: Callable[[Any, Any], Tensor]

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise WorkloadError(
                f"the batch is {_described(batch)}, and a supervised workload needs a pair (inputs, targets): "
                "return one from make_batch or collate, or pass Workload a loss of your own."
            )
        inputs, targets = batch
        if isinstance(self.criterion, nn.Module):
            # Class weights and the like must be where the model is; without any this moves nothing.
            device = next((tensor.device for tensor in model.parameters()), None)
            self.criterion.to(device)
        return self.criterion(model(inputs), targets)


def _described(batch: Any) -> str:
    parts = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
    return f"a {type(batch).__name__}{parts}"
