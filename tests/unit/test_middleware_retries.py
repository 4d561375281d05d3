"""``Retries``: what it plans for a message whose actor raised."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from greenroom import Message, actor
from greenroom.brokers.engine import EngineBroker
from greenroom.core.options import MAX_DELAY_MS
from greenroom.core.run import Run
from greenroom.engines.memory.transport import MemoryTransport
from greenroom.errors import Retry
from greenroom.middleware import Retries
from greenroom.testing.clock import ManualClock


class MemoryBroker(EngineBroker):
    def __init__(self, retries: Retries, clock: ManualClock) -> None:
        self.transport = MemoryTransport(clock=clock)
        super().__init__([retries], clock=clock)


@pytest.fixture
def retries() -> Retries:
    return Retries(min_backoff=1000, max_backoff=100_000)


@pytest.fixture
def broker(retries: Retries) -> Iterator[MemoryBroker]:
    broker = MemoryBroker(retries, ManualClock())
    yield broker
    broker.close()


def failed(
    broker: MemoryBroker, error: BaseException, *, options: dict[str, Any] | None = None, **actor_options: Any
) -> Run:
    """A run of an actor that has raised ``error``, as the middleware left it."""
    work = actor(lambda: None, broker=broker, actor_name="work", **actor_options)
    run = Run(Message("default", "work", (), {}, dict(options or {})), None, work)
    broker.middleware[0].after_process_message(broker, run, exception=error)
    return run


@pytest.mark.parametrize(
    ("delay", "expected_ms"),
    [
        (0, 0),
        (1500, 1500),
        (1500.9, 1500),
        (timedelta(seconds=2), 2000),
        (10 * 100_000, 10 * 100_000),
        (-5, 0),
        (timedelta(days=-1), 0),
        (10**30, MAX_DELAY_MS),
        (math.inf, MAX_DELAY_MS),
    ],
)
def test_the_delay_that_an_actor_asks_for(broker: MemoryBroker, delay: Any, expected_ms: int) -> None:
    """``Retry(delay=...)`` is obeyed beyond ``max_backoff``; what lies in the past is due at once."""
    run = failed(broker, Retry("later", delay=delay))
    assert run.retry_delay_ms == expected_ms
    assert not run.failed


@pytest.mark.parametrize("delay", [None, math.nan, "soon", True, [1]])
def test_a_delay_that_is_no_time(broker: MemoryBroker, delay: Any) -> None:
    """Without a delay, or with one that makes no sense, the backoff decides: the message is never lost for it."""
    run = failed(broker, Retry("later", delay=delay))
    assert run.retry_delay_ms is not None
    assert 1000 <= run.retry_delay_ms <= 2000


def test_the_backoff_doubles(broker: MemoryBroker, retries: Retries) -> None:
    """Each retry waits twice as long as the one before, up to ``max_backoff``."""
    retries.random.uniform = lambda low, _high: low  # type: ignore[method-assign]  # a jitter of 1
    work_options: dict[str, Any] = {"max_retries": None}
    delays = []
    for number in range(8):
        broker.actors.clear()
        delays.append(failed(broker, RuntimeError(), options={"retries": number}, **work_options).retry_delay_ms)
    assert delays == [1000, 2000, 4000, 8000, 16_000, 32_000, 64_000, 50_000]


def test_a_retry_counts_and_tells(broker: MemoryBroker) -> None:
    """The options say how often it was retried, when it failed, and with which traceback."""
    run = failed(broker, RuntimeError("the reason"), options={"retries": 4})
    assert run.options["retries"] == 5
    assert run.options["requeue_timestamp"] == broker.clock.now_ms()
    assert "RuntimeError: the reason" in run.options["traceback"]


@pytest.mark.parametrize(
    ("options", "actor_options", "fails"),
    [
        ({"retries": 20}, {}, True),
        ({"retries": 19}, {}, False),
        ({"retries": 3}, {"max_retries": 3}, True),
        ({"retries": 3, "max_retries": 4}, {"max_retries": 3}, False),
        ({}, {"max_retries": 0}, True),
        ({"retries": 10**6}, {"max_retries": None}, False),
        ({"max_retries": None, "retries": 50}, {"max_retries": 3}, False),
    ],
)
def test_when_it_is_given_up(
    broker: MemoryBroker, options: dict[str, Any], actor_options: dict[str, Any], fails: bool
) -> None:
    """``max_retries`` of the message, else of the actor, else 20; None means for ever."""
    run = failed(broker, RuntimeError(), options=options, **actor_options)
    assert run.failed is fails
    assert (run.retry_delay_ms is None) is fails


def test_what_throws_names_is_final(broker: MemoryBroker) -> None:
    """Subclasses count; what is not named is retried."""
    assert failed(broker, KeyError(), throws=LookupError).failed
    broker.actors.clear()
    assert failed(broker, KeyError(), throws=(ValueError, KeyError)).failed
    broker.actors.clear()
    assert not failed(broker, TypeError(), throws=(ValueError, KeyError)).failed


def test_a_success_plans_nothing(broker: MemoryBroker) -> None:
    """Without an exception the message is left as it is."""
    work = actor(lambda: None, broker=broker, actor_name="work")
    run = Run(work.message(), None, work)
    broker.middleware[0].after_process_message(broker, run, result=1)
    assert (run.failed, run.retry_delay_ms, run.options) == (False, None, {})
