"""Greenroom with its defaults, on a SQLite file: the default middleware, NORMAL durability."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import greenroom
from greenroom.brokers.sqlite import SqliteBroker

from .. import recorder

broker = SqliteBroker(Path(os.environ[recorder.FOLDER_VARIABLE]) / "queue.db")
greenroom.set_broker(broker)


@greenroom.actor
def task(i: int) -> None:
    """Does nothing."""
    recorder.hit()


@greenroom.actor
async def atask(i: int) -> None:
    """Does nothing, on the loop."""
    recorder.hit()


@greenroom.actor
def nap(i: int) -> None:
    """Sleeps 1 ms."""
    time.sleep(0.001)
    recorder.hit()


@greenroom.actor
def stamp(sent_ns: int) -> None:
    """Records when it started."""
    recorder.started(sent_ns)


ACTORS: dict[str, Any] = {"task": task, "atask": atask, "nap": nap, "stamp": stamp}


def sender(actor: str) -> Callable[[int], object]:
    """The actor's ``send``."""
    send: Callable[[int], object] = ACTORS[actor].send
    return send


def send_many(actor: str, values: range) -> None:
    """One ``send_many``."""
    ACTORS[actor].send_many((i,) for i in values)


def send_group(actor: str, values: range) -> None:
    """A group of them, with one more as its callback."""
    message = ACTORS[actor].message
    many = greenroom.group(message(i) for i in values)
    many.add_completion_callback(message(0))
    many.run()


def send_delayed(actor: str, values: range, delay_s: int) -> None:
    """A loop of ``send_with_options``."""
    send = ACTORS[actor].send_with_options
    for i in values:
        send(args=(i,), delay=delay_s * 1000)


def close() -> None:
    """Closes the broker."""
    broker.close()
