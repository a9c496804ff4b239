from __future__ import annotations

import errno
from pathlib import Path

import pytest

from profiler.errors import UsageError
from profiler.files import explained, replace_file


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(b"a longer content from before")

    assert replace_file(path, b"new") == path
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    outside, path = tmp_path / "outside", tmp_path / "table.csv"
    outside.write_bytes(b"mine")
    path.symlink_to(outside)
    path.with_name("table.csv.part").symlink_to(outside)

    replace_file(path, b"new")

    assert outside.read_bytes() == b"mine"
    assert not path.is_symlink()
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143)], ids=["interrupted", "terminated"])
def test_an_interruption_leaves_the_previous_file_and_no_scraps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(b"previous")

    def interrupted(part: Path, target: Path) -> Path:
        assert part.read_bytes() == b"new"
        raise error

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(type(error)):
        replace_file(path, b"new")
    assert path.read_bytes() == b"previous"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written_is_named_with_the_reason_and_the_next_step(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "table.csv"

    with pytest.raises(UsageError) as caught:
        replace_file(path, b"new")
    assert str(caught.value) == (
        f"{path} cannot be written: No such file or directory; name a folder that you can write to with --output."
    )


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(errno.EDQUOT, "Quota exceeded"),
            "it failed: Quota exceeded; free some of your quota, or name a folder on another disk with --output.",
        ),
        (OSError(errno.EACCES, "Permission denied"), "it failed: Permission denied; try again."),
        (OSError("no number"), "it failed: no number; try again."),
    ],
)
def test_an_error_of_the_system_is_explained(error: OSError, message: str) -> None:
    with pytest.raises(UsageError) as caught, explained("it failed", "try again"):
        raise error
    assert str(caught.value) == message
    assert caught.value.__cause__ is error


def test_other_errors_pass_as_they_are() -> None:
    with pytest.raises(ZeroDivisionError), explained("it failed"):
        raise ZeroDivisionError
