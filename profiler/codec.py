"""Frozen dataclasses to JSON objects and back, by their annotations; standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import StrEnum
from functools import cache
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


def encode(value: object) -> Any:
    """`value` in JSON's own types: a dataclass as an object of its fields, a tuple as a list, an enum as its text."""
    if is_dataclass(value):
        return {field.name: encode(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    return value.value if isinstance(value, StrEnum) else value


def decode(cls: type[T], entries: Mapping[str, object], **given: object) -> T:
    """The dataclass `cls` from what `encode` made of it; fields in `given` are taken as they are.

    A missing key takes the field's default and an unknown one is passed over, so that a field can be added without a
    new schema. Raises ValueError, which names the key, where a key without default is missing or a value is of
    another type than the annotation's.
    """
    hints = _hints(cls)  # type: ignore[arg-type]  # nor that a type can be hashed
    values = dict(given)
    for field in fields(cls):  # type: ignore[arg-type]  # mypy cannot say that T is a dataclass
        if field.name in given:
            continue
        if field.name in entries:
            values[field.name] = _decode_value(hints[field.name], entries[field.name], field.name)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f'"{field.name}" is missing')
    return cls(**values)


@cache
def _hints(cls: type) -> dict[str, Any]:
    """The annotations of a class, kept: to resolve their text takes longer than all the rest."""
    return get_type_hints(cls)


def _decode_value(hint: Any, value: object, name: str) -> object:
    """`value` as what `hint` announces; ValueError where it is something else."""
    origin, arguments = get_origin(hint), get_args(hint)
    if isinstance(hint, UnionType):
        known = next(argument for argument in arguments if argument is not type(None))
        return None if value is None else _decode_value(known, value, name)
    if origin is tuple and isinstance(value, list):
        return tuple(_decode_value(arguments[0], item, name) for item in value)
    if origin is Mapping and isinstance(value, dict):
        return {key: _decode_value(arguments[1], item, name) for key, item in value.items()}
    if is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        return decode(hint, value)
    if isinstance(hint, type) and issubclass(hint, StrEnum) and isinstance(value, str) and value in list(hint):
        return hint(value)
    # bool is an int to Python, and 3 is a fine float to JSON.
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (bool, int, float, str) and type(value) is hint:
        return value
    raise ValueError(f'"{name}" is {value!r}, not {_expected(hint)}')


def _expected(hint: Any) -> str:
    """What `hint` announces, in words."""
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return "one of " + ", ".join(hint)
    words = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a text",
        tuple: "a list",
        Mapping: "an object",
    }
    return "an object" if is_dataclass(hint) else words[get_origin(hint) or hint]
