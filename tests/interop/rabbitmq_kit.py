"""The program of both libraries on RabbitMQ. Results, groups and the notes of what has run lie on a Redis server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pika

from greenroom.engines.rabbitmq.connection import Targets
from greenroom.engines.rabbitmq.transport import RabbitmqTransport
from scripts.servers import RabbitMQ
from tests.interop.kit import Fleet
from tests.runtime.cli_kit import wait_until

#: Of the queue that all actors are in: what waits, what Dramatiq delays.
QUEUES = ("default", "default.DQ")

HEAD = """
import os, sys, time
import redis
import {library} as dramatiq
from {library}.brokers.rabbitmq import RabbitmqBroker
from {library}.middleware import GroupCallbacks
from {library}.results import Results
from {library}.results.backends import RedisBackend
from {library}.rate_limits.backends import RedisBackend as LimitsBackend

URL = "{url}"
notes = redis.Redis.from_url(URL, db=1)
broker = RabbitmqBroker(url="{broker_url}", confirm_delivery=True{options})
broker.add_middleware(Results(backend=RedisBackend(url=URL, socket_timeout=30)))
broker.add_middleware(GroupCallbacks(LimitsBackend(url=URL{limits})))
dramatiq.set_broker(broker)

def note(name):
    notes.rpush("runs", f"{{name}}={library}:{{os.getpid()}}:{{time.time()}}")
"""


@dataclass
class RabbitmqFleet(Fleet):
    """The program in both libraries, and the processes that run it. ``url`` is that of Redis."""

    broker_url: str = field(kw_only=True)
    server: RabbitMQ = field(kw_only=True)

    def head(self, library: str, *, wire: bool) -> str:
        """How the program of a library begins."""
        option = ', wire="dramatiq"' if wire else ""
        return HEAD.format(library=library, url=self.url, broker_url=self.broker_url, options=option, limits=option)

    @contextmanager
    def channel(self) -> Iterator[Any]:
        """A channel of pika's own."""
        connection = pika.BlockingConnection(pika.URLParameters(self.broker_url))
        try:
            yield connection.channel()
        finally:
            connection.close()

    def dead(self) -> list[tuple[Any, bytes]]:
        """The dead letters: their properties and bodies. They are gone then."""
        found = []
        with self.channel() as channel:
            while (got := channel.basic_get("default.XQ", auto_ack=True))[0] is not None:
                found.append(got[1:])
        return found

    def wait_until_waiting(self, count: int) -> None:
        """Waits until so many messages are ready: the server has noticed that their worker is dead."""
        with self.channel() as channel:
            wait_until(
                lambda: channel.queue_declare("default", passive=True).method.message_count == count,
                f"{count} messages wait",
            )

    def is_settled(self) -> bool:
        """Whether nothing waits, is delayed or is held."""
        with self.channel() as channel:  # at first what is asked for fast
            if any(channel.queue_declare(queue, passive=True).method.message_count for queue in QUEUES):
                return False
        vhost = self.broker_url.rpartition("/")[2]
        lines = self.server.ctl("list_queues", "-p", vhost, "name", "messages", "--no-table-headers").splitlines()
        counts = dict(line.split() for line in lines)
        if any(int(counts[queue]) for queue in QUEUES):
            return False
        with closing(RabbitmqTransport(Targets(self.broker_url))) as transport:
            return not transport.delayed()

    def wait_until_settled(self) -> None:
        """Waits until nothing waits, is delayed or is held."""
        wait_until(self.is_settled, "all is settled", step_s=0.1)
