"""Programs and web servers that fork, requests that each send one message, and what must be there afterwards."""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from greenroom import Message
from tests.runtime.cli_kit import PATIENCE_S, environment, wait_until
from tests.runtime.engine_kit import check_storage, messages_in, open_broker

#: How every program of these tests begins: a broker, and an actor that is sent a number.
HEAD = """
import asyncio, os, sys, threading
from pathlib import Path
import greenroom
from greenroom.brokers import from_url

HERE = Path(__file__).parent
broker = from_url(URL)
greenroom.set_broker(broker)

@greenroom.actor
def note(number, pid):
    pass

def send(number):
    note.send(number, os.getpid())

async def asend(number):
    await note.asend(number, os.getpid())

def is_open():
    if URL.startswith("redis"):
        return any(connection.is_open for connection in broker.transport.share.free._free)
    if URL.startswith("amqp"):
        return broker.transport.publisher._link.is_open
    if not (HERE / "queue.db-wal").exists():
        return False
    wal = os.stat(HERE / "queue.db-wal")
    for number in os.listdir("/proc/self/fd"):
        try:
            if os.path.samestat(os.stat(int(number)), wal):
                return True
        except OSError:  # the descriptor of the listing itself
            pass
    return False

def come_to_rest():
    # Whoever forks from C beside a thread that runs, or waits for the interpreter's lock, may get a child that hangs:
    # no library can help it. So the thread of asend, which has just answered, comes to rest first.
    for thread in threading.enumerate():
        looks = 0
        while thread.name == "pusher" and looks < 3:
            threading.Event().wait(0.01)
            stat = Path(f"/proc/self/task/{thread.native_id}/stat").read_text()
            looks = looks + 1 if stat.rpartition(")")[2].split()[0] == "S" else 0

def send_from_a_loop(number):
    loop = asyncio.new_event_loop()  # asyncio.run would set a handler for SIGINT, which is the server's
    try:
        loop.run_until_complete(asend(number))
    finally:
        loop.close()
"""

#: For programs that fork. A fork from C is what nobody tells Python of. A child ends with its block.
FORK = """
import contextlib, ctypes, signal, traceback

def fork_from_c():
    come_to_rest()
    return ctypes.PyDLL(None).fork()

@contextlib.contextmanager
def child():
    try:
        signal.alarm(55)  # less than what the program gets
        yield
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)

def wait(*pids):
    for pid in pids:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code == 0, f"a child ended with {code}"
"""

#: Uses the broker in every way, so that a connection is open and the thread of `asend` runs when the server forks.
USE = """
send(-1)
send_from_a_loop(-2)
assert is_open()
assert "pusher" in [thread.name for thread in threading.enumerate()]
come_to_rest()
"""

#: A request for `/7` sends the number 7, every tenth one out of a coroutine, and is answered with the process's number.
WSGI = """
def application(environ, start_response):
    number = int(environ["PATH_INFO"][1:])
    send_from_a_loop(number) if number % 10 == 0 else send(number)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
"""

#: The same for coroutines: every tenth one sends from the loop itself.
ASGI = """
async def application(scope, receive, send_event):
    if scope["type"] != "http":
        return
    number = int(scope["path"][1:])
    send(number) if number % 10 == 0 else await asend(number)
    await send_event({"type": "http.response.start", "status": 200, "headers": []})
    await send_event({"type": "http.response.body", "body": str(os.getpid()).encode()})
"""


def write_program(folder: Path, *parts: str, url: str = "") -> Path:
    """Writes ``app.py`` into a folder. ``url``: of its broker; a queue file in the folder if it is empty."""
    program = folder / "app.py"
    program.write_text("".join((f"URL = {url or file_in(folder)!r}", HEAD, *parts)))
    return program


def file_in(folder: Path) -> str:
    """The URL of the queue file in a folder."""
    return f"sqlite:///{folder / 'queue.db'}"


def run_program(folder: Path, *parts: str, arguments: Iterable[str] = (), url: str = "") -> str:
    """Writes a program and runs it."""
    return run(write_program(folder, *parts, url=url), *arguments)


def run(program: Path, *arguments: str) -> str:
    """Runs a program to its end, which has to be a good one; returns its output."""
    forks_beside_threads = ("-W", "ignore::DeprecationWarning")
    done = subprocess.run(
        [sys.executable, *forks_beside_threads, str(program), *arguments],
        cwd=program.parent,
        env=environment({}),
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


def stored(folder: Path, url: str = "") -> Counter[int]:
    """How often each number lies in the queue file, or at the ``url``. A file must be whole, and nobody may have it
    open."""
    with closing(open_broker(url or file_in(folder))) as broker:
        check_storage(broker)
        rows = messages_in(broker)
    messages = [Message.decode(row.body) for row in rows]
    assert len({message.message_id for message in messages}) == len({row.id for row in rows}) == len(messages)
    return Counter(message.args[0] for message in messages)


def once(numbers: Iterable[int]) -> Counter[int]:
    """What ``stored`` has to return if each of these was stored once and nothing else was."""
    return Counter(dict.fromkeys(numbers, 1))


@dataclass
class Answers:
    """What the clients of a server got."""

    #: The process that answered each request.
    pids: dict[int, int] = field(default_factory=dict)
    #: What went wrong, by request.
    errors: dict[int, str] = field(default_factory=dict)


@dataclass
class Server:
    """A web server that runs."""

    process: subprocess.Popen[bytes]
    log: Path
    port: int = 0

    @property
    def text(self) -> str:
        """What it has logged so far."""
        return self.log.read_text(errors="replace")

    def wait_for_text(self, pattern: str) -> re.Match[str]:
        """Waits until the log matches ``pattern``."""
        wait_until(lambda: re.search(pattern, self.text) or self.process.poll() is not None, f"{pattern!r} is logged")
        found = re.search(pattern, self.text)
        assert found, self.text
        return found

    def children(self) -> set[int]:
        """The processes it has forked."""
        pid = self.process.pid
        return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}

    def ask(
        self, numbers: Iterable[int], *, clients: int = 6, while_asking: Callable[[], None] | None = None
    ) -> Answers:
        """Requests these numbers from several threads, each of them once."""
        left, answers = iter(list(numbers)), Answers()

        def client() -> None:
            for number in left:
                try:
                    answers.pids[number] = self._get(number)
                except (OSError, http.client.HTTPException, AssertionError) as e:
                    answers.errors[number] = repr(e)

        threads = [threading.Thread(target=client) for _ in range(clients)]
        for thread in threads:
            thread.start()
        if while_asking is not None:
            while_asking()
        for thread in threads:
            thread.join()
        return answers

    def _get(self, number: int) -> int:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)) as connection:
            connection.request("GET", f"/{number}")
            answer = connection.getresponse()
            body = answer.read()
            assert answer.status == 200, (answer.status, body)
            return int(body)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Tells it to stop and waits for its end."""
        self.process.send_signal(number)
        self.process.wait(PATIENCE_S)


@contextmanager
def serve(folder: Path, *command: str, listens: str) -> Iterator[Server]:
    """Starts a server in a process group of its own; nothing of it is left afterwards.

    Parameters:
      command: The arguments of this Python.
      listens: A pattern for its log that tells its port.
    """
    log = folder / "log.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            env=environment({}),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(process, log)
    try:
        server.port = int(server.wait_for_text(listens)[1])
        yield server
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(PATIENCE_S)
