"""Greenroom as in ``greenroom_app``, but it keeps what its actors return."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import greenroom
from greenroom.brokers.sqlite import SqliteBroker
from greenroom.results import Results

from .. import recorder

broker = SqliteBroker(Path(os.environ[recorder.FOLDER_VARIABLE]) / "queue.db")
broker.add_middleware(Results(store_results=True))
greenroom.set_broker(broker)


@greenroom.actor
def task(i: int) -> int:
    """Returns its argument."""
    recorder.hit()
    return i


def sender(actor: str) -> Callable[[int], object]:
    """The actor's ``send``."""
    send: Callable[[int], object] = task.send
    return send


def send_many(actor: str, values: range) -> None:
    """One ``send_many``."""
    task.send_many((i,) for i in values)


def send_delayed(actor: str, values: range, delay_s: int) -> None:
    """A loop of ``send_with_options``."""
    for i in values:
        task.send_with_options(args=(i,), delay=delay_s * 1000)


def ask(actor: str, value: int) -> Any:
    """Sends a message and waits for its result."""
    return task.send(value).get_result(block=True)


def close() -> None:
    """Closes the broker."""
    broker.close()
