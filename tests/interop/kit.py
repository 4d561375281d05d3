"""One program for two libraries: the same source runs on the real Dramatiq and on Greenroom, each as processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import redis

from tests.runtime.cli_kit import wait_until

#: After how long without a sign of life a process of either kind is dead, in milliseconds.
HEARTBEAT_TIMEOUT_MS = 3_000

#: `{library}`, `{url}` and `{options}` are filled in. An actor notes each run with the process that it ran in.
HEAD = """
import os, sys, time
import redis
import {library} as dramatiq
from {library}.brokers.redis import RedisBroker
from {library}.middleware import GroupCallbacks
from {library}.results import Results
from {library}.results.backends import RedisBackend
from {library}.rate_limits.backends import RedisBackend as LimitsBackend

URL = "{url}"
notes = redis.Redis.from_url(URL, db=1)
broker = RedisBroker(url=URL, heartbeat_timeout={timeout}, {options})
broker.add_middleware(Results(backend=RedisBackend(url=URL, socket_timeout=30)))
broker.add_middleware(GroupCallbacks(LimitsBackend(url=URL)))
dramatiq.set_broker(broker)

def note(name):
    notes.rpush("runs", f"{{name}}={library}:{{os.getpid()}}:{{time.time()}}")
"""

ACTORS = """
@dramatiq.actor
def run(name, seconds=0):
    note(name)
    time.sleep(seconds)

@dramatiq.actor(max_retries=2, min_backoff=50, max_backoff=100)
def fail_first(name):
    note(name)
    if notes.incr("tries:" + name) == 1:
        raise RuntimeError("the first time")

@dramatiq.actor(max_retries=1, min_backoff=50, max_backoff=100, store_results=True)
def fail(name):
    note(name)
    raise ValueError("no luck")

@dramatiq.actor(store_results=True)
def add(x, y):
    note(f"add-{x}-{y}")
    return x + y

@dramatiq.actor(store_results=True)
def double(x):
    note(f"double-{x}")
    return 2 * x
"""


@dataclass
class Run:
    """A run of an actor, and the process that it was in."""

    name: str
    library: str
    pid: int
    at: float


@dataclass
class Process:
    """A command in a group of its own, so that it can be killed with its children."""

    popen: subprocess.Popen[bytes]
    log: Path

    @property
    def text(self) -> str:
        """What it has written so far."""
        return self.log.read_text("utf-8", "replace")

    def wait_until_ready(self) -> Process:
        """Waits until its worker process runs."""
        wait_until(lambda: "Worker process is ready" in self.text, "the worker is ready")
        return self

    def kill(self) -> set[int]:
        """Kills it and its children, and returns who they were. Those that have been stopped start no others."""
        os.killpg(self.popen.pid, signal.SIGSTOP)
        pids = self._pids()
        self.end(signal.SIGKILL)
        return pids

    def _pids(self) -> set[int]:
        pid = self.popen.pid
        return {pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())}

    def end(self, number: int) -> None:
        """Ends it and its children by a signal, and waits for that."""
        if self.popen.poll() is None:
            if number == signal.SIGKILL:
                os.killpg(self.popen.pid, number)
            else:
                self.popen.send_signal(number)
        self.popen.wait(30)


@dataclass
class Fleet:
    """The program in both libraries, and the processes that run it."""

    folder: Path
    url: str
    processes: list[Process] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=count)

    def write(self, *, wire: bool = False, actors: str = ACTORS) -> Fleet:
        """Writes the program: ``theirs.py`` and ``ours.py``."""
        (self.folder / "theirs.py").write_text(self.head("dramatiq", wire=False) + actors)
        (self.folder / "ours.py").write_text(self.head("greenroom", wire=wire) + actors)
        return self

    def head(self, library: str, *, wire: bool) -> str:
        """How the program of a library begins."""
        options = "maintenance_chance=1_000_000" if library == "dramatiq" else 'wire="dramatiq"' if wire else ""
        return HEAD.format(library=library, url=self.url, timeout=HEARTBEAT_TIMEOUT_MS, options=options)

    def start(self, module: str, *, threads: int = 4) -> Process:
        """Starts a worker with one process: of ``theirs`` or of ``ours``."""
        command = {"theirs": ["dramatiq"], "ours": ["greenroom", "worker"]}[module]
        return self._spawn(["-m", *command, module, "--processes", "1", "--threads", str(threads)])

    def send(self, module: str, code: str) -> str:
        """Runs code in the program, in a process of its own; returns what it has printed."""
        process = self._spawn(["-c", f"from {module} import *\n{code}"])
        assert process.popen.wait(30) == 0, process.text
        return process.text

    def _spawn(self, arguments: list[str]) -> Process:
        log = self.folder / f"log-{next(self.numbers)}"  # threads of a test may be here at the same time
        with log.open("wb") as file:
            popen = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=self.folder,
                env={**os.environ, "dramatiq_worker_timeout": "200"},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        process = Process(popen, log)
        self.processes.append(process)
        return process

    # --- what has happened

    @property
    def client(self) -> redis.Redis:
        """Where the queues are."""
        return redis.Redis.from_url(self.url, decode_responses=True)

    def runs(self) -> list[Run]:
        """All runs so far."""
        with redis.Redis.from_url(self.url, db=1, decode_responses=True) as client:
            found = []
            for text in client.lrange("runs", 0, -1):
                name, _, who = text.rpartition("=")
                library, pid, at = who.split(":")
                found.append(Run(name, library, int(pid), float(at)))
            return found

    def by_name(self) -> dict[str, list[Run]]:
        """All runs so far, by what has run."""
        found = defaultdict(list)
        for run in self.runs():
            found[run.name].append(run)
        return found

    def wait_for(self, names: set[str]) -> None:
        """Waits until all of these have run."""
        wait_until(lambda: names <= self.by_name().keys(), "all have run")

    def wait_for_both(self) -> None:
        """Sends until workers of both libraries have run something: one that is ready may be slow to begin."""
        more = count()

        def have_both() -> bool:
            if {run.library for run in self.runs()} == {"dramatiq", "greenroom"}:
                return True
            self.send("theirs", f"for i in range(20): run.send(f'more-{next(more)}-{{i}}', 0.03)")
            return False

        wait_until(have_both, "workers of both libraries have run something", step_s=0.1)

    def wait_for_retries(self) -> None:
        """Waits until what fails has run twice. What is delayed may be nowhere for a moment when it is due."""
        wait_until(
            lambda: all(len(self.by_name()[name]) >= 2 for name in ("again", "dead")), "what has failed runs again"
        )

    def is_settled(self) -> bool:
        """Whether nothing waits, is delayed or is held at this moment, in either layout."""
        with self.client as client, client.pipeline(transaction=True) as moment:
            for key in ("dramatiq:default.msgs", "dramatiq:default.DQ.msgs", "{dramatiq}:g1:m:default"):
                moment.hlen(key)
            return not any(moment.execute())

    def wait_until_settled(self) -> None:
        """Waits until nothing waits, is delayed or is held."""
        try:
            wait_until(self.is_settled, "all is settled", step_s=0.02)
        except AssertionError as e:
            raise AssertionError(f"{e}; left are: {self.left()}") from None

    def left(self) -> dict[str, object]:
        """What keeps it from being settled: all of both layouts, but for dead letters."""
        readers = {"hash": "hgetall", "list": "lrange", "set": "smembers", "zset": "zrange", "string": "get"}
        found: dict[str, object] = {}
        with self.client as client:
            for key in client.scan_iter("*dramatiq*"):
                kind = client.type(key)
                span = (0, 20) if kind in ("list", "zset") else ()
                if ".XQ" not in key:
                    found[key] = getattr(client, readers[kind])(key, *span) if kind in readers else kind
        return found

    def end(self) -> None:
        """Ends all processes."""
        for process in self.processes:
            process.end(signal.SIGKILL)


@contextmanager
def fleet_in(folder: Path, url: str) -> Iterator[Fleet]:
    """A fleet whose processes end with the test."""
    fleet = Fleet(folder, url)
    try:
        yield fleet
    finally:
        fleet.end()
