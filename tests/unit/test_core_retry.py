"""Dramatiq's rules of retrying, as pure functions."""

from __future__ import annotations

import pytest

from greenroom.core.retry import DEFAULT_MAX_BACKOFF, is_exhausted, retry_delay_ms


@pytest.mark.parametrize(
    ("retries", "max_retries", "exhausted"),
    [(0, 0, True), (0, 1, False), (1, 1, True), (19, 20, False), (20, 20, True), (21, 20, True), (10**6, None, False)],
)
def test_how_many_retries(retries: int, max_retries: int | None, exhausted: bool) -> None:
    """``max_retries`` counts the attempts after the first; None means for ever, 0 never."""
    assert is_exhausted(retries, ValueError(), max_retries=max_retries, retry_when=None) is exhausted


@pytest.mark.parametrize("wanted", [True, False])
def test_retry_when_overrides_the_number(wanted: bool) -> None:
    """``retry_when`` decides alone, and is given the number of retries and the exception."""
    seen: list[tuple[int, BaseException | None]] = []
    error = ValueError()

    def retry_when(retries: int, exception: BaseException | None) -> bool:
        seen.append((retries, exception))
        return wanted

    assert is_exhausted(7, error, max_retries=0, retry_when=retry_when) is not wanted
    assert seen == [(7, error)]


def test_the_delay_doubles() -> None:
    """The delay is the minimum, doubled with each retry, times one to two."""
    for retries in range(5):
        low = retry_delay_ms(retries, min_backoff=1000, max_backoff=10**8, uniform=lambda a, _b: a)
        high = retry_delay_ms(retries, min_backoff=1000, max_backoff=10**8, uniform=lambda _a, b: b)
        assert (low, high) == (1000 * 2**retries, 2000 * 2**retries)


def test_the_delay_has_a_ceiling() -> None:
    """Above the maximum it is a half of that to the whole of it."""
    low = retry_delay_ms(10, min_backoff=1000, max_backoff=5000, uniform=lambda a, _b: a)
    high = retry_delay_ms(10, min_backoff=1000, max_backoff=5000, uniform=lambda _a, b: b)
    assert (low, high) == (2500, 5000)


def test_a_delay_of_just_the_maximum_stays() -> None:
    """A delay that equals the maximum is not jittered down."""
    assert retry_delay_ms(0, min_backoff=5000, max_backoff=5000, uniform=lambda a, _b: a) == 5000


def test_seven_days_is_the_hard_ceiling() -> None:
    """No maximum makes a delay longer than seven days, and no number of retries overflows."""
    longest = retry_delay_ms(10**9, min_backoff=15_000, max_backoff=10**15, uniform=lambda _a, b: b)
    assert longest == DEFAULT_MAX_BACKOFF == 7 * 24 * 3600 * 1000


def test_without_a_minimum_there_is_no_delay() -> None:
    """A minimum of 0 retries at once."""
    assert retry_delay_ms(5, min_backoff=0, max_backoff=1000) == 0


def test_the_default_jitter_varies() -> None:
    """Unless told otherwise the jitter is random, within its bounds."""
    found = {retry_delay_ms(2, min_backoff=1000, max_backoff=10**6) for _ in range(100)}
    assert len(found) > 10
    assert min(found) >= 4000
    assert max(found) <= 8000
