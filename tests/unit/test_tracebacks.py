from __future__ import annotations

import importlib
from pathlib import Path
from traceback import TracebackException

import pytest
import torch
from torch import Tensor, nn

from profiler import tracebacks
from profiler.errors import WorkloadError
from profiler.tracebacks import user_traceback
from profiler.workload import Workload

HERE = Path(__file__).name


def build_wrongly() -> nn.Module:
    raise ValueError("no such layer")


def build_through_the_package() -> nn.Module:
    return workload_of(build_wrongly).build_model()


def workload_of(model: object) -> Workload:
    def make_batch(size: int) -> tuple[Tensor, Tensor]:
        return torch.ones(size, 7), torch.ones(size, 2)

    return Workload.supervised(model, nn.MSELoss(), make_batch)  # type: ignore[arg-type]  # builders of all kinds


def error_from_the_package(workload: Workload) -> Exception:
    """What training the workload raises, without the frame of this function: the first one is the package's."""
    with pytest.raises((ValueError, RuntimeError)) as information:
        workload.loss(workload.build_model(), workload.make_batch(2))
    traceback = information.value.__traceback__
    return information.value.with_traceback(traceback and traceback.tb_next)


def files_in(text: str) -> list[str]:
    return [Path(line.split('"')[1]).name for line in text.splitlines() if line.startswith('  File "')]


def test_leading_frames_of_the_package_are_dropped() -> None:
    text = user_traceback(error_from_the_package(workload_of(build_wrongly)))

    assert files_in(text) == [HERE]
    assert text.startswith("Traceback (most recent call last):")
    assert text.endswith("ValueError: no such layer")


def test_frames_of_the_package_after_the_users_first_one_stay() -> None:
    text = user_traceback(error_from_the_package(workload_of(build_through_the_package)))

    assert files_in(text) == [HERE, "workload.py", HERE]


def test_an_error_inside_the_package_and_torch_alone_keeps_every_frame() -> None:
    files = files_in(user_traceback(error_from_the_package(workload_of(nn.Linear(3, 2)))))

    assert files[0] == "workload.py"
    assert files[-1] == "linear.py"


def test_a_syntax_error_shows_the_users_line_and_no_frame() -> None:
    with pytest.raises(SyntaxError) as information:
        compile("def f(:", "users.py", "exec")

    assert files_in(user_traceback(information.value.with_traceback(None))) == ["users.py"]


def test_the_errors_behind_an_error_are_shown_and_trimmed_too() -> None:
    error = WorkloadError("the model cannot be built")
    error.__cause__ = error_from_the_package(workload_of(build_wrongly))
    text = user_traceback(error)

    assert files_in(text) == [HERE]
    assert text.index("ValueError: no such layer") < text.index("WorkloadError: the model cannot be built")


def test_the_import_machinery_only_calls_the_users_code() -> None:
    with pytest.raises(ModuleNotFoundError) as information:
        importlib.import_module("microbatch_missing_module")
    own, *machinery = TracebackException.from_exception(information.value).stack

    assert not tracebacks._only_called(own)
    assert machinery
    assert all(tracebacks._only_called(frame) for frame in machinery)
