from __future__ import annotations

import sys
from pathlib import Path

import pytest
from train_file import FACTORY, train_folder

from profiler.errors import UsageError, WorkloadError
from profiler.targets import TargetSource
from profiler.workload import Workload

folder = pytest.fixture(train_folder)


def load(target: str) -> Workload:
    return TargetSource(target).load()


def usage_error(target: str) -> str:
    with pytest.raises(UsageError) as information:
        load(target)
    return str(information.value)


def workload_error(target: str) -> tuple[str, str]:
    """The message and the user's traceback."""
    with pytest.raises(WorkloadError) as information:
        load(target)
    return str(information.value), information.value.user_traceback or ""


@pytest.mark.parametrize("target", ["train.py:make", "./train.py:make", "train.py:ready", "train:make", "train:ready"])
def test_a_factory_or_a_workload_in_a_file_or_a_module(folder: Path, target: str) -> None:
    workload = load(target)

    assert workload.name == "mine"
    assert workload.loss(workload.build_model(), workload.make_batch(2)).isfinite()


def test_a_module_in_a_package(folder: Path) -> None:
    (folder / "recipes").mkdir()
    (folder / "recipes" / "vision.py").write_text("from train import make")

    assert load("recipes.vision:make").name == "mine"


def test_an_attribute_of_an_attribute(folder: Path) -> None:
    (folder / "nested.py").write_text("from train import make\nclass Recipes:\n    first = staticmethod(make)\n")

    assert load("nested.py:Recipes.first").name == "mine"


def test_a_file_finds_the_modules_beside_it(folder: Path) -> None:
    (folder / "project").mkdir()
    (folder / "project" / "neighbour_of_entry.py").write_text(FACTORY)
    (folder / "project" / "entry.py").write_text("from neighbour_of_entry import make")

    assert load("project/entry.py:make").name == "mine"


def test_a_file_can_import_a_module_of_its_own_name(folder: Path) -> None:
    (folder / "recipe.py").write_text("import recipe\nfrom train import make\nassert recipe.make is make\n")

    assert load("recipe.py:make").name == "mine"
    assert sys.modules["recipe"].__file__ == str(folder / "recipe.py")


def test_the_classes_of_a_file_can_be_pickled_in_it(folder: Path) -> None:
    assert load("train.py:make_pickled").name == "mine"


def test_two_files_of_one_name_are_two_modules(folder: Path) -> None:
    (folder / "other").mkdir()
    (folder / "other" / "train.py").write_text(FACTORY.replace('"mine"', '"theirs"'))

    assert [load("train.py:make").name, load("other/train.py:make").name] == ["mine", "theirs"]


def test_the_guarded_part_of_a_script_does_not_run(folder: Path) -> None:
    (folder / "script.py").write_text("from train import make\nif __name__ == '__main__':\n    raise SystemExit(3)\n")

    assert load("script.py:make").name == "mine"


def test_a_changed_file_is_read_again(folder: Path) -> None:
    source = TargetSource("train.py:make")
    before = source.load().name
    (folder / "train.py").write_text(FACTORY.replace('"mine"', '"a longer name"'))

    assert (before, source.load().name) == ("mine", "a longer name")


def test_a_missing_file_is_named_with_the_nearest(folder: Path) -> None:
    message = usage_error("trian.py:make")

    assert str(folder / "trian.py") in message
    assert "Did you mean 'train.py'?" in message


def test_a_folder_is_no_file(folder: Path) -> None:
    (folder / "recipes.py").mkdir()

    assert "is a folder" in usage_error("recipes.py:make")


@pytest.mark.parametrize("target", ["recipe:make", "train.deeper:make"])
def test_a_missing_module_is_named(folder: Path, target: str) -> None:
    message = usage_error(target)

    assert "there is no module " + target.partition(":")[0] in message
    assert str(folder) in message


def test_a_misspelled_library_is_no_missing_module_alone() -> None:
    assert "Did you mean 'torchvision'" in usage_error("torchvison:resnet50")


@pytest.mark.parametrize("place", ["train.py", "train"])
def test_a_missing_attribute_is_answered_with_the_nearest(folder: Path, place: str) -> None:
    assert usage_error(f"{place}:mkae").startswith(f"{place} has no mkae. Did you mean 'make'")


def test_a_missing_attribute_unlike_any_is_answered_with_all(folder: Path) -> None:
    message = usage_error("train.py:zzz")

    assert "It has Settings, build, make_batch, make" in message
    assert "ready" in message
    assert "Linear" not in message


def test_a_missing_attribute_of_a_file_that_defines_none(folder: Path) -> None:
    (folder / "empty.py").write_text("")

    assert usage_error("empty.py:make") == "empty.py has no make. It defines no function."


def test_an_attribute_that_cannot_be_called(folder: Path) -> None:
    assert "number in train.py is of type int, neither a Workload nor a function" in usage_error("train.py:number")


def test_a_factory_that_needs_arguments(folder: Path) -> None:
    message = usage_error("train.py:with_arguments")

    assert "with_arguments in train.py has 2 arguments without a default (rate, steps)" in message


@pytest.mark.parametrize(("factory", "kind"), [("give_a_model", "of type Linear"), ("give_nothing", "None")])
def test_a_factory_that_returns_no_workload(folder: Path, factory: str, kind: str) -> None:
    message, _ = workload_error(f"train.py:{factory}")

    assert f"{factory}() in train.py returned {kind}, which is no Workload" in message


# What the user's code raises


def frames_of(traceback: str) -> list[str]:
    return [Path(line.split('"')[1]).name for line in traceback.splitlines() if line.startswith('  File "')]


@pytest.mark.parametrize("place", ["train.py", "train"])
def test_a_factory_that_raises_is_shown_from_its_first_frame(folder: Path, place: str) -> None:
    message, traceback = workload_error(f"{place}:fail")

    assert f"fail() in {place} raised KeyError ('learning_rate')" in message
    assert frames_of(traceback) == ["train.py"]
    assert traceback.endswith("KeyError: 'learning_rate'")


@pytest.mark.parametrize("target", ["outer.py:make", "outer:make"])
def test_an_import_that_raises_is_shown_from_the_users_first_frame(folder: Path, target: str) -> None:
    (folder / "outer.py").write_text("import inner_of_outer")
    (folder / "inner_of_outer.py").write_text("x = 1\nraise ValueError('inner')")
    message, traceback = workload_error(target)

    assert "raised ValueError (inner) when it was imported" in message
    assert frames_of(traceback) == ["outer.py", "inner_of_outer.py"]


@pytest.mark.parametrize("target", ["needs.py:make", "needs:make"])
def test_a_module_that_the_users_code_lacks_is_a_bug_of_theirs(folder: Path, target: str) -> None:
    (folder / "needs.py").write_text("import microbatch_missing_module")
    message, traceback = workload_error(target)

    assert "No module named 'microbatch_missing_module'" in message
    assert frames_of(traceback) == ["needs.py"]


def test_a_syntax_error_is_shown_where_it_is(folder: Path) -> None:
    (folder / "broken.py").write_text("x = 1\ndef make(:\n")
    message, traceback = workload_error("broken.py:make")

    assert "raised SyntaxError" in message
    assert frames_of(traceback) == ["broken.py"]
    assert "def make(:" in traceback


def test_a_script_that_ends_itself_does_not_end_this_process(folder: Path) -> None:
    (folder / "script.py").write_text("import sys\nsys.exit(2)\n")
    message, traceback = workload_error("script.py:make")

    assert "raised SystemExit (2) when it was imported" in message
    assert "__main__" in message
    assert frames_of(traceback) == ["script.py"]


def test_a_workload_of_wrong_parts_is_shown_where_it_is_made(folder: Path) -> None:
    (folder / "wrong.py").write_text(FACTORY.replace('precision="bf16"', 'precision="fp8"').replace("ready =", "#"))
    message, traceback = workload_error("wrong.py:make")

    assert "precision 'fp8' is unknown" in message
    assert frames_of(traceback)[0] == "wrong.py"


def test_a_file_that_failed_leaves_no_module_behind(folder: Path) -> None:
    (folder / "broken.py").write_text("raise ValueError")
    before = set(sys.modules)
    workload_error("broken.py:make")

    assert not [name for name in set(sys.modules) - before if name.startswith("microbatch_target")]
