"""Huey on a SQLite file, with the settings that suit it best here (README.md says why).

``fsync=False`` (``synchronous=OFF``) allows seven times as many single sends as Huey's default (FULL), and is less
durable than what Greenroom runs with (NORMAL). ``results=False`` leaves out the result object that nobody reads. A busy
timeout of 30 s keeps "database is locked" away under contention.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huey import SqliteHuey

from .. import recorder

huey = SqliteHuey(
    "bench",
    filename=str(Path(os.environ[recorder.FOLDER_VARIABLE]) / "queue.db"),
    results=False,
    fsync=False,
    timeout=30,
    cache_mb=32,
)


@huey.task()
def task(i: int) -> None:
    """Does nothing."""
    recorder.hit()


@huey.task()
def nap(i: int) -> None:
    """Sleeps 1 ms."""
    time.sleep(0.001)
    recorder.hit()


@huey.task()
def stamp(sent_ns: int) -> None:
    """Records when it started."""
    recorder.started(sent_ns)


TASKS: dict[str, Any] = {"task": task, "nap": nap, "stamp": stamp}


def sender(actor: str) -> Callable[[int], object]:
    """The task itself: calling it sends a message."""
    send: Callable[[int], object] = TASKS[actor]
    return send


def send_many(actor: str, values: range) -> None:
    """A loop of single sends; Huey has no bulk send (its ``map`` is this loop)."""
    send = TASKS[actor]
    for i in values:
        send(i)


def send_delayed(actor: str, values: range, delay_s: int) -> None:
    """A loop of ``schedule``."""
    schedule = TASKS[actor].schedule
    for i in values:
        schedule(args=(i,), delay=delay_s)


def close() -> None:
    """Closes the file."""
    huey.storage.close()
