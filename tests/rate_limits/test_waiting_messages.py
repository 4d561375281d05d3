"""``limit_policy="wait"``: a message whose limit is reached goes back until there is room, and nothing is counted."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import greenroom
from greenroom.brokers.redis import RedisBroker
from greenroom.brokers.sqlite import SqliteBroker
from greenroom.brokers.stub import StubBroker
from greenroom.rate_limits import (
    BucketRateLimiter,
    ConcurrentRateLimiter,
    RateLimiterBackend,
    StoreBackend,
    WindowRateLimiter,
)
from greenroom.rate_limits.backends import SqliteBackend, StubBackend
from greenroom.testing.clock import ManualClock
from tests.rate_limits.kit import CountingBackend

PATIENCE_MS = 60_000


class Claims(greenroom.Middleware):
    """Counts how often each message was claimed and began to run."""

    def __init__(self) -> None:
        self.by_id: Counter[str] = Counter()

    def before_process_message(self, broker: Any, message: Any) -> None:
        self.by_id[message.message_id] += 1


@pytest.fixture(params=["stub", "sqlite", "redis"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    broker: Any
    if request.param == "redis":
        broker = RedisBroker(url=request.getfixturevalue("redis_url"))
    else:
        broker = StubBroker() if request.param == "stub" else SqliteBroker(tmp_path / "queue.db")
    yield broker
    broker.close()


def run_all(broker: Any, **options: int) -> None:
    worker = greenroom.Worker(broker, worker_timeout=100, **options)
    worker.start()
    try:
        broker.join("default", timeout=PATIENCE_MS)
    finally:
        worker.stop()


@pytest.mark.parametrize("is_async", [False, True])
def test_messages_stand_in_line_for_a_slot(broker: Any, is_async: bool) -> None:
    """Many messages that want one key: never more than the limit at a time, all run, and each was claimed at most once
    to be refused and once to run."""
    claims = Claims()
    broker.add_middleware(claims)
    limiter = ConcurrentRateLimiter(StoreBackend(broker.store), "key", limit=2)
    inside: list[int] = []
    most: list[int] = []

    def note() -> None:
        inside.append(1)
        most.append(len(inside))
        inside.pop()

    if is_async:

        @greenroom.actor(broker=broker, limit_policy="wait", max_retries=0)
        async def work() -> None:
            async with limiter.aacquire():
                note()
    else:

        @greenroom.actor(broker=broker, limit_policy="wait", max_retries=0)
        def work() -> None:
            with limiter.acquire():
                note()

    work.send_many([()] * 300)
    run_all(broker)
    assert len(most) == 300
    assert max(most) <= 2
    assert len(claims.by_id) == 300
    assert max(claims.by_id.values()) <= 2
    assert broker.get_queue_message_counts("default") == (0, 0, 0)


def test_ten_thousand_wait_for_one_key() -> None:
    """Waiting costs no trips: ten thousand behind one slot are each claimed once to be refused and once to run."""
    broker = StubBroker()
    claims = Claims()
    broker.add_middleware(claims)
    limiter = ConcurrentRateLimiter(StoreBackend(broker.store), "key")
    runs = []

    @greenroom.actor(broker=broker, limit_policy="wait", max_retries=0)
    def work() -> None:
        with limiter.acquire():
            runs.append(1)

    work.send_many([()] * 10_000)
    run_all(broker)
    assert len(runs) == 10_000
    assert sum(claims.by_id.values()) <= 20_000
    assert max(claims.by_id.values()) <= 2
    broker.close()


def test_a_slot_whose_holder_died_is_handed_on(tmp_path: Path) -> None:
    """Who waits is woken when the slot of a holder that died has ended, with nobody there to release it."""
    broker = SqliteBroker(tmp_path / "queue.db")
    limiter = ConcurrentRateLimiter(SqliteBackend(tmp_path / "queue.db"), "key", ttl=300)
    assert limiter._enter().granted  # and never given back
    done = threading.Event()

    @greenroom.actor(broker=broker, limit_policy="wait", max_retries=0)
    def work() -> None:
        with limiter.acquire():
            done.set()

    work.send()
    run_all(broker)
    assert done.is_set()
    limiter.backend.close()  # type: ignore[attr-defined]  # a StoreBackend
    broker.close()


@pytest.mark.parametrize("kind", [BucketRateLimiter, WindowRateLimiter])
def test_a_window_is_waited_for_exactly(kind: Any) -> None:
    """A message that came too early is due when the window has room for it, and its retries are not touched."""
    clock = ManualClock()
    broker = StubBroker(clock=clock)
    limiter = kind(StoreBackend(broker.store), "key", limit=1)
    started: list[int] = []
    options: list[dict[str, Any]] = []

    class Options(greenroom.Middleware):
        def before_process_message(self, broker: Any, message: Any) -> None:
            options.append(dict(message.options))

    broker.add_middleware(Options())

    @greenroom.actor(broker=broker, limit_policy="wait", max_retries=0)
    def work() -> None:
        with limiter.acquire():
            started.append(clock.now_ms())

    clock.advance_ms(1000 - clock.now_ms() % 1000)
    start_ms = clock.now_ms()
    for _ in range(3):
        work.send()
    worker = greenroom.Worker(broker, worker_timeout=100, worker_threads=1)
    worker.start()
    try:
        clock.tick(3000)
    finally:
        worker.stop()
    assert [at_ms - start_ms for at_ms in started] == [0, 1000, 2000]
    assert not any(o.get("retries") for o in options)
    assert broker.dead_letters == []
    broker.close()


@pytest.mark.parametrize("make_backend", [StubBackend, CountingBackend])
def test_where_the_limit_is_kept_elsewhere(make_backend: Any) -> None:
    """If nobody can wake the message it looks again after a while, and still no retry is counted."""
    clock = ManualClock()
    broker = StubBroker(clock=clock)
    backend: RateLimiterBackend = make_backend()
    limiter = ConcurrentRateLimiter(backend, "key")
    runs = []

    @greenroom.actor(broker=broker, limit_policy="wait", max_retries=0)
    def work() -> None:
        with limiter.acquire():
            runs.append(1)

    held = limiter._enter()
    work.send()
    worker = greenroom.Worker(broker, worker_timeout=100, worker_threads=1)
    worker.start()
    try:
        clock.tick(20_000)
        assert runs == []
        limiter._leave(held)
        clock.tick(10_000)
    finally:
        worker.stop()
    assert runs == [1]
    assert broker.dead_letters == []
    broker.close()


def test_without_the_policy_a_refusal_is_a_failure() -> None:
    """As in Dramatiq: it counts as a retry, and without retries the message is dead."""
    broker = StubBroker()
    limiter = ConcurrentRateLimiter(StubBackend(), "key")

    @greenroom.actor(broker=broker, max_retries=0)
    def work() -> None:
        with limiter.acquire():
            raise AssertionError("the limit is reached")

    with limiter.acquire():
        work.send()
        worker = greenroom.Worker(broker, worker_timeout=100, worker_threads=1)
        worker.start()
        broker.join("default", timeout=PATIENCE_MS, fail_fast=False)
        worker.stop()
    assert len(broker.dead_letters) == 1
    broker.close()


def test_a_policy_that_does_not_exist_is_refused() -> None:
    """A misspelt policy would count retries in silence."""
    with pytest.raises(ValueError, match="limit_policy"):
        greenroom.actor(broker=StubBroker(), limit_policy="sleep")(print)
