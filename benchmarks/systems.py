"""The systems that are measured, as command lines: Greenroom, Huey and the prototype."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .harness import CannotRun, Options, Skipped
from .peers.environment import peer_python
from .processes import Process, running
from .recorder import FOLDER_VARIABLE

ROOT = Path(__file__).resolve().parent.parent
PRODUCER_LIMIT_S = 180


@dataclass(frozen=True, slots=True)
class System:
    """One program under measurement. ``worker`` makes the command line from processes and threads."""

    name: str
    app: str
    python: str
    worker: Callable[[int, int], list[str]]
    paths: tuple[Path, ...] = (ROOT, ROOT / "src")
    version: str = field(default="", compare=False)
    settings: Mapping[str, str] = field(default_factory=dict, compare=False)

    def environment(self, folder: Path) -> dict[str, str]:
        """The environment of all its processes: the caller's, without settings that would change the measurement."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("GREENROOM_", "PYTHON"))}
        return {
            **kept,
            "PYTHONPATH": os.pathsep.join(map(str, self.paths)),
            FOLDER_VARIABLE: str(folder),
            **self.settings,
        }

    def producer(self, command: str, actor: str, count: int, *options: object) -> list[str]:
        """The command line of a sender, see ``producer.py``."""
        words = [self.python, "-m", "benchmarks.producer", self.app, command, actor, count, *options]
        return list(map(str, words))

    def produce(self, folder: Path, command: str, actor: str, count: int, *options: object) -> dict[str, Any]:
        """Runs a sender to its end; its answer."""
        line = self.producer(command, actor, count, *options)
        found: dict[str, Any] = answer(f"{self.name} {command}", line, self.environment(folder), folder)
        return found

    def work(self, folder: Path, processes: int = 1, threads: int = 8) -> AbstractContextManager[Process]:
        """Worker processes for the length of a block."""
        line = self.worker(processes, threads)
        return running(line, self.environment(folder), folder, f"{self.name}-worker")

    def flood(self, folder: Path, chunk: int, backlog: int) -> Process:
        """A sender that does not stop by itself for a long time."""
        line = self.producer("flood", "task", chunk, "--backlog", backlog, "--seconds", 120)
        return Process(line, self.environment(folder), folder, f"{self.name}-flood")


def answer(name: str, line: Sequence[str], environment: dict[str, str], folder: Path) -> Any:
    """Runs a command that prints JSON in its last line; what that says."""
    try:
        done = subprocess.run(
            line, env=environment, cwd=folder, capture_output=True, text=True, timeout=PRODUCER_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise CannotRun(f"{name} took more than {PRODUCER_LIMIT_S} s") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no output"]
        raise CannotRun(f"{name} ended with {done.returncode}: {lines[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def greenroom(name: str = "greenroom", app: str = "benchmarks.peers.greenroom_app") -> System:
    """Greenroom as it lies in this repository, by its own command line."""

    def worker(processes: int, threads: int) -> list[str]:
        return [sys.executable, "-m", "greenroom", "worker", app, "-p", str(processes), "-t", str(threads)]

    return System(name, app, sys.executable, worker)


def greenroom_with_results() -> System:
    """The same, with every result kept."""
    return greenroom("results", "benchmarks.peers.greenroom_results_app")


@functools.cache
def huey(poll_s: float = 0.01) -> System:
    """Huey in its own environment: quiet, no periodic tasks, no health check, one poll each ``poll_s`` when idle."""
    python, version = peer_python("huey")
    app = "benchmarks.peers.huey_app"

    def worker(processes: int, threads: int) -> list[str]:
        if processes != 1:
            raise CannotRun("Huey's consumer with threads is one process")
        line = f"-m huey.bin.huey_consumer {app}.huey -k thread -w {threads} -q -n -C -g TERM"
        return [python, *line.split(), "-d", str(poll_s), "-m", str(poll_s), "-b", "1"]

    return System("huey", app, python, worker, (ROOT,), version)


def networked(library: str, url: str, **settings: str) -> System:
    """Greenroom or Dramatiq, in this environment and by its own command line, on the server at ``url``."""
    app = "benchmarks.peers.networked_app"

    def worker(processes: int, threads: int) -> list[str]:
        return [sys.executable, "-m", library, app, "-p", str(processes), "-t", str(threads)]

    known = {"BENCH_LIBRARY": library, "BENCH_URL": url, **settings}
    return System(library, app, sys.executable, worker, version=version(library), settings=known)


def bare_pika(url: str) -> System:
    """A publish loop of pika's own, for sends alone."""
    app = "benchmarks.peers.pika_app"
    settings = {"BENCH_URL": url}
    return System("pika", app, sys.executable, _no_worker, version=version("pika"), settings=settings)


def _no_worker(processes: int, threads: int) -> list[str]:
    raise CannotRun("this peer only sends")


def celery(url: str) -> System:
    """Celery in the environment of the peers, with a pool of threads."""
    python, version = peer_python("celery")
    app = "benchmarks.peers.celery_app"

    def worker(processes: int, threads: int) -> list[str]:
        line = f"-m celery -A {app} worker -P threads -c {threads} --without-gossip --without-mingle -l error"
        return [python, *line.split(), "--without-heartbeat"]

    return System("celery", app, python, worker, (ROOT,), version, {"BENCH_URL": url})


def taskiq(url: str) -> System:
    """taskiq in the environment of the peers."""
    python, version = peer_python("taskiq")
    app = "benchmarks.peers.taskiq_app"

    def worker(processes: int, threads: int) -> list[str]:
        return [python, *f"-m taskiq worker {app}:broker -w {processes} --max-async-tasks 100".split()]

    return System("taskiq", app, python, worker, (ROOT,), version, {"BENCH_URL": url})


def prototype(options: Options, **settings: str) -> System:
    """The prototype in the folder that the command line or ``BENCH_PROTOTYPE`` names; settings choose its engine."""
    folder = options.prototype
    if folder is None:
        raise Skipped("no prototype: give its folder by --prototype or BENCH_PROTOTYPE")
    if not (folder / "runtime.py").is_file():
        raise CannotRun(f"{folder} holds no prototype (no runtime.py)")
    app = "benchmarks.peers.prototype_app"
    return System(
        "prototype",
        app,
        sys.executable,
        lambda processes, threads: [sys.executable, "-m", app],
        (ROOT, folder),
        settings=settings,
    )
