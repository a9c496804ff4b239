"""Names that were probably meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest_names(name: str, known: Iterable[str], *, count: int = 3) -> list[str]:
    """Up to `count` of the names in `known` that are spelled most like `name`, the best first.

    Where none is spelled like it, the longest that it begins with, such as bert for bert-base-uncased; [] where there is none.
    Upper and lower case, hyphens and underscores are no difference.
    """
    by_folded: dict[str, str] = {}
    for candidate in known:
        by_folded.setdefault(_folded(candidate), candidate)
    matches = get_close_matches(_folded(name), by_folded, n=count)
    begins = sorted((start for start in by_folded if start and _folded(name).startswith(f"{start}_")), key=len)
    return [by_folded[match] for match in matches or begins[-1:]]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence that begins with a space, " Did you mean 'a' or 'b'?"; empty where nothing is spelled like `name`."""
    names = [repr(match) for match in nearest_names(name, known)]
    if not names:
        return ""
    return f" Did you mean {names[0]}?" if len(names) == 1 else f" Did you mean {', '.join(names[:-1])} or {names[-1]}?"


def _folded(name: str) -> str:
    return name.lower().replace("-", "_")
