"""A storm: real senders and real workers on one queue file, Redis or RabbitMQ, and somebody who kills, stalls, stops
and reloads them, and troubles the server.

``Storm(folder, place, seed).run()`` is one of them; all that is random in it comes from its seed.
``python -m tests.chaos.storm --minutes 20 --engine redis`` (``make soak ENGINE=redis``) runs one after the other until
time is up, and stops at the first that breaks a promise, with its seed and the folder with all that was written down.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import count
from pathlib import Path
from typing import TypeVar

from greenroom import Message
from scripts.servers import Nest, RabbitMQ, Redis
from tests.chaos.history import Event, Fault, Verdict, check, line_of, read_events
from tests.chaos.places import Place, RabbitmqPlace, RedisPlace
from tests.runtime.cli_kit import Program, Running, is_running, wait_until
from tests.runtime.engine_kit import letters_in, open_broker

S = TypeVar("S", Redis, RabbitMQ)

#: What actors write down: each line with one write, to a file of their process's own that is opened for appending.
ACTORS = """
import asyncio, time

history = {}

def note(kind, id):
    pid = os.getpid()
    if pid not in history:
        history[pid] = os.open(HERE / f"history-{pid}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(history[pid], f"{kind} {id} {time.monotonic():.6f} {pid} 0\\n".encode())

class Notes(greenroom.Middleware):
    def after_ack(self, broker, message):
        if message.retry_delay_ms is None:  # else it is settled by being replaced
            note("ack", message.args[0])

broker.add_middleware(Notes())

@greenroom.actor(max_retries=0)
def plain(id, ms):
    note("start", id)
    threading.Event().wait(ms / 1000)
    note("end", id)

@greenroom.actor(max_retries=0)
async def on_loop(id, ms):
    note("start", id)
    await asyncio.sleep(ms / 1000)
    note("end", id)

@greenroom.actor(max_retries=3, min_backoff=10, max_backoff=50)
def fails_once(id, ms):
    note("start", id)
    try:
        (HERE / f"failed-{id}").touch(exist_ok=False)
    except FileExistsError:
        note("end", id)
    else:
        note("fail", id)
        raise ValueError("for the first time")
"""

#: What can happen to workers, by the names of the methods ``_<kind>``.
WORKERS = ("kill_child", "kill_child", "kill_parent", "stall_child", "reload", "replace")
#: How many worker programs there are, with how many processes each.
PROGRAMS = 2
PROCESSES = 2
#: Messages come in batches, and this many seconds lie between two of them at most.
BATCH = 50
BATCH_PAUSE_S = 0.1
#: Of a quarter of them.
LONGEST_DELAY_MS = 800


class Storm:
    """One storm. Use it once.

    Parameters:
      folder: Everything is written there.
      place: Where the messages are.
      seed: What it is made of.
      faults: How many things go wrong: with workers, each as often as ``WORKERS`` names it, and with the place.
    """

    def __init__(self, folder: Path, place: Place, seed: int, *, faults: int = 6) -> None:
        self._random = random.Random(seed)
        self._place = place
        self._program = Program(folder, place.url).write(ACTORS)
        place.prepare(LONGEST_DELAY_MS)
        self._broker = open_broker(place.url)
        self._workers: list[Running] = []
        self._to_come = faults
        self.faults: list[Fault] = []
        self.happened: Counter[str] = Counter()
        self._sent = 0
        self._calm = threading.Event()

    def run(self) -> Verdict:
        """Runs it, waits until all messages have come to an end, and judges."""
        with ExitStack() as stack:
            stack.callback(self._broker.close)
            for _ in range(PROGRAMS):
                self._start(stack)
            sender = threading.Thread(target=self._send)
            sender.start()
            try:
                for _ in range(self._to_come):
                    self._calm.wait(self._random.uniform(0.05, 0.6))
                    kind = self._random.choice(WORKERS + self._place.kinds)
                    self.happened[kind] += 1
                    if kind in self._place.kinds:
                        self._trouble(kind)
                    else:
                        getattr(self, f"_{kind}")(stack)
            finally:
                self._calm.set()
                sender.join()
            wait_until(self._is_quiet, "all messages have come to an end", patience_s=60.0)
            killed = {fault.pid for fault in self.faults}
            wait_until(lambda: self._are_forgotten(killed), "the dead are forgotten")
            for worker in self._workers:
                worker.process.send_signal(signal.SIGTERM)
            for worker in self._workers:
                assert worker.wait() == 0, worker.text
            dead = [Message.decode(letter.body).args[0] for letter in letters_in(self._broker)]
            self._place.check_nothing_is_left(self._broker)
        return check(read_events(self._program.folder), self.faults, dead)

    def _is_quiet(self) -> bool:
        try:
            return self._place.is_quiet(self._broker, self._program.folder)
        except self._place.refusals:  # a connection that was cut, and has not been used since
            return False

    def _are_forgotten(self, pids: set[int]) -> bool:
        try:
            return pids.isdisjoint(self._place.owners(self._broker))
        except self._place.refusals:
            return False

    # --- sending

    def _send(self) -> None:
        random_ = random.Random(self._random.random())
        notes = os.open(self._program.folder / "history-sender", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            while not self._calm.is_set():
                self._send_batch(random_, notes)
                self._calm.wait(random_.uniform(0, BATCH_PAUSE_S))
        finally:
            os.close(notes)

    def _send_batch(self, random_: random.Random, notes: int) -> None:
        delay_ms = random_.choice((None, None, None, random_.randint(1, LONGEST_DELAY_MS)))
        due_s = 0.0 if delay_ms is None else time.monotonic() + delay_ms / 1000
        ids = [f"m{n}" for n in range(self._sent, self._sent + BATCH)]
        self._sent += BATCH
        messages = [
            Message("default", random_.choice(("plain", "plain", "on_loop", "fails_once")), (id, n % 7), {}, {})
            for n, id in enumerate(ids)
        ]
        now_s = time.monotonic()
        os.write(notes, b"".join(line_of(Event("sent", id, now_s, due_s=due_s)) for id in ids))
        try:
            self._broker.enqueue_many(messages, delay=delay_ms)
        except self._place.refusals:
            return  # nobody knows which of them arrived
        now_s = time.monotonic()
        os.write(notes, b"".join(line_of(Event("accepted", id, now_s)) for id in ids))

    # --- what goes wrong

    def _trouble(self, kind: str) -> None:
        before, from_s = self._children(), time.monotonic()
        self._place.trouble(kind)
        self.faults += self._place.troubled({*before, *self._children()}, from_s)

    def _start(self, stack: ExitStack) -> None:
        words = ("worker", "app", "-p", str(PROCESSES), "-t", str(self._random.randint(1, 4)))
        log = f"log-{len(list(self._program.folder.glob('log-*')))}.txt"
        self._workers.append(stack.enter_context(self._program.start(*words, log=log)).wait_until_ready())

    def _children(self) -> list[int]:
        return sorted(pid for worker in self._workers for pid in worker.children() if is_running(pid))

    def _some_child(self) -> int | None:
        children = self._children()
        return self._random.choice(children) if children else None

    def _kill_child(self, _stack: ExitStack) -> None:
        pid = self._some_child()
        if pid is not None:
            self.faults += self._place.killed(pid, time.monotonic())
            os.kill(pid, signal.SIGKILL)

    def _kill_parent(self, stack: ExitStack) -> None:
        worker = self._workers.pop(self._random.randrange(len(self._workers)))
        worker.process.send_signal(signal.SIGSTOP)  # so that it starts no child that we do not know of
        children = worker.children()
        now_s = time.monotonic()
        self.faults += [fault for pid in children for fault in self._place.killed(pid, now_s)]
        worker.process.kill()
        wait_until(lambda: not any(map(is_running, children)), "the children have died with their parent")
        self._start(stack)

    def _stall_child(self, _stack: ExitStack) -> None:
        pid = self._some_child()
        if pid is not None:
            os.kill(pid, signal.SIGSTOP)
            threading.Event().wait(self._random.uniform(0.2, 1.5))
            os.kill(pid, signal.SIGCONT)

    def _reload(self, _stack: ExitStack) -> None:
        self._random.choice(self._workers).process.send_signal(signal.SIGHUP)

    def _replace(self, stack: ExitStack) -> None:
        worker = self._workers.pop(self._random.randrange(len(self._workers)))
        worker.process.send_signal(signal.SIGTERM)
        self._start(stack)
        assert worker.wait() == 0, worker.text


def weather(minutes: float, seed: int, place_of: Callable[[Path], Place], tell: Callable[[str], object]) -> int:
    """Storm after storm, each in an empty place; returns an exit code."""
    deadline_s = time.monotonic() + minutes * 60
    while time.monotonic() < deadline_s:
        folder = Path(tempfile.mkdtemp(prefix=f"storm-{seed}-"))
        storm = Storm(folder, place_of(folder), seed, faults=20)
        try:
            verdict = storm.run()
        except AssertionError as e:
            tell(f"seed {seed}: {e}\nEverything is in {folder}")
            return 1
        tell(f"seed {seed}: {verdict}  [{', '.join(f'{kind} {n}' for kind, n in sorted(storm.happened.items()))}]")
        if not verdict.is_valid:
            tell(f"Everything is in {folder}")
            return 1
        for path in folder.iterdir():
            path.unlink() if path.is_file() else None
        seed += 1
    return 0


def in_a_file(folder: Path) -> Place:
    """A queue file of the storm's own."""
    return Place(f"sqlite:///{folder / 'queue.db'}")


@contextmanager
def on_redis() -> Iterator[Callable[[Path], Place]]:
    """A server for all storms, emptied for each."""

    def place_of(folder: Path) -> Place:
        server.cli("FLUSHALL")
        return RedisPlace(server)

    with running(Redis) as server:
        yield place_of


@contextmanager
def on_rabbitmq() -> Iterator[Callable[[Path], Place]]:
    """A server for all storms, with a virtual host for each."""
    numbers = count()

    def place_of(folder: Path) -> Place:
        vhost = f"storm-{next(numbers)}"
        server.add_vhosts([vhost])
        return RabbitmqPlace(server, vhost, is_ours=True)

    with running(RabbitMQ) as server:
        yield place_of


@contextmanager
def running(kind: type[S]) -> Iterator[S]:
    """A server, and a folder for the files that processes keep that use it."""
    with tempfile.TemporaryDirectory(prefix=f"storm-{kind.kind}-") as folder, Nest(Path(folder)) as nest:
        os.environ["XDG_RUNTIME_DIR"] = folder
        server = kind(nest.folder / kind.kind)
        nest.own(server)
        server.start()
        yield server


#: Where storms can be.
PLACES = {"sqlite": partial(nullcontext, in_a_file), "redis": on_redis, "rabbitmq": on_rabbitmq}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.storm", description="Storms, until time is up.")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=1, help="of the first storm; the next ones count on")
    parser.add_argument("--engine", choices=PLACES, default="sqlite", help="redis, rabbitmq: on a server of its own")
    args = parser.parse_args()
    with PLACES[args.engine]() as place_of:
        return weather(args.minutes, args.seed, place_of, partial(print, flush=True))


if __name__ == "__main__":
    sys.exit(main())
