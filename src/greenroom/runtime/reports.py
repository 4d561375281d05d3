"""What a parent and its child tell each other, and the two ends of the pipe between them.

A child reports, one JSON object a line: the parent reads nothing that user code could have bent. The parent orders,
one word a line. The end of the pipe tells a child that its parent has died; the other way round it means nothing, for
a process that a task has forked may hold the child's end open.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait

#: The order to look for dead siblings at once.
REAP = b"reap"
#: More than a report needs; a child that writes so much without an end is not listened to.
_MAX_LINE_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True)
class Boarded:
    """What a child reports before it runs anything, and when its board has got a new file: from now on its parent can
    say there how it ended."""

    #: The file of its board.
    path: str


@dataclass(frozen=True, slots=True)
class Ready:
    """What a child reports once its worker runs."""

    #: The broker's ``repr``.
    broker: str
    #: The names of the declared queues, sorted.
    queues: tuple[str, ...]
    #: What the fork functions of its middleware are called, in order.
    forks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a child, or a program, did not get to work or cannot go on."""

    #: An ``ExitCode``, or the code with which the user's code ended the process.
    code: int
    #: One line for the user.
    line: str
    #: The traceback, where it helps: the user's code or ours raised.
    traceback: str = ""
    #: The module's name, if the reason is that there is no such module.
    missing_module: str = ""


@dataclass(frozen=True, slots=True)
class Recycle:
    """What a child reports when it has worked enough and asks for a successor."""

    #: Why, for the log.
    reason: str


@dataclass(frozen=True, slots=True)
class Changed:
    """What the process that watches a folder reports."""

    #: Which files have changed, sorted; not all if they are many.
    paths: tuple[str, ...]


Report = Boarded | Ready | Failure | Recycle | Changed


def encode_report(report: Report) -> bytes:
    """A report as a line of JSON."""
    return json.dumps({type(report).__name__: asdict(report)}).encode() + b"\n"


def decode_report(line: bytes) -> Report:
    """The report that ``encode_report`` wrote.

    Raises:
      ValueError: If it is none; also KeyError, TypeError and AttributeError.
    """
    ((kind, content),) = json.loads(line).items()
    if kind == "Ready":
        queues, forks = (tuple(map(str, content[name])) for name in ("queues", "forks"))
        return Ready(str(content["broker"]), queues, forks)
    if kind == "Boarded":
        return Boarded(str(content["path"]))
    if kind == "Recycle":
        return Recycle(str(content["reason"]))
    if kind == "Changed":
        return Changed(tuple(map(str, content["paths"])))
    return Failure(**content)


class ParentEnd:
    """The parent's end: never blocks, whatever the child does. Owned by the parent's main thread."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._unread = b""
        #: True once nothing more will come.
        self.has_ended = False
        os.set_blocking(connection.fileno(), False)

    def fileno(self) -> int:
        """The descriptor to wait for."""
        return self._connection.fileno()

    def close(self) -> None:
        """Closes it, which ends the child if it still lives."""
        self._connection.close()

    def receive(self) -> Iterator[Report]:
        """The reports that have arrived; what is none is left out."""
        *lines, self._unread = (self._unread + self._read()).split(b"\n")
        if len(self._unread) > _MAX_LINE_BYTES:
            self._unread = b""
        for line in lines:
            try:
                yield decode_report(line)
            except (ValueError, KeyError, TypeError, AttributeError):  # user code found the descriptor
                continue

    def _read(self) -> bytes:
        data = b""
        try:
            while chunk := os.read(self.fileno(), 65_536):
                data += chunk
        except BlockingIOError:
            return data
        except OSError:  # reset: the child died with orders unread
            pass
        self.has_ended = True
        return data

    def send(self, order: bytes) -> None:
        """Sends an order. A child that does not listen, or lives no more, misses it."""
        try:
            os.write(self.fileno(), order + b"\n")
        except OSError:
            pass


class ChildEnd:
    """The child's end. Any thread may report; one thread listens."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def report(self, report: Report) -> None:
        """Tells the parent.

        Raises:
          OSError: If the parent has died.
        """
        data = memoryview(encode_report(report))
        while data:
            data = data[os.write(self._connection.fileno(), data) :]

    def orders(self) -> Iterator[bytes]:
        """The parent's orders, as they come; ends when the parent has died."""
        unread = b""
        try:
            while self._wait() and (chunk := os.read(self._connection.fileno(), 4096)):
                *orders, unread = (unread + chunk).split(b"\n")
                yield from orders
        except OSError:  # user code has closed it: nobody would tell us of the parent's death any more
            return

    def _wait(self) -> bool:
        """Not in ``os.read``: under gevent that would hold up all threads."""
        return bool(wait([self._connection]))

    def parent_lives(self) -> bool:
        """False if the parent has died already. To be asked before ``orders``."""
        return not self._connection.poll()
