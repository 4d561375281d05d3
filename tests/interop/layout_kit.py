"""Dramatiq's layout as its producers and workers leave it, written by hand."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import count
from typing import Any

import redis

from greenroom.engines.redis.shared_transport import SharedTransport
from greenroom.engines.redis.two_layouts import TwoLayouts
from greenroom.ports.transport import Delivery
from greenroom.testing.clock import ManualClock

NAMESPACE = "dramatiq"
ANOTHER = "3c1f3b2e-6f0d-4b6e-9d5e-6a1f7f0d6b11"
numbers = count()


@dataclass
class Theirs:
    """What a program of Dramatiq's would have done."""

    client: redis.Redis
    clock: ManualClock

    def encoded(self, name: str, id: str, **options: Any) -> bytes:
        """A message."""
        queue = "default.DQ" if "eta" in options else "default"
        fields = {
            "queue_name": queue,
            "actor_name": "act",
            "args": [name],
            "kwargs": {},
            "options": {"redis_message_id": id, **options},
            "message_id": f"id-of-{name}",
            "message_timestamp": 5,
        }
        return json.dumps(fields, separators=(",", ":")).encode()

    def send(self, name: str, *, due_ms: int | None = None, body: bytes | None = None) -> str:
        """Enqueues a message; its storage id."""
        id = f"{next(numbers):08}-0000-4000-8000-000000000000"
        queue = "dramatiq:default" if due_ms is None else "dramatiq:default.DQ"
        options = {} if due_ms is None else {"eta": due_ms}
        self.client.hset(f"{queue}.msgs", id, body or self.encoded(name, id, **options))
        self.client.rpush(queue, id)
        return id

    def claim(self, owner: str, queue: str = "default") -> str:
        """A worker takes the first message into its hands; its storage id."""
        id = self.client.lpop(f"dramatiq:{queue}")
        assert isinstance(id, str)
        self.client.sadd(f"dramatiq:__acks__.{owner}.{queue}", id)
        return id

    def beat(self, owner: str = ANOTHER, at_ms: int | None = None) -> None:
        """A sign of life."""
        self.client.zadd("dramatiq:__heartbeats__", {owner: self.clock.now_ms() if at_ms is None else at_ms})

    def waiting(self, queue: str = "default") -> list[str]:
        """The names of the messages in a list, in its order."""
        ids = self.client.lrange(f"dramatiq:{queue}", 0, -1)
        return [json.loads(self.client.hget(f"dramatiq:{queue}.msgs", id))["args"][0] for id in ids]

    def keys(self) -> set[str]:
        """All of Dramatiq's keys that are there."""
        return {key for key in self.client.keys("*") if key.startswith("dramatiq:")}


def name_of(delivery: Delivery) -> str:
    """The name that a message was sent under."""
    name = json.loads(delivery.body)["args"][0]
    assert isinstance(name, str)
    return name


def take(consumer: TwoLayouts, clock: ManualClock, limit: int = 100) -> list[Delivery]:
    """What a consumer finds that looks for as long as there is more, and once again when it is time to."""
    found: list[Delivery] = []
    for _ in range(2):
        while True:
            exchange = consumer.exchange((), limit)
            found += exchange.deliveries
            if not exchange.more:
                break
        clock.advance_ms(1_100)
    return found


def transport_of(url: str, clock: ManualClock, folder: Any, *, wire: bool = False) -> SharedTransport:
    """A transport on the namespace."""
    client = redis.Redis.from_url(url)
    return SharedTransport(
        client, namespace=NAMESPACE, clock=clock, heartbeat_timeout_ms=60_000, wire=wire, run_folder=folder
    )
