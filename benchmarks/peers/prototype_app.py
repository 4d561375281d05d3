"""The throw-away prototype of the fast path, as a yardstick: its folder must be on ``PYTHONPATH``.

Run as a program it is the prototype's worker process: eight threads until TERM.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import runtime  # the prototype's
from engines import make  # the prototype's

from .. import recorder

os.environ["SQPATH"] = str(Path(os.environ[recorder.FOLDER_VARIABLE]) / "queue.db")
broker = runtime.Broker(make(os.environ.get("PENG", "sqlite")))


@broker.actor
def task(i: int) -> None:
    """Does nothing."""
    recorder.hit()


@broker.actor
def nap(i: int) -> None:
    """Sleeps 1 ms."""
    time.sleep(0.001)
    recorder.hit()


@broker.actor
def stamp(sent_ns: int) -> None:
    """Records when it started."""
    recorder.started(sent_ns)


ACTORS: dict[str, Any] = {"task": task, "nap": nap, "stamp": stamp}


def sender(actor: str) -> Callable[[int], object]:
    """The actor's ``send``."""
    send: Callable[[int], object] = ACTORS[actor].send
    return send


def send_many(actor: str, values: range) -> None:
    """One ``send_many``."""
    ACTORS[actor].send_many((i,) for i in values)


def send_delayed(actor: str, values: range, delay_s: int) -> None:
    """A loop of single delayed messages."""
    for i in values:
        broker.enqueue(ACTORS[actor].message(i), delay_s * 1000)


def close() -> None:
    """Nothing: the prototype has no close."""


def work(threads: int) -> None:
    """Runs a worker until TERM."""
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    runtime.Worker(broker, "threads", threads).start()
    while not stopped:
        time.sleep(0.1)
    os._exit(0)  # the prototype's threads never end


if __name__ == "__main__":
    work(8)
