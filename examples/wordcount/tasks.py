"""The task of the example: count the words of one file.

Both sides import this module: the program that sends (``__main__``) and the worker processes, which ``greenroom worker
examples.wordcount.tasks`` starts.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import greenroom
from greenroom.brokers.sqlite import SqliteBroker
from greenroom.results import Results

REPOSITORY = Path(__file__).resolve().parents[2]

#: The folder of one run, with its queue file. The program hands it to its workers.
RUN_FOLDER = Path(os.environ.get("WORDCOUNT_FOLDER", REPOSITORY / ".greenroom" / "wordcount"))

WORD = re.compile(r"[^\W\d_]{2,}")
MAX_LINE = 1 << 20  # characters; a longer line is read in pieces, so that no file fills the memory

RESULT_TTL = 86_400_000  # milliseconds; a large folder takes long, and its counts are collected at the end

broker = SqliteBroker(path=RUN_FOLDER / "queue.db")
broker.add_middleware(Results(store_results=True, result_ttl=RESULT_TTL))
greenroom.set_broker(broker)


@greenroom.actor(max_retries=2, min_backoff=100)
def count(path: str) -> dict[str, Any]:
    """Counts the words of a file: ``words``, or the ``error`` if it cannot be read; ``began_s`` and ``ended_s``."""
    began_s = time.monotonic()
    report: dict[str, Any]
    try:
        report = {"words": count_words(path)}
    except OSError as error:
        report = {"error": error.strerror or type(error).__name__}
    return {**report, "began_s": began_s, "ended_s": time.monotonic()}


def count_words(path: str) -> Counter[str]:
    """How often each word occurs in a file, in lower case."""
    words: Counter[str] = Counter()
    with open(path, encoding="utf-8", errors="replace") as file:
        while line := file.readline(MAX_LINE):
            words.update(WORD.findall(line.lower()))
    return words
