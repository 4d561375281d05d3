"""A pump and an engine that fails: trips are made again as they were, and no message is lost or run for nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from greenroom import Worker, actor
from greenroom.core.verdict import Verdict
from greenroom.engines.memory.transport import MemoryTransport
from greenroom.engines.sqlite.transport import SqliteTransport
from greenroom.errors import BrokerBusy, BrokerError, BrokerFull, ConnectionClosed
from greenroom.middleware import Retries
from greenroom.ports.admin import Counts
from greenroom.ports.transport import Settlement
from greenroom.runtime import pump as pump_module
from tests.runtime.cli_kit import wait_until
from tests.runtime.worker_kit import ENGINES, EngineTestBroker, Gate, Troubled, collector, make_broker, working


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Shortens the waits between two tries; which try each was for."""
    failures: list[int] = []

    def wait_s(failure: int) -> float:
        failures.append(failure)
        return 0.001

    monkeypatch.setattr(pump_module, "full_jitter_s", wait_s)
    return failures


@pytest.fixture(params=ENGINES)
def trouble(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Troubled]:
    transport = Troubled(make_broker(request.param, tmp_path).transport)
    yield transport
    transport.close()


class FailTimes:
    """Raises for the first ``count`` trips that ``applies`` to."""

    def __init__(self, count: int, error: BrokerError, *, settling: bool) -> None:
        self.left = count
        self._error = error
        self._settling = settling

    def __call__(self, settle: Sequence[Settlement], limit: int) -> None:
        if self.left and (settle or not self._settling):
            self.left -= 1
            raise self._error


@pytest.mark.parametrize("settling", [True, False])
@pytest.mark.parametrize("error", [BrokerBusy("busy"), ConnectionClosed("lost"), BrokerError("strange")])
def test_a_failing_trip_is_repeated(
    trouble: Troubled, caplog: pytest.LogCaptureFixture, short_waits: list[int], error: BrokerError, settling: bool
) -> None:
    """Whatever the error, the trip is made again, after ever longer waits, until it succeeds: every message runs once
    and is settled once."""
    trouble.before = FailTimes(5, error, settling=settling)
    broker = EngineTestBroker(trouble)
    collect, notes = collector(broker)
    collect.send_many((n,) for n in range(100))
    with caplog.at_level("INFO"), working(broker):
        broker.wait_until_empty()
    assert notes == list(range(100))
    assert short_waits == [0, 1, 2, 3, 4]
    assert caplog.text.count("A trip to the broker failed") == 5
    assert caplog.text.count("The broker answers again.") == 1


def test_a_trip_is_repeated_as_it_was(trouble: Troubled) -> None:
    """The repeated trip carries the same settlements: the engine can tell it from a new one."""
    trouble.before = FailTimes(3, BrokerBusy("busy"), settling=True)
    broker = EngineTestBroker(trouble)
    collect, _ = collector(broker)
    collect.send(1)
    with working(broker):
        broker.wait_until_empty()
    settling = [settle for settle, _, _ in trouble.trips if settle]
    assert len(settling) == 4
    assert all(one[0] is settling[0][0] for one in settling)


def test_waiting_may_fail_too(trouble: Troubled, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error while the pump waits for messages is survived like one of a trip."""
    broker = EngineTestBroker(trouble)
    collect, notes = collector(broker)
    failures = [BrokerBusy("busy"), ConnectionClosed("lost")]
    with working(broker) as worker:
        assert worker._pump is not None
        wait = worker._pump.consumer.wait

        def fail_first(timeout_s: float) -> None:
            if failures:
                raise failures.pop()
            wait(timeout_s)

        worker._pump.consumer.wait = fail_first
        wait_until(lambda: not failures, "both waits have failed")
        collect.send(1)
        broker.wait_until_empty()
    assert notes == [1]


def test_a_full_store(trouble: Troubled) -> None:
    """Without room the next trip settles and claims nothing: settling makes room, and never depends on claiming."""
    broker = EngineTestBroker(trouble)
    collect, notes = collector(broker)
    collect.send_many((n,) for n in range(50))
    full = []

    def no_room_for_claims(settle: Sequence[Settlement], limit: int) -> None:
        if settle and limit and len(full) < 3:
            full.append(len(settle))
            raise BrokerFull("no room")

    trouble.before = no_room_for_claims
    with working(broker):
        broker.wait_until_empty()
    assert notes == list(range(50))
    after_full = [
        (settle, limit)
        for (before, limit_before, failed), (settle, limit, _) in zip(trouble.trips, trouble.trips[1:], strict=False)
        if failed is None and before and limit_before
    ]
    assert full
    assert all(settle and limit == 0 for settle, limit in after_full)


def test_stopping_while_the_engine_fails(trouble: Troubled, caplog: pytest.LogCaptureFixture) -> None:
    """A worker whose engine does not answer any more can be stopped: at its deadline it gives up settling."""
    broker = EngineTestBroker(trouble)
    collect, notes = collector(broker)
    collect.send(1)
    trouble.before = FailTimes(1_000_000, ConnectionClosed("gone"), settling=True)
    with working(broker, timeout_ms=200):
        wait_until(lambda: notes == [1], "the message has run")
    trouble.before = lambda _settle, _limit: None
    broker.close()
    assert broker.counts().ready == (1 if isinstance(trouble.inner, (SqliteTransport, MemoryTransport)) else 0)


def test_a_settlement_that_can_never_be_applied(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A retry that the engine cannot keep, here because the traceback makes it too large, is refused alone: its message
    is dead-lettered with the reason, and the others are settled."""
    broker = EngineTestBroker(SqliteTransport(tmp_path / "queue.db", max_body=600), [Retries(min_backoff=0)])
    collect, notes = collector(broker)

    @actor(broker=broker)
    def fail() -> None:
        raise RuntimeError("x" * 600)

    collect.send(1)
    fail.send()
    collect.send(2)
    with working(broker):
        broker.wait_until_empty()
        collect.send(3)
        broker.wait_until_empty()
    assert notes == [1, 2, 3]
    (letter,) = broker.dead()
    assert letter.error.type == "MessageTooLarge"
    assert "RETRY" in caplog.text
    broker.close()


def test_a_message_that_was_given_to_somebody_else(caplog: pytest.LogCaptureFixture) -> None:
    """If the engine took this worker for dead, what it settles is lost: that is logged, nothing is applied twice, and
    the worker goes on with what comes."""
    broker = EngineTestBroker(MemoryTransport())
    gate = Gate()
    block = actor(gate, broker=broker, actor_name="block")
    collect, notes = collector(broker)
    block.send("x")
    with working(broker, threads=1) as worker:
        gate.wait_for("x")
        consumer: Any = worker._pump.consumer if worker._pump else None
        consumer.abandon()
        assert broker.counts() == Counts(ready=1)
        gate.open()
        broker.wait_until_empty()
        collect.send(1)
        broker.wait_until_empty()
    assert gate.left == ["x", "x"]
    assert notes == [1]
    assert "is no longer ours: its ACK was not applied." in caplog.text


def test_verdicts_of_one_trip(trouble: Troubled) -> None:
    """What finishes while a trip is under way is settled in the next one, whatever became of it."""
    broker = EngineTestBroker(trouble, [Retries(max_retries=1, min_backoff=0, max_backoff=0)])
    done = []

    @actor(broker=broker)
    def work(number: int) -> None:
        done.append(number)
        if number % 10 == 0:
            raise RuntimeError

    work.send_many((n,) for n in range(1000))
    with working(broker, threads=4):
        broker.wait_until_empty()
    verdicts = [s.verdict for settle, _, _ in trouble.trips for s in settle]
    assert (verdicts.count(Verdict.ACK), verdicts.count(Verdict.RETRY), verdicts.count(Verdict.DEAD)) == (900, 100, 100)
    assert len(done) == 1100
    assert len(broker.transport.dead("default", limit=1000)) == 100


def test_a_pump_that_fails_says_so_and_gives_back(trouble: Troubled, caplog: pytest.LogCaptureFixture) -> None:
    """An error that no engine should raise ends the pump: the worker says that it is of no use any more, and what it
    had claimed is there for others."""

    def fail(settle: Sequence[Settlement], limit: int) -> None:
        if settle:
            raise ZeroDivisionError("a bug")

    trouble.before = fail
    broker = EngineTestBroker(trouble)
    collect, notes = collector(broker)
    collect.send_many((n,) for n in range(3))
    ended = threading.Event()
    worker = Worker(broker, worker_threads=1)
    worker.on_stuck = ended.set
    worker.start()
    try:
        assert ended.wait(10.0)
        assert worker.is_stuck
        assert "The pump has failed" in caplog.text
        wait_until(lambda: trouble.counts(["default"])["default"] == Counts(ready=3), "all three are given back")
        assert notes
    finally:
        worker.stop(timeout=1_000)
