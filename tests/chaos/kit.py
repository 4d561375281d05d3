"""A program for tests that kill processes: its actors write down what happens to them, for ``history`` to judge.

``build(folder, url)`` makes it in this process; ``python -m tests.chaos.kit FOLDER URL`` runs a worker on it elsewhere.
That one is quick to start, has nobody who starts it again, and may be told by failpoints when to die.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import greenroom
from greenroom import Message, Middleware, Worker
from greenroom.brokers.engine import EngineBroker
from greenroom.core.ending import Ending
from greenroom.middleware import CurrentMessage, default_middleware
from greenroom.ports.store import Put
from tests.chaos.history import Event, Fault, Verdict, check, line_of, read_events
from tests.runtime.cli_kit import PATIENCE_S, environment, wait_until
from tests.runtime.engine_kit import is_empty, letters_in, open_broker

ROOT = Path(__file__).resolve().parents[2]
#: How the actors on threads and those on the loop are called.
KINDS = ("threads", "loop")
_histories: dict[tuple[Path, int], int] = {}


def note(folder: Path, kind: str, id: str, due_s: float = 0.0) -> None:
    """Writes an event down, with one write, to a file of this process's own."""
    pid = os.getpid()
    file = _histories.get((folder, pid))
    if file is None:
        file = os.open(folder / f"history-{pid}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        _histories[folder, pid] = file
    os.write(file, line_of(Event(kind, id, time.monotonic(), pid, due_s)))


def forget(folder: Path) -> None:
    """Closes this process's history of a folder."""
    file = _histories.pop((folder, os.getpid()), None)
    if file is not None:
        os.close(file)


class Notes(Middleware):
    """Writes down what was settled, and keeps something with each success, as a result would be."""

    blocking = False

    def __init__(self, folder: Path, *, in_step: bool) -> None:
        self._folder = folder
        self._in_step = in_step
        self._all_settled = threading.Event()
        self._all_settled.set()

    def before_process_message(self, broker: Any, message: Any) -> None:
        """In step: what ran before in this process is settled before the next one starts."""
        if self._in_step:
            assert self._all_settled.wait(PATIENCE_S)
            self._all_settled.clear()

    def after_ack(self, broker: Any, message: Any) -> None:
        if message.retry_delay_ms is None:  # else it is settled by being replaced
            note(self._folder, "ack", message.args[0])
        self._all_settled.set()

    def after_nack(self, broker: Any, message: Any) -> None:
        self._all_settled.set()

    def ending(self, broker: Any, ending: Ending) -> None:
        if broker.store is not None and ending.outcome.is_final and ending.message is not None:
            ending.keep(broker.store, Put(f"ending:{ending.message.args[0]}", b"kept"))


def build(folder: Path, url: str, *, in_step: bool = False) -> EngineBroker:
    """A broker with actors ``KIND_plain``, ``KIND_flaky`` (fails for the first time) and ``KIND_fails`` for each of
    ``KINDS``.

    Parameters:
      folder: For what is written down.
      url: Of the engine.
      in_step: See ``Notes``.
    """
    middleware = [*(policy() for policy in default_middleware), CurrentMessage(), Notes(folder, in_step=in_step)]
    broker = open_broker(url, middleware=middleware)

    def run(id: str, name: str) -> None:
        note(folder, "start", id)
        message = CurrentMessage.get_current_message()
        if name == "fails" or (name == "flaky" and not message.options.get("retries")):
            note(folder, "fail", id)
            raise ValueError("on purpose")

    def make(name: str, options: dict[str, Any]) -> None:
        @greenroom.actor(broker=broker, actor_name=f"threads_{name}", **options)
        def on_thread(id: str) -> None:
            run(id, name)
            note(folder, "end", id)

        @greenroom.actor(broker=broker, actor_name=f"loop_{name}", **options)
        async def on_loop(id: str) -> None:
            run(id, name)
            await asyncio.sleep(0)
            note(folder, "end", id)

    make("plain", {"max_retries": 0})
    make("flaky", {"max_retries": 3, "min_backoff": 1, "max_backoff": 5})
    make("fails", {"max_retries": 0})
    return broker


def send(folder: Path, broker: EngineBroker, actor: str, ids: Collection[str], delay: Any = None) -> None:
    """Sends a message for each id, in one batch, and writes that down."""
    due_s = 0.0 if delay is None else time.monotonic() + delay / 1000
    for id in ids:
        note(folder, "sent", id, due_s)
    broker.enqueue_many((Message("default", actor, (id,), {}, {}) for id in ids), delay=delay)
    for id in ids:
        note(folder, "accepted", id)


@contextmanager
def victim(folder: Path, url: str, *words: object, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker of its own, for the words of ``main``; what it writes is in ``victim.txt``."""
    with (folder / "victim.txt").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.kit", str(folder), url, *map(str, words)],
            cwd=ROOT,
            env={**environment(variables), "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src")))},
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait(PATIENCE_S)


def wait_for_death(folder: Path, process: subprocess.Popen[bytes], code: int) -> Fault:
    """Until a victim has ended as it should have. Nobody else may run anything meanwhile."""
    wait_until(lambda: process.poll() is not None, "the victim has met its failpoint", step_s=0.001)
    assert process.returncode == code, (folder / "victim.txt").read_text()
    return Fault("kill", process.pid, time.monotonic())


def kill(process: subprocess.Popen[bytes]) -> Fault:
    """Kills a victim; returns when it is dead. It counts as dead since just before: who watches it may be faster than
    we are, and run what it had before we hear of its death."""
    at_s = time.monotonic()
    process.kill()
    process.wait(PATIENCE_S)
    return Fault("kill", process.pid, at_s)


def drain(broker: EngineBroker, threads: int = 4) -> float:
    """Runs a worker here until nothing is left; for how many seconds."""
    began_s = time.monotonic()
    worker = Worker(broker, worker_threads=threads)
    worker.start()
    try:
        wait_until(lambda: is_empty(broker), "all messages have come to an end")
    finally:
        worker.stop()
    return time.monotonic() - began_s


def dead_ids(broker: EngineBroker) -> list[str]:
    """What the dead letters were about."""
    return [Message.decode(letter.body).args[0] for letter in letters_in(broker)]


def judge(folder: Path, broker: EngineBroker, *faults: Fault) -> Verdict:
    """What the history says; fails the test if a promise was broken."""
    verdict = check(read_events(folder), faults, dead_ids(broker))
    assert verdict.is_valid, str(verdict)
    return verdict


def main() -> None:
    """A worker until it is killed. The words: the folder, the engine's URL, how many threads and coroutines, 1 to run
    in step (see ``Notes``) or 0, and perhaps after how many settled messages it is to stop, well."""
    folder, url, places, in_step, *rest = sys.argv[1:]
    broker = build(Path(folder), url, in_step=in_step == "1")
    worker = Worker(broker, worker_threads=int(places), concurrency=int(places))
    worker.start()
    Path(folder, f"ready-{os.getpid()}").touch()
    enough = int(rest[0]) if rest else sys.maxsize
    while worker.finished < enough:
        threading.Event().wait(0.001 if rest else 1.0)
    worker.stop()


if __name__ == "__main__":
    main()
