"""Forty letters, two printers, and a postman who takes five letters a second."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import greenroom
from greenroom.brokers.sqlite import SqliteBroker
from greenroom.rate_limits import ConcurrentRateLimiter, StoreBackend, WindowRateLimiter

FOLDER = Path(os.environ["LETTERS_FOLDER"])

broker = SqliteBroker(FOLDER / "queue.db")
greenroom.set_broker(broker)
limits = StoreBackend(broker.store)

#: There are two printers, however many workers there are.
printers = ConcurrentRateLimiter(limits, "printers", limit=2, ttl=30_000)
#: And a postman who is not to be hurried.
postman = WindowRateLimiter(limits, "postman", limit=5, window=1)


def note(what: str, letter: int, began_s: float) -> None:
    """Writes down what was done with a letter, with one write, so that processes do not mix."""
    line = json.dumps({"what": what, "letter": letter, "began_s": began_s, "ended_s": time.time()}) + "\n"
    with (FOLDER / "notes.jsonl").open("a") as notes:
        notes.write(line)


@greenroom.actor(limit_policy="wait")
def print_letter(letter: int) -> None:
    """Prints a letter, as soon as one of the printers is free."""
    with printers.acquire():
        began_s = time.time()
        threading.Event().wait(0.02)
        note("printed", letter, began_s)
    post_letter.send(letter)


@greenroom.actor(limit_policy="wait")
def post_letter(letter: int) -> None:
    """Gives a letter to the postman."""
    with postman.acquire():
        note("posted", letter, time.time())
