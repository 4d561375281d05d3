"""Waking the processes that wait, across processes, for nothing while nobody waits.

Beside the queue file lies a folder ``<file>-wake`` with

* ``lock``: who is alive (``host.liveness``);
* ``board``: 64 numbers in a mapped file, one a slot. A waiter writes there, before it looks at the queue for the last
  time, the next due time it knows; 0 means that it does not wait. A sender commits, then looks at the board: for what
  is ready it wakes all who wait, for a delayed message those who know of nothing earlier. So a busy fleet costs a
  sender one comparison of 512 bytes. (Both sides pass through SQLite's file locks between their write and their look,
  and system calls order memory: either the sender sees the waiter, or the waiter sees the message.)
* ``0`` to ``63``: a FIFO a slot. Writing a byte wakes in 0.1 ms and costs the idle waiter nothing. With one FIFO for
  all, the process that was meant woke in time in 321 of 500 cases.

A look once a second is the net below all this; an owner whose slot is beyond the board has only that.
"""

from __future__ import annotations

import mmap
import os
import select
import threading
from contextlib import suppress
from pathlib import Path

from ...clock import SYSTEM_CLOCK
from ...host.descriptor import Descriptor
from ...host.folders import make_folder

#: How many processes can be woken; more may wait, and look once a second.
SLOTS = 64
#: On the board: waits, and knows of no due time.
NEVER_DUE = 2**62

_BOARD_BYTES = SLOTS * 8
_NOBODY = bytes(_BOARD_BYTES)
#: Seconds before a FIFO that nobody read is tried again.
_RETRY_S = 0.5


class WakeFolder:
    """The folder, and the sender's side. One a process and queue file; any thread may ``ring``."""

    def __init__(self, path: Path, mode: int) -> None:
        self.path = path
        self._mode = mode
        self._writers: dict[int, Descriptor] = {}
        self._silent_until: dict[int, float] = {}
        # guards: no thread writes to a descriptor that another one closes. The writes never block.
        self._writing = threading.Lock()
        make_folder(path, mode)
        descriptor = os.open(path / "board", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode)
        try:
            if os.fstat(descriptor).st_size < _BOARD_BYTES:
                os.fchmod(descriptor, mode)
                # Written, not merely made as long: where the disk is full this fails, and a store later would kill.
                os.write(descriptor, _NOBODY)
            self._map = mmap.mmap(descriptor, _BOARD_BYTES)
        finally:
            os.close(descriptor)
        self.board = memoryview(self._map).cast("q")

    def ring(self, due_ms: int | None) -> None:
        """Wakes those who wait for something that is due at ``due_ms`` (None: now). Never blocks."""
        if self._map[:] == _NOBODY:
            return
        for slot, known_ms in enumerate(self.board):
            if known_ms and (due_ms is None or due_ms < known_ms):
                self._ring(slot)

    def _ring(self, slot: int) -> None:
        now = SYSTEM_CLOCK.monotonic()
        if self._silent_until.get(slot, 0.0) > now:
            return
        with self._writing:
            try:
                os.write(self._writer(slot).number, b"!")
            except BlockingIOError:
                pass  # full of wake-ups already
            except OSError:  # nobody reads: died without clearing its place
                self._silent_until[slot] = now + _RETRY_S
                stale = self._writers.pop(slot, None)
                if stale is not None:
                    stale.close()

    def _writer(self, slot: int) -> Descriptor:
        writer = self._writers.get(slot)
        if writer is None:
            path = self.path / str(slot)
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC
            writer = self._writers[slot] = Descriptor(os.open(path, flags))
        return writer

    def clear(self, slot: int) -> None:
        """Takes a dead owner's announcement off the board."""
        if slot < SLOTS:
            self.board[slot] = 0

    def fifo(self, slot: int) -> Descriptor | None:
        """A descriptor to wait on for the wake-ups of ``slot``, or None where there can be none."""
        if slot >= SLOTS:
            return None
        path = self.path / str(slot)
        if not path.is_fifo():
            try:
                os.mkfifo(path, self._mode)
                path.chmod(self._mode)
            except FileExistsError:
                pass
        # Opened for writing, too, so that it never reports an end of file between two senders.
        return Descriptor(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))

    def close(self) -> None:
        """Closes the descriptors of the sender's side."""
        with self._writing:
            for writer in self._writers.values():
                writer.close()
            self._writers.clear()


class Waiter:
    """One owner's side: a FIFO that senders ring and a pipe that its own process rings."""

    _writer: Descriptor | None = None

    def __init__(self, folder: WakeFolder, slot: int) -> None:
        self._folder = folder
        self._slot = slot
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        self._reader, self._writer = Descriptor(reader), Descriptor(writer)
        try:
            self._fifo = folder.fifo(slot)
        except OSError:
            self._reader.close()
            raise
        self._poll = select.poll()
        self._poll.register(reader, select.POLLIN)
        if self._fifo is not None:
            self._poll.register(self._fifo, select.POLLIN)

    def announce(self, due_ms: int | None) -> None:
        """Says on the board that this owner is about to wait, and until when by its own knowledge."""
        if self._fifo is not None:
            self._folder.board[self._slot] = NEVER_DUE if due_ms is None else max(1, due_ms)

    def withdraw(self) -> None:
        """Takes the announcement back."""
        if self._fifo is not None:
            self._folder.board[self._slot] = 0

    def wait(self, timeout_s: float) -> bool:
        """Waits to be rung, at most ``timeout_s``, and swallows all that rang. False if it cannot wait any more,
        because somebody else has closed what it waits on."""
        for number, event in self._poll.poll(max(0.0, timeout_s) * 1000):
            if event & select.POLLNVAL:
                return False
            with suppress(OSError):  # nothing there any more
                os.read(number, 65536)
        return True

    def ring(self) -> None:
        """Any thread, signal-safe: ends the wait, or the next one."""
        with suppress(OSError):  # full of wake-ups already, or closed
            if self._writer is not None:
                os.write(self._writer.number, b"!")

    def close(self) -> None:
        """Withdraws and closes the descriptors."""
        self.withdraw()
        for descriptor in (self._reader, self._fifo):
            if descriptor is not None:
                descriptor.close()

    def __del__(self) -> None:
        # Not in `close`: another thread may ring later, and must not write into whatever has the number then.
        if self._writer is not None:
            self._writer.close()
