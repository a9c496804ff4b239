"""Results that cannot be written: a full disk, a folder that may only be read, a full standard output."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from process.commands import CLI, environment, user_folder

PROBE = ("probe", "train.py:workload", "--device", "cpu", "--memory-limit", "4MiB", "--no-check", "--no-compare")
SHORT = (*PROBE, "--ceiling", "2")
EARLIER = '{"schema": 1, "kind": "run", "workload": "earlier"}\n'


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    status: int
    output: str
    errors: str


def microbatch(*arguments: str, folder: Path, limited: Callable[[], None] | None = None, output: str = "") -> Ran:
    """Run the command in `folder`; limited: what its process does to itself before it starts. output: a file for it."""
    with Path(output).open("w") if output else contextlib.nullcontext(subprocess.PIPE) as standard_output:
        done = subprocess.run(
            [sys.executable, str(CLI), *arguments],
            cwd=folder,
            env=environment(MPLCONFIGDIR=str(folder.parent / "matplotlib")),
            stdin=subprocess.DEVNULL,
            stdout=standard_output,
            stderr=subprocess.PIPE,
            text=True,
            timeout=180,
            preexec_fn=limited,
        )
    return Ran(status=done.returncode, output=done.stdout or "", errors=done.stderr)


def no_file_above(size: int) -> Callable[[], None]:
    """As a disk that is full once a file has `size` bytes, for whoever may not mount one."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A folder on a disk of so many bytes: a real one of memory, or a limit on files where none can be mounted."""

    path: Path
    limited: Callable[[], None] | None


@contextlib.contextmanager
def disk(path: Path, size: int) -> Iterator[Disk]:
    path.mkdir()
    mount = shutil.which("mount")
    options = ("-t", "tmpfs", "-o", f"size={size}", "none", str(path))
    mounted = mount is not None and subprocess.run([mount, *options], capture_output=True).returncode == 0
    try:
        yield Disk(path=path, limited=None if mounted else no_file_above(size))
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(path)], check=True)


def check_records(folder: Path, errors: str) -> list[str]:
    """The kinds of the records, of which none is cut; nothing half-written lies beside them."""
    assert list(folder.rglob("*.part")) == []
    text = (folder / "records.jsonl").read_text()
    assert text.endswith("\n")
    kinds = [json.loads(line)["kind"] for line in text.splitlines()]
    assert kinds[0] == "run"
    assert "Traceback" not in errors
    return kinds


# The run's own line has some 600 bytes, and a trial's some 300; records of a whole probe fit in 8 KiB, a figure does not.
def test_a_disk_that_is_full_from_the_first_byte_is_said(tmp_path: Path) -> None:
    folder = user_folder(tmp_path / "run")
    with disk(folder / "full", 4096) as full:
        with contextlib.suppress(OSError):
            (full.path / "others.bin").write_bytes(bytes(2**20))
        limited = full.limited if full.limited is None else no_file_above(0)
        ran = microbatch(*PROBE, "--output", "full/run", "--force", folder=folder, limited=limited)

        assert ran.status == 2
        assert "cannot be" in ran.errors
        assert "--output" in ran.errors
        assert "Traceback" not in ran.errors
        assert list(full.path.rglob("*.part")) == []


def test_a_disk_that_fills_up_in_the_middle_keeps_whole_records(tmp_path: Path) -> None:
    folder = user_folder(tmp_path / "run")
    # On a tmpfs a page is the least, so the limit on files is what cuts a line.
    ran = microbatch(*SHORT, "--output", "out", folder=folder, limited=no_file_above(1400))

    assert ran.status == 2
    assert "out/records.jsonl cannot be written: File too large" in ran.errors
    assert "the records so far are in out" in ran.errors
    kinds = check_records(folder / "out", ran.errors)
    assert kinds.count("trial") >= 1
    assert kinds.count("trial") == ran.errors.count("\n  size ")
    drawn = microbatch("plot", "out", folder=folder)
    assert drawn.status == 0, drawn.errors


def test_a_disk_that_is_full_when_figures_are_written_keeps_all_records(tmp_path: Path) -> None:
    folder = user_folder(tmp_path / "run")
    with disk(folder / "small", 16 * 1024) as small:
        ran = microbatch(*SHORT, "--output", "small/run", folder=folder, limited=small.limited)

        assert ran.status == 2
        assert "small/run/memory.png cannot be written: " in ran.errors
        assert "--output" in ran.errors
        assert "`microbatch plot` draws them" in ran.errors
        kinds = check_records(small.path / "run", ran.errors)
        assert "finding" in kinds
        shutil.copytree(small.path / "run", folder / "elsewhere")
        drawn = microbatch("plot", "elsewhere", folder=folder)
        assert drawn.status == 0, drawn.errors


def held_to_permissions() -> None:
    """No permission holds root up but by its own renunciation (capabilities(7)), which lasts from the next exec on."""
    drop_from_bounding_set, dac_override = 24, 1
    if os.geteuid() == 0:
        assert ctypes.CDLL(None).prctl(drop_from_bounding_set, dac_override, 0, 0, 0) == 0


@pytest.mark.parametrize("where", ["earlier", "earlier/run"])
def test_a_folder_that_may_only_be_read_is_refused_and_stays_as_it_was(where: str, tmp_path: Path) -> None:
    folder = user_folder(tmp_path / "run")
    (folder / "earlier").mkdir()
    (folder / "earlier" / "records.jsonl").write_text(EARLIER)
    (folder / "earlier").chmod(0o555)
    try:
        ran = microbatch(*PROBE, "--output", where, "--force", folder=folder, limited=held_to_permissions)

        assert ran.status == 2, ran.errors
        assert f"{where} cannot be" in ran.errors
        assert "name a folder that you can write to with --output" in ran.errors
        assert "Traceback" not in ran.errors
        assert "tiny on cpu" not in ran.errors
        assert [path.name for path in (folder / "earlier").iterdir()] == ["records.jsonl"]
        assert (folder / "earlier" / "records.jsonl").read_text() == EARLIER
    finally:
        (folder / "earlier").chmod(0o755)


@pytest.mark.parametrize("command", [("devices",), (*SHORT, "--json", "--output", "out")])
def test_a_standard_output_that_is_full_is_said(command: tuple[str, ...], tmp_path: Path) -> None:
    folder = user_folder(tmp_path / "run")
    ran = microbatch(*command, folder=folder, output=os.devnull.replace("null", "full"))

    assert ran.status == 2
    assert "error: standard output cannot be written: No space left on device; send it somewhere else." in ran.errors
    assert "Traceback" not in ran.errors
    assert "Exception" not in ran.errors
    if "probe" in command:
        assert (folder / "out" / "memory.png").stat().st_size > 0


def test_progress_that_cannot_be_shown_stops_nothing(tmp_path: Path) -> None:
    folder = user_folder(tmp_path / "run")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, str(CLI), *SHORT, "--json", "--output", "out"],
            cwd=folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=full,
            timeout=180,
        )

    assert done.returncode == 0
    assert json.loads(done.stdout)["largest_fit"] > 0


def test_workers_need_no_folder_for_temporary_files(tmp_path: Path) -> None:
    folder = user_folder(tmp_path / "run")
    program = (
        "import tempfile, sys\n"
        "def refuse(*arguments, **settings): raise FileNotFoundError('no usable temporary directory')\n"
        "tempfile.TemporaryFile = tempfile.mkstemp = tempfile.mkdtemp = refuse\n"
        f"sys.path.insert(0, {str(CLI.parent)!r})\n"
        "from profiler.workers.client import ForkServer\n"
        "with ForkServer({}) as server:\n"
        "    from process.jobs import give\n"
        "    print(server.run(give, 8, timeout_seconds=60, fresh=True))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env=environment(PYTHONPATH=str(Path(__file__).parents[1])),
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert done.stdout == "8\n", done.stderr
