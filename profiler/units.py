"""Bytes, seconds and joules to text and back; the only place that spells them."""

from __future__ import annotations

import re

from profiler.errors import UsageError

KIB = 2**10
MIB = 2**20
GIB = 2**30

_BYTE_UNITS = {
    "": 1,
    "b": 1,
    "k": KIB,
    "kib": KIB,
    "m": MIB,
    "mib": MIB,
    "g": GIB,
    "gib": GIB,
    "t": 2**40,
    "tib": 2**40,
}
_DECIMAL_UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}


def parse_bytes(text: str) -> int:
    """How many bytes `text` names: "2GiB", "512 MiB", "1.5g", "800MB" (decimal), or a plain number of bytes.

    Raises UsageError for anything else, and for amounts that are not positive.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*", text)
    unit = (_BYTE_UNITS | _DECIMAL_UNITS).get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise UsageError(f"{text!r} is not an amount of memory: write a number and a unit, such as 512MiB or 2GiB.")
    amount = int(float(match[1]) * unit)
    if amount <= 0:
        raise UsageError(f"{text!r} is {amount} bytes: an amount of memory must be positive.")
    return amount


def format_bytes(amount_bytes: float) -> str:
    """`amount_bytes` in the largest binary unit that leaves a number of 1 or more, with three or four digits."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if abs(amount_bytes) >= unit:
            scaled = amount_bytes / unit
            return f"{scaled:.0f} {name}" if abs(scaled) >= 100 else f"{scaled:.3g} {name}"
    return f"{amount_bytes:.0f} B"


def format_seconds(seconds: float) -> str:
    """`seconds` with three digits in s, ms or µs."""
    for unit, name in ((1.0, "s"), (1e-3, "ms")):
        if abs(seconds) >= unit:
            scaled = seconds / unit
            return f"{scaled:.0f} {name}" if abs(scaled) >= 100 else f"{scaled:.3g} {name}"
    return f"{seconds * 1e6:.3g} µs"


def format_joules(joules: float) -> str:
    """`joules` with three digits in J or mJ."""
    return f"{joules:.3g} J" if abs(joules) >= 1 else f"{joules * 1e3:.3g} mJ"
