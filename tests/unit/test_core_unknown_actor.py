"""For how long a message is tried whose actor nobody knows."""

from __future__ import annotations

import pytest

from greenroom.core.unknown_actor import DEFAULT_TTL_MS, released_until_ms, waited_ms


def test_waits_double_up_to_a_minute() -> None:
    """From 5 s on, each from the moment at which it was met again."""
    now_ms, waits_ms = 1_000_000, []
    for _ in range(7):
        due_ms = released_until_ms(1_000_000, now_ms, DEFAULT_TTL_MS)
        assert due_ms is not None
        waits_ms.append(due_ms - now_ms)
        now_ms = due_ms
    assert waits_ms == [5_000, 10_000, 20_000, 40_000, 60_000, 60_000, 60_000]


@pytest.mark.parametrize(
    ("waited", "ttl_ms", "dead"), [(0, 0, True), (899_999, 900_000, False), (900_000, 900_000, True)]
)
def test_it_has_an_end(waited: int, ttl_ms: int, dead: bool) -> None:
    """After the time to live it is not tried again; with none, not once."""
    assert (released_until_ms(1_000_000, 1_000_000 + waited, ttl_ms) is None) is dead


def test_a_clock_that_went_back() -> None:
    """What was first met in the future was met just now."""
    assert released_until_ms(2_000_000, 1_000_000, 1) == 1_005_000


def test_by_the_number_of_claims() -> None:
    """Without a history the claims tell how long it has waited, if it came again as soon as it was due."""
    assert [waited_ms(attempt) for attempt in range(1, 8)] == [0, 5_000, 15_000, 35_000, 75_000, 135_000, 195_000]
