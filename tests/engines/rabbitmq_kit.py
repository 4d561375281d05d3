"""Transports on the test's own virtual host, and another client beside them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pika
import pytest

from greenroom.engines.rabbitmq import line
from greenroom.engines.rabbitmq.connection import Targets
from greenroom.engines.rabbitmq.consumer import RabbitmqConsumer
from greenroom.engines.rabbitmq.topology import Layout
from greenroom.engines.rabbitmq.transport import RabbitmqTransport
from greenroom.names import new_storage_id
from greenroom.ports.transport import Envelope

#: Seconds after which what should have happened will not happen any more.
PATIENCE_S = 20.0


@contextmanager
def transport_at(url: str, **options: Any) -> Iterator[RabbitmqTransport]:
    """A transport, closed afterwards."""
    with closing(RabbitmqTransport(Targets(url), **options)) as transport:
        yield transport


@contextmanager
def stranger(url: str) -> Iterator[Any]:
    """A channel of pika's own, for what others do to a broker."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    try:
        yield connection.channel()
    finally:
        if connection.is_open:
            connection.close()


def sent(body: bytes = b"", queue: str = "default", *, priority: int = 0, due_ms: int | None = None) -> Envelope:
    """An envelope with a fresh storage id."""
    return Envelope(queue, new_storage_id(), body, priority, due_ms)


def wait_until(holds: Callable[[], object], what: str) -> None:
    """Waits for a condition."""
    deadline_s = time.monotonic() + PATIENCE_S
    waiting = threading.Event()
    while not holds():
        assert time.monotonic() < deadline_s, f"{what} did not happen"
        waiting.wait(0.01)


def bodies(transport: RabbitmqTransport, queue: str = "default") -> list[bytes]:
    """What is ready in a queue, in order."""
    return [message.body for message in transport.peek(queue, limit=10_000)]


def until_at_rest(transport: RabbitmqTransport, count: int) -> None:
    """Waits until so many delayed messages have left the lowest level, which each leaves within a second: what moves
    from one level to the next is nowhere for a moment, and those above are slow."""

    def are_at_rest() -> bool:
        found, lowest = transport._in_levels(), f"{transport.levels.base}.0."
        return sum(found.values()) == count and not any(name.startswith(lowest) for name in found)

    wait_until(are_at_rest, "all being in the higher levels")


def patient_trips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the first trip bring all that its queues hold, however long a busy server takes to begin: who drains a queue
    by trips takes the first one that brings nothing for its end."""
    monkeypatch.setattr(line, "FIRST_MESSAGES_S", PATIENCE_S)


def until_taken_back(consumer: RabbitmqConsumer, end: Callable[[], object]) -> None:
    """Ends a consumer's connection, and waits until the broker knows: from then on all that it held is ready again."""
    consumer._line.arrive()  # the broker counts all that it has begun to consume
    taps = [tap for tap in consumer._line.taps.values() if tap.consumer_tags]
    left = {tap.queue: _consumers(consumer, tap.queue) - len(tap.consumer_tags) for tap in taps}
    end()
    wait_until(lambda: all(_consumers(consumer, queue) <= left[queue] for queue in left), "the broker's taking it back")


def _consumers(consumer: RabbitmqConsumer, queue: str) -> int:
    """How many consumers a queue has, as the broker counts them."""
    answer = consumer._transport.share.control._call("queue_declare", queue=queue, passive=True)
    return 0 if answer is None else int(answer.consumer_count)


LAYOUTS = (Layout(), Layout(queue_type="quorum"))
