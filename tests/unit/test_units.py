from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.errors import UsageError
from profiler.units import GIB, KIB, MIB, TIB, format_bytes, format_joules, format_seconds, parse_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2GiB", 2 * GIB),
        ("512 MiB", 512 * MIB),
        ("1.5g", 3 * GIB // 2),
        ("0.5 TiB", 512 * GIB),
        ("2t", 2 * TIB),
        ("1k", KIB),
        ("800MB", 800_000_000),
        ("1.5 GB", 1_500_000_000),
        ("3kb", 3000),
        ("1TB", 10**12),
        ("1048576", MIB),
        ("7 B", 7),
        ("  64\tmIb\n", 64 * MIB),
        ("007m", 7 * MIB),
        ("0.1GiB", 107_374_182),
        ("1.9", 1),
    ],
)
def test_an_amount_of_memory_is_read(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "GiB", "2 PiB", "2 GiB free", "nan", "inf"),
        *("-1GiB", "+1GiB", "1e9", "0x10", "1_000", "1,5g", ".5g", "5.g", "1.2.3g"),
        # An Arabic digit two, and the sign for kelvin, whose lower case is the letter k.
        *("\u0662GiB", "1 \u212a"),
    ],
)
def test_what_is_no_amount_of_memory_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_bytes(text)
    assert str(caught.value) == (
        f"{text!r} is not an amount of memory: write a number and a unit, such as 512MiB or 2GiB."
    )


@pytest.mark.parametrize("text", ["0", "0GiB", "0.0 m", "0.9", "0.0001k"])
def test_less_than_a_byte_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_bytes(text)
    assert str(caught.value) == f"{text!r} is less than a byte: an amount of memory must be positive."


@pytest.mark.parametrize("text", [f"{2**63}", "8388608TiB", "9" * 400, "9" * 5000 + "GiB"])
def test_more_than_a_machine_can_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="more than any machine can address, 8388608 TiB: check the unit"):
        parse_bytes(text)


def test_a_great_deal_of_memory_is_read() -> None:
    assert parse_bytes("8000000TiB") == 8_000_000 * TIB


@given(st.text() | st.from_regex(r"\A[0-9.]+ ?[a-zA-Z]{0,3}\Z"))
def test_any_text_is_read_or_refused_but_never_a_crash(text: str) -> None:
    amount: int | None = None
    with suppress(UsageError):
        amount = parse_bytes(text)

    assert amount is None or 1 <= amount < 2**63


@pytest.mark.parametrize(
    ("amount", "expected"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (1.4, "1 B"),
        (999, "999 B"),
        (1023, "1023 B"),
        (1023.6, "1 KiB"),
        (KIB, "1 KiB"),
        (1536, "1.5 KiB"),
        (130 * MIB, "130 MiB"),
        (9.994 * MIB, "9.99 MiB"),
        (9.996 * MIB, "10 MiB"),
        (99.94 * MIB, "99.9 MiB"),
        (99.96 * MIB, "100 MiB"),
        (512 * MIB, "512 MiB"),
        (999.6 * MIB, "1000 MiB"),
        (1023 * MIB, "1023 MiB"),
        (1023.4 * MIB, "1023 MiB"),
        (1023.9 * MIB, "1 GiB"),
        (MIB - 1, "1 MiB"),
        (GIB - 1, "1 GiB"),
        (1.5 * GIB, "1.5 GiB"),
        (79.32 * GIB, "79.3 GiB"),
        (TIB - 1, "1 TiB"),
        (10 * TIB, "10 TiB"),
        (123_456 * TIB, "123456 TiB"),
        (-1.5 * GIB, "-1.5 GiB"),
    ],
)
def test_bytes_as_text(amount: float, expected: str) -> None:
    assert format_bytes(amount) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.0, "0 µs"),
        (2.5e-7, "0.25 µs"),
        (1.234e-5, "12.3 µs"),
        (9.994e-4, "999 µs"),
        (9.996e-4, "1 ms"),
        (0.001, "1 ms"),
        (0.0123, "12.3 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1 s"),
        (1.0, "1 s"),
        (1.234, "1.23 s"),
        (99.96, "100 s"),
        (600.0, "600 s"),
        (999.6, "1000 s"),
        (1234.0, "1234 s"),
        (86400.0, "86400 s"),
        (-0.5, "-500 ms"),
    ],
)
def test_seconds_as_text(seconds: float, expected: str) -> None:
    assert format_seconds(seconds) == expected


@pytest.mark.parametrize(
    ("joules", "expected"),
    [
        (0.0, "0 mJ"),
        (1e-5, "0.01 mJ"),
        (0.01234, "12.3 mJ"),
        (0.9994, "999 mJ"),
        (0.9999, "1 J"),
        (1.0, "1 J"),
        (99.96, "100 J"),
        (999.6, "1000 J"),
        (1234.0, "1234 J"),
    ],
)
def test_joules_as_text(joules: float, expected: str) -> None:
    assert format_joules(joules) == expected


SCALES = {"B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": TIB}


@given(st.integers(1, 2**52))
def test_bytes_that_were_written_read_back_to_within_half_of_the_third_digit(amount: int) -> None:
    text = format_bytes(amount)

    assert parse_bytes(text) == pytest.approx(amount, rel=0.005)


@given(st.integers(0, 2**49))
def test_bytes_take_the_largest_unit_and_at_most_four_digits(amount: int) -> None:
    number, unit = format_bytes(amount).split(" ")

    assert re.fullmatch(r"\d{1,4}|\d\.\d{1,2}|\d\d\.\d", number)
    assert float(number) < KIB
    assert float(number) >= 1 or amount == 0
    assert abs(float(number) * SCALES[unit] - amount) <= 0.005 * amount


@pytest.mark.parametrize(
    ("write", "scales"),
    [
        pytest.param(format_seconds, {"s": 1.0, "ms": 1e-3, "µs": 1e-6}, id="seconds"),
        pytest.param(format_joules, {"J": 1.0, "mJ": 1e-3}, id="joules"),
    ],
)
@given(amount=st.floats(1e-6, 1e6))
def test_times_and_energies_are_written_plainly_and_to_three_digits(
    write: Callable[[float], str], scales: dict[str, float], amount: float
) -> None:
    number, unit = write(amount).split(" ")

    assert re.fullmatch(r"\d+(\.\d+)?", number)
    assert float(number) < 1000 or unit == next(iter(scales))
    assert float(number) * scales[unit] == pytest.approx(amount, rel=0.0051)
