from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

with suppress(ModuleNotFoundError):  # tests/gpu runs where pytest may be all that is installed
    from hypothesis import settings

    # Machines that others use too are slow now and then.
    settings.register_profile("shared machine", deadline=None)
    settings.load_profile("shared machine")

# Tests share the cores, and tiny tensors gain nothing from more threads, which wait for each other. Read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell without job control starts what runs in its background with SIGINT ignored, and so would be every command under test.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="Write what is printed now into the golden files; look at the diff.",
    )


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Compares a text, but for blanks at the ends of its lines, with the golden file named after the test."""
    name = re.sub(r"\W+", "-", request.node.name).strip("-")
    path = Path(request.node.path).parent / "expected" / f"{name}.txt"

    def compare(text: str) -> None:
        text = "".join(f"{line.rstrip()}\n" for line in text.splitlines())
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"there is no {path.name} yet: run pytest with --update-golden and look at what it wrote"
        assert text == path.read_text(encoding="utf-8")

    return compare
