"""Searching for primes, in parts; and a report when all parts are done."""

from __future__ import annotations

import os
from pathlib import Path

import greenroom
from greenroom.brokers.sqlite import SqliteBroker
from greenroom.composition import outcome_of
from greenroom.middleware import CurrentMessage
from greenroom.results import Results

FOLDER = Path(os.environ["GROUP_FOLDER"])

broker = SqliteBroker(FOLDER / "queue.db")
broker.add_middleware(Results(store_results=True))
broker.add_middleware(CurrentMessage())
greenroom.set_broker(broker)


@greenroom.actor(throws=ValueError)
def count_primes(start: int, end: int) -> int:
    """How many primes there are from ``start`` to before ``end``."""
    if start < 0:
        raise ValueError("there are no negative primes")
    return sum(number > 1 and all(number % i for i in range(2, int(number**0.5) + 1)) for number in range(start, end))


@greenroom.actor
def report() -> str:
    """Sent once, when all parts have ended."""
    progress = outcome_of()
    assert progress is not None
    return f"{progress.total} parts have ended, {progress.failed} of them badly"
