"""Connections to RabbitMQ that end at an awkward moment: in the middle of something that drives the loop."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from greenroom.core.verdict import Verdict
from greenroom.engines.rabbitmq.connection import Link, Targets
from greenroom.engines.rabbitmq.consumer import RabbitmqConsumer
from greenroom.engines.rabbitmq.topology import Declarer, Layout
from greenroom.engines.rabbitmq.transport import RabbitmqTransport
from greenroom.errors import BrokerError, BrokerFull, ConnectionClosed
from greenroom.ports.transport import Settlement
from greenroom.testing.contract.kit import claim, consumer_of, envelope, envelopes, settle
from tests.engines.rabbitmq_kit import transport_at


@pytest.fixture
def link(rabbitmq_url: str) -> Iterator[Link]:
    link = Link(Targets(rabbitmq_url), "test")
    link.connect(10.0)
    yield link
    link.close()


@pytest.fixture
def transport(rabbitmq_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RabbitmqTransport]:
    monkeypatch.setenv("GREENROOM_RUN_FOLDER", str(tmp_path / "run"))
    with transport_at(rabbitmq_url) as transport:
        yield transport


def cut_while_it_waits(consumer: RabbitmqConsumer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next time that the consumer waits for the broker, its connection ends."""
    line = consumer._line
    wait = line._wait_for_taps

    def cut(*args: Any) -> bool:
        monkeypatch.undo()
        line.drop()
        return wait(*args)

    monkeypatch.setattr(line, "_wait_for_taps", cut)


def test_all_that_was_asked_for_is_answered(link: Link) -> None:
    """The connection is lost while one queue is declared and others wait: nothing more is asked for on it, and each is
    told what happened."""
    declarer = Declarer(link, Layout())
    told: list[BrokerError | None] = []
    for queue in ("first", "second", "third"):
        declarer.declare([queue], told.append)
    link.run_until(lambda: declarer._current is not None and declarer._current[0] == "first", 10.0)
    link.drop()
    assert not link.is_open
    assert told == []
    assert link.error is not None
    declarer.lost(link.error)
    assert [type(error) for error in told] == [ConnectionClosed] * 3


def test_what_was_to_be_given_back(transport: RabbitmqTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection ends while a message is given back: it is handed out again, and so are the others of the trip;
    nothing is published for them."""
    consumer = consumer_of(transport)
    assert isinstance(consumer, RabbitmqConsumer)
    transport.push(envelopes(b"a", b"b", b"c"))
    a, b, c = claim(consumer, 3)
    cut_while_it_waits(consumer, monkeypatch)
    trip = [
        Settlement(a, Verdict.RETRY, retry=envelope(b"again")),
        Settlement(b, Verdict.RELEASE),
        Settlement(c, Verdict.RETRY, retry=envelope(b"again")),
    ]
    answer = consumer.exchange(trip, 0)
    assert not answer.settled
    assert sorted(s.delivery.body for s in answer.lost) == [b"a", b"b", b"c"]
    assert answer.reset
    assert sorted(delivery.body for delivery in claim(consumer, 3)) == [b"a", b"b", b"c"]


def test_what_is_not_consumed_any_more(transport: RabbitmqTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection ends while consuming from a queue is stopped: nothing is left to stop."""
    consumer = consumer_of(transport)
    assert isinstance(consumer, RabbitmqConsumer)
    transport.push(envelopes(b"a"))
    claim(consumer, 1)
    cut_while_it_waits(consumer, monkeypatch)
    consumer.pause(["default"])
    assert consumer.exchange((), 1).reset
    consumer.subscribe(["default"])
    assert [delivery.body for delivery in claim(consumer, 1)] == [b"a"]


def test_a_queue_that_takes_nothing_yet(transport: RabbitmqTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    """A retry that its queue refuses for the moment is published later: it is no dead letter."""
    consumer = consumer_of(transport)
    transport.push(envelopes(b"a"))
    (a,) = claim(consumer, 1)

    def submit(*_: Any) -> Any:
        monkeypatch.undo()
        return SimpleNamespace(done=True, error=BrokerFull("not now"), failed=[0])

    monkeypatch.setattr(transport.publisher, "submit", submit)
    answer = settle(consumer, Settlement(a, Verdict.RETRY, retry=envelope(b"again")))
    assert (len(answer.settled), list(answer.refused)) == (1, [])
    assert [delivery.body for delivery in claim(consumer, 1)] == [b"again"]
