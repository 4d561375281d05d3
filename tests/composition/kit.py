"""Brokers on either engine, actors and workers for compositions."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

from greenroom import Actor, actor
from greenroom.brokers.engine import EngineBroker
from greenroom.brokers.sqlite import SqliteBroker
from greenroom.brokers.stub import StubBroker
from greenroom.clock import SYSTEM_CLOCK, Clock
from greenroom.middleware import CurrentMessage
from greenroom.results import Results

ENGINES = ("memory", "sqlite")
#: Milliseconds that a test waits for a result at most.
PATIENCE = 20_000


def make_broker(engine: str, folder: Path, *, clock: Clock = SYSTEM_CLOCK) -> EngineBroker:
    """A broker that keeps all results."""
    broker = StubBroker(clock=clock) if engine == "memory" else SqliteBroker(folder / "q.db", clock=clock)
    broker.add_middleware(Results(store_results=True))
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
    return {key for key in _keys(broker.transport) if key.startswith(("p:", "m:", "g:"))}


def _keys(transport: Any) -> set[str]:
    if not hasattr(transport, "path"):
        keep = transport._keep
        return {*keep._values, *keep._sets}
    with closing(sqlite3.connect(transport.path)) as connection:
        query = "select key from value union select key from gathering where key is not null"
        return {key for (key,) in connection.execute(query)}
