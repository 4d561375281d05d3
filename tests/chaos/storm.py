"""A storm: real senders and real workers on one queue file or one Redis server, and somebody who kills, stalls, stops
and reloads them.

``Storm(folder, url, seed).run()`` is one of them; all that is random in it comes from its seed.
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
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from greenroom import Message
from scripts.servers import Nest, Redis
from tests.chaos.history import Event, Fault, Verdict, check, line_of, read_events
from tests.runtime.cli_kit import Program, Running, is_running, wait_until
from tests.runtime.engine_kit import ENGINES, check_nothing_is_left, is_empty, letters_in, open_broker

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

#: How many worker programs there are, with how many processes each.
PROGRAMS = 2
PROCESSES = 2
#: Messages come in batches, and this many seconds lie between two of them at most.
BATCH = 50
BATCH_PAUSE_S = 0.1


class Storm:
    """One storm. Use it once.

    Parameters:
      folder: Everything is written there.
      url: Of the engine.
      seed: What it is made of.
      faults: How many things go wrong.
      kinds: Which, by the names of the methods ``_<kind>``; each as often as it is named.
    """

    def __init__(
        self, folder: Path, url: str, seed: int, *, faults: int = 6, kinds: tuple[str, ...] | None = None
    ) -> None:
        self._random = random.Random(seed)
        self._program = Program(folder, url).write(ACTORS)
        self._broker = open_broker(url)
        self._workers: list[Running] = []
        self._to_come = faults
        self._kinds = kinds or ("kill_child", "kill_child", "kill_parent", "stall_child", "reload", "replace")
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
                    kind = self._random.choice(self._kinds)
                    self.happened[kind] += 1
                    getattr(self, f"_{kind}")(stack)
            finally:
                self._calm.set()
                sender.join()
            wait_until(lambda: is_empty(self._broker), "all messages have come to an end")
            for worker in self._workers:
                worker.process.send_signal(signal.SIGTERM)
            for worker in self._workers:
                assert worker.wait() == 0, worker.text
            dead = [Message.decode(letter.body).args[0] for letter in letters_in(self._broker)]
            check_nothing_is_left(self._broker)
        return check(read_events(self._program.folder), self.faults, dead)

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
        delay_ms = random_.choice((None, None, None, random_.randint(1, 800)))
        due_s = 0.0 if delay_ms is None else time.monotonic() + delay_ms / 1000
        ids = [f"m{n}" for n in range(self._sent, self._sent + BATCH)]
        self._sent += BATCH
        messages = [
            Message("default", random_.choice(("plain", "plain", "on_loop", "fails_once")), (id, n % 7), {}, {})
            for n, id in enumerate(ids)
        ]
        now_s = time.monotonic()
        os.write(notes, b"".join(line_of(Event("sent", id, now_s, due_s=due_s)) for id in ids))
        self._broker.enqueue_many(messages, delay=delay_ms)
        now_s = time.monotonic()
        os.write(notes, b"".join(line_of(Event("accepted", id, now_s)) for id in ids))

    # --- what goes wrong

    def _start(self, stack: ExitStack) -> None:
        words = ("worker", "app", "-p", str(PROCESSES), "-t", str(self._random.randint(1, 4)))
        log = f"log-{len(list(self._program.folder.glob('log-*')))}.txt"
        self._workers.append(stack.enter_context(self._program.start(*words, log=log)).wait_until_ready())

    def _some_child(self) -> int | None:
        children = [pid for worker in self._workers for pid in worker.children() if is_running(pid)]
        return self._random.choice(sorted(children)) if children else None

    def _kill(self, pid: int) -> None:
        self.faults.append(Fault("kill", pid, time.monotonic()))
        os.kill(pid, signal.SIGKILL)

    def _kill_child(self, _stack: ExitStack) -> None:
        pid = self._some_child()
        if pid is not None:
            self._kill(pid)

    def _kill_parent(self, stack: ExitStack) -> None:
        worker = self._workers.pop(self._random.randrange(len(self._workers)))
        children = worker.children()
        now_s = time.monotonic()
        self.faults += [Fault("kill", pid, now_s) for pid in children]
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


def weather(minutes: float, seed: int, server: Redis | None, tell: Callable[[str], object]) -> int:
    """Storm after storm, in files or on a server; returns an exit code."""
    deadline_s = time.monotonic() + minutes * 60
    while time.monotonic() < deadline_s:
        folder = Path(tempfile.mkdtemp(prefix=f"storm-{seed}-"))
        if server is not None:
            server.cli("FLUSHALL")
        storm = Storm(folder, f"sqlite:///{folder / 'queue.db'}" if server is None else server.url, seed, faults=20)
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


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.storm", description="Storms, until time is up.")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=1, help="of the first storm; the next ones count on")
    parser.add_argument("--engine", choices=ENGINES, default="sqlite", help="redis starts a server of its own")
    args = parser.parse_args()
    tell = partial(print, flush=True)
    if args.engine == "sqlite":
        return weather(args.minutes, args.seed, None, tell)
    with tempfile.TemporaryDirectory(prefix="storm-redis-") as folder, Nest(Path(folder)) as nest:
        os.environ["XDG_RUNTIME_DIR"] = folder
        server = Redis(nest.folder / "redis")
        nest.own(server)
        server.start()
        return weather(args.minutes, args.seed, server, tell)


if __name__ == "__main__":
    sys.exit(main())
