"""What a user says of a line that needs values which a simulated card does not have; standard library only."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from profiler.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumption:
    """What a line of the model gives where its value is not known: a number, or a share of the elements that are looked at.

    file: the end of the file's path. share: whether `value` is one, from 0 to 1, for lines that select elements.
    """

    file: str
    line: int
    value: float
    share: bool

    @classmethod
    def parsed(cls, text: str) -> Assumption:
        """From FILE:LINE=VALUE, such as model.py:42=7 or model.py:42=12.5%; UsageError for anything else."""
        match = re.fullmatch(r"(.+):(\d+)=(-?\d+(?:\.\d+)?)(%?)", text.strip())
        if match is None or (match[4] and not 0 <= float(match[3]) <= 100):
            raise UsageError(
                f"the assumption {text!r} is not understood: write FILE:LINE=VALUE, such as model.py:42=7, or "
                "model.py:42=12.5% for a share of the elements from 0 to 100 %."
            )
        share = bool(match[4])
        return cls(file=match[1], line=int(match[2]), value=float(match[3]) / (100 if share else 1), share=share)

    def is_of(self, file: str, line: int) -> bool:
        """Whether it is about that line."""
        return line == self.line and Path(file).parts[-len(Path(self.file).parts) :] == Path(self.file).parts
