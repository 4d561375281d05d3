"""Three steps on the way from a text to its most frequent words."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import greenroom
from greenroom.brokers.sqlite import SqliteBroker
from greenroom.results import Results

broker = SqliteBroker(Path(os.environ["PIPELINE_FOLDER"]) / "queue.db")
broker.add_middleware(Results(store_results=True))
greenroom.set_broker(broker)


@greenroom.actor(throws=FileNotFoundError)
def read(path: str) -> str:
    """The text of a file."""
    return Path(path).read_text("utf-8")


@greenroom.actor
def words(text: str = "") -> list[str]:
    """Its words, in lower case."""
    return [word.strip(".,:;()\"'`").lower() for word in text.split()]


@greenroom.actor
def most_frequent(count: int, found: Sequence[str] = ()) -> dict[str, int]:
    """The most frequent ones that have more than four letters."""
    return dict(Counter(word for word in found if len(word) > 4).most_common(count))
