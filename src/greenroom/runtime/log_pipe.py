"""A pipe a child, through which all that it says reaches the parent: prints, log records, the last words of C code.

* **Nothing of a child is lost when it dies.** Descriptors 1 and 2 are the pipe itself, so what was written is in the
  kernel: the parent finds it there after the child was killed, also what ``faulthandler`` wrote while it crashed.
* **A child is never stalled.** The parent reads whatever happens, and drops what its own reader does not take. Should
  the parent be late all the same, log records wait for it a tenth of a second, once, and are then dropped and counted.
* **Lines of different children are not mixed**, because each has its pipe, and the parent takes whole lines out of it.
* **The parent never waits for the end of a pipe**: a process that a task has started may hold it open for ever. After
  a child has died, what is there is read, and the pipe is kept for whoever still writes until nobody has it.
"""

from __future__ import annotations

import faulthandler
import fcntl
import io
import logging
import os
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from time import monotonic

from .log_output import LineFormatter, OutputHandler, PatientWriter, can_write, escape

#: Longer lines are cut.
MAX_LINE_BYTES = 8192
#: How much a child may be ahead of the parent, where the system allows it.
PIPE_BYTES = 256 * 1024
#: How long log records wait for a parent that does not read, in seconds.
STALL_S = 0.1
_CHUNK_BYTES = 65_536


class LineReader:
    """The parent's end of a child's pipe. Owned by the parent's main thread.

    Parameters:
      connection: The reading end; this object closes it.
      take: Called with each line.
    """

    def __init__(self, connection: Connection, take: Callable[[str], object]) -> None:
        self._connection = connection
        self._descriptor = descriptor = connection.fileno()
        os.set_blocking(descriptor, False)
        _enlarge(descriptor)
        self._take = take
        self._line = bytearray()
        self._cut = 0

    def fileno(self) -> int:
        """The descriptor to wait for."""
        return self._descriptor

    def read(self) -> bool:
        """Takes a part of what is there, so that others have their turn; False at the end of the pipe."""
        try:
            data = os.read(self._descriptor, _CHUNK_BYTES)
        except BlockingIOError:
            return True
        self._feed(data)
        if not data and self._line:
            self._end_line()
        return bool(data)

    def catch_up(self) -> None:
        """Takes all that is there now. Others may go on writing."""
        for _ in range(2 * PIPE_BYTES // _CHUNK_BYTES):
            try:
                data = os.read(self._descriptor, _CHUNK_BYTES)
            except BlockingIOError:
                return
            self._feed(data)
            if not data:
                return

    def drain(self) -> None:
        """The same with the last words of a child that has died, which may have no end. Once closed, it has taken
        all."""
        if self._connection.closed:
            return
        self.catch_up()
        if self._line:
            self._end_line()

    def close(self) -> None:
        """Closes the pipe."""
        self._connection.close()

    def _feed(self, data: bytes) -> None:
        *ended, rest = data.split(b"\n")
        for piece in ended:
            self._add(piece)
            self._end_line()
        self._add(rest)

    def _add(self, piece: bytes) -> None:
        kept = piece[: MAX_LINE_BYTES - len(self._line)]
        self._line += kept
        self._cut += len(piece) - len(kept)

    def _end_line(self) -> None:
        text = escape(self._line.removesuffix(b"\r").decode("utf-8", "backslashreplace"))
        self._take(f"{text}... ({self._cut} bytes cut)" if self._cut else text)
        self._line.clear()
        self._cut = 0


def _enlarge(descriptor: int) -> None:
    if sys.platform == "linux":
        try:
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        except OSError:  # this user has many pipes already
            pass


# --- in the child


def speak_into(descriptor: int, level: int) -> None:
    """Has all that this process writes go into a pipe: both standard streams, also of C code and of the programs that
    it starts, and the root logger.

    Parameters:
      descriptor: The pipe's writing end. It may be closed afterwards.
      level: Of the root logger.
    """
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    sys.stdout, sys.stderr = _by_lines(1), _by_lines(2)
    faulthandler.enable(2)
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, OutputHandler):
            root.removeHandler(handler)
            handler.output.forget()
    if not root.handlers:  # else the program that starts the workers has set up its own, and this is a fork
        root.addHandler(PipeHandler(2))
        root.setLevel(level)
    logging.getLogger("pika").setLevel(logging.CRITICAL)  # it logs what it raises


def _by_lines(descriptor: int) -> io.TextIOWrapper:
    """A print is in the pipe when its line ends, whatever happens to the process then."""
    raw = io.BufferedWriter(io.FileIO(descriptor, "w", closefd=False))
    return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", line_buffering=True)


class PipeHandler(logging.Handler):
    """Writes records into the pipe. Any thread may log; the handler's lock keeps records whole."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.setFormatter(LineFormatter())
        self._descriptor = descriptor
        self._writer = PatientWriter(descriptor)
        self._dropped = 0
        #: The parent was waited for in vain, and has taken nothing since.
        self._is_stalled = False
        #: The last record was cut short: its line has to end first.
        self._is_torn = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._send(self.format(record).encode("utf-8", "backslashreplace") + b"\n")
        except OSError:  # the parent has gone, and this process will follow
            self._dropped += 1
        except Exception:  # noqa: BLE001  # a log call never fails the program
            self.handleError(record)

    def _send(self, data: bytes) -> None:
        data = b"\n" * self._is_torn + self._notice() + data
        rest = memoryview(data)
        deadline_s = 0.0
        while rest:
            written = self._writer.write(rest)
            rest = rest[written:]
            if rest and not written:
                deadline_s = deadline_s or monotonic() + STALL_S
                if self._is_stalled or not can_write(self._descriptor, max(0.0, deadline_s - monotonic())):
                    break
        self._is_torn = bool(rest) and (self._is_torn or len(rest) < len(data))
        self._is_stalled = bool(rest)
        self._dropped = self._dropped + 1 if rest else 0

    def _notice(self) -> bytes:
        if not self._dropped:
            return b""
        text = "%d log lines were dropped: the parent process did not read them in time."
        record = logging.LogRecord("greenroom", logging.WARNING, "", 0, text, (self._dropped,), None)
        return self.format(record).encode() + b"\n"
