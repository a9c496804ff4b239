"""Workloads from the user's own code: `path/to/file.py:factory` and `package.module:factory`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from profiler.architectures import LIBRARIES
from profiler.errors import UsageError, WorkloadError
from profiler.nearest import did_you_mean
from profiler.tracebacks import user_traceback

if TYPE_CHECKING:
    from profiler.workload import Workload

# No import of the user's can mean a name that begins so.
MODULE_PREFIX = "microbatch_target_"


def workload_of_factory(place: str, name: str, directory: Path) -> Workload:
    """The workload that `name` is, or returns without arguments, in the file or module `place`.

    A file (`place` ends in .py) is found from `directory`, and its own folder comes first on `sys.path`; for a module,
    `directory` does. Raises UsageError where the place or the name is not there or cannot be called without arguments,
    WorkloadError, with the user's traceback, where their code fails or gives something else than a Workload.
    """
    from profiler.workload import Workload

    module = _load_file(directory / place) if place.endswith(".py") else _load_module(place, directory)
    found = _attribute(module, name, place)
    if isinstance(found, Workload):
        return found
    _check_callable_without_arguments(found, name, place)
    made = _run_users_code(found, f"{name}() in {place}")
    if not isinstance(made, Workload):
        raise WorkloadError(
            f"{name}() in {place} returned {_kind(made)}, which is no Workload: return profiler.Workload(...)."
        )
    return made


def refuse_missing(path: Path) -> None:
    """Raise UsageError, with the nearest names beside it, unless `path` is a file."""
    path = path.resolve()
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        siblings = [file.name for file in path.parent.glob("*.py")]
        raise UsageError(
            f"the file {path} {what}: a target is path/to/file.py:factory, the path from the current directory."
            f"{did_you_mean(path.name, siblings)}"
        )


def _load_file(path: Path) -> ModuleType:
    path = path.resolve()
    refuse_missing(path)
    _put_first_on_path(path.parent)
    # The path is in the name, so that two files of one name are two modules.
    stem = re.sub(r"\W", "_", path.stem)
    name = f"{MODULE_PREFIX}{stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, "a path that ends in .py always has a loader"
    assert spec.loader is not None, "a path that ends in .py always has a loader"
    loader, module = spec.loader, importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their classes' module up there
    try:
        _run_users_code(lambda: loader.exec_module(module), str(path), verb="imported")
    except WorkloadError:
        del sys.modules[name]
        raise
    return module


def _load_module(name: str, directory: Path) -> ModuleType:
    _put_first_on_path(directory)
    try:
        module: ModuleType = _run_users_code(lambda: importlib.import_module(name), name, verb="imported")
    except WorkloadError as error:
        cause = error.__cause__
        if isinstance(cause, ModuleNotFoundError) and cause.name and f"{name}.".startswith(f"{cause.name}."):
            raise UsageError(
                f"there is no module {cause.name}, looked for in {directory} and where Python finds its modules: "
                "a target is package.module:factory, or path/to/file.py:factory."
                f"{did_you_mean(name, [*LIBRARIES, *(file.stem for file in directory.glob('*.py'))])}"
            ) from cause
        raise
    return module


def _attribute(module: ModuleType, name: str, place: str) -> Any:
    found: Any = module
    try:
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError:
        from profiler.workload import Workload

        own = [
            known
            for known, value in vars(module).items()
            if isinstance(value, Workload) or getattr(value, "__module__", None) == module.__name__
        ]
        hint = did_you_mean(name, own) or (f" It has {', '.join(own)}." if own else " It defines no function.")
        raise UsageError(f"{place} has no {name}.{hint}") from None
    return found


def _check_callable_without_arguments(found: Any, name: str, place: str) -> None:
    if not callable(found):
        raise UsageError(
            f"{name} in {place} is {_kind(found)}, neither a Workload nor a function that returns one: "
            "name a function without arguments."
        )
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):  # some built-in callables do not tell
        return
    required = [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if required:
        raise UsageError(
            f"{name} in {place} has {len(required)} arguments without a default ({', '.join(required)}), and is called without any: "
            "give each a default, or name a function without arguments that returns a Workload."
        )


def _run_users_code(call: Callable[[], Any], what: str, *, verb: str = "called") -> Any:
    """What `call` returns; WorkloadError, with the user's traceback, for whatever it raises."""
    try:
        return call()
    # A script that ends itself (argparse does) is a bug here, and must not end this process.
    except (Exception, SystemExit) as error:
        text = " ".join(str(error).split())
        next_step = (
            'let it do without command line arguments, and put what makes it a script under if __name__ == "__main__".'
            if isinstance(error, SystemExit)
            else "the traceback shows where to correct it."
        )
        raise WorkloadError(
            f"{what} raised {type(error).__name__}{f' ({text})' if text else ''} when it was {verb}: {next_step}",
            user_traceback=user_traceback(error),
        ) from error


def _put_first_on_path(folder: Path) -> None:
    entry = str(folder)
    if sys.path[:1] != [entry]:
        sys.path[:] = [entry, *(known for known in sys.path if known != entry)]
    importlib.invalidate_caches()


def _kind(value: Any) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"
