"""Options: near names and bounds."""

from __future__ import annotations

from datetime import timedelta

import pytest

from greenroom.core.options import MAX_DELAY_MS, check_priority, delay_to_ms, near_name, undefined_options_error

KNOWN = {"max_retries", "min_backoff", "max_backoff", "time_limit", "max_age", "throws"}


@pytest.mark.parametrize(
    ("name", "near"),
    [("max_retry", "max_retries"), ("timelimit", "time_limit"), ("maxage", "max_age"), ("colour", None)],
)
def test_the_near_name(name: str, near: str | None) -> None:
    """A misspelt option is told from a made-up one."""
    assert near_name(name, KNOWN) == near


def test_a_known_name_has_no_near_one() -> None:
    """What is spelt right is not corrected."""
    assert near_name("max_age", KNOWN) is None


def test_the_error_names_what_is_unknown_and_what_was_meant() -> None:
    """The text lists the unknown options in order and suggests the near names."""
    text = undefined_options_error(["max_retry", "colour"], KNOWN)
    assert text.startswith("The following actor options are undefined: colour, max_retry.")
    assert "did you mean 'max_retries' instead of 'max_retry'?" in text


def test_the_error_without_a_near_name() -> None:
    """Where nothing is near, it reminds of the middleware that may be missing."""
    text = undefined_options_error(["store_results"], KNOWN)
    assert text.endswith("Did you forget to add a middleware to your Broker?")


@pytest.mark.parametrize("priority", [-1000, -1, 0, 1000])
def test_a_priority_in_bounds(priority: int) -> None:
    """A priority from -1000 to 1000 is returned."""
    assert check_priority(priority) == priority


@pytest.mark.parametrize("priority", [-1001, 1001, True, 1.0, "1", None, 2**70])
def test_a_priority_out_of_bounds(priority: object) -> None:
    """Anything else is refused, and the error shows it."""
    with pytest.raises(ValueError, match="from -1000 to 1000") as e:
        check_priority(priority)
    assert repr(priority) in str(e.value)


@pytest.mark.parametrize(
    ("delay", "ms"),
    [
        (None, None),
        (0, 0),
        (1500, 1500),
        (1.9, 1),
        (timedelta(seconds=2, milliseconds=5), 2005),
        (MAX_DELAY_MS, MAX_DELAY_MS),
    ],
)
def test_delays(delay: float | timedelta | None, ms: int | None) -> None:
    """Milliseconds and timedeltas become whole milliseconds; None stays None."""
    assert delay_to_ms(delay) == ms


@pytest.mark.parametrize("delay", [-1, timedelta(seconds=-1), MAX_DELAY_MS + 1, timedelta(days=36_600), float("nan")])
def test_absurd_delays(delay: float | timedelta) -> None:
    """Negative delays and those of more than ten years are refused."""
    with pytest.raises(ValueError):  # noqa: PT011  # for NaN it is the language's own
        delay_to_ms(delay)


@pytest.mark.parametrize("delay", ["1000", True, b"1", [1]])
def test_delays_of_other_types(delay: object) -> None:
    """A delay of another type is refused with the type's name."""
    with pytest.raises(TypeError, match=type(delay).__name__):
        delay_to_ms(delay)  # type: ignore[arg-type]  # that is the mistake
