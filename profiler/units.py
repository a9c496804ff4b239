"""Bytes, seconds and joules to text and back; the only place that spells them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from profiler.errors import UsageError

KIB = 2**10
MIB = 2**20
GIB = 2**30
TIB = 2**40

_BYTE_UNITS = {
    "": 1,
    "b": 1,
    "k": KIB,
    "kib": KIB,
    "m": MIB,
    "mib": MIB,
    "g": GIB,
    "gib": GIB,
    "t": TIB,
    "tib": TIB,
}
_DECIMAL_UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
# The largest signed 64-bit number is what the system's own limits take.
_ADDRESSABLE = 2**63


def parse_bytes(text: str) -> int:
    """How many bytes `text` names: "2GiB", "512 MiB", "1.5g", "800MB" (decimal), or a plain number of bytes.

    Raises UsageError for anything else, for less than a byte, and for more than a machine can address.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*", text)
    unit = (_BYTE_UNITS | _DECIMAL_UNITS).get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise UsageError(f"{text!r} is not an amount of memory: write a number and a unit, such as 512MiB or 2GiB.")
    amount = float(match[1]) * unit
    if amount < 1:
        raise UsageError(f"{text!r} is less than a byte: an amount of memory must be positive.")
    if amount >= _ADDRESSABLE:
        raise UsageError(
            f"{text!r} is more than any machine can address, {format_bytes(_ADDRESSABLE)}: check the unit."
        )
    return int(amount)


def format_bytes(amount_bytes: float) -> str:
    """`amount_bytes` in the largest binary unit that leaves a number of 1 or more, with three or four digits."""
    return _format(round(amount_bytes), ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB"), (1, "B")))


def format_seconds(seconds: float) -> str:
    """`seconds` with three digits in s, ms or µs."""
    return _format(seconds, ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")))


def format_joules(joules: float) -> str:
    """`joules` with three digits in J or mJ."""
    return _format(joules, ((1.0, "J"), (1e-3, "mJ")))


def _format(amount: float, units: Sequence[tuple[float, str]]) -> str:
    """In the first of `units` in which the number is 1 or more as it is printed, else in the last.

    As printed: 1023.9 MiB are 1 GiB, not 1024 MiB. Never with an exponent, from a ten-thousandth of the last unit on.
    """
    for unit, name in units:
        scaled = amount / unit
        # Three significant digits, but never 1.02e+03.
        number = f"{scaled:.0f}" if abs(scaled) >= 100 else f"{scaled:.3g}"
        text = f"{number} {name}"
        if abs(float(number)) >= 1:
            break
    return text
