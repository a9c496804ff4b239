from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from train_file import FACTORY, train_folder

from profiler.batches import DatasetBatches
from profiler.errors import UsageError, WorkloadError
from profiler.examples import EXAMPLES
from profiler.targets import LiveSource, TargetOptions, TargetSource
from profiler.workload import Workload

folder = pytest.fixture(train_folder)


def load(target: str, **options: Any) -> Workload:
    return TargetSource(target, TargetOptions(**options)).load()


def usage_error(target: str, **options: Any) -> str:
    with pytest.raises(UsageError) as information:
        load(target, **options)
    return str(information.value)


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_an_examples_name(name: str) -> None:
    assert load(name).name == name


def test_paths_are_those_of_the_directory_where_the_source_was_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = TargetSource("train.py:make")
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")

    assert pickle.loads(pickle.dumps(source)) == source
    assert source.load().name == "mine"


def test_defining_a_source_imports_no_torch() -> None:
    code = "import sys; from profiler.targets import *; TargetSource('hf:gpt2'); sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "target",
    [
        pytest.param("no-such-example", id="an example that there is none of"),
        pytest.param("missing.py:workload", id="a file that is not there"),
        pytest.param("train.py", id="no factory"),
        pytest.param("1.2:workload", id="no module's name"),
    ],
)
def test_what_the_name_alone_says_is_refused_without_importing_torch(target: str) -> None:
    code = f"""
import sys
from profiler.targets import *
try:
    TargetSource({target!r}).check()
except UsageError:
    sys.exit(3 if 'torch' not in sys.modules else 4)
"""

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 3


@pytest.mark.parametrize(
    ("target", "imports"), [("hf:gpt2", ("transformers",)), ("timm:x", ("timm",)), ("digits-cnn", ())]
)
def test_the_library_that_loading_imports_is_known_before(target: str, imports: tuple[str, ...]) -> None:
    assert TargetSource(target).imports == imports


def test_an_unknown_name_is_answered_with_the_examples_the_forms_and_the_nearest() -> None:
    message = usage_error("digit-resnet")

    assert "'digit-resnet'" in message
    assert all(name in message for name in EXAMPLES)
    assert "path/to/file.py:factory" in message
    assert "Did you mean 'digits-resnet'" in message


@pytest.mark.parametrize("target", ["", ":make", "train/x:make", "a b:make"])
def test_what_is_no_target_is_answered_with_the_forms(target: str) -> None:
    assert "path/to/file.py:factory" in usage_error(target)


@pytest.mark.parametrize("target", ["train.py", "train.py:"])
def test_a_file_without_a_factory(folder: Path, target: str) -> None:
    assert usage_error(target).endswith("names no factory: write train.py:FUNCTION, which returns a Workload.")


def test_a_missing_file_without_a_factory_is_said_to_be_missing(folder: Path) -> None:
    assert f"the file {folder / 'trian.py'} does not exist" in usage_error("trian.py")


def test_a_module_without_a_factory(folder: Path) -> None:
    assert "write train:FUNCTION" in usage_error("train:")


# Options


def test_without_options_the_workloads_own_settings_stay(folder: Path) -> None:
    workload = load("train.py:make")

    assert (workload.precision, workload.compile) == ("bf16", False)


def test_precision_and_compile_take_the_place_of_the_workloads_own(folder: Path) -> None:
    workload = load("train.py:make", precision="fp16", compile=True)

    assert (workload.precision, workload.compile) == ("fp16", True)


def test_an_unknown_precision_is_a_usage_error() -> None:
    assert "precision 'fp8' is unknown" in usage_error("digits-cnn", precision="fp8")


def test_the_worst_case_puts_the_largest_samples_first() -> None:
    make_batch = load("text-gpt", worst_case=True).make_batch

    assert isinstance(make_batch, DatasetBatches)
    assert make_batch.largest_first
    assert make_batch(1)[0].shape == (1, 256)


def test_a_worst_case_of_the_users_own_stays(folder: Path) -> None:
    (folder / "sized.py").write_text(
        FACTORY
        + "data = [(torch.ones(3), torch.ones(2)), (torch.zeros(3), torch.ones(2))]\n"
        + "def sized():\n"
        + "    size_of = lambda sample: -sample[0].sum()\n"
        + "    return Workload.supervised(build, nn.MSELoss(), data, worst_case=size_of)\n"
    )

    assert load("sized.py:sized", worst_case=True).make_batch(1)[0].tolist() == [[0, 0, 0]]


def test_the_worst_case_needs_a_dataset(folder: Path) -> None:
    message = usage_error("train.py:make", worst_case=True)

    assert "--worst-case chooses samples of a Dataset" in message
    assert "train.py:make" in message


@pytest.mark.parametrize("option", ["image_size", "sequence_length", "classes"])
@pytest.mark.parametrize("target", ["digits-cnn", "train.py:make"])
def test_sizes_are_for_named_architectures(folder: Path, target: str, option: str) -> None:
    assert usage_error(target, **{option: 8}).startswith(
        f"--{option.replace('_', '-')} does not apply to {target}: it is for named architectures"
    )


@pytest.mark.parametrize(("option", "value"), [("image_size", 0), ("sequence_length", -3), ("classes", 1)])
def test_a_size_that_is_too_small_is_refused(option: str, value: int) -> None:
    with pytest.raises(UsageError, match=rf"--{option.replace('_', '-')} is {value}: it must be [12] at least"):
        TargetOptions(**{option: value})  # type: ignore[arg-type]  # mypy thinks of every field


# Live workloads


def live(model: Any) -> Workload:
    return Workload.supervised(model, nn.MSELoss(), lambda size: (torch.ones(size, 3), torch.ones(size, 2)))


def test_a_live_workload_arrives_as_a_copy_of_it_with_its_lambdas() -> None:
    model = nn.Linear(3, 2)
    copy = LiveSource.of(live(model)).load()

    assert copy.build_model() is not model
    assert torch.equal(copy.build_model().get_parameter("weight"), model.weight)
    assert copy.make_batch(2)[0].tolist() == [[1, 1, 1], [1, 1, 1]]


def test_a_source_travels_through_pickle() -> None:
    source = LiveSource.of(live(nn.Linear(3, 2)))

    assert pickle.loads(pickle.dumps(source)) == source


def test_what_cannot_be_pickled_is_refused_with_the_error_and_what_to_do() -> None:
    generator = (number for number in range(3))
    with pytest.raises(UsageError) as information:
        LiveSource.of(live(lambda: next(generator)))
    message = str(information.value)

    assert "cannot pickle 'generator' object" in message
    assert "path/to/file.py:factory" in message
    assert 'isolation="none"' in message


def test_a_copy_finds_the_modules_that_the_original_found(folder: Path) -> None:
    (folder / "beside").mkdir()
    (folder / "beside" / "live_neighbour.py").write_text(FACTORY)
    sys.path.insert(0, str(folder / "beside"))
    import live_neighbour  # type: ignore[import-not-found]  # written above

    source = LiveSource.of(live_neighbour.ready)
    del sys.modules["live_neighbour"]
    sys.path.remove(str(folder / "beside"))

    assert source.load().name == "mine"


def test_a_copy_that_cannot_be_rebuilt_says_why() -> None:
    source = LiveSource(b"cmicrobatch_missing_module\nmake\n.")
    with pytest.raises(WorkloadError, match=r"cannot be rebuilt.*ModuleNotFoundError") as information:
        source.load()

    assert "microbatch_missing_module" in (information.value.user_traceback or "")


def test_a_workload_that_was_loaded_from_a_file_can_be_sent(folder: Path) -> None:
    source = LiveSource.of(load("train.py:make"))
    for name in [name for name in sys.modules if name.startswith("microbatch_target_")]:
        del sys.modules[name]

    assert source.load().build_model().get_parameter("weight").shape == (2, 3)
