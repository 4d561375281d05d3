"""The tree of errors, and where interrupts stand beside it."""

from __future__ import annotations

from datetime import timedelta

import pytest

import greenroom as dramatiq
from greenroom.errors import ConnectionClosed, ConnectionFailed
from greenroom.middleware import Interrupt, MiddlewareError, Shutdown, SkipMessage, TimeLimitExceeded

TREE = [
    (dramatiq.DramatiqError, Exception),
    (dramatiq.DecodeError, dramatiq.DramatiqError),
    (dramatiq.BrokerError, dramatiq.DramatiqError),
    (dramatiq.ActorNotFound, dramatiq.BrokerError),
    (dramatiq.QueueNotFound, dramatiq.BrokerError),
    (dramatiq.BrokerConnectionError, dramatiq.BrokerError),
    (ConnectionFailed, dramatiq.BrokerConnectionError),
    (ConnectionClosed, dramatiq.BrokerConnectionError),
    (dramatiq.QueueJoinTimeout, dramatiq.DramatiqError),
    (dramatiq.RateLimitExceeded, dramatiq.DramatiqError),
    (dramatiq.Retry, dramatiq.DramatiqError),
    (SkipMessage, MiddlewareError),
    (MiddlewareError, Exception),
    (TimeLimitExceeded, Interrupt),
    (Shutdown, Interrupt),
    (Interrupt, BaseException),
]


@pytest.mark.parametrize(("error", "base"), TREE)
def test_each_error_stands_where_dramatiq_has_it(error: type[BaseException], base: type[BaseException]) -> None:
    """What a Dramatiq program catches catches ours."""
    assert issubclass(error, base)


@pytest.mark.parametrize("error", [Interrupt, TimeLimitExceeded, Shutdown])
def test_interrupts_are_no_exceptions(error: type[BaseException]) -> None:
    """Code that catches ``Exception`` does not swallow an interrupt."""
    assert not issubclass(error, Exception)


@pytest.mark.parametrize("error", [MiddlewareError, SkipMessage])
def test_middleware_errors_are_none_of_the_library(error: type[BaseException]) -> None:
    """They stand outside of ``DramatiqError``."""
    assert not issubclass(error, dramatiq.DramatiqError)


def test_an_error_has_its_message() -> None:
    """``message`` is what it was made with, and what it prints as."""
    error = dramatiq.BrokerError("no")
    assert (error.message, str(error)) == ("no", "no")


def test_a_decode_error_has_the_data() -> None:
    """The bytes and the cause travel with it."""
    cause = ValueError("x")
    error = dramatiq.DecodeError("bad", b"{", cause)
    assert (error.message, error.data, error.error) == ("bad", b"{", cause)


def test_retry_has_a_delay_in_milliseconds() -> None:
    """``Retry`` needs nothing, and takes milliseconds or a timedelta."""
    assert (dramatiq.Retry().message, dramatiq.Retry().delay) == ("", None)
    assert dramatiq.Retry("later", delay=5).delay == 5
    assert dramatiq.Retry(delay=timedelta(seconds=2)).delay == 2000
