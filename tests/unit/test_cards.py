from __future__ import annotations

import pytest

from profiler.errors import UsageError
from profiler.simulation.cards import card_of


def test_a_card_of_any_capacity_has_the_compute_capability_that_is_asked_for() -> None:
    card = card_of("85020639232@9.0")
    hopper = card_of("h100-80gb")

    assert (card.total_bytes, card.compute_capability) == (85_020_639_232, (9, 0))
    assert (card.context_low_bytes, card.context_high_bytes) == (hopper.context_low_bytes, hopper.context_high_bytes)
    assert card_of("24GiB").compute_capability == card_of("24GiB@8.0").compute_capability == (8, 0)


def test_a_compute_capability_that_no_card_has_is_simulated_with_the_widest_context() -> None:
    card = card_of("24GiB@11.0")

    assert card.context_high_bytes == card_of("b200").context_high_bytes


@pytest.mark.parametrize("name", ["24GiB@9", "24GiB@hopper", "24GiB@", "24 parsecs@9.0"])
def test_what_is_no_card_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        card_of(name)
