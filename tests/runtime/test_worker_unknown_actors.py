"""Messages whose actor a worker does not know: how long they are tried, and from when on that counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from greenroom import Message, actor
from greenroom.core.verdict import Verdict
from greenroom.errors import BrokerBusy
from greenroom.middleware import Middleware, Retries
from greenroom.ports.admin import Counts
from greenroom.ports.transport import Delivery, Incident, Settlement
from greenroom.testing.clock import ManualClock
from tests.runtime.cli_kit import wait_until
from tests.runtime.worker_kit import ENGINES, EngineTestBroker, Troubled, make_broker, working

MakeBroker = Callable[..., EngineTestBroker]
MINUTE_MS = 60_000


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=ENGINES)
def make(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> Iterator[MakeBroker]:
    """Makes the test's broker, which tries unknown actors for ten minutes."""
    brokers = []

    def make(*middleware: Middleware) -> EngineTestBroker:
        inner = make_broker(request.param, tmp_path, clock=clock).transport
        policies = middleware or (Retries(min_backoff=0, max_backoff=0),)
        broker = EngineTestBroker(Troubled(inner), policies, clock=clock, unknown_actor_ttl_ms=10 * MINUTE_MS)
        broker.declare_queue("default")
        brokers.append(broker)
        return broker

    yield make
    for broker in brokers:
        broker.close()


def send_unknown(broker: EngineTestBroker, actor_name: str = "unknown") -> None:
    broker.enqueue(Message("default", actor_name, (1,), {}, {}))


def meetings(broker: EngineTestBroker) -> list[Settlement]:
    """How often the message was given back, and how."""
    return [s for settle, _, _ in broker.transport.trips for s in settle if s.verdict is Verdict.RELEASE]


def let_pass(broker: EngineTestBroker, clock: ManualClock, minutes: int) -> None:
    """Lets time pass a minute at a time, in each of which the message is tried again, until it is dead."""
    for _ in range(minutes):
        if broker.dead():
            return
        before = len(meetings(broker))
        clock.advance_ms(MINUTE_MS)
        wait_until(lambda n=before: len(meetings(broker)) > n or broker.dead(), "it is tried again")
        wait_until(lambda: broker.counts() in (Counts(delayed=1), Counts(dead=1)), "it is put aside again")


def test_the_history_says_when_it_was_first_met(make: MakeBroker, clock: ManualClock) -> None:
    """The first worker that meets it leaves that in the history, once; ten minutes later it is dead."""
    broker = make()
    send_unknown(broker)
    with working(broker):
        wait_until(lambda: broker.counts() == Counts(delayed=1), "it is put aside")
        let_pass(broker, clock, 9)
        assert broker.counts() == Counts(delayed=1)
        let_pass(broker, clock, 2)
    (letter,) = broker.dead()
    assert letter.error.type == "ActorNotFound"
    errors = [s.error for s in meetings(broker)]
    assert errors[0].type == "ActorNotFound"
    assert set(errors[1:]) == {None}


def test_workers_that_come_and_go_do_not_make_it_begin_anew(make: MakeBroker, clock: ManualClock) -> None:
    """The time counts from the first worker, whoever meets it later, and however many times it was only given back
    meanwhile."""
    broker = make()
    send_unknown(broker)
    for _ in range(9):
        with working(broker):
            wait_until(lambda: broker.counts() == Counts(delayed=1), "it is put aside")
        clock.advance_ms(MINUTE_MS)
    consumer = broker.transport.consumer("other")
    consumer.subscribe(["default"])
    for _ in range(20):  # claimed and given back, as by workers that stop
        (delivery,) = consumer.exchange((), 1).deliveries
        consumer.exchange([Settlement(delivery, Verdict.RELEASE)], 0)
    consumer.close()
    with working(broker):
        wait_until(lambda: broker.counts() == Counts(delayed=1), "it is put aside once more")
        let_pass(broker, clock, 2)
    assert [letter.error.type for letter in broker.dead()] == ["ActorNotFound"]


def test_claims_alone_do_not_age_it(make: MakeBroker, clock: ManualClock) -> None:
    """A message that was claimed and given back hundreds of times, because workers stopped, is as young as when it was
    first met."""
    broker = make()
    send_unknown(broker)
    consumer = broker.transport.consumer("other")
    consumer.subscribe(["default"])
    for _ in range(300):
        (delivery,) = consumer.exchange((), 1).deliveries
        consumer.exchange([Settlement(delivery, Verdict.RELEASE)], 0)
    consumer.close()
    with working(broker):
        wait_until(lambda: broker.counts() == Counts(delayed=1), "it is put aside")
    (met,) = meetings(broker)[-1:]
    assert met.due_ms == clock.now_ms() + 5_000


def test_after_it_has_run_it_begins_anew(make: MakeBroker, clock: ManualClock) -> None:
    """A message that waited for its actor, ran and failed, and whose actor is unknown again after a rollback, has ten
    minutes again."""
    broker, runs = make(Retries(min_backoff=MINUTE_MS, max_backoff=MINUTE_MS)), []
    send_unknown(broker)
    with working(broker):
        wait_until(lambda: broker.counts() == Counts(delayed=1), "it is put aside")

        @actor(broker=broker, actor_name="unknown")
        def fail(_number: int) -> None:
            runs.append(1)
            raise RuntimeError("reason")

        clock.advance_ms(60 * MINUTE_MS)
        wait_until(lambda: runs and broker.counts() == Counts(delayed=1), "its retry waits")
        del broker.actors["unknown"]
        clock.advance_ms(MINUTE_MS)
        wait_until(lambda: len(meetings(broker)) == 2, "its retry is put aside")
        wait_until(lambda: broker.counts() == Counts(delayed=1), "it is put aside")
    first, second = meetings(broker)
    assert first.error == second.error
    assert second.due_ms == clock.now_ms() + 5_000


def test_without_a_history_the_claims_count(make: MakeBroker, clock: ManualClock) -> None:
    """An engine that keeps none: then its age is what its claims would have taken."""
    broker = make()
    broker.transport.features = msgspec.structs.replace(broker.transport.inner.features, history=False)
    send_unknown(broker)
    with working(broker):
        wait_until(lambda: broker.counts() == Counts(delayed=1), "it is put aside")
        let_pass(broker, clock, 15)
    (letter,) = broker.dead()
    assert letter.attempt == 14  # before it lie 5 + 10 + 20 + 40 + 9 * 60 seconds, which is more than 600


def test_a_history_that_cannot_be_read(make: MakeBroker, caplog: pytest.LogCaptureFixture) -> None:
    """If the engine fails there, the message is put aside as if it was met for the first time."""
    broker = make()
    send_unknown(broker)
    plain = broker.transport.consumer

    def consumer(owner: str) -> Any:
        made = plain(owner)

        def fail(_delivery: Delivery) -> Sequence[Incident]:
            raise BrokerBusy("busy")

        made.history = fail
        return made

    broker.transport.consumer = consumer
    with working(broker):
        wait_until(lambda: broker.counts() == Counts(delayed=1), "it is put aside")
    assert "cannot be read: busy" in caplog.text


class Nacks(Middleware):
    """Notes what the hooks of dead letters are told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def after_nack(self, broker: Any, message: Any) -> None:
        self.told.append((message.actor_name, message.error.type))


def test_its_end_is_told(make: MakeBroker, clock: ManualClock) -> None:
    """Middleware is told of its death as of any other."""
    broker = make(nacks := Nacks())
    broker.unknown_actor_ttl_ms = 0
    send_unknown(broker)
    with working(broker):
        broker.wait_until_empty()
    assert nacks.told == [("unknown", "ActorNotFound")]
