"""Where log lines end: standard error or a file, written without ever waiting for who reads it.

The parent of the workers reaps, beats and forwards in one loop, so nothing may hold it up: not a terminal that was
stopped, not a pager, not a pipe whose reader has gone. What cannot be written now is kept, up to a bound; what goes
beyond it is dropped and counted, and the count is logged when there is room again.

Standard error is shared with others (a shell, other children), so it must not be made non-blocking: that is a property
of the open file, not of the descriptor. It is opened a second time instead, or else asked before each write.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import stat
from collections.abc import Callable
from time import monotonic

from ..logging import LOG_FORMAT, get_logger

#: What is kept for a reader that does not read.
MAX_PENDING_BYTES = 4 * 1024 * 1024
#: A log file is asked at most so often whether it was rotated.
LOOK_EVERY_S = 0.2
#: How long the end of the program waits for a reader that does not read.
LAST_WORDS_S = 1.0
#: A write of so many bytes waits for nobody if the descriptor says that it can be written to.
_ATOMIC_BYTES = 512
_MAX_MESSAGE_CHARACTERS = 8192
_MAX_TRACEBACK_CHARACTERS = 65_536
#: Shown as what they are: characters that move a cursor, colour a terminal or end a line.
_CONTROLS = {
    code: repr(chr(code))[1:-1] for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029) if code != ord("\t")
}
_CONTROLS_OF_RECORDS = {code: text for code, text in _CONTROLS.items() if code != ord("\n")} | {ord("\n"): "\n    "}

logger = get_logger("greenroom", "MainProcess")


def escape(text: str) -> str:
    """A line of anybody's, with control characters shown as what they are."""
    return text if text.isprintable() else text.translate(_CONTROLS)


class LineFormatter(logging.Formatter):
    """The command line's format. A record begins at the margin and nothing else does: the further lines of a message
    or a traceback are indented, so that no data can pass for a record. Control characters are shown as what they are;
    a message is cut after 8 KiB, a traceback begins with its last 64 KiB."""

    def __init__(self) -> None:
        super().__init__(LOG_FORMAT)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # the name is logging's
        if not record.message.isprintable() or len(record.message) > _MAX_MESSAGE_CHARACTERS:
            cut = record.message[:_MAX_MESSAGE_CHARACTERS]
            missing = len(record.message) - len(cut)
            end = f"... ({missing} characters cut)" if missing else ""
            record.message = cut.translate(_CONTROLS_OF_RECORDS) + end
        return super().formatMessage(record)

    def formatException(self, ei: object) -> str:  # noqa: N802  # the name is logging's
        return _indented(super().formatException(ei))  # type: ignore[arg-type]  # what logging hands over

    def formatStack(self, stack_info: str) -> str:  # noqa: N802  # the name is logging's
        return _indented(stack_info)


def _indented(trace: str) -> str:
    return "    " + trace[-_MAX_TRACEBACK_CHARACTERS:].translate(_CONTROLS_OF_RECORDS)


class PatientWriter:
    """Writes to a descriptor that others share, and never waits. The descriptor stays its owner's."""

    def __init__(self, descriptor: int) -> None:
        self._own: list[int] = []
        self._waitable: int | None = descriptor
        self._socket: socket.socket | None = None
        self._write = self._way_to(descriptor)

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Writes what there is room for now; returns how many bytes that was.

        Raises:
          OSError: If nobody can read it any more.
        """
        try:
            return self._write(data)
        except BlockingIOError:
            return 0

    @property
    def waitable(self) -> int | None:
        """The descriptor that becomes writable when there is room; None for a file, which always says that there is."""
        return self._waitable

    def close(self) -> None:
        """Closes what this has opened itself."""
        while self._own:
            os.close(self._own.pop())
        if self._socket is not None:
            self._socket.close()

    def _way_to(self, descriptor: int) -> Callable[[bytes | bytearray | memoryview], int]:
        kind = os.fstat(descriptor).st_mode
        if stat.S_ISREG(kind):
            self._waitable = None
            return lambda data: os.write(descriptor, data)
        if stat.S_ISSOCK(kind):  # the journal of systemd
            self._socket = connected = socket.socket(fileno=os.dup(descriptor))
            return lambda data: connected.send(data, socket.MSG_DONTWAIT)
        try:
            path = os.ttyname(descriptor) if os.isatty(descriptor) else f"/proc/self/fd/{descriptor}"
            again = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:  # no /proc, or it is another user's
            return lambda data: os.write(descriptor, data[:_ATOMIC_BYTES]) if can_write(descriptor) else 0
        self._own.append(again)
        self._waitable = again
        return lambda data: os.write(again, data)


def can_write(descriptor: int, timeout_s: float = 0.0) -> bool:
    """Whether there is room for a little, or will be within the time."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(timeout_s * 1000))


class LogOutput:
    """The end of all log lines of a program. Owned by the parent's main thread.

    Parameters:
      path: The file to append to; made anew when somebody has renamed or removed it. Standard error if None.

    Raises:
      OSError: If the file cannot be opened.
    """

    def __init__(self, path: str | None = None) -> None:
        self._path = None if path is None else os.path.abspath(path)
        self._pending = bytearray()
        self._dropped = 0
        self._looked_s = monotonic()
        self._writer: PatientWriter | None = None
        self._file = -1
        #: Called when something could not be written yet: ``flush`` is to be called again soon.
        self.when_pending: Callable[[], object] = lambda: None
        if self._path is not None:
            self._open_file(self._path)
        else:
            try:
                self._writer = PatientWriter(2)
            except OSError:  # it was closed: nobody wants to know
                pass

    @property
    def waitable(self) -> int | None:
        """The descriptor that becomes writable when more can be written; None if there is none to wait for."""
        return None if self._writer is None else self._writer.waitable

    def write(self, text: str) -> None:
        """Adds a line, or a few that belong together."""
        line = text.encode("utf-8", "backslashreplace") + b"\n"
        if len(self._pending) + len(line) > MAX_PENDING_BYTES:
            self._dropped += 1
        else:
            self._pending += line

    def flush(self) -> None:
        """Writes what can be written now."""
        if self._path is not None and monotonic() - self._looked_s >= LOOK_EVERY_S:
            self._looked_s = monotonic()
            self._follow_rotation(self._path)
        self._write_pending()
        if self._dropped and len(self._pending) < MAX_PENDING_BYTES // 2:
            dropped, self._dropped = self._dropped, 0
            logger.warning("%d log lines were dropped: nobody read them in time.", dropped)
        if self._pending:
            self.when_pending()

    def close(self, timeout_s: float = LAST_WORDS_S) -> None:
        """Writes what is left, as far as it is read within the time."""
        self.when_pending = lambda: None
        deadline_s = monotonic() + timeout_s
        self.flush()
        while self._pending and monotonic() < deadline_s:
            select.select([], [], [], 0.01)
            self.flush()
        self.forget()

    def forget(self) -> None:
        """Closes it as it is. In a fork: what is left is the parent's to write."""
        self._pending.clear()
        if self._writer is not None:
            self._writer.close()
        if self._file >= 0:
            os.close(self._file)
        self._writer, self._file = None, -1

    def _write_pending(self) -> None:
        while self._pending:
            if self._writer is None:  # nobody is there any more
                self._pending.clear()
                self._dropped = 0
                return
            try:
                written = self._writer.write(self._pending)
            except OSError:
                if self._path is None:  # its reader has gone, or the terminal
                    self._writer.close()
                    self._writer = None
                    continue
                return  # a full disk: what is there by then is kept
            if not written:
                return
            del self._pending[:written]

    # --- the file

    def _open_file(self, path: str) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        if self._file >= 0:
            os.close(self._file)
        self._file = descriptor
        self._writer = PatientWriter(descriptor)

    def _follow_rotation(self, path: str) -> None:
        try:
            there, ours = os.stat(path), os.fstat(self._file)
            if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
                return
        except OSError:
            pass
        try:
            self._open_file(path)
        except OSError:  # its folder has gone: the old file is better than none
            pass


class OutputHandler(logging.Handler):
    """Sends the parent's own records to the output."""

    def __init__(self, output: LogOutput) -> None:
        super().__init__()
        self.output = output
        self.setFormatter(LineFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except Exception:  # noqa: BLE001  # a log call never fails the program
            self.handleError(record)
            return
        self.output.write(text)
        self.output.flush()
