"""A folder with a training script of a user's, for the tests of what is loaded from one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

FACTORY = """
from dataclasses import dataclass
import pickle

import torch
from torch import nn
from profiler.workload import Workload


@dataclass
class Settings:
    width: int = 3


def build():
    return nn.Linear(Settings().width, 2)


def make_batch(size):
    return torch.ones(size, 3), torch.ones(size, 2)


def make():
    return Workload.supervised(build, nn.MSELoss(), make_batch, name="mine", precision="bf16")


def make_pickled():
    assert pickle.loads(pickle.dumps(Settings(width=4))).width == 4
    return make()


ready = make()


def fail():
    raise KeyError("learning_rate")


def give_a_model():
    return build()


def give_nothing():
    pass


def with_arguments(rate, *, steps, width=3):
    return make()


number = 7
"""


def train_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with train.py, where the test runs; what loading does to the interpreter is undone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "train.py").write_text(FACTORY)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        module = sys.modules[name]
        if str(tmp_path) in f"{getattr(module, '__file__', '')} {list(getattr(module, '__path__', []))}":
            del sys.modules[name]
