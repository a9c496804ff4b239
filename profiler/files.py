"""Writing files whole or not at all, with the reason in words where that fails; standard library only."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from profiler.errors import UsageError

fcntl: ModuleType | None
try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None

# While a file is written it carries this ending; what an interruption left under it is nobody's result.
PART_SUFFIX = ".part"

_NEXT_STEPS = {
    errno.ENOSPC: "free some space, or name a folder on another disk with --output",
    errno.EDQUOT: "free some of your quota, or name a folder on another disk with --output",
    errno.ENOTDIR: "a part of that path is a file: name another folder with --output",
    errno.ENAMETOOLONG: "name a folder with a shorter path with --output",
}


@contextmanager
def explained(what: str, otherwise: str = "name a folder that you can write to with --output") -> Iterator[None]:
    """Turns an OSError inside into a UsageError: what cannot be done, why, and the next step, by default `otherwise`."""
    try:
        yield
    except OSError as error:
        step = _NEXT_STEPS.get(error.errno or 0, otherwise)
        raise UsageError(f"{what}: {error.strerror or error}; {step}.") from error


def lock(descriptor: int) -> bool:
    """Whether this open file is nobody else's until it is closed; taken for true where the system knows no such locks."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network file systems have none
        return True
    return True


def replace_file(path: Path, content: bytes) -> Path:
    """`path`, which now holds `content`; it never holds a part of it, and a link there is replaced, not followed.

    Raises UsageError where it cannot be written; the previous file then is as it was.
    """
    part = path.with_name(path.name + PART_SUFFIX)
    with explained(f"{path} cannot be written"):
        try:
            # Removed first: what lies there may be a link to a file elsewhere.
            part.unlink(missing_ok=True)
            part.write_bytes(content)
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    return path
