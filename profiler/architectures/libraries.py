"""Importing a library that may be missing, or installed and broken."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from profiler.errors import UsageError

INSTALL = "pip install 'microbatch[models]'"
REINSTALL = "pip install --force-reinstall torch torchvision"


def import_library(module: str, target: str) -> Any:
    """The module, which `target` needs.

    Raises UsageError with the pip command where it is missing, and with the library's own error where it is installed
    and cannot be imported: most often its build belongs to another version of torch.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module:
            raise UsageError(f"{target} needs {module}, which is not installed: {INSTALL}.") from error
        raise UsageError(
            f"{target} needs {module}, which is installed but needs a module that is not: {error}. "
            f"Install that one, or everything again: {INSTALL}."
        ) from error
    except Exception as error:
        raise UsageError(
            f"{target} needs {module}, which is installed ({_version(module)}) but cannot be imported: "
            f"{type(error).__name__}: {error}. Its build, or that of a library under it, does not match "
            f"torch {torch.__version__}: reinstall both from one place ({REINSTALL})."
        ) from error


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "of unknown version"
