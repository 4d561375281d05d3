"""How a worker stops: what runs finishes, what has not started is given back, and nothing is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from greenroom import Worker, actor
from greenroom.ports.admin import Counts
from greenroom.ports.transport import Exchange
from tests.runtime.cli_kit import wait_until
from tests.runtime.worker_kit import ENGINES, EngineTestBroker, Gate, Troubled, collector, make_broker, working


@pytest.fixture(params=ENGINES)
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EngineTestBroker]:
    broker = make_broker(request.param, tmp_path)
    yield broker
    broker.close()


def stopping(worker: Worker, timeout_ms: int = 20_000) -> threading.Thread:
    """Stops a worker in a thread of its own."""
    thread = threading.Thread(target=worker.stop, args=(timeout_ms,))
    thread.start()
    return thread


def test_what_runs_finishes_and_the_rest_is_given_back(broker: EngineTestBroker) -> None:
    """Messages that were claimed and not started are there for others at once; the one that runs is waited for."""
    gate = Gate()
    collect, notes = collector(broker)
    block = actor(gate, broker=broker, actor_name="block")
    collect.send_many((n,) for n in range(300))
    with working(broker) as worker:
        broker.wait_until_empty()  # its tasks are short: it claims ahead
        notes.clear()
        block.send("running")
        gate.wait_for("running")
        collect.send_many((n,) for n in range(10))
        wait_until(lambda: broker.counts().claimed > 1, "the worker has claimed ahead")
        thread = stopping(worker)
        wait_until(lambda: broker.counts() == Counts(ready=10, claimed=1), "what has not started is given back")
        assert thread.is_alive(), "stopping waits for what runs"
        gate.open()
        thread.join(20)
        assert not thread.is_alive()
    assert (gate.left, notes) == (["running"], [])
    assert broker.counts() == Counts(ready=10)


def test_what_was_given_back_was_not_tried(broker: EngineTestBroker) -> None:
    """A message that was given back is neither a retry nor an error, and keeps its place."""
    gate = Gate()
    collect, notes = collector(broker)
    block = actor(gate, broker=broker, actor_name="block")
    collect.send_many((n,) for n in range(300))
    with working(broker) as worker:
        broker.wait_until_empty()
        block.send()
        gate.wait_for(None)
        notes.clear()
        collect.send_many((n,) for n in range(50))
        wait_until(lambda: broker.counts().claimed > 1, "the worker has claimed ahead")
        thread = stopping(worker)
        wait_until(lambda: broker.counts().claimed == 1, "what has not started is given back")
        gate.open()
        thread.join(20)
    collect.send(50)
    with working(broker):
        broker.wait_until_empty()
    assert notes == list(range(51))


def test_what_is_claimed_during_the_stop_is_given_back(tmp_path: Path) -> None:
    """A trip that is under way when the worker is told to stop may still bring messages: they are given back, too, and
    do not keep the worker from ending."""
    trouble = Troubled(make_broker("sqlite", tmp_path).transport)
    broker = EngineTestBroker(trouble)
    gate, arrived, told = Gate(), threading.Event(), threading.Event()
    collect, _ = collector(broker)
    block = actor(gate, broker=broker, actor_name="block")

    def linger(exchange: Exchange) -> None:
        if exchange.deliveries:
            arrived.set()
            told.wait(20)

    collect.send_many((n,) for n in range(300))
    with working(broker, threads=2) as worker:
        broker.wait_until_empty()  # its tasks are short: it claims ahead
        block.send_many([(0,), (1,)])
        gate.wait_for(0, 1)
        trouble.after = linger
        collect.send_many((n,) for n in range(10))
        arrived.wait(20)
        thread = stopping(worker)
        wait_until(lambda: worker._executor is not None and len(worker._executor.ready) == 2, "the threads are told")
        told.set()
        wait_until(lambda: broker.counts() == Counts(ready=10, claimed=2), "all that has not started is given back")
        gate.open()
        thread.join(20)
        assert not thread.is_alive()
    assert broker.counts() == Counts(ready=10)
    broker.close()


def test_the_wait_for_what_runs_has_an_end(broker: EngineTestBroker, caplog: pytest.LogCaptureFixture) -> None:
    """After the timeout stopping ends, too. What still runs stays claimed while its process lives, so that nobody else
    starts it meanwhile; it is given back when the broker is closed or the process ends."""
    gate = Gate()
    block = actor(gate, broker=broker, actor_name="block")
    collect, notes = collector(broker)
    block.send()
    with working(broker) as worker:
        gate.wait_for(None)
        collect.send(1)
        started = time.monotonic()
        worker.stop(timeout=100)
        assert 0.1 <= time.monotonic() - started < 10
    assert "still ran after 100 ms" in caplog.text
    assert broker.counts() == Counts(ready=1, claimed=1)
    with working(broker):
        wait_until(lambda: notes == [1], "another worker goes on")
    assert broker.counts() == Counts(claimed=1)
    broker.close()
    assert broker.counts() == Counts(ready=1)
    gate.open()


def test_stopping_an_idle_worker_is_quick(broker: EngineTestBroker) -> None:
    """A worker that waits for messages is woken to stop."""
    collector(broker)
    with working(broker, threads=8, worker_timeout=30_000) as worker:
        wait_until(lambda: worker._pump is not None and worker._pump._waits_in_engine, "the worker waits")
        started = time.monotonic()
        worker.stop()
        assert time.monotonic() - started < 10


def test_a_worker_may_be_started_again(broker: EngineTestBroker) -> None:
    """Start, stop, start: each time it serves the queue. Twice in a row is an error, stopping twice is none."""
    collect, notes = collector(broker)
    worker = Worker(broker, worker_threads=1, worker_timeout=10)
    assert not worker.is_running
    worker.stop()
    for number in range(3):
        worker.start()
        assert worker.is_running
        with pytest.raises(RuntimeError, match="runs already"):
            worker.start()
        collect.send(number)
        broker.wait_until_empty()
        worker.stop()
        worker.stop()
        assert not worker.is_running
    assert notes == [0, 1, 2]


def test_no_thread_is_left(broker: EngineTestBroker) -> None:
    """After ``stop`` none of the worker's threads lives."""
    collect, _ = collector(broker)
    before = set(threading.enumerate())
    with working(broker, threads=4):
        collect.send(1)
        broker.wait_until_empty()
        assert len(set(threading.enumerate()) - before) >= 5
    assert set(threading.enumerate()) - before == set()


def test_pausing_needs_a_running_worker(broker: EngineTestBroker) -> None:
    """What cannot be done to a worker that does not run says so."""
    worker = Worker(broker)
    for action in (worker.pause, worker.resume):
        with pytest.raises(RuntimeError, match="does not run"):
            action()


def test_bad_numbers_of_threads(broker: EngineTestBroker) -> None:
    """A worker needs a thread."""
    with pytest.raises(ValueError, match="at least 1"):
        Worker(broker, worker_threads=0)


def test_join_waits_for_what_runs(broker: EngineTestBroker) -> None:
    """``worker.join`` returns once its queues are empty and nothing of theirs runs."""
    gate = Gate()
    block = actor(gate, broker=broker, actor_name="block")
    block.send()
    with working(broker) as worker:
        gate.wait_for(None)
        thread = threading.Thread(target=worker.join)
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
        gate.open()
        thread.join(20)
        assert not thread.is_alive()
    assert gate.left == [None]
