"""Brokers on either engine, actors and workers for compositions."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

from greenroom import Actor, actor
from greenroom.brokers.engine import EngineBroker
from greenroom.brokers.redis import RedisBroker
from greenroom.brokers.sqlite import SqliteBroker
from greenroom.brokers.stub import StubBroker
from greenroom.clock import SYSTEM_CLOCK, Clock
from greenroom.engines.redis.transport import RedisTransport
from greenroom.middleware import CurrentMessage, GroupCallbacks
from greenroom.rate_limits import backends as limits
from greenroom.results import Results
from greenroom.results import backends as results

#: The last two keep compositions in a SQLite file that is not the broker's: one its results, too.
ENGINES = ("memory", "sqlite", "redis", "sqlite+elsewhere", "memory+elsewhere")
#: Milliseconds that a test waits for a result at most.
PATIENCE = 20_000


def make_broker(engine: str, folder: Path, *, clock: Clock = SYSTEM_CLOCK, url: str | None = None) -> EngineBroker:
    """A broker that keeps all results. ``url``: of the server, for Redis."""
    broker: EngineBroker
    if engine == "redis":
        broker = RedisBroker(url=url, namespace=folder.name, clock=clock)
    elif engine.startswith("memory"):
        broker = StubBroker(clock=clock)
    else:
        broker = SqliteBroker(folder / "q.db", clock=clock)
    if engine.endswith("elsewhere"):
        broker.add_middleware(GroupCallbacks(limits.SqliteBackend(folder / "store.db")))
    backend = results.SqliteBackend(folder / "store.db") if engine == "sqlite+elsewhere" else None
    broker.add_middleware(Results(backend=backend, store_results=True))
    broker.add_middleware(CurrentMessage())
    return broker


class Actors:
    """The actors that the tests send. ``calls`` notes what ``note`` was called with."""

    def __init__(self, broker: Any) -> None:
        self.calls: list[Any] = []
        self.outcomes: list[Any] = []
        self.noted = threading.Event()

        @actor(broker=broker)
        def add(x: int, y: int = 0) -> int:
            return x + y

        @actor(broker=broker)
        def total(values: list[int]) -> int:
            return sum(values)

        @actor(broker=broker, max_retries=0)
        def fail(*_args: Any) -> None:
            raise ValueError("as it should")

        @actor(broker=broker)
        def note(*args: Any) -> None:
            self.calls.append(args)
            self.noted.set()

        @actor(broker=broker)
        def echo(*args: Any) -> list[Any]:
            return list(args)

        self.add: Actor[..., Any] = add
        self.total: Actor[..., Any] = total
        self.fail: Actor[..., Any] = fail
        self.note: Actor[..., Any] = note
        self.echo: Actor[..., Any] = echo


def leftovers(broker: Any) -> set[str]:
    """Keys of plans, members, sets and kept results that are still in the broker's store."""
    keys = _keys(broker.composition_store.transport)
    return {key for key in keys if key.startswith(("p:", "m:", "g:", "t:"))}


def _keys(transport: Any) -> set[str]:
    if isinstance(transport, RedisTransport):
        start = len(transport.keys.prefix)
        found = transport.share.call("KEYS", transport.keys.prefix.replace(b"{", b"\\{") + b"s[vpt]:*")
        return {key[start + 3 :].decode() for key in found}
    if not hasattr(transport, "path"):
        keep = transport._keep
        return {*keep._values, *keep._sets}
    with closing(sqlite3.connect(transport.path)) as connection:
        query = "select key from value union select key from gathering where key is not null"
        return {key for (key,) in connection.execute(query)}
