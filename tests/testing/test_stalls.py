"""No silent hang: whoever waits in vain is told at once, and why."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import greenroom
from greenroom import Worker
from greenroom.brokers.stub import StubBroker
from greenroom.errors import QueueJoinTimeout, QueueStalled
from greenroom.testing import ManualClock

DEADLINE_S = 10.0


@contextmanager
def raised_within(seconds: float) -> Iterator[None]:
    """The block takes less real time than that."""
    started_s = time.monotonic()
    yield
    assert time.monotonic() - started_s < seconds


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("fail_fast", [True, False])
def test_a_retry_that_comes_too_late(broker: StubBroker, fail_fast: bool) -> None:
    """The next attempt is due in 15 s, the timeout is 9 s: join does not wait, it says what it would wait for."""

    @greenroom.actor
    def fail(x: int) -> None:
        raise ValueError("boom")

    message = fail.send(7)
    with raised_within(8.0), pytest.raises(QueueStalled) as caught:
        broker.join("default", timeout=9_000, fail_fast=fail_fast)
    text = str(caught.value)
    assert "fail(7)" in text
    assert message.message_id in text
    assert "0 retries so far, retry 1 due in" in text
    assert "last failed with ValueError: boom" in text
    assert 'raise ValueError("boom")' in text  # the traceback
    assert "the timeout is over in" in text
    assert isinstance(caught.value.__cause__, ValueError)
    assert caught.value.message_ids == (message.message_id,)


@pytest.mark.usefixtures("worker")
def test_a_queue_that_is_paused(broker: StubBroker) -> None:
    """While a queue is paused its messages do not run: join says so at once, and waits for them after the pause."""

    @greenroom.actor
    def put(x: int) -> None: ...

    broker.pause_queue("default")
    put.send(1)
    with raised_within(8.0), pytest.raises(QueueStalled, match="the queue is paused"):
        broker.join("default")
    broker.resume_queue("default")
    broker.join("default", timeout=9_000)


@pytest.mark.usefixtures("worker")
def test_a_delay_that_is_too_long(broker: StubBroker) -> None:
    """A message that was delayed beyond the timeout is named, and nothing is said of failures."""

    @greenroom.actor
    def put(x: int) -> None: ...

    put.send_with_options(args=(1,), delay=3_600_000)
    expected = r"put\(1\) .*: 0 retries so far, first attempt due in (1 h|59 min)"
    with pytest.raises(QueueStalled, match=expected) as caught:
        broker.join("default", timeout=1_000)
    assert "last" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("timeout", [None, 600_000])
def test_nobody_works(broker: StubBroker, timeout: int | None) -> None:
    """Without a worker join raises at once, with or without a timeout."""

    @greenroom.actor
    def put(x: int) -> None: ...

    for number in range(7):
        put.send(number)
    with raised_within(5.0), pytest.raises(QueueStalled, match="no worker consumes it") as caught:
        broker.join("default", timeout=timeout)
    assert "put(0)" in str(caught.value)
    assert "put(4)" in str(caught.value)
    assert "and 2 more" in str(caught.value)
    assert len(caught.value.message_ids) == 7


def test_the_worker_serves_other_queues(broker: StubBroker) -> None:
    """A worker that does not serve the queue is no help, and the text says that one runs."""

    @greenroom.actor
    def put() -> None: ...

    worker = Worker(broker, queues=["other"], worker_timeout=100, worker_threads=1)
    worker.start()
    put.send()
    with raised_within(5.0), pytest.raises(QueueStalled, match="a worker runs, but does not consume it"):
        broker.join("default")
    worker.stop()


def test_a_paused_worker(worker: Worker, broker: StubBroker) -> None:
    """A paused worker consumes nothing: join says so instead of waiting; once it goes on, join waits again."""
    done = []

    @greenroom.actor
    def put() -> None:
        done.append(1)

    worker.pause()
    changed = broker.transport.changed
    with changed:
        assert changed.wait_for(lambda: all(c._paused for c in broker.transport._consumers), DEADLINE_S)
    put.send()
    with pytest.raises(QueueStalled, match="does not consume"):
        worker.join()
    worker.resume()
    broker.join("default", timeout=5_000)
    assert done == [1]


def test_with_a_manual_clock_nothing_is_waited_for(steered: StubBroker) -> None:
    """A due time in the future of a clock that stands still never comes: join raises at once, without a timeout."""

    @greenroom.actor
    def fail() -> None:
        raise ValueError("boom")

    fail.send()
    with raised_within(5.0), pytest.raises(QueueStalled, match="of a clock that stands still") as caught:
        steered.join("default")
    assert isinstance(caught.value.__cause__, ValueError)


def test_the_retries_so_far_are_counted(steered: StubBroker, clock: ManualClock) -> None:
    """After a tick over two due times the text says that two retries have been made."""

    @greenroom.actor(min_backoff=1_000, max_backoff=1_000)
    def fail() -> None:
        raise ValueError("boom")

    fail.send()
    assert clock.tick(0) == 1
    assert clock.tick("1s") == 1
    assert clock.tick("1s") >= 1
    with pytest.raises(QueueStalled, match=r"[23] retries so far, retry [34] due in"):
        steered.join("default")


@pytest.mark.usefixtures("worker")
def test_what_runs_is_waited_for(broker: StubBroker) -> None:
    """While an actor runs, join waits for it until the timeout, which names it."""
    started, go_on = threading.Event(), threading.Event()

    @greenroom.actor
    def slow(x: int) -> None:
        started.set()
        assert go_on.wait(DEADLINE_S)

    slow.send(1)
    assert started.wait(DEADLINE_S)
    with pytest.raises(QueueJoinTimeout, match=r"1 running. Running: slow\(1\)\.") as caught:
        broker.join("default", timeout=50)
    assert not isinstance(caught.value, QueueStalled)
    go_on.set()
    broker.join("default", timeout=5_000)


@pytest.mark.usefixtures("worker")
def test_another_queue_that_is_busy_may_still_help(broker: StubBroker) -> None:
    """While anything runs, a late message is no reason to give up: what runs may be what matters."""
    go_on, flushed = threading.Event(), []

    @greenroom.actor(queue_name="busy")
    def helper() -> None:
        assert go_on.wait(DEADLINE_S)
        broker.flush("default")
        flushed.append(1)

    @greenroom.actor
    def put() -> None: ...

    put.send_with_options(delay=3_600_000)
    helper.send()
    threading.Timer(0.05, go_on.set).start()
    broker.join("default", timeout=60_000)
    broker.join("busy", timeout=5_000)
    assert flushed == [1]


@pytest.mark.usefixtures("worker")
def test_joining_worker_does_not_raise_what_actors_raised(broker: StubBroker, worker: Worker) -> None:
    """``worker.join`` only waits, whatever has failed."""

    @greenroom.actor(max_retries=0)
    def fail() -> None:
        raise ValueError("boom")

    fail.send()
    worker.join()
    assert len(broker.dead_letters) == 1


def test_an_empty_queue_is_joined_at_once(broker: StubBroker) -> None:
    """Where there is nothing to wait for, no worker is needed."""
    broker.declare_queue("default")
    broker.join("default")
    broker.join("default.DQ", timeout=0)
