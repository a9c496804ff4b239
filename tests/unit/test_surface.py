from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import profiler
from profiler import errors
from profiler.commands import INTERRUPTED, NOT_EQUAL, TERMINATED
from profiler.commands.app import app

ROOT = Path(__file__).parents[2]

PUBLIC = [
    "AccumulationPlan",
    "Comparison",
    "Decomposition",
    "DeviceUnavailable",
    "Equivalence",
    "Finding",
    "Fits",
    "Limits",
    "MicrobatchError",
    "NothingFits",
    "Options",
    "OutOfMemory",
    "Purpose",
    "Report",
    "Soak",
    "Strategy",
    "Throughput",
    "Trial",
    "TrialError",
    "UsageError",
    "Way",
    "Workload",
    "WorkloadError",
    "accumulate",
    "check_equivalence",
    "compare_strategies",
    "find_accumulation_plan",
    "probe",
]

FLAGS = {
    "probe": [
        "target",
        "--train",
        "--eval",
        "--effective-batch",
        "--device",
        "--memory-limit",
        "--headroom",
        "--data-parallel-size",
        "--equal",
        "--ceiling",
        "--multiple-of",
        "--soak",
        "--precision",
        "--compile/--no-compile",
        "--worst-case",
        "--image-size",
        "--sequence-length",
        "--classes",
        "--trial-timeout",
        "--verification-timeout",
        "--isolation",
        "--assume",
        "--compare/--no-compare",
        "--check/--no-check",
        "--resume",
        "--output",
        "--force",
        "--json",
        "--quiet",
    ],
    "check": [
        "target",
        "--effective-batch",
        "--device",
        "--precision",
        "--compile/--no-compile",
        "--worst-case",
        "--image-size",
        "--sequence-length",
        "--classes",
        "--trial-timeout",
        "--isolation",
        "--json",
        "--quiet",
    ],
    "compare": [
        "target",
        "--micro-batch",
        "--most-steps",
        "--device",
        "--memory-limit",
        "--precision",
        "--compile/--no-compile",
        "--worst-case",
        "--image-size",
        "--sequence-length",
        "--classes",
        "--trial-timeout",
        "--isolation",
        "--assume",
        "--output",
        "--force",
        "--json",
        "--quiet",
    ],
    "plot": ["folder"],
    "devices": ["--json"],
}

EXIT_STATUSES = {
    "MicrobatchError": 2,
    "UsageError": 2,
    "WorkloadError": 2,
    "ShortBatch": 2,
    "TooFewSamples": 2,
    "UnknownOfCard": 2,
    "TrialError": 2,
    "NothingFits": 3,
    "DeviceUnavailable": 4,
}

ERRORS = {
    name: value
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, errors.MicrobatchError)
}


def commands() -> dict[str, Any]:
    """The subcommands as typer makes them of the functions."""
    group: Any = get_command(app)
    return dict(group.commands)


def imported_by(script: str, *arguments: str) -> tuple[set[str], subprocess.CompletedProcess[str]]:
    """The packages that a fresh interpreter has imported at the end of `script`, and how it ended."""
    report = "import atexit, sys; atexit.register(lambda: print(*{name.split('.')[0] for name in sys.modules}))\n"
    result = subprocess.run(
        [sys.executable, "-c", report + script, *arguments], capture_output=True, text=True, check=False, cwd=ROOT
    )
    return set(result.stdout.splitlines()[-1].split()), result


def test_the_public_names_are_these() -> None:
    assert profiler.__all__ == PUBLIC == sorted(PUBLIC)
    assert dir(profiler) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_can_be_imported_and_is_documented(name: str) -> None:
    value = getattr(profiler, name)

    assert value.__name__ == name
    assert value.__module__.startswith("profiler.")
    # A dataclass without a docstring is given its signature for one.
    assert value.__doc__
    assert not value.__doc__.startswith(f"{name}(")


def test_the_names_for_type_checkers_are_the_names_at_run_time() -> None:
    tree = ast.parse(Path(profiler.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    told = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}

    assert ast.unparse(block.test) == "TYPE_CHECKING"
    assert told == {name: getattr(profiler, name).__module__ for name in PUBLIC}


def test_a_name_that_is_not_public_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="module 'profiler' has no attribute 'no_such_name'"):
        profiler.__getattr__("no_such_name")


def test_importing_the_package_imports_nothing_heavy() -> None:
    packages, result = imported_by("import profiler")

    assert result.returncode == 0, result.stderr
    assert "profiler" in packages
    assert packages.isdisjoint({"torch", "numpy", "pandas", "matplotlib", "typer", "rich", "pynvml", "cloudpickle"})


@pytest.mark.parametrize("arguments", [(), *((name,) for name in FLAGS)], ids=["microbatch", *FLAGS])
def test_help_comes_without_what_only_a_probe_needs(arguments: tuple[str, ...]) -> None:
    script = "import runpy; runpy.run_path('cli.py', run_name='__main__')"
    packages, result = imported_by(script, *arguments, "--help")

    assert result.returncode == 0, result.stderr
    assert "Usage:" in result.stdout
    assert "profiler" in packages
    assert packages.isdisjoint({"torch", "numpy", "pandas", "matplotlib", "pynvml"})


def test_the_installed_command_is_the_one_that_cli_py_runs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert project["scripts"] == {"microbatch": "profiler.commands:main"}
    assert "from profiler.commands import main" in (ROOT / "cli.py").read_text()


def test_the_subcommands_are_these() -> None:
    assert list(commands()) == list(FLAGS)


@pytest.mark.parametrize("name", FLAGS)
def test_the_arguments_and_flags_of_a_subcommand_are_these(name: str) -> None:
    flags = ["/".join([*parameter.opts, *parameter.secondary_opts]) for parameter in commands()[name].params]

    assert flags == FLAGS[name]


@pytest.mark.parametrize("name", FLAGS)
def test_a_subcommand_and_each_of_its_flags_say_what_they_do(name: str) -> None:
    command = commands()[name]

    assert command.help
    assert [parameter.name for parameter in command.params if not parameter.help] == []


@pytest.mark.parametrize("other", ["check", "compare"])
def test_flags_that_probe_shares_with_another_have_the_same_default(other: str) -> None:
    probe, others = (
        {parameter.name: parameter.default for parameter in commands()[name].params} for name in ("probe", other)
    )
    # Of a check it is the samples that are checked, of a probe the aim.
    shared = (probe.keys() & others.keys()) - {"effective_batch"}

    assert {"target", "device", "precision", "trial_timeout"} <= shared
    assert {name: others[name] for name in shared} == {name: probe[name] for name in shared}


def test_a_check_without_a_number_takes_as_many_samples_from_python_as_from_the_command_line() -> None:
    (typed,) = (parameter.default for parameter in commands()["check"].params if parameter.name == "effective_batch")
    called = inspect.signature(profiler.check_equivalence).parameters["effective_batch_size"].default

    assert typed == called == 16


def test_the_exit_statuses_of_the_errors_are_these() -> None:
    assert {name: error.exit_status for name, error in ERRORS.items()} == EXIT_STATUSES


def test_what_is_no_error_has_a_status_of_its_own() -> None:
    assert (NOT_EQUAL, INTERRUPTED, TERMINATED) == (5, 130, 143)
    assert NOT_EQUAL not in {0, 1, *EXIT_STATUSES.values()}


def test_the_tree_in_the_docstring_is_the_tree_of_the_errors() -> None:
    assert errors.__doc__ is not None
    drawn = dict(re.findall(r"^    [├└]── (\w+) .*\(exit status (\d)\)", errors.__doc__, re.MULTILINE))
    below = dict.fromkeys(re.findall(r"│   [├└]── (\w+) ", errors.__doc__), "2")
    direct = {name for name, error in ERRORS.items() if error.__bases__ == (errors.MicrobatchError,)}

    assert {name: int(status) for name, status in (drawn | below).items()} == {
        name: status for name, status in EXIT_STATUSES.items() if name != "MicrobatchError"
    }
    assert direct == set(drawn)
    assert {ERRORS[name].__bases__[0] for name in below} == {errors.WorkloadError}


def test_no_other_module_defines_an_error() -> None:
    defined = {
        (path.name, node.name)
        for path in (ROOT / "profiler").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        and any(
            re.search(r"Error|Exception|Warning|" + "|".join(EXIT_STATUSES), ast.unparse(base)) for base in node.bases
        )
    }

    assert defined == {("errors.py", name) for name in EXIT_STATUSES}


def test_only_an_error_of_the_workload_carries_the_users_traceback() -> None:
    assert errors.WorkloadError("a bug").user_traceback is None
    assert errors.WorkloadError("a bug", user_traceback="Traceback").user_traceback == "Traceback"
    assert str(errors.WorkloadError("a bug", user_traceback="Traceback")) == "a bug"
