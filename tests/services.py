"""Real servers for tests. ``tests/conftest.py`` offers these fixtures to all of them:

* ``redis_url``: the URL of a redis-server that the tests of this process share; it is empty at the start of each test.
  ``redis_shared`` is that server itself. Leave its settings as they are.
* ``redis_server``: one for this test alone, that keeps nothing on disk. ``.url .port .pid .log``; ``.kill()`` (-9),
  ``.stop()``, ``.restart()`` (on the same port), ``.pause()`` and ``.resume()`` (SIGSTOP, SIGCONT), ``.cli("CONFIG",
  "SET", ...)``. After ``.kill()``, ``.start()`` starts it again.
* ``start_redis(**settings)``: as many more of these as a test likes: ``start_redis(appendonly="yes")``.
* ``rabbitmq_url``: an empty virtual host, for this test alone, on a RabbitMQ that the whole test run shares.
* ``rabbitmq_shared``: that server itself: ``.ctl("list_queues", "-p", vhost)``. Do not stop, kill or alarm it.
* ``rabbitmq_troubled``: another one that the run shares, for one test at a time, which may kill, pause and alarm it,
  and puts its settings right again; ``fresh_vhost(server)`` is the URL of an empty virtual host there.
* ``rabbitmq_server``, ``start_rabbitmq(**settings)``: for this test alone, as for Redis. One takes some 8 s to start.
* ``memcached_url``: the address of a memcached that the tests of this process share; emptied for each test.

A server that is not there is looked for (``scripts/servers/packages.py``), then run as a container; else the test is
skipped with a line that says how to get it. Under ``CI=true`` it fails instead. ``SERVICES=skip`` skips all of them.
All servers end with the test run, even if that is killed (``scripts/servers/nest.py``).
"""

from __future__ import annotations

import fcntl
import functools
import itertools
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.servers import KINDS, Nest, RabbitMQ, Redis, Server, compose, packages
from scripts.servers.process import read_record

#: Virtual hosts that the shared RabbitMQ has from the start, and how many are made when they are used up.
VHOSTS = 40
numbers = itertools.count()

Starter = Callable[..., Any]


def need(kind: str) -> type[Server]:
    """The class of a kind of server that can be started here; else skips or fails the test."""
    if os.environ.get("SERVICES") == "skip":
        pytest.skip(f"needs {kind}; SERVICES=skip")
    if packages.is_there(kind):
        return KINDS[kind]
    if compose.is_there():
        return compose.CONTAINERS[kind]
    text = f"needs {kind}; {packages.how_to_get(kind)}"
    if os.environ.get("CI") == "true":
        pytest.fail(text)
    pytest.skip(text)


@pytest.fixture(scope="session")
def nest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nest]:
    """The servers that this process starts for its tests."""
    with Nest(tmp_path_factory.mktemp("servers")) as nest:
        yield nest


@pytest.fixture
def start_server(nest: Nest) -> Iterator[Callable[..., Server]]:
    """Starts servers that end with the test."""
    started: list[Server] = []

    def start(kind: str, **settings: object) -> Server:
        server = need(kind)(nest.folder / f"{kind}-{next(numbers)}", **settings)
        started.append(server)
        server.start()
        return server

    yield start
    for server in started:
        server.end()


# --- Redis


@pytest.fixture(scope="session")
def redis_shared(nest: Nest) -> Redis:
    """The redis-server behind ``redis_url``."""
    server = need("redis")(nest.folder / "redis")
    nest.own(server)
    server.start()
    assert isinstance(server, Redis)
    return server


@pytest.fixture
def redis_url(redis_shared: Redis) -> str:
    """The URL of an empty redis-server, shared by the tests of this process."""
    redis_shared.cli("FLUSHALL")
    return redis_shared.url


@pytest.fixture
def start_redis(start_server: Starter) -> Callable[..., Redis]:
    """Starts a redis-server with settings of redis.conf (underscores for dashes), for this test."""
    return lambda **settings: start_server("redis", **settings)


@pytest.fixture
def redis_server(start_redis: Callable[..., Redis]) -> Redis:
    """A redis-server that this test may kill, stop and pause."""
    return start_redis()


# --- RabbitMQ


@pytest.fixture(scope="session")
def rabbitmq_shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    """A RabbitMQ that all processes of the test run share; the first that needs it starts it."""
    kind = need("rabbitmq")
    common = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        common = common.parent
    with Nest(common / "shared-servers") as shared:
        with locked(common / "rabbitmq.lock"):
            server = kind(shared.folder / "rabbitmq", vhosts=VHOSTS)
            record = read_record(server.folder)
            if record is None:
                server.start()
            else:
                server.attach(record)
        assert isinstance(server, RabbitMQ)
        yield server


@pytest.fixture
def rabbitmq_url(rabbitmq_shared: RabbitMQ) -> str:
    """The URL of an empty virtual host for this test."""
    return fresh_vhost(rabbitmq_shared)


def fresh_vhost(server: RabbitMQ) -> str:
    """The URL of a virtual host that no test has used."""
    counter = server.folder / "vhosts"
    with locked(counter):
        number = int(counter.read_text() or 0)
        if number >= VHOSTS and number % VHOSTS == 0:
            server.add_vhosts([f"t{n}" for n in range(number, number + VHOSTS)])
        counter.write_text(str(number + 1))
    return server.url_of(f"t{number}")


@pytest.fixture
def rabbitmq_troubled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    """A second RabbitMQ that the whole run shares, to be killed, stopped and alarmed: by one test at a time."""
    kind = need("rabbitmq")
    common = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        common = common.parent
    nest = _troubled_nest(common / "troubled-servers")
    with locked(common / "rabbitmq-troubled.lock"):
        server = kind(nest.folder / "rabbitmq", vhosts=VHOSTS)
        record = read_record(server.folder)
        if record is not None:
            server.attach(record)
        if not server.is_running():
            server.start()
        assert isinstance(server, RabbitMQ)
        yield server
        server.resume()


@functools.cache
def _troubled_nest(folder: Path) -> Nest:
    """Open until this process ends: whoever comes next uses the same server."""
    return Nest(folder)


@pytest.fixture
def start_rabbitmq(start_server: Starter) -> Callable[..., RabbitMQ]:
    """Starts a RabbitMQ with settings of rabbitmq.conf (``__`` for a dot), for this test."""
    return lambda **settings: start_server("rabbitmq", **settings)


@pytest.fixture
def rabbitmq_server(start_rabbitmq: Callable[..., RabbitMQ]) -> RabbitMQ:
    """A RabbitMQ that this test may kill, stop and pause."""
    return start_rabbitmq()


# --- memcached


@pytest.fixture(scope="session")
def memcached_shared(nest: Nest) -> Server:
    """The memcached behind ``memcached_url``."""
    server = need("memcached")(nest.folder / "memcached")
    nest.own(server)
    return server.start()


@pytest.fixture
def memcached_url(memcached_shared: Server) -> str:
    """The address of an empty memcached, shared by the tests of this process."""
    with socket.create_connection(("127.0.0.1", memcached_shared.port), 10) as connection:
        connection.sendall(b"flush_all\r\n")
        assert connection.recv(16) == b"OK\r\n"
    return memcached_shared.url


class locked:  # noqa: N801  # used as a statement
    """Holds a file's lock between the processes of the run."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_e: object) -> None:
        os.close(self._file)
