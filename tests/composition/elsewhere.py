"""A broker whose compositions are kept in another SQLite file, and a worker program to be killed.

``python -m tests.composition.elsewhere FOLDER THREADS [own]`` is the worker. It runs until it is killed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import greenroom
from greenroom import Worker, actor
from greenroom.brokers.sqlite import SqliteBroker
from greenroom.composition import outcome_of
from greenroom.middleware import CurrentMessage, GroupCallbacks, Middleware, SkipMessage, completing
from greenroom.rate_limits.backends import SqliteBackend
from greenroom.results import Missing, ResultBackend, Results
from greenroom.results import backends as results
from tests.runtime.cli_kit import environment

ROOT = Path(__file__).resolve().parents[2]
#: How long a dead one keeps others from pushing, in milliseconds.
TAKEN_TTL_MS = 300


class FolderBackend(ResultBackend):
    """A user's own backend: a file a result."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def _get(self, message_key: str) -> Any:
        path = self.folder / message_key
        return json.loads(path.read_text()) if path.exists() else Missing

    def _store(self, message_key: str, result: Any, ttl: int) -> None:
        fresh = self.folder / f"{message_key}.{threading.get_ident()}"
        fresh.write_text(json.dumps(result))
        fresh.rename(self.folder / message_key)


class Running(threading.local):
    """Under which storage id a thread's message was put into the queue."""

    storage_id = ""


running = Running()


class Skip(Middleware):
    """Skips what says so."""

    def before_process_message(self, broker: Any, message: Any) -> None:
        running.storage_id = message.delivery.id
        if message.args[:1] == ("skip",):
            raise SkipMessage("unwanted")


def build(folder: Path, *, own: bool = False) -> SqliteBroker:
    """The broker, with its actors. Compositions and results lie in another file; with ``own`` compositions lie in the
    broker's, and results in a backend of a user's."""
    broker = SqliteBroker(folder / "queue.db")
    if own:
        broker.add_middleware(Results(backend=FolderBackend(folder / "results"), store_results=True))
    else:
        broker.add_middleware(GroupCallbacks(SqliteBackend(folder / "store.db")))
        broker.add_middleware(Results(backend=results.SqliteBackend(folder / "store.db"), store_results=True))
    broker.add_middleware(Skip())
    broker.add_middleware(CurrentMessage())
    record = os.open(folder / f"record-{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    @actor(broker=broker, max_retries=0, throws=ValueError, max_crashes=None)
    def work(what: Any, *_more: Any) -> Any:
        os.write(record, b"start\n")
        if what == "fail":
            raise ValueError(what)
        return what

    @actor(broker=broker, max_crashes=None)
    def add(x: int, y: int = 0) -> int:
        return x + y

    @actor(broker=broker, max_crashes=None)
    def tell(*args: Any) -> None:
        progress = outcome_of(broker=broker)
        counts = None if progress is None else [progress.total, progress.left, progress.failed]
        os.write(record, f"tell {running.storage_id} {json.dumps([counts, *args])}\n".encode())

    return broker


def lines_of(folder: Path, word: str) -> list[str]:
    """What was recorded behind this word, in all processes together."""
    lines = [line for path in folder.glob("record-*") for line in path.read_text().splitlines()]
    return [line.removeprefix(word).strip() for line in lines if line.startswith(word)]


def told(folder: Path) -> list[str]:
    """What ``tell`` was called with, once for each time that it was put into the queue: a message may run twice."""
    return [line.partition(" ")[2] for line in sorted(set(lines_of(folder, "tell")))]


@contextmanager
def worker(folder: Path, *words: str, threads: int = 1, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """Runs the program; nothing of it is left afterwards."""
    path = os.pathsep.join([str(ROOT), str(Path(greenroom.__file__).parents[1])])
    line = [sys.executable, "-m", "tests.composition.elsewhere", str(folder), str(threads), *words]
    with subprocess.Popen(line, env={**environment({}), "PYTHONPATH": path, **variables}) as process:
        try:
            yield process
        finally:
            process.kill()


def main() -> None:
    """The worker program."""
    completing.TAKEN_TTL_MS = TAKEN_TTL_MS
    folder, threads, *words = sys.argv[1:]
    Worker(build(Path(folder), own="own" in words), worker_threads=int(threads)).start()
    threading.Event().wait()


if __name__ == "__main__":
    main()
