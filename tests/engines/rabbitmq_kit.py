"""Transports on the test's own virtual host, and another client beside them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pika

from greenroom.engines.rabbitmq.connection import Targets
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


LAYOUTS = (Layout(), Layout(queue_type="quorum"))
