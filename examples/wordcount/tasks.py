"""The task of the example: count the words of one file.

Both sides import this module: the program that sends (``__main__``) and the worker processes, which ``greenroom worker
examples.wordcount.tasks`` starts.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from pathlib import Path

import greenroom
from greenroom.brokers.sqlite import SqliteBroker

REPOSITORY = Path(__file__).resolve().parents[2]

#: The folder of one run: the queue and the counts. The program hands it to its workers.
RUN_FOLDER = Path(os.environ.get("WORDCOUNT_FOLDER", REPOSITORY / ".greenroom" / "wordcount"))

WORD = re.compile(r"[^\W\d_]{2,}")
MAX_LINE = 1 << 20  # characters; a longer line is read in pieces, so that no file fills the memory

broker = SqliteBroker(path=RUN_FOLDER / "queue.db")
greenroom.set_broker(broker)


@greenroom.actor(max_retries=2, min_backoff=100)
def count(path: str) -> None:
    """Counts the words of a file and reports them. A file that cannot be read is reported as a failure."""
    began_s = time.monotonic()
    try:
        report = {"path": path, "words": count_words(path)}
    except OSError as error:
        report = {"path": path, "error": error.strerror or type(error).__name__}
    append({**report, "began_s": began_s, "ended_s": time.monotonic()})


def count_words(path: str) -> Counter[str]:
    """How often each word occurs in a file, in lower case."""
    words: Counter[str] = Counter()
    with open(path, encoding="utf-8", errors="replace") as file:
        while line := file.readline(MAX_LINE):
            words.update(WORD.findall(line.lower()))
    return words


def append(report: dict[str, object]) -> None:
    """Adds a report to this process's file.

    A message is run at least once, so a report may come twice: whoever reads them goes by the path.
    """
    line = json.dumps(report).encode() + b"\n"
    file = os.open(RUN_FOLDER / f"counts-{os.getpid()}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        # One write to a file opened for appending: the lines of two threads never mix.
        if os.write(file, line) != len(line):
            raise OSError("the disk is full")
    finally:
        os.close(file)
