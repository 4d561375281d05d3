"""Backoff: Dramatiq's formula, and full jitter."""

from __future__ import annotations

import random

import pytest

from greenroom.backoff import compute_backoff, full_jitter_s


@pytest.mark.parametrize(("attempts", "expected"), [(0, 5), (1, 10), (2, 20), (8, 1280), (9, 2000), (1000, 2000)])
def test_it_doubles_up_to_the_maximum(attempts: int, expected: int) -> None:
    """Without jitter the backoff doubles with each attempt until it reaches the maximum."""
    assert compute_backoff(attempts, jitter=False) == (attempts + 1, expected)


def test_factor_and_exponent_are_bounds() -> None:
    """The factor scales it, and the exponent stops growing where it is told to."""
    assert compute_backoff(3, factor=100, jitter=False, max_backoff=10_000) == (4, 800)
    assert compute_backoff(9, factor=1, jitter=False, max_backoff=10_000, max_exponent=3) == (10, 8)


def test_jitter_takes_at_most_a_half_away() -> None:
    """With jitter the backoff lies between a half of the plain one and the whole, and varies."""
    found = {compute_backoff(4, factor=100, max_backoff=5000)[1] for _ in range(200)}
    assert min(found) >= 800
    assert max(found) <= 1600
    assert len(found) > 10


def test_full_jitter_stays_below_its_ceiling() -> None:
    """A reconnect waits between nothing and a ceiling that doubles up to the cap."""
    rng = random.Random(1)
    for attempt, ceiling in [(0, 0.05), (1, 0.1), (4, 0.8), (6, 3.2), (9, 15.0), (10_000, 15.0)]:
        waits = [full_jitter_s(attempt, rng=rng) for _ in range(200)]
        assert 0 <= min(waits) < ceiling / 4
        assert ceiling * 3 / 4 < max(waits) < ceiling


def test_full_jitter_is_seeded() -> None:
    """With the same generator the waits are the same."""
    assert full_jitter_s(3, rng=random.Random(7)) == full_jitter_s(3, rng=random.Random(7))
    assert 0 <= full_jitter_s(0) < 0.05
