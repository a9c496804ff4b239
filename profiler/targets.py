"""Where a workload comes from, as plain data that travels to another process and is loaded there.

Defining a source imports neither torch nor the user's code; `load` does both.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profiler.architectures import LIBRARIES, named_architecture
from profiler.errors import UsageError, WorkloadError
from profiler.examples import EXAMPLES
from profiler.factories import MODULE_PREFIX, refuse_missing, workload_of_factory
from profiler.nearest import did_you_mean
from profiler.tracebacks import user_traceback

if TYPE_CHECKING:
    from profiler.workload import Precision, Workload

FORMS = "torchvision:NAME, timm:NAME, hf:NAME, path/to/file.py:factory or package.module:factory"
_SMALLEST = {"image_size": 1, "sequence_length": 1, "classes": 2}


def _current_directory() -> str:
    return str(Path.cwd())


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetOptions:
    """What is asked of a target's workload; None leaves it as it is.

    image_size: the side of a square image in pixels. sequence_length: tokens in a sample. classes: labels of a
    classifier. These three are for named architectures. precision, compile: instead of the workload's own.
    worst_case: whether the largest samples of its Dataset come first.

    Raises UsageError for a size that is too small.
    """

    image_size: int | None = None
    sequence_length: int | None = None
    classes: int | None = None
    precision: Precision | None = None
    compile: bool | None = None
    worst_case: bool = False

    def __post_init__(self) -> None:
        for name, smallest in _SMALLEST.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise UsageError(f"{_flag(name)} is {value}: it must be {smallest} at least.")

    def sizes(self) -> dict[str, int]:
        """The options for named architectures that were given, by name."""
        return {name: value for name in _SMALLEST if (value := getattr(self, name)) is not None}


@dataclass(frozen=True, slots=True)
class TargetSource:
    """A workload by its name: an example, a named architecture, or a factory in the user's file or module.

    directory: where paths and modules are looked for; by default the current directory at the time of construction.
    """

    target: str
    options: TargetOptions = field(default_factory=TargetOptions)
    directory: str = field(default_factory=_current_directory)

    def load(self) -> Workload:
        """The workload, made anew.

        Raises UsageError where the target or an option cannot be used, WorkloadError where the user's code fails.
        """
        self.check()
        workload = self._named()
        changes: dict[str, Any] = {}
        if self.options.precision is not None:
            changes["precision"] = self.options.precision
        if self.options.compile is not None:
            changes["compile"] = self.options.compile
        if self.options.worst_case:
            changes["make_batch"] = _largest_first(workload, self.target)
        return dataclasses.replace(workload, **changes)

    @property
    def sha256(self) -> str | None:
        """The SHA-256 of the user's file that is named; None where none is, or it cannot be read."""
        place = self.target.rpartition(":")[0]
        path = Path(self.directory, place)
        if not place.endswith(".py") or not path.is_file():
            return None
        with suppress(OSError):
            return hashlib.sha256(path.read_bytes()).hexdigest()
        return None

    @property
    def imports(self) -> tuple[str, ...]:
        """The library that loading imports beside torch, which takes seconds: worth having before workers fork."""
        library = LIBRARIES.get(self._library)
        return () if library is None else (library,)

    def check(self) -> None:
        """Raise UsageError for what the name alone says, or a file that is not there: at once, since nothing is imported."""
        if self._library in LIBRARIES:
            return
        self._refuse_sizes()
        if self.target in EXAMPLES:
            return
        place, separator, factory = self.target.rpartition(":")
        if not (separator and place and factory):
            raise UsageError(self._incomplete())
        if place.endswith(".py"):
            refuse_missing(Path(self.directory, place))
        elif not _is_module_name(place):
            raise UsageError(f"{place!r} is neither a .py file nor a module's name: a target is {FORMS}.")

    @property
    def _library(self) -> str:
        return self.target.partition(":")[0]

    def _named(self) -> Workload:
        if self._library in LIBRARIES:
            return named_architecture(self.target, **self.options.sizes())
        if self.target in EXAMPLES:
            return EXAMPLES[self.target]()
        place, _, factory = self.target.rpartition(":")
        return workload_of_factory(place, factory, Path(self.directory))

    def _refuse_sizes(self) -> None:
        for name in self.options.sizes():
            raise UsageError(
                f"{_flag(name)} does not apply to {self.target}: it is for named architectures "
                f"({', '.join(f'{library}:NAME' for library in LIBRARIES)}); leave it out."
            )

    def _incomplete(self) -> str:
        """Why a target without a place or without a factory cannot be used."""
        name = self.target.rstrip(":")
        if name.endswith(".py"):
            path = Path(self.directory, name)
            missing = "" if path.is_file() else f", and the file {path} does not exist"
            return f"{self.target} names no factory{missing}: write {name}:FUNCTION, which returns a Workload."
        if self.target.endswith(":") and _is_module_name(name):
            return f"{self.target} names no factory: write {name}:FUNCTION, which returns a Workload."
        return (
            f"there is no workload {self.target!r}: use an example ({', '.join(EXAMPLES)}), {FORMS}."
            f"{did_you_mean(self.target, EXAMPLES)}"
        )


@dataclass(frozen=True, slots=True)
class LiveSource:
    """A workload of this process, pickled so that another process can have a copy.

    search_path: where this process finds modules, which the copy's own may need.
    """

    payload: bytes
    search_path: tuple[str, ...] = ()

    @classmethod
    def of(cls, workload: Workload) -> LiveSource:
        """The source of a copy of `workload`; UsageError where something in it cannot be pickled."""
        import cloudpickle

        for name, module in list(sys.modules.items()):
            if name.startswith(MODULE_PREFIX):  # a name that no other process can import
                cloudpickle.register_pickle_by_value(module)
        try:
            payload = cloudpickle.dumps(workload)
        except Exception as error:  # pickling calls the user's own methods, which may raise anything
            raise UsageError(
                f"the workload {workload.name!r} cannot be sent to a worker process: "
                f"{type(error).__name__}: {error}. Make what cannot be pickled inside the model's builder or the batch "
                'maker, name the workload by file ("path/to/file.py:factory"), or use isolation="none".'
            ) from error
        return cls(payload, tuple(entry or _current_directory() for entry in sys.path))

    def load(self) -> Workload:
        """The copy; WorkloadError, with the user's traceback, where this process cannot rebuild it."""
        sys.path.extend(entry for entry in self.search_path if entry not in sys.path)
        try:
            workload: Workload = pickle.loads(self.payload)
        except Exception as error:  # as above
            raise WorkloadError(
                f"the workload cannot be rebuilt in a worker process: {type(error).__name__}: {error}. Name it by file "
                '("path/to/file.py:factory"), or use isolation="none".',
                user_traceback=user_traceback(error),
            ) from error
        return workload


WorkloadSource = TargetSource | LiveSource


def _largest_first(workload: Workload, target: str) -> Any:
    from profiler.batches import DatasetBatches

    if not isinstance(workload.make_batch, DatasetBatches):
        raise UsageError(
            f"--worst-case chooses samples of a Dataset, and the batches of {target} come from a function that chooses "
            "its own: leave it out, or make the workload with Workload.supervised(model, criterion, dataset)."
        )
    return workload.make_batch.with_largest_first()


def _is_module_name(place: str) -> bool:
    return all(part.isidentifier() for part in place.split("."))


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"
