from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "profiler"

# Imports point up: a module, or any module of a package, imports from rows above its own and from nowhere else here.
LAYERS = (
    # Words and values.
    ("errors", "outcomes", "codec", "nearest", "tracebacks", "nests", "soak"),
    ("units", "equivalence", "parts", "limits", "schedules"),
    ("windows",),
    # What to try and what to choose; the curve through what was tried.
    ("plan", "curve"),
    ("search",),
    ("surprise",),
    # A GPU's memory without one.
    ("simulation",),
    # A run's results, to files and figures.
    ("report",),
    ("events", "lines", "files"),
    ("records",),
    ("document", "plots", "replay"),
    ("run_folder",),
    # What is trained.
    ("batches",),
    ("workload", "placing"),
    ("architectures", "examples"),
    ("factories",),
    ("targets",),
    # Where it is trained, and how.
    ("dry_run",),
    ("devices", "switches"),
    ("steps", "replicas"),
    ("measure", "loop", "evaluation"),
    ("trial",),
    ("checking", "workers", "soaking"),
    # Trials put together: sizes, then a search over them, then a plan from them.
    ("judge",),
    ("prober",),
    ("multiples",),
    ("smallest",),
    ("finder", "comparison", "options", "endurance"),
    ("planner", "resuming"),
    ("opening",),
    ("api",),
    ("commands",),
)

PURE = (
    *("errors", "units", "outcomes", "search", "plan", "curve", "report", "events", "lines", "codec"),
    *(
        "limits",
        "schedules",
        "nearest",
        "files",
        "tracebacks",
        "equivalence",
        "nests",
        "parts",
        "windows",
        "soak",
        "surprise",
    ),
    *("simulation", "simulation.blocks", "simulation.allocator", "simulation.replay", "simulation.ledger"),
    *("simulation.cards", "simulation.assumption", "simulation.settings"),
    *("simulation.recordings", "simulation.snapshots"),
)

# Every package that is not Python's own, and the modules that may import it, at the top or inside a function.
LIBRARIES = {
    "torch": {
        *("batches", "workload", "architectures", "examples"),
        *("devices", "switches", "steps", "evaluation", "replicas", "loop", "trial", "checking", "workers"),
        *("placing", "dry_run"),
    },
    "pandas": {"records"},
    "matplotlib": {"plots"},
    "pynvml": {"devices.nvml"},
    "cloudpickle": {"targets"},
    "sklearn": {"examples"},
    "typer": {"commands"},
    "rich": {"commands"},
}

# The others import inside functions, so that the command line's help and errors do not wait for it.
HEAVY_AT_THE_TOP = {
    "torch": {
        *("batches", "workload", "architectures", "examples"),
        *("steps", "evaluation", "replicas", "loop", "checking", "workers.in_process", "placing", "dry_run"),
    },
    "matplotlib": {"plots"},
}

# A vendor's part of torch, by its attribute; the modules outside of `devices` that name one, and why.
VENDOR_WORDS = {"cuda", "cudnn", "mkldnn", "mps", "xpu", "hip", "npu"}
VENDOR_EXCEPTIONS = {
    "switches": {"cuda", "cudnn", "mkldnn"},  # torch keeps its global switches under a vendor's name
    "workers.in_process": {"cuda"},  # the random states of all GPUs, put back after a probe in the caller's process
    "dry_run.attention_choice": {"cuda"},  # the switches of attention, which torch keeps under a vendor's name
    "dry_run.named_devices": {"cuda"},  # code that names a GPU which is not there
    "dry_run.answers": {"cuda"},  # code that asks for one
}

# A forked worker must not run the exit handlers of the process that it was forked from.
EXITS = {"workers.server": {"os._exit"}}


@dataclass(frozen=True, slots=True)
class Import:
    name: str
    is_at_the_top: bool


def named(path: Path) -> str:
    """A module's name without the package's: "plan", "devices.cpu", "devices"; "" is the package itself."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


MODULES = {named(path): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
OURS = [name for name in MODULES if name]


def imports(tree: ast.AST, *, at_the_top: bool = True) -> Iterator[Import]:
    """Every import that happens at run time, also inside functions; those for type checkers alone do not."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            yield from imports(ast.Module(body=node.orelse, type_ignores=[]), at_the_top=at_the_top)
        elif isinstance(node, ast.Import):
            yield from (Import(alias.name, at_the_top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (Import(f"{node.level * '.'}{node.module}.{alias.name}", at_the_top) for alias in node.names)
        else:
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from imports(node, at_the_top=at_the_top and not is_function)


def imported(module: str, *, at_the_top: bool = False) -> set[str]:
    """The modules of this package that `module` imports; only those at its top with `at_the_top`."""
    found = set()
    for each in imports(MODULES[module]):
        package, _, name = each.name.partition(".")
        if package == "profiler" and (each.is_at_the_top or not at_the_top):
            # The last part may be a name inside a module.
            found.add(name if name in MODULES else name.rpartition(".")[0])
    return found


def libraries(module: str, *, at_the_top: bool = False) -> set[str]:
    """The packages other than this one and Python's own that `module` imports."""
    packages = {
        each.name.partition(".")[0] for each in imports(MODULES[module]) if each.is_at_the_top or not at_the_top
    }
    return packages - sys.stdlib_module_names - {"profiler"}


def layer(module: str) -> str:
    """The module or package that stands for `module` in the table."""
    return module.partition(".")[0]


def is_among(module: str, places: set[str]) -> bool:
    return module in places or layer(module) in places


def dotted(node: ast.AST) -> str:
    """`a.b.c` of an expression like it, "" of any other."""
    return ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""


def test_every_module_has_its_place_in_the_table() -> None:
    rows = [name for row in LAYERS for name in row]

    assert len(rows) == len(set(rows))
    assert set(rows) == {layer(module) for module in OURS}


@pytest.mark.parametrize("module", OURS)
def test_imports_point_one_way(module: str) -> None:
    row = next(number for number, names in enumerate(LAYERS) if layer(module) in names)
    above = {name for names in LAYERS[:row] for name in names}
    others = {layer(name) for name in imported(module)} - {layer(module)}

    assert others - above == set()


def test_no_module_imports_the_package_itself() -> None:
    assert imported("") == set()
    assert [module for module in OURS if "" in imported(module)] == []


def test_no_import_is_relative() -> None:
    assert [module for module in OURS for each in imports(MODULES[module]) if each.name.startswith(".")] == []


def test_there_are_no_cycles_at_the_top() -> None:
    order = list(TopologicalSorter({module: imported(module, at_the_top=True) for module in OURS}).static_order())

    assert set(order) == set(OURS)


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_import_the_standard_library_and_each_other_only(module: str) -> None:
    assert libraries(module) == set()
    assert imported(module) <= set(PURE)


@pytest.mark.parametrize("module", [module for module in OURS if layer(module) == "devices"])
def test_devices_know_nothing_of_what_is_trained(module: str) -> None:
    # How what is trained is brought onto them is handed through, for others to call.
    handed = {"placing", "dry_run", "simulation"}

    assert {layer(name) for name in imported(module)} <= {"errors", "units", "devices", *handed}


@pytest.mark.parametrize("module", ["", *OURS])
def test_each_library_is_imported_where_it_belongs(module: str) -> None:
    assert {library for library in libraries(module) if not is_among(module, LIBRARIES.get(library, set()))} == set()


def test_no_library_has_a_place_that_it_does_not_need() -> None:
    used = {(library, module) for module in OURS for library in libraries(module)}
    unused = {
        (library, place)
        for library, places in LIBRARIES.items()
        for place in places
        if not any(name == library and is_among(module, {place}) for name, module in used)
    }

    assert unused == set()


@pytest.mark.parametrize("module", ["", *OURS])
def test_what_takes_long_is_imported_where_it_is_needed(module: str) -> None:
    heavy = libraries(module, at_the_top=True) - {"typer", "rich"}

    assert {library for library in heavy if not is_among(module, HEAVY_AT_THE_TOP.get(library, set()))} == set()


@pytest.mark.parametrize("module", [module for module in OURS if layer(module) != "commands"])
def test_nothing_but_the_commands_prints_or_exits(module: str) -> None:
    calls = {dotted(node.func) for node in ast.walk(MODULES[module]) if isinstance(node, ast.Call)}
    raised = {
        dotted(node.exc.func if isinstance(node.exc, ast.Call) else node.exc)
        for node in ast.walk(MODULES[module])
        if isinstance(node, ast.Raise) and node.exc is not None
    }
    loud = {
        "print",
        "input",
        "exit",
        "quit",
        "sys.exit",
        "os._exit",
        "os.abort",
        "sys.stdout.write",
        "sys.stderr.write",
    }

    assert calls & loud == EXITS.get(module, set())
    assert raised & {"SystemExit", "KeyboardInterrupt"} == set()


@pytest.mark.parametrize("module", [module for module in OURS if layer(module) != "devices"])
def test_vendors_are_named_in_devices_alone(module: str) -> None:
    attributes = {node.attr for node in ast.walk(MODULES[module]) if isinstance(node, ast.Attribute)}

    assert attributes & VENDOR_WORDS == VENDOR_EXCEPTIONS.get(module, set())
    assert [each.name for each in imports(MODULES[module]) if "cuda" in each.name or "nvml" in each.name] == []


SOURCE = """
from typing import TYPE_CHECKING
import a.b
if TYPE_CHECKING:
    import not_at_run_time
else:
    import at_run_time
try:
    from c import d as e
except ImportError:
    pass
class Class:
    import f
    def method(self):
        from g import h
        with x:
            import i
"""


def test_imports_are_found_wherever_they_are() -> None:
    assert [(each.name, each.is_at_the_top) for each in imports(ast.parse(SOURCE))] == [
        ("typing.TYPE_CHECKING", True),
        ("a.b", True),
        ("at_run_time", True),
        ("c.d", True),
        ("f", True),
        ("g.h", False),
        ("i", False),
    ]
