"""A pump and an engine that fails: trips are made again as they were, and no message is lost or run for nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from greenroom import Message, Middleware, Worker, actor
from greenroom.core.prefetch import MAX_CLAIM
from greenroom.core.verdict import Verdict
from greenroom.engines.memory.transport import MemoryTransport
from greenroom.engines.sqlite.transport import SqliteTransport
from greenroom.errors import (
    BrokerBusy,
    BrokerCorrupt,
    BrokerError,
    BrokerFull,
    BrokerReadOnly,
    ConnectionClosed,
    SchemaMismatch,
    StaleLease,
)
from greenroom.middleware import Retries
from greenroom.ports.admin import Counts
from greenroom.ports.transport import Settlement
from greenroom.runtime import trips
from tests.runtime.async_kit import AsyncGate
from tests.runtime.cli_kit import wait_until
from tests.runtime.worker_kit import (
    ENGINES,
    EngineTestBroker,
    Gate,
    Troubled,
    collector,
    make_broker,
    wait_for_orders,
    working,
)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Shortens the waits between two tries; which try each was for."""
    failures: list[int] = []

    def wait_s(failure: int) -> float:
        failures.append(failure)
        return 0.001

    monkeypatch.setattr(trips, "full_jitter_s", wait_s)
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
@pytest.mark.parametrize(
    "error", [BrokerBusy("busy"), BrokerReadOnly("mounted"), ConnectionClosed("lost"), BrokerError("strange")]
)
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


class Told(Middleware):
    """Notes what it is told of settlements."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, Any]] = []

    def before_ack(self, broker: Any, message: Any) -> None:
        self.notes.append(("before_ack", message.args[0]))

    def after_ack(self, broker: Any, message: Any) -> None:
        self.notes.append(("after_ack", message.args[0]))

    def after_stale_lease(self, broker: Any, message: Any, error: StaleLease) -> None:
        assert isinstance(error, StaleLease)
        self.notes.append(("after_stale_lease", message.args[0]))


def test_a_message_that_was_given_to_somebody_else(caplog: pytest.LogCaptureFixture) -> None:
    """If the engine took this worker for dead, what it settles is lost: that is logged, counted and told to
    ``after_stale_lease``, not to ``after_ack``; nothing is applied twice, and the worker goes on with what comes."""
    broker = EngineTestBroker(MemoryTransport(), [told := Told()])
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
        worker.join()
    assert gate.left == ["x", "x"]
    assert notes == [1]
    assert "is no longer ours: its ACK was not applied." in caplog.text
    assert (worker.stale_leases, worker.finished) == (1, 2)
    assert told.notes.count(("before_ack", "x")) == 2
    assert told.notes.count(("after_stale_lease", "x")) == told.notes.count(("after_ack", "x")) == 1
    assert told.notes.index(("after_stale_lease", "x")) < told.notes.index(("after_ack", "x"))


@pytest.mark.parametrize("capped", [False, True])
def test_what_has_not_started_is_let_go(monkeypatch: pytest.MonkeyPatch, capped: bool) -> None:
    """A worker that learns that it was taken for dead does not start what it still holds: others have it."""
    if capped:
        monkeypatch.setenv("greenroom_queue_prefetch", "20")
    broker = EngineTestBroker(MemoryTransport())
    first, then = Gate(), Gate()
    block = actor(first, broker=broker, actor_name="block")
    work = actor(then, broker=broker, actor_name="work")
    collect, notes = collector(broker)
    collect.send_many((n,) for n in range(300))
    with working(broker) as slow:
        broker.wait_until_empty()  # its tasks are short: it claims ahead
        slow.join()
        block.send("b")
        first.wait_for("b")
        work.send_many((n,) for n in range(10))
        wait_until(lambda: broker.counts() == Counts(claimed=11), "it has claimed ahead")
        consumer: Any = slow._pump.consumer if slow._pump else None
        slow.pause()
        wait_for_orders(slow)
        consumer.abandon()
        first.open()
        wait_until(lambda: slow.stale_leases == 1, "it has learnt that it was taken for dead")
        slow.resume()
        then.wait_for(0)
        then.open()
        broker.wait_until_empty()
        collect.send(300)
        broker.wait_until_empty()
    assert sorted(then.left) in ([*range(10)], [0, *range(10)])
    assert notes == list(range(301))
    assert slow.stale_leases <= 2


def test_many_at_once_do_not_flood_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Each is counted and told; no more than ten a second have a line of their own."""
    broker = EngineTestBroker(MemoryTransport(), [told := Told()])
    gate = AsyncGate()
    block = actor(gate.__call__, broker=broker, actor_name="block")
    block.send_many((n,) for n in range(100))
    with working(broker, concurrency=100) as worker:
        gate.wait_for(*range(100))
        consumer: Any = worker._pump.consumer if worker._pump else None
        worker.pause()
        consumer.abandon()
        gate.open()
        wait_until(lambda: worker.stale_leases == 100, "all are counted")
    assert sorted(told.notes) == [(hook, n) for hook in ("after_stale_lease", "before_ack") for n in range(100)]
    assert 10 <= caplog.text.count("is no longer ours") <= 20
    assert worker.finished == 0


def test_a_failing_retry_loses_nothing(trouble: Troubled) -> None:
    """The retry and the end of the message that failed are one settlement: while the engine takes none the message is
    there, and in the end it has been replaced once."""
    broker = EngineTestBroker(trouble, [Retries(max_retries=1, min_backoff=0, max_backoff=0)])
    runs: list[int] = []

    @actor(broker=broker)
    def fail(number: int) -> None:
        runs.append(number)
        raise RuntimeError("reason")

    seen: list[Counts] = []

    def refuse(settle: Sequence[Settlement], _limit: int) -> None:
        if len(seen) < 10 and any(s.verdict is Verdict.RETRY for s in settle):
            seen.append(broker.counts())
            raise BrokerBusy("busy")

    trouble.before = refuse
    fail.send_many((n,) for n in range(20))
    with working(broker, threads=4):
        broker.wait_until_empty()
    assert len(seen) == 10
    assert {counts.ready + counts.claimed for counts in seen} == {20}
    assert {counts.delayed for counts in seen} == {0}
    assert sorted(runs) == sorted([*range(20), *range(20)])
    letters = [Message.decode(letter.body) for letter in broker.dead()]
    assert sorted((letter.args[0], letter.options["retries"]) for letter in letters) == [(n, 1) for n in range(20)]


# --- errors that no waiting mends


@pytest.mark.parametrize("where", ["claiming", "settling", "waiting"])
@pytest.mark.parametrize(
    "error", [BrokerCorrupt("damaged", path="q.db"), SchemaMismatch("too new", found=9, supported=1)]
)
def test_a_permanent_error_ends_the_worker(
    trouble: Troubled, caplog: pytest.LogCaptureFixture, short_waits: list[int], error: BrokerError, where: str
) -> None:
    """A worker whose file is damaged, or of another version, claims nothing more and says so at once and once; what it
    had not started never starts, what runs finishes, and ``join`` raises the reason instead of waiting for ever.
    Nothing is lost: what was not settled is there for others when the process has ended."""
    broker = EngineTestBroker(trouble)
    gate, told = Gate(), []
    block = actor(gate, broker=broker, actor_name="block")
    collect, notes = collector(broker)
    worker = Worker(broker, worker_threads=2, worker_timeout=10)
    worker.on_stuck = lambda: told.append(worker.fatal_error)
    worker.start()
    try:
        collect.send_many((n,) for n in range(300))
        broker.wait_until_empty()  # its tasks are short: it claims ahead
        worker.join()
        block.send_many((n,) for n in range(2))
        gate.wait_for(0, 1)
        if where != "waiting":
            collect.send_many((n,) for n in range(300, 305))
            wait_until(lambda: broker.counts() == Counts(claimed=7), "it has claimed ahead")
        break_down(trouble, worker, error, where)
        if where == "settling":
            gate.open()
        else:
            collect.send(400)
        wait_until(lambda: told, "it says so")
        with pytest.raises(type(error)) as raised:
            worker.join()
        assert raised.value is worker.fatal_error is error
        assert worker.is_stuck
        gate.open()
        wait_until(lambda: sorted(gate.left) == [0, 1], "what runs finishes")
    finally:
        gate.open()
        worker.stop(timeout=10_000)
        trouble.before = lambda _settle, _limit: None
    assert told == [error]
    assert set(notes) <= {*range(300), *(range(300, 305) if where == "settling" else ())}
    assert short_waits == []
    assert caplog.text.count("Nothing is claimed or settled any more") == 1
    broker.close()
    assert broker.counts() == Counts(ready={"claiming": 8, "settling": 7, "waiting": 3}[where])


def break_down(trouble: Troubled, worker: Worker, error: BrokerError, where: str) -> None:
    """From now on the engine raises: in trips that claim or settle, or in waits."""

    def fail_trip(settle: Sequence[Settlement], limit: int) -> None:
        if settle or limit:
            raise error

    def fail_wait(_timeout_s: float) -> None:
        raise error

    assert worker._pump is not None
    if where == "waiting":
        worker._pump.consumer.wait = fail_wait  # type: ignore[method-assign]  # the trouble
    trouble.before = fail_trip


def test_a_permanent_error_while_stopping(trouble: Troubled) -> None:
    """Also what goes wrong in the last trips of a stop is told; stopping ends."""
    broker = EngineTestBroker(trouble)
    gate = Gate()
    block = actor(gate, broker=broker, actor_name="block")
    block.send(1)
    error = BrokerCorrupt("damaged")
    with working(broker) as worker:
        gate.wait_for(1)

        def fail(_settle: Sequence[Settlement], _limit: int) -> None:
            raise error

        trouble.before = fail
        gate.open()
        worker.stop(10_000)
    assert worker.fatal_error is error


def test_starting_again_after_a_permanent_error(trouble: Troubled) -> None:
    """A worker that was stopped can be started again, and begins with a clean slate."""
    broker = EngineTestBroker(trouble)
    collect, notes = collector(broker)

    def fail(_settle: Sequence[Settlement], _limit: int) -> None:
        raise BrokerCorrupt("damaged")

    trouble.before = fail
    worker = Worker(broker, worker_threads=1, worker_timeout=10)
    worker.start()
    wait_until(lambda: worker.fatal_error, "it has failed")
    worker.stop()
    trouble.before = lambda _settle, _limit: None
    collect.send(1)
    worker.start()
    try:
        broker.wait_until_empty()
        worker.join()
        assert (notes, worker.fatal_error, worker.is_stuck) == ([1], None, False)
    finally:
        worker.stop()


# --- looking for the dead


def test_reaping_soon(trouble: Troubled) -> None:
    """A worker that is told that another process has died makes a trip at once, even if it is busy, or waits for
    messages; one that does not run does nothing."""
    broker = EngineTestBroker(trouble)
    gate, reaped = Gate(), []
    block = actor(gate, broker=broker, actor_name="block")
    worker = Worker(broker, worker_threads=1, worker_timeout=30_000)
    worker.reap_soon()
    worker.start()
    try:
        assert worker._pump is not None
        pump = worker._pump
        plain = pump.consumer.reap_soon
        pump.consumer.reap_soon = lambda: reaped.append(plain())  # type: ignore[method-assign,func-returns-value]  # to count
        for is_busy in (False, True):
            if is_busy:
                block.send(1)
                gate.wait_for(1)
                wait_until(lambda: not pump._waits_in_engine, "the pump waits for the thread")
            else:
                wait_until(lambda: pump._waits_in_engine, "the pump waits for messages")
            before, trips = len(reaped), len(trouble.trips)
            worker.reap_soon()
            wait_until(lambda n=trips: len(trouble.trips) > n, "a trip is made", patience_s=10)
            assert len(reaped) == before + 1
    finally:
        gate.open()
        worker.stop()


def test_how_many_have_finished(trouble: Troubled) -> None:
    """``finished`` counts what was settled since the start: successes, dead letters and retries, nothing that was given
    back."""
    broker = EngineTestBroker(trouble, [Retries(max_retries=1, min_backoff=0, max_backoff=0)])

    @actor(broker=broker)
    def work(number: int) -> None:
        if number < 10:
            raise RuntimeError

    worker = Worker(broker, worker_threads=2, worker_timeout=10)
    assert worker.finished == 0
    work.send_many((n,) for n in range(100))
    with working(broker, 2) as worker:
        wait_until(lambda: worker.finished == 110, "all are counted")
    assert worker.finished == 110


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


# --- what ends without having run


class Slow(Middleware):
    """Is asked about the end of messages, and thinks for as long as the test likes."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.answers = threading.Event()

    def ending(self, broker: Any, ending: Any) -> None:
        self.entered.set()
        assert self.answers.wait(20.0)


def send_unknown(broker: EngineTestBroker, count: int) -> None:
    broker.declare_queue("default")
    broker.enqueue_many(Message("default", "nobody", (), {}, {}) for _ in range(count))


def test_what_middleware_is_asked_about_has_a_bound(trouble: Troubled) -> None:
    """While middleware thinks about messages that end without having run, no more than a claim of them is taken out of
    the engine; and however many of its answers come at once, all are settled."""
    slow = Slow()
    broker = EngineTestBroker(trouble, [slow], unknown_actor_ttl_ms=0)
    send_unknown(broker, 2500)
    goes_on = threading.Event()
    with working(broker, threads=50) as worker:
        pump = worker._pump
        assert pump is not None
        wait_until(lambda: broker.counts().claimed >= MAX_CLAIM, "many wait for an answer")
        for _ in range(40):
            turn = threading.Event()
            pump.order(turn.set)
            assert turn.wait(10.0)
        held = broker.counts().claimed
        pump.order(lambda: goes_on.wait(20.0))
        slow.answers.set()
        wait_until(lambda: pump._orders.qsize() >= held, "all answers are there")
        goes_on.set()
        wait_until(lambda: broker.counts().dead == 2500 or worker.fatal_error, "all are dead letters")
        assert worker.fatal_error is None
    assert held < MAX_CLAIM + 50


def test_a_stop_waits_for_what_middleware_is_asked_about(trouble: Troubled) -> None:
    """A message that has ended without having run is settled before the worker ends: nobody is asked about it again."""
    slow = Slow()
    broker = EngineTestBroker(trouble, [slow], unknown_actor_ttl_ms=0)
    send_unknown(broker, 3)
    with working(broker) as worker:
        assert slow.entered.wait(10.0)
        wait_until(lambda: broker.counts().claimed == 3, "all three are claimed")
        assert worker._pump is not None
        stopper = threading.Thread(target=worker.stop)
        stopper.start()
        wait_until(lambda: worker._pump is None or worker._pump._stop_at_s is not None, "the worker stops")
        slow.answers.set()
        stopper.join(10.0)
    assert broker.counts() == Counts(dead=3)


def test_a_refused_settlement_leaves_its_queue_as_full_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``queue_prefetch`` counts a message whose settlement is refused once, also where middleware is asked about the
    dead letter that it becomes."""
    monkeypatch.setenv("greenroom_queue_prefetch", "3")
    slow = Slow()
    slow.answers.set()
    broker = EngineTestBroker(MemoryTransport(max_body=2000), [Retries(min_backoff=0, max_backoff=0), slow])

    @actor(broker=broker)
    def fail(text: str) -> None:
        raise ValueError(text)

    fail.send("x" * 1500)
    with working(broker) as worker:
        wait_until(lambda: broker.counts().dead == 1, "the retry was refused")
        assert worker._pump is not None
        cap = worker._pump._cap
        assert cap is not None
        wait_until(lambda: cap._held["default"] == 0, "nothing of the queue is held")


def test_a_closed_broker_does_not_hold_up_a_stop(trouble: Troubled) -> None:
    """Whoever closes the broker before the worker has a worker that cannot settle any more. It says so, and its stop
    does not wait for the grace to be over."""
    broker = EngineTestBroker(trouble)
    gate = Gate()
    actor(gate, broker=broker, actor_name="gate").send(1)
    worker = Worker(broker, worker_threads=1)
    worker.start()
    try:
        wait_until(lambda: gate.entered, "it runs")
        broker.close()
        gate.open()
        wait_until(lambda: worker.fatal_error is not None, "the worker knows")
    finally:
        gate.open()
        stopper = threading.Thread(target=worker.stop, daemon=True)
        stopper.start()
        stopper.join(15.0)
    assert not stopper.is_alive()
    assert isinstance(worker.fatal_error, ConnectionClosed)
