"""A program on Redis for tests that trouble its server, its network and its workers.

As ``tests.chaos.kit``, which has the history and its judge. ``build(folder, url)`` makes the program in this process;
``python -m tests.chaos.redis_kit FOLDER URL ...`` runs a worker on it in another one, perhaps as if on another host.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import greenroom
from greenroom import Message, Middleware, Worker
from greenroom.brokers.engine import EngineBroker
from greenroom.brokers.redis import RedisBroker
from greenroom.clock import SystemClock
from greenroom.errors import BrokerError, BrokerFull
from greenroom.runtime import ticker
from tests.chaos.history import read_events
from tests.chaos.kit import note
from tests.runtime.cli_kit import PATIENCE_S, environment, wait_until
from tests.runtime.engine_kit import is_empty

ROOT = Path(__file__).resolve().parents[2]
#: The fast profile: how long a worker of another host may be silent, and how soon a silent server is given up.
LEASE_MS = 1000
TIMEOUT_S = 0.5
#: The same for who is not troubled: a busy machine alone is no reason to give up.
PATIENT_S = 10.0


class Acks(Middleware):
    """Writes down what was settled as done."""

    blocking = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def after_ack(self, broker: Any, message: Any) -> None:
        note(self._folder, "ack", message.args[0])


def build(
    folder: Path, url: str, *, timeout_s: float = TIMEOUT_S, from_url: bool = False, **options: Any
) -> RedisBroker:
    """A broker with actors that write down what happens to them. Each message's argument is its id in the history.

    ``plain`` and ``loop`` return at once; ``gated`` waits until the test has called ``open_gate``, as does ``stuck``,
    a coroutine that blocks its loop meanwhile; ``late`` waits at its first start for a file ``gate-`` and its id.

    Parameters:
      timeout_s: After how many seconds without an answer the server is given up.
      from_url: Whether the URL has options of ours.
      options: Of the broker.
    """
    options = {"lease_ms": LEASE_MS, "socket_timeout": timeout_s, "socket_connect_timeout": timeout_s, **options}
    options |= {"namespace": "chaos", "middleware": [Acks(folder)]}
    broker = RedisBroker.from_url(url, **options) if from_url else RedisBroker(url=url, **options)
    declare(folder, broker)
    return broker


def declare(folder: Path, broker: EngineBroker) -> None:
    """Declares the queue and the actors of ``build``."""
    broker.declare_queue("default")

    @greenroom.actor(broker=broker)
    def plain(id: str) -> None:
        note(folder, "start", id)
        note(folder, "end", id)

    @greenroom.actor(broker=broker)
    async def loop(id: str) -> None:
        note(folder, "start", id)
        await asyncio.sleep(0)
        note(folder, "end", id)

    @greenroom.actor(broker=broker)
    def gated(id: str) -> None:
        note(folder, "start", id)
        wait_until((folder / "gate").exists, "the gate is open")
        note(folder, "end", id)

    @greenroom.actor(broker=broker)
    def late(id: str) -> None:
        is_first = not starts(folder, id)
        note(folder, "start", id)
        if is_first:
            wait_until((folder / f"gate-{id}").exists, "its gate is open")
        note(folder, "end", id)

    @greenroom.actor(broker=broker)
    async def stuck(id: str) -> None:
        gated.fn(id)


def open_gate(folder: Path) -> None:
    """Lets ``gated`` and ``stuck`` return."""
    (folder / "gate").touch()


def started_worker(broker: EngineBroker, threads: int, queues: set[str] | None = None) -> Worker:
    """A worker that has started, however late a busy machine answers who gives up soon."""
    started: list[Worker] = []

    def start() -> bool:
        worker = Worker(broker, queues=queues, worker_threads=threads)
        try:
            worker.start()
        except BrokerError as e:
            if "Timeout" not in f"{type(e).__name__}: {e}":
                raise
            return False
        started.append(worker)
        return True

    wait_until(start, "a worker has started")
    return started[0]


@contextmanager
def working(broker: EngineBroker, threads: int = 4, *, queues: set[str] | None = None) -> Iterator[Worker]:
    """A worker in this process. Without ``queues`` it serves all that the broker knows, also those to come."""
    worker = started_worker(broker, threads, queues)
    try:
        yield worker
    finally:
        worker.stop(PATIENCE_S * 1000)


def send(
    folder: Path,
    broker: EngineBroker,
    ids: Collection[str],
    actor: str = "plain",
    *,
    queue: str = "default",
    **options: Any,
) -> int:
    """Sends a message for each id, one after the other, and writes down what came of it: accepted, refused (it is
    certain that it was not taken), or neither. Returns how many were accepted."""
    accepted = 0
    for id in ids:
        note(folder, "sent", id)
        try:
            broker.enqueue(Message(queue, actor, (id,), {}, {}), **options)
        except BrokerFull:
            note(folder, "refused", id)
        except BrokerError:
            continue
        else:
            note(folder, "accepted", id)
            accepted += 1
    return accepted


def send_surely(folder: Path, broker: EngineBroker, name: str) -> None:
    """Sends until a message is accepted, each under an id of its own that begins with ``name``. What a busy machine
    answers too late costs a message that may have been taken, and a connection."""
    tries = itertools.count()
    wait_until(lambda: send(folder, broker, [f"{name}-try-{next(tries)}"]), f"{name} is accepted")


class Sender:
    """Sends in a thread of its own, from its start until it is told to stop. ``count`` tells how many, ``accepted`` how
    many of them were."""

    def __init__(self, folder: Path, broker: EngineBroker, *, per_s: float = 300) -> None:
        self.count = self.accepted = 0
        self._folder = folder
        self._broker = broker
        self._step_s = 1 / per_s
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._main)

    def _main(self) -> None:
        while not self._enough.wait(self._step_s):
            actor = "loop" if self.count % 2 else "plain"
            self.accepted += send(self._folder, self._broker, [f"m{self.count}"], actor)
            self.count += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_e: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Sends no more. May be called again."""
        self._enough.set()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the sender is stuck"

    def wait_for_more(self, count: int) -> None:
        """Until so many more were accepted."""
        goal = self.accepted + count
        wait_until(lambda: self.accepted >= goal, f"{goal} messages were accepted")


def count(folder: Path, kind: str) -> int:
    """How many events of a kind there are."""
    return sum(event.kind == kind for event in read_events(folder))


def starts(folder: Path, id: str) -> list[int]:
    """The processes in which a message was started, in order."""
    events = sorted(read_events(folder), key=lambda event: event.at_s)
    return [event.pid for event in events if event.kind == "start" and event.id == id]


def wait_until_started(folder: Path, *ids: str, times: int = 1) -> None:
    """Until each of these has been started so often."""
    wait_until(lambda: all(len(starts(folder, id)) >= times for id in ids), f"{ids} were started {times} times")


def wait_until_empty(broker: EngineBroker) -> None:
    """Until nothing is ready, delayed or running, as far as the server can be asked."""

    def is_done() -> bool:
        with suppress(BrokerError):
            return is_empty(broker)
        return False

    wait_until(is_done, "all messages have come to an end")


@contextmanager
def worker_process(
    folder: Path,
    url: str,
    *,
    threads: int = 2,
    host: str = "other",
    queue: str = "default",
    offset_ms: int = 0,
    lease_ms: int = LEASE_MS,
    kit: str = "redis_kit",
) -> Iterator[subprocess.Popen[bytes]]:
    """A worker in a process of its own; what it logs is in ``<host>.txt``.

    Parameters:
      host: Workers of different hosts do not see each other die.
      queue: The one that it serves.
      offset_ms: By how much its wall clock is wrong.
      lease_ms: How long it may be silent, on Redis.
      kit: The module beside this one that it runs.
    """
    (folder / host).mkdir(exist_ok=True, mode=0o700)
    variables = {"GREENROOM_RUN_FOLDER": str(folder / host)}
    words = [folder, url, threads, queue, offset_ms, lease_ms]
    with (folder / f"{host}.txt").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", f"tests.chaos.{kit}", *map(str, words)],
            cwd=ROOT,
            env={**environment(variables), "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src")))},
            stdout=log,
            stderr=log,
        )
    try:
        wait_until((folder / f"ready-{process.pid}").exists, "the worker is ready")
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait(PATIENCE_S)


def beat_faster(set_attribute: Callable[[object, str, object], object] = setattr) -> None:
    """Leases of a second need to be renewed more often than those of 15."""
    set_attribute(ticker, "EXTEND_EVERY_S", 0.2)
    set_attribute(ticker, "LONGEST_INTERVAL_S", 0.1)


def shift_clock(offset_ms: Callable[[], int], set_attribute: Callable[[object, str, object], object] = setattr) -> None:
    """From now on the wall clock of this process is wrong by so much."""
    right = SystemClock.now_ms
    set_attribute(SystemClock, "now_ms", lambda self: right(self) + offset_ms())


def main(build: Callable[[Path, str, int], EngineBroker]) -> None:
    """A worker until it is killed, on the broker that ``build`` makes of a folder, a URL and the length of a lease."""
    folder, url, threads, queue, offset_ms, lease_ms = sys.argv[1:]
    beat_faster()
    shift_clock(lambda: int(offset_ms))
    broker = build(Path(folder), url, int(lease_ms))
    broker.declare_queue(queue)
    worker = Worker(broker, queues=[queue], worker_threads=int(threads))
    worker.start()
    Path(folder, f"ready-{os.getpid()}").touch()
    threading.Event().wait()


if __name__ == "__main__":
    main(lambda folder, url, lease_ms: build(folder, url, lease_ms=lease_ms))
