"""The same program for Greenroom and for Dramatiq, on a server: the environment says which library, and where.

Nothing but the import differs, and ``send_many``, which Dramatiq does not have. Every measurement has a queue of its
own.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import recorder

#: The environment variables that say which library, and where the server is.
LIBRARY_VARIABLE = "BENCH_LIBRARY"
URL_VARIABLE = "BENCH_URL"
#: "no" sends to RabbitMQ without waiting for confirms.
CONFIRM_VARIABLE = "BENCH_CONFIRM"

library: Any = importlib.import_module(os.environ[LIBRARY_VARIABLE])
url = os.environ[URL_VARIABLE]
queue = "q" + Path(os.environ[recorder.FOLDER_VARIABLE]).name.replace("_", "-")
#: What one bulk send of ours carries; Dramatiq sends one by one.
has_bulk = hasattr(library.Actor, "send_many")


def make_broker() -> Any:
    """The library's broker for the URL's server, with its default middleware."""
    if url.startswith("redis:"):
        return importlib.import_module(f"{library.__name__}.brokers.redis").RedisBroker(url=url)
    confirm = os.environ.get(CONFIRM_VARIABLE, "yes") == "yes"
    module = importlib.import_module(f"{library.__name__}.brokers.rabbitmq")
    return module.RabbitmqBroker(url=url, confirm_delivery=confirm)


broker = make_broker()
library.set_broker(broker)


@library.actor(queue_name=queue)  # type: ignore[untyped-decorator]  # whichever library it is
def task(i: int) -> None:
    """Does nothing."""
    recorder.hit()


@library.actor(queue_name=queue)  # type: ignore[untyped-decorator]  # whichever library it is
def nap(i: int) -> None:
    """Sleeps 1 ms."""
    time.sleep(0.001)
    recorder.hit()


@library.actor(queue_name=queue)  # type: ignore[untyped-decorator]  # whichever library it is
def stamp(sent_ns: int) -> None:
    """Records when it started."""
    recorder.started(sent_ns)


@library.actor(queue_name=queue)  # type: ignore[untyped-decorator]  # whichever library it is
def due(due_ns: int) -> None:
    """Records how late it started."""
    recorder.started(due_ns)


ACTORS: dict[str, Any] = {"task": task, "nap": nap, "stamp": stamp, "due": due}


def sender(actor: str) -> Callable[[int], object]:
    """The actor's ``send``."""
    send: Callable[[int], object] = ACTORS[actor].send
    return send


def send_many(actor: str, values: range) -> None:
    """One ``send_many``, or a loop of ``send``."""
    if has_bulk:
        ACTORS[actor].send_many((i,) for i in values)
        return
    send = ACTORS[actor].send
    for i in values:
        send(i)


def send_delayed(actor: str, values: range, delay_s: int) -> None:
    """A loop of ``send_with_options``."""
    send = ACTORS[actor].send_with_options
    for i in values:
        send(args=(i,), delay=delay_s * 1000)


def send_due(count: int, begin_s: float, spread_s: float) -> None:
    """Messages that are due at equal distances over a time, each carrying the moment at which it is."""
    begin_ns = time.monotonic_ns() + int(begin_s * 1e9)
    send = due.send_with_options
    for number in range(count):
        due_ns = begin_ns + int(spread_s * 1e9 * number / count)
        send(args=(due_ns,), delay=max(0, (due_ns - time.monotonic_ns()) // 1_000_000))


def close() -> None:
    """Closes the connections."""
    broker.close()
