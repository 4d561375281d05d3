"""What happens to a message: retries, delays, priorities, failures."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

import greenroom as dramatiq
from greenroom.brokers.stub import StubBroker
from greenroom.middleware import Retries
from greenroom.testing.clock import ManualClock

MakeWorker = Callable[..., dramatiq.Worker]


class Failing:
    """An actor that fails the first ``failures`` times."""

    def __init__(self, failures: int, error: BaseException | None = None, **options: Any) -> None:
        self.attempts = 0
        self.failures = failures
        self.error = error or ValueError("not yet")
        self.actor = dramatiq.actor(self.run, actor_name="failing", **options)

    def run(self) -> None:
        self.attempts += 1
        if self.attempts <= self.failures:
            raise self.error


NO_BACKOFF = {"min_backoff": 0, "max_backoff": 0}


def test_a_failure_is_tried_again(broker: StubBroker, worker: dramatiq.Worker) -> None:
    """Until it succeeds."""
    failing = Failing(3, **NO_BACKOFF)
    failing.actor.send()
    broker.join("default", timeout=10_000)
    assert failing.attempts == 4
    assert broker.dead_letters == []


@pytest.mark.parametrize("max_retries", [0, 1, 3])
def test_retries_are_counted_after_the_first_attempt(
    broker: StubBroker, worker: dramatiq.Worker, max_retries: int
) -> None:
    """``max_retries=n`` is n + 1 attempts; 0 never retries."""
    failing = Failing(100, max_retries=max_retries, **NO_BACKOFF)
    failing.actor.send()
    broker.join("default", timeout=10_000, fail_fast=False)
    assert failing.attempts == max_retries + 1
    assert len(broker.dead_letters) == 1


def test_none_means_for_ever(broker: StubBroker, worker: dramatiq.Worker) -> None:
    """``max_retries=None`` goes on beyond the default of twenty."""
    failing = Failing(30, max_retries=None, **NO_BACKOFF)
    failing.actor.send()
    broker.join("default", timeout=20_000)
    assert failing.attempts == 31


def test_retry_when_decides_instead(broker: StubBroker, worker: dramatiq.Worker) -> None:
    """It is asked with the retries so far and the exception, and overrides ``max_retries``."""
    asked: list[tuple[int, str]] = []

    def retry_when(retries: int, exception: BaseException) -> bool:
        asked.append((retries, type(exception).__name__))
        return retries < 2

    failing = Failing(100, max_retries=0, retry_when=retry_when, **NO_BACKOFF)
    failing.actor.send()
    broker.join("default", timeout=10_000, fail_fast=False)
    assert asked == [(0, "ValueError"), (1, "ValueError"), (2, "ValueError")]
    assert failing.attempts == 3


def test_a_retry_keeps_its_identity_and_tells_of_the_failure() -> None:
    """Message id and timestamp stay; ``retries``, ``traceback`` and ``requeue_timestamp`` are added."""
    clock = ManualClock()
    broker = StubBroker(clock=clock)
    failing = Failing(100, broker=broker)
    sent = failing.actor.send()
    worker = dramatiq.Worker(broker, worker_timeout=10)
    worker.start()
    try:
        with pytest.raises(dramatiq.QueueJoinTimeout):
            broker.join("default", timeout=10_000, fail_fast=False)
        retry = dramatiq.Message.decode(broker.queues["default.DQ"].get())
    finally:
        worker.stop()
    assert (retry.message_id, retry.message_timestamp) == (sent.message_id, sent.message_timestamp)
    assert retry.options["retries"] == 1
    assert retry.options["requeue_timestamp"] == clock.now_ms()
    assert "ValueError: not yet" in retry.options["traceback"]
    assert 15_000 <= retry.options["eta"] - clock.now_ms() <= 30_000


@pytest.mark.parametrize(
    ("retries", "low", "high"),
    [(0, 15_000, 30_000), (1, 30_000, 60_000), (5, 480_000, 960_000), (16, 302_400_000, 604_800_000)],
)
def test_the_formula_of_the_backoff(retries: int, low: int, high: int) -> None:
    """``min_backoff * 2**n * U(1, 2)``; beyond ``max_backoff`` a half of that to the whole."""
    middleware = Retries()
    delays = [middleware._delay_ms(ValueError(), retries, {}, {}) for _ in range(200)]
    assert low <= min(delays) <= max(delays) <= high
    assert len(set(delays)) > 100


def test_retry_names_its_delay() -> None:
    """``Retry(delay=...)`` is taken as it is, without a bound."""
    thirty_days_ms = 30 * 24 * 3600 * 1000
    assert Retries()._delay_ms(dramatiq.Retry(delay=thirty_days_ms), 0, {}, {}) == thirty_days_ms


def test_seven_days_are_the_ceiling() -> None:
    """No ``max_backoff`` goes beyond."""
    seven_days_ms = 7 * 24 * 3600 * 1000
    middleware = Retries(max_backoff=10 * seven_days_ms)
    assert max(middleware._delay_ms(ValueError(), 30, {}, {}) for _ in range(50)) <= seven_days_ms


def test_a_message_is_stronger_than_its_actor_and_that_than_the_middleware(make_worker: MakeWorker) -> None:
    """``max_retries`` is looked for in this order."""
    broker = StubBroker(middleware=[Retries(max_retries=3, min_backoff=0, max_backoff=0)])
    failing = Failing(100, broker=broker)
    make_worker(broker)
    for options, attempts in (({}, 4), ({"max_retries": 1}, 2)):
        failing.attempts = 0
        failing.actor.send_with_options(**options)
        broker.join("default", timeout=10_000, fail_fast=False)
        assert failing.attempts == attempts


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), GeneratorExit()])
def test_whatever_is_raised_fails_the_message_only(
    broker: StubBroker, worker: dramatiq.Worker, error: BaseException
) -> None:
    """Any ``BaseException`` is a failure; the thread lives on."""
    failing = Failing(1, error, **NO_BACKOFF)
    failing.actor.send()
    broker.join("default", timeout=10_000)
    assert failing.attempts == 2


def test_low_priorities_run_first_and_equals_in_order(broker: StubBroker, make_worker: MakeWorker) -> None:
    """Lower is sooner; among equals first in, first out."""
    order: list[str] = []
    low = dramatiq.actor(order.append, actor_name="low", priority=10)
    high = dramatiq.actor(order.append, actor_name="high", priority=0)
    for i in range(3):
        low.send(f"low {i}")
        high.send(f"high {i}")
    make_worker(broker, worker_threads=1)
    broker.join("default", timeout=10_000)
    assert order == ["high 0", "high 1", "high 2", "low 0", "low 1", "low 2"]


def test_an_unknown_actor_is_a_dead_letter_in_tests(broker: StubBroker, worker: dramatiq.Worker) -> None:
    """With ``StubBroker`` at once, and ``join`` raises ``ActorNotFound``."""
    broker.declare_queue("default")
    broker.enqueue(dramatiq.Message("default", "unknown", (), {}, {}))
    with pytest.raises(dramatiq.ActorNotFound):
        broker.join("default", timeout=10_000)


def test_queues_that_are_not_served_wait(broker: StubBroker, make_worker: MakeWorker) -> None:
    """A worker with ``queues=`` leaves the others alone."""
    done: list[str] = []
    mine = dramatiq.actor(done.append, actor_name="mine", queue_name="mine")
    other = dramatiq.actor(done.append, actor_name="other", queue_name="other")
    make_worker(broker, queues=["mine"])
    mine.send("mine")
    other.send("other")
    broker.join("mine", timeout=10_000)
    assert done == ["mine"]
    assert broker.queues["other"].qsize() == 1


def test_messages_run_side_by_side(broker: StubBroker, make_worker: MakeWorker) -> None:
    """As many as there are threads."""
    barrier = threading.Barrier(4, timeout=10)
    meet = dramatiq.actor(lambda: barrier.wait() and None, actor_name="meet", max_retries=0)
    for _ in range(4):
        meet.send()
    make_worker(broker, worker_threads=4)
    broker.join("default", timeout=10_000)
