"""Runs the real command on a program in a folder of its own, and waits for what it does."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import greenroom
from greenroom import Message
from greenroom.brokers import from_url
from greenroom.ports.admin import Peeked

#: Seconds after which a wait has failed. Generous: only broken code waits so long.
PATIENCE_S = 30.0

#: How every program of these tests begins. `wait_for` blocks an actor until the test lets it go.
HEAD = """
import os, pathlib, threading
import greenroom
from greenroom.brokers.sqlite import SqliteBroker

HERE = pathlib.Path(__file__).parent
broker = SqliteBroker(HERE / "queue.db")
greenroom.set_broker(broker)

def mark(name):
    unfinished = HERE / f"unfinished-{os.getpid()}-{threading.get_ident()}"
    unfinished.write_text(str(os.getpid()))
    unfinished.rename(HERE / f"mark-{name}")

def wait_for(name):
    while not (HERE / f"mark-{name}").exists():
        threading.Event().wait(0.005)
"""

#: How the head makes its broker.
IN_A_FILE = 'SqliteBroker(HERE / "queue.db")'


def wait_until(
    condition: Callable[[], object], what: str, patience_s: float = PATIENCE_S, step_s: float = 0.005
) -> None:
    """Returns once the condition holds; fails the test if it does not in time. The last look begins when the time is
    over, however late this process gets to run."""
    deadline = time.monotonic() + patience_s
    is_over = False
    while not condition():
        assert not is_over, f"waited {patience_s} s in vain until {what}"
        threading.Event().wait(step_s)
        is_over = time.monotonic() >= deadline


@dataclass
class Running:
    """A command that runs."""

    process: subprocess.Popen[str]
    log: Path

    @property
    def text(self) -> str:
        """What it has written to standard error so far."""
        return self.log.read_text()

    def wait_for_text(self, pattern: str) -> None:
        """Waits until standard error matches ``pattern``."""
        wait_until(lambda: re.search(pattern, self.text) or self.process.poll() is not None, f"{pattern!r} is logged")
        assert re.search(pattern, self.text), self.text

    def wait_until_ready(self) -> Running:
        """Waits until all workers run."""
        self.wait_for_text(r"Greenroom \S+ runs: ")
        return self

    def workers(self) -> list[int]:
        """The worker processes that have said they are ready, and live; by any start method, in the order of starts."""
        said = re.findall(
            r"\[PID (\d+)\] \[\w+\] \[greenroom\.WorkerProcess\(\d+\)\] \[INFO\] Worker .* ready", self.text
        )
        return [pid for pid in map(int, said) if is_running(pid)]

    def count(self, pattern: str) -> int:
        """How often standard error matches ``pattern`` so far."""
        return len(re.findall(pattern, self.text))

    def stop(self) -> None:
        """Has it stop, and checks that it does so well."""
        self.process.terminate()
        assert self.wait() == 0, self.text

    def children(self) -> list[int]:
        """The processes it has started itself."""
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        return self.process.wait(PATIENCE_S)


@dataclass
class Program:
    """A folder with ``app.py`` and the marks that its actors leave. ``url``: where its messages are, if they are not in
    a file there."""

    folder: Path
    url: str = ""

    def write(self, source: str, name: str = "app.py", head: str = HEAD) -> Program:
        """Writes a module of the program."""
        text = head + source
        if self.url:
            text = text.replace(IN_A_FILE, f"greenroom.brokers.from_url({self.url!r})")
        (self.folder / name).write_text(text)
        return self

    def broker(self) -> Any:
        """A broker on the program's messages, to be closed."""
        broker = from_url(self.url or f"sqlite:///{self.folder / 'queue.db'}")
        broker.declare_queue("default")
        return closing(broker)

    def send(self, actor: str, *args: object, queue: str = "default") -> None:
        """Sends a message to the program."""
        with self.broker() as broker:
            broker.declare_queue(queue)
            broker.enqueue(Message(queue, actor, args, {}, {}))

    def ready(self, queue: str) -> int:
        """How many messages of a queue wait."""
        with self.broker() as broker:
            count: int = broker.transport.counts([queue])[queue].ready
            return count

    def crashes(self) -> list[int]:
        """How many crashes each message is charged with: those that are claimed, then those that wait."""
        return [message.crashes for message in self.waiting()]

    def claims(self) -> list[int]:
        """How often each message was claimed: those that are claimed, then those that wait."""
        return [message.attempt for message in self.waiting()]

    def waiting(self) -> list[Peeked]:
        """The messages that are not done: those that are claimed, then those that wait."""
        with self.broker() as broker:
            transport = broker.transport
            return [message for queue in transport.counts() for message in transport.peek(queue, limit=1000)]

    def let_go(self, name: str) -> None:
        """Ends an actor's ``wait_for(name)``."""
        (self.folder / f"mark-{name}").touch()

    def wait_for_mark(self, name: str) -> None:
        """Waits until an actor has called ``mark(name)``."""
        wait_until(lambda: self.has_mark(name), f"an actor has left the mark {name!r}")

    def has_mark(self, name: str) -> bool:
        """Whether an actor has called ``mark(name)``."""
        return (self.folder / f"mark-{name}").exists()

    def run(self, *words: str, code: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
        """Runs ``greenroom`` with these words to its end."""
        return subprocess.run(
            command(words, code),
            cwd=self.folder,
            env=environment(variables),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    @contextmanager
    def start(
        self,
        *words: str,
        code: str = "",
        module: str = "greenroom",
        log: str = "stderr.txt",
        prefix: tuple[str, ...] = (),
        **variables: str,
    ) -> Iterator[Running]:
        """Runs ``greenroom`` with these words, in a process group of its own; nothing of it is left afterwards.

        Parameters:
          words: The command line.
          code: Run instead of ``-m greenroom``.
          module: Run instead of ``greenroom``.
          log: The file for standard error.
          prefix: Words before the command line: a command that runs it.
          variables: Put into the environment.
        """
        log_file = self.folder / log
        with log_file.open("w") as stderr:
            process = subprocess.Popen(
                [*prefix, *command(words, code, module)],
                cwd=self.folder,
                env=environment(variables),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                text=True,
                start_new_session=True,
            )
        try:
            yield Running(process, log_file)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(PATIENCE_S)


def command(words: tuple[str, ...], code: str, module: str = "greenroom") -> list[str]:
    """The command line; ``code`` is run instead of the module if given."""
    return [sys.executable, *(["-c", code] if code else ["-m", module]), *words]


def environment(variables: dict[str, str]) -> dict[str, str]:
    """This process's environment without settings of ours, and with the package on the path."""
    inherited = {key: value for key, value in os.environ.items() if not key.lower().startswith(("greenroom", "drama"))}
    source = str(Path(greenroom.__file__).parents[1])
    return {**inherited, "PYTHONPATH": source, "PYTHONDONTWRITEBYTECODE": "1", **variables}


def is_running(pid: int) -> bool:
    """Whether a process exists and is not merely waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
