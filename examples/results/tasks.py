"""Estimates of pi by throwing darts, one of which goes wrong."""

from __future__ import annotations

import os
import random
from pathlib import Path

import greenroom
from greenroom.brokers.sqlite import SqliteBroker
from greenroom.results import Results

broker = SqliteBroker(Path(os.environ["DARTS_FOLDER"]) / "queue.db")
broker.add_middleware(Results())
greenroom.set_broker(broker)


@greenroom.actor(store_results=True, max_retries=0)
def throw(darts: int, seed: int) -> int:
    """Throws darts at a square; returns how many have hit the circle in it."""
    if darts <= 0:
        raise ValueError(f"nobody can throw {darts} darts")
    uniform = random.Random(seed).random
    return sum(uniform() ** 2 + uniform() ** 2 <= 1 for _ in range(darts))
