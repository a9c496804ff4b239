"""The cards that can be simulated: a catalogue, and any capacity."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from profiler.errors import UsageError
from profiler.nearest import did_you_mean
from profiler.units import format_bytes, parse_bytes

# A card of any capacity is taken for one of these: the A100's, whose kernels most code was written for.
_ANY_COMPUTE_CAPABILITY = (8, 0)
# What the name of a simulated card begins with.
SIMULATED = "sim:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A GPU model. total_bytes: as torch reports it. context_low_bytes, context_high_bytes: what a process takes outside
    torch's allocator (context, kernels, handles of libraries), as others have seen it. source: where the numbers come from.
    """

    name: str
    description: str
    total_bytes: int
    compute_capability: tuple[int, int]
    context_low_bytes: int
    context_high_bytes: int
    source: str

    @property
    def context_bytes(self) -> int:
        """What is taken off the card's memory: the upper end, since a plan that is too large helps nobody."""
        return self.context_high_bytes


def is_simulated(device: str | None) -> bool:
    """Whether the device of that name is a card that is not here."""
    return device is not None and device.startswith(SIMULATED)


@cache
def catalogue() -> dict[str, Card]:
    """Every card of the data file, by name."""
    text = files("profiler.simulation").joinpath("cards.csv").read_text()
    return {row["name"]: _card(row) for row in csv.DictReader(text.splitlines())}


def _card(row: dict[str, str]) -> Card:
    major, minor = row["compute_capability"].split(".")
    return Card(
        name=row["name"],
        description=row["description"],
        total_bytes=int(row["total_bytes"]),
        compute_capability=(int(major), int(minor)),
        context_low_bytes=int(row["context_low_bytes"]),
        context_high_bytes=int(row["context_high_bytes"]),
        source=row["source"],
    )


def card_of(name: str) -> Card:
    """The card called `name`, or one of that capacity ("24GiB") and, if it says so, compute capability ("24GiB@9.0").

    Raises UsageError, with the nearest names, where there is none.
    """
    known = catalogue()
    if name.lower() in known:
        return known[name.lower()]
    # Digits alone are a name that was cut short, unless a capability follows.
    if match := re.fullmatch(r"(\d[\d.]*\s*[A-Za-z]+|\d+(?=@))(?:@(\d+)\.(\d+))?", name):
        total_bytes = parse_bytes(match[1])
        capability = (int(match[2]), int(match[3])) if match[2] else _ANY_COMPUTE_CAPABILITY
        alike = [card for card in known.values() if card.compute_capability == capability]
        contexts = alike or list(known.values())
        return Card(
            name=name,
            description=f"a card of {format_bytes(total_bytes)}",
            total_bytes=total_bytes,
            compute_capability=capability,
            context_low_bytes=min(card.context_low_bytes for card in contexts),
            context_high_bytes=max(card.context_high_bytes for card in contexts),
            source="asked for",
        )
    raise UsageError(
        f"there is no simulated card {name!r}.{did_you_mean(name, known)} `microbatch devices` lists them all, and sim:24GiB is "
        "a card of that size."
    )
