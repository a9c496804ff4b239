"""`microbatch devices`: what is here, what can be used, and why not."""

from __future__ import annotations

import json
from dataclasses import asdict

from profiler.commands import arguments
from profiler.commands.console import handled, output, printing
from profiler.commands.tables import Table, print_lines
from profiler.devices import Surveyed, survey
from profiler.simulation.cards import SIMULATED, Card, catalogue
from profiler.units import format_bytes


def devices(as_json: arguments.Json = False) -> None:
    """List the devices of this machine, their memory, and why one cannot be used; then the cards that can be simulated."""
    with handled():
        found = survey()
        with printing():
            _print(found, as_json=as_json)


def _print(found: tuple[Surveyed, ...], *, as_json: bool) -> None:
    if as_json:
        simulated = [{"device": f"{SIMULATED}{name}", **asdict(card)} for name, card in catalogue().items()]
        document = {"schema": 1, "devices": [asdict(device) for device in found], "simulated": simulated}
        print(json.dumps(document, indent=2))
        return
    console = output()
    devices_table(found).print(console)
    for device in found:
        if device.why_not is not None:
            print_lines(console, (f"{device.name}: {device.why_not}",))
        elif device.facts is not None:
            facts = ", ".join(f"{name} {value}" for name, value in device.facts.environment.items())
            print_lines(console, (f"{device.name}: {facts}",))
    console.print()
    cards_table(tuple(catalogue().values())).print(console)
    print_lines(console, (f"{SIMULATED}24GiB or any other size: a card of that memory",))


def devices_table(found: tuple[Surveyed, ...]) -> Table:
    """A row a device: its memory, what of it is free, whether it can be used, whether it counts energy."""
    rows = []
    for device in found:
        facts = device.facts
        rows.append(
            (
                device.name,
                facts.description if facts else "-",
                format_bytes(facts.total_bytes) if facts else "-",
                format_bytes(facts.available_bytes) if facts else "-",
                "yes" if facts else "no",
                "yes" if facts and device.energy_why_not is None else "no",
            )
        )
    columns = ("device", "is", "memory", "free now", "can be used", "counts energy")
    return Table(title="Devices", columns=columns, rows=tuple(rows))


def cards_table(cards: tuple[Card, ...]) -> Table:
    """A row a card that can be simulated: its memory as torch reports it, and what a process takes beside the allocator."""
    rows = [
        (
            f"{SIMULATED}{card.name}",
            card.description,
            format_bytes(card.total_bytes),
            ".".join(map(str, card.compute_capability)),
            f"{format_bytes(card.context_low_bytes)} to {format_bytes(card.context_high_bytes)}",
        )
        for card in cards
    ]
    columns = ("device", "stands for", "memory", "compute capability", "context")
    return Table(title="Cards that are not here: everything is predicted", columns=columns, rows=tuple(rows))
