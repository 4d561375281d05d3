"""The engines that real processes of tests share, each by a URL, and what may be left on them in the end."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from greenroom import Message
from greenroom.brokers import from_url
from greenroom.brokers.engine import EngineBroker
from greenroom.brokers.sqlite import SqliteBroker
from greenroom.engines.redis.reaper import info_of
from greenroom.engines.redis.transport import RedisTransport
from greenroom.ports.admin import DeadLetter, Peeked

#: The engines that processes can share and that keep all promises.
ENGINES = ("sqlite", "redis")
#: What stays on a Redis server: which data it is, a counter, the queues, tokens for those who wait, and what programs
#: keep there.
STAYS_ON_REDIS = ("id", "seq", "queues", "w:", "sv:")
#: And dead letters.
LETTERS_ON_REDIS = ("x:", "xm:", "xe:", "xi:")


def url_of(engine: str, folder: Path, request: pytest.FixtureRequest) -> str:
    """Where the messages of a test are: in a file of the folder, or on a server that is empty."""
    if engine == "sqlite":
        return f"sqlite:///{folder / 'queue.db'}"
    url: str = request.getfixturevalue(f"{engine}_url")
    return url


def open_broker(url: str, **options: Any) -> EngineBroker:
    """A broker there, with a queue "default"."""
    broker = from_url(url, **options)
    assert isinstance(broker, EngineBroker)
    broker.declare_queue("default")
    return broker


def messages_in(broker: EngineBroker, queue: str = "default") -> list[Peeked]:
    """All messages of a queue but the dead ones: what is claimed, then what is ready, then what is delayed."""
    found: list[Peeked] = []
    while page := broker.transport.peek(queue, limit=1000, after=found[-1].place if found else None):
        found += page
    return found


def letters_in(broker: EngineBroker, queue: str | None = None) -> list[DeadLetter]:
    """All dead letters, the newest first."""
    found: list[DeadLetter] = []
    while page := broker.transport.dead(queue, limit=1000, after=found[-1].place if found else None):
        found += page
    return found


def numbers_in(broker: EngineBroker) -> list[Any]:
    """The first argument of each message that waits, in order."""
    check_storage(broker)
    return [Message.decode(message.body).args[0] for message in messages_in(broker)]


def is_empty(broker: EngineBroker, queue: str = "default") -> bool:
    """Whether nothing is ready, delayed or running."""
    counts = broker.transport.counts([queue])[queue]
    return not (counts.ready or counts.delayed or counts.claimed)


def owners_of(broker: EngineBroker) -> list[tuple[str, int]]:
    """The names and the processes of all owners that the engine knows."""
    transport = broker.transport
    if isinstance(transport, RedisTransport):
        infos = map(info_of, transport.share.call("HVALS", transport.keys.owners))
        return [(info.name, info.pid) for info in infos]
    assert isinstance(broker, SqliteBroker)
    with closing(sqlite3.connect(broker.path)) as connection:
        return connection.execute("select name, pid from owner order by id").fetchall()


def check_storage(broker: EngineBroker) -> None:
    """What keeps the messages is in order."""
    if isinstance(broker, SqliteBroker):
        with closing(sqlite3.connect(broker.path)) as connection:
            assert connection.execute("pragma integrity_check").fetchone() == ("ok",)


def check_nothing_is_left(broker: EngineBroker, *, dead: bool = True) -> None:
    """No message and no owner is left, and nothing that belonged to one.

    Parameters:
      dead: Whether there may be dead letters.
    """
    check_storage(broker)
    assert owners_of(broker) == []
    assert is_empty(broker)
    if not dead:
        assert broker.transport.dead() == []
    transport = broker.transport
    if isinstance(transport, RedisTransport):
        prefix = transport.keys.prefix
        keys = [key.removeprefix(prefix).decode() for key in transport.share.call("KEYS", b"*")]
        stays = STAYS_ON_REDIS + LETTERS_ON_REDIS if dead else STAYS_ON_REDIS
        assert [key for key in keys if not key.startswith(stays)] == []
    else:
        broker.close()
        assert isinstance(broker, SqliteBroker)
        with closing(sqlite3.connect(broker.path)) as connection:
            assert connection.execute("select count(*) from message").fetchone() == (0,)
