"""How much host memory a process may still take: what the kernel has, within the limits of its control groups."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def cgroup_available_bytes(
    root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> int | None:
    """The least that any control group above this process still grants, None where none sets a limit.

    Reads version 2 (memory.max, memory.current) and version 1 (memory.limit_in_bytes, memory.usage_in_bytes) from the
    process's own group up to the root, since the tightest limit counts; see cgroups(7).
    """
    left = [limit - used for limit, used in _limits(root, membership)]
    return max(min(left), 0) if left else None


def _limits(root: Path, membership: Path) -> Iterator[tuple[int, int]]:
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # no control groups on this kernel
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _climb(root, path, "memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            yield from _climb(root / "memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes")


def _climb(root: Path, path: str, limit_name: str, used_name: str) -> Iterator[tuple[int, int]]:
    group = root / path.lstrip("/")
    # Inside a container the path may be the host's, which is not mounted here; the mount's root is then the own group.
    groups = [group, *group.parents] if group.is_dir() else [root]
    for folder in groups:
        if folder != root and root not in folder.parents:
            return
        limit, used = _number(folder / limit_name), _number(folder / used_name)
        # Version 1 writes "no limit" as a number near 2^63.
        if limit is not None and used is not None and limit < 2**60:
            yield limit, used


def _number(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:  # the root group has no limit file
        return None
    return int(text) if text.isdigit() else None  # "max" is no limit
