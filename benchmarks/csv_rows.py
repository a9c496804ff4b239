"""Tables of frozen dataclasses as CSV, there and back: strings, bools, numbers, and None as an empty cell."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from io import StringIO
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Row = TypeVar("Row", bound=DataclassInstance)


def lines_to_csv(names: Sequence[str], lines: Iterable[Mapping[str, Any]]) -> str:
    """The table of `lines`, which all have these columns."""
    text = StringIO()
    writer = csv.DictWriter(text, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def to_csv(kind: type[Row], rows: Iterable[Row]) -> str:
    """The table of `rows`, all of that kind."""
    return lines_to_csv([field.name for field in fields(kind)], (asdict(row) for row in rows))


def from_csv(kind: type[Row], table: str) -> list[Row]:
    """The rows of such a table."""
    types = {field.name: str(field.type) for field in fields(kind)}
    return [
        kind(**{name: _value(types[name], text) for name, text in line.items()})
        for line in csv.DictReader(StringIO(table))
    ]


def _value(kind: str, text: str) -> Any:
    if kind == "str":
        return text
    if not text:
        return None
    if kind.startswith("str"):
        return text
    if kind.startswith("bool"):
        return text == "True"
    return int(text) if kind.startswith("int") else float(text)
