"""A worker in this process, on either engine, with a clock that the test moves and a transport that can be troubled."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import redis

from greenroom import Actor, Middleware, Worker, actor
from greenroom.brokers.engine import EngineBroker
from greenroom.clock import SYSTEM_CLOCK, Clock
from greenroom.engines.memory.store import MemoryStore
from greenroom.engines.memory.transport import MemoryTransport
from greenroom.engines.redis.store import RedisStore
from greenroom.engines.redis.transport import RedisTransport
from greenroom.engines.sqlite.store import SqliteStore
from greenroom.engines.sqlite.transport import SqliteTransport
from greenroom.ports.admin import Counts, DeadLetter
from greenroom.ports.store import Store
from greenroom.ports.transport import Exchange, Settlement
from tests.runtime.cli_kit import wait_until

ENGINES = ("memory", "sqlite")
#: With those that need a server.
ALL_ENGINES = (*ENGINES, "redis")
#: Milliseconds between two looks of a worker at a clock that does not tell when it was moved.
LOOK_MS = 10


class EngineTestBroker(EngineBroker):
    """A broker on any transport."""

    def __init__(self, transport: Any, middleware: Sequence[Middleware] | None = None, **options: Any) -> None:
        self.transport = transport
        super().__init__(middleware, **options)

    @cached_property
    def store(self) -> Store:
        inner = getattr(self.transport, "inner", self.transport)
        if isinstance(inner, RedisTransport):
            return RedisStore(inner)
        return MemoryStore(inner) if isinstance(inner, MemoryTransport) else SqliteStore(inner)

    def counts(self, queue: str = "default") -> Counts:
        return self.transport.counts([queue])[queue]

    def dead(self, queue: str = "default") -> list[DeadLetter]:
        return self.transport.dead(queue)

    def wait_until_empty(self, queue: str = "default") -> None:
        """Until nothing of the queue is ready, delayed or running."""

        def is_empty() -> bool:
            counts = self.counts(queue)
            return not (counts.ready or counts.delayed or counts.claimed)

        wait_until(is_empty, f"queue {queue!r} is empty")


def make_broker(
    engine: str,
    folder: Path,
    middleware: Sequence[Middleware] | None = None,
    *,
    clock: Clock = SYSTEM_CLOCK,
    url: str | None = None,
    **kw: Any,
) -> EngineTestBroker:
    """A broker on a fresh engine of that name. ``url``: of the server, for Redis."""
    transport: Any
    if engine == "redis":
        assert url is not None
        transport = RedisTransport(redis.Redis.from_url(url), namespace=folder.name, clock=clock)
    else:
        transport = (
            MemoryTransport(clock=clock) if engine == "memory" else SqliteTransport(folder / "q.db", clock=clock)
        )
    return EngineTestBroker(transport, middleware, clock=clock, **kw)


def make_broker_of(
    request: pytest.FixtureRequest, engine: str, folder: Path, *args: Any, **kw: Any
) -> EngineTestBroker:
    """As ``make_broker``, on any of ``ALL_ENGINES``."""
    url = request.getfixturevalue("redis_url") if engine == "redis" else None
    return make_broker(engine, folder, *args, url=url, **kw)


@contextmanager
def working(broker: Any, threads: int = 1, *, timeout_ms: int = 20_000, **options: Any) -> Iterator[Worker]:
    """A worker that runs, and is stopped at the end."""
    worker = Worker(broker, worker_threads=threads, **{"worker_timeout": LOOK_MS, **options})
    worker.start()
    try:
        yield worker
    finally:
        worker.stop(timeout_ms)


def wait_for_orders(worker: Worker) -> None:
    """Until the pump has done what it was told so far, such as to pause: until then it may go on as before."""
    followed = threading.Event()
    assert worker._pump is not None
    worker._pump.order(followed.set)
    assert followed.wait(30), "the pump does not follow its orders"


def collector(broker: Any, name: str = "collect", **options: Any) -> tuple[Actor[..., Any], list[Any]]:
    """An actor that notes its argument, and its notes."""
    notes: list[Any] = []

    @actor(broker=broker, actor_name=name, **options)
    def collect(value: Any) -> None:
        notes.append(value)

    return collect, notes


class Gate:
    """Where an actor waits until the test opens it. ``entered`` holds what came, in order."""

    def __init__(self) -> None:
        self.entered: list[Any] = []
        self.left: list[Any] = []
        self._open = threading.Event()

    def __call__(self, value: Any = None) -> None:
        self.entered.append(value)
        assert self._open.wait(30), "the gate was never opened"
        self.left.append(value)

    def open(self) -> None:
        self._open.set()

    def wait_for(self, *values: Any) -> None:
        """Until these have entered, in any order."""
        wait_until(lambda: set(values) <= set(self.entered), f"{values} are at the gate")


class Troubled:
    """A transport whose consumers ask ``before`` and ``after`` about every trip; either may raise."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.before: Callable[[Sequence[Settlement], int], None] = lambda _settle, _limit: None
        self.after: Callable[[Exchange], None] = lambda _exchange: None
        self.trips: list[tuple[list[Settlement], int, Exchange | None]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def consumer(self, owner: str) -> TroubledConsumer:
        return TroubledConsumer(self, self.inner.consumer(owner))


class TroubledConsumer:
    def __init__(self, transport: Troubled, inner: Any) -> None:
        self._transport = transport
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def exchange(self, settle: Sequence[Settlement], limit: int, skip: AbstractSet[str] = frozenset()) -> Exchange:
        transport = self._transport
        transport.trips.append((list(settle), limit, None))
        transport.before(settle, limit)
        exchange: Exchange = self._inner.exchange(settle, limit, skip)
        transport.after(exchange)
        transport.trips[-1] = (list(settle), limit, exchange)
        return exchange
