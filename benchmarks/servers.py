"""The servers that cases need: private ones, on free ports of the loopback, for as long as the case runs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.servers import Missing, Nest, RabbitMQ, Redis, Server, ServerFailed

from .harness import CannotRun


@contextmanager
def redis() -> Iterator[Redis]:
    """A Redis that keeps nothing on disk."""
    with tempfile.TemporaryDirectory(prefix="greenroom-bench-redis-") as folder, Nest(Path(folder)) as nest:
        server = Redis(Path(folder) / "redis")
        _start(server, nest)
        yield server


@contextmanager
def rabbitmq() -> Iterator[RabbitMQ]:
    """A RabbitMQ with its usual settings."""
    with tempfile.TemporaryDirectory(prefix="greenroom-bench-rabbitmq-") as folder, Nest(Path(folder)) as nest:
        server = RabbitMQ(Path(folder) / "rabbitmq")
        _start(server, nest)
        yield server


def _start(server: Server, nest: Nest) -> None:
    nest.own(server)
    try:
        server.start()
    except (Missing, ServerFailed) as error:
        raise CannotRun(str(error)) from error
