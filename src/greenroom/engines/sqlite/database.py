"""The one connection of a process to a queue file.

The law of this module:

* **One writer connection a process, behind a first-in first-out gate.** A transaction is short and bounded.
* **No busy handler of SQLite's.** ``timeout=0``, ``BEGIN IMMEDIATE`` and steps of 0.3 ms of our own: SQLite's handler
  sleeps ever longer and gives a single insert a p99 of 54 to 104 ms beside a bulk writer; this loop 6 ms.
* **The files are opened through SQLite only**, once a connection may exist in this process: closing a descriptor of
  theirs drops SQLite's locks, another process's close then deletes the WAL, and commits vanish. Checks use ``stat``.
* **A checkpoint is safe from the WAL-reset bug, and holds nobody up.** In versions before 3.51.3 a checkpoint that
  races the reset of the WAL by a writer can lose commits (sqlite.org/wal.html, "the WAL-reset bug"). A WAL is not
  reset while a reader uses it, so ``checkpoint`` pins it with a read transaction of its own, and syncs outside of every
  lock. Once the WAL has grown all the same, because writers never paused, what is left is moved under the write lock,
  which keeps everybody from resetting it; the next writer then starts it anew. No transaction pays for any of this. A
  close that checkpoints holds SQLite's exclusive lock on the file, so it is alone.
* **No connection is open at a fork.** SQLite keeps its view of POSIX locks by inode in process memory; a child that
  opened the file again would trust locks that it does not have, and another process could delete the WAL under it.
  So the forking process closes its connection first (``before_fork``) and both open their own at the next use. Where
  nobody announced the fork, the child has to clean up (``inheritance``).
* **The file is the one that lies at the path.** Once a second whoever uses the connection looks (``queue_file``). If
  the file was replaced by another queue, senders go on with that; who has claimed something in the old one must not,
  and is told so by the generation that it names.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

from ...clock import SYSTEM_CLOCK
from ...errors import BrokerError, BrokerFull, ConnectionFailed
from ...logging import get_logger
from .errors import is_busy, translate
from .gate import FifoGate
from .migrations import version_of
from .opening import PAGE_BYTES, connect, set_up, spare_bytes
from .queue_file import OtherFile, QueueFile

T = TypeVar("T")

#: RETURNING came with 3.35.
MIN_SQLITE = (3, 35, 0)

#: How long a transaction may wait for other processes, and in what steps, in seconds.
BUSY_BUDGET_S = 30.0
BUSY_STEP_S = 0.0003

#: A process checkpoints after it has written about so many bytes to the WAL, 1 000 pages as SQLite by default. What it
#: costs is syncing these bytes, so larger steps save nothing.
CHECKPOINT_BYTES = 1000 * PAGE_BYTES
#: What a changed row adds to the WAL, about, and what a transaction adds to that.
_BYTES_A_CHANGE = 512
_BYTES_A_TRANSACTION = 2 * PAGE_BYTES
#: Beyond this the WAL is made to start anew, and is cut to it then.
WAL_LIMIT_BYTES = 8 * CHECKPOINT_BYTES
#: Beyond this somebody is told: another process reads an old state and does not end.
WAL_WARNING_BYTES = 64 * 1024 * 1024
#: How many single sends lie between two looks at what was written.
_LOOK_EVERY = 64
#: Seconds between two looks at the file at the path.
FILE_LOOK_INTERVAL_S = 1.0

logger = get_logger(__name__)


class Database:
    """One process's way into a queue file. Any thread may use it; the gate puts them in order."""

    def __init__(self, path: Path, *, durable: bool, mode: int) -> None:
        if sqlite3.sqlite_version_info < MIN_SQLITE:
            raise ConnectionFailed(
                f"SQLite {sqlite3.sqlite_version} is too old: "
                f"Greenroom needs {'.'.join(map(str, MIN_SQLITE))} or newer."
            )
        self.path = path
        self.file = QueueFile(path, mode)
        self._durable = durable
        self._wal_path = f"{path}-wal"
        self._gate = FifoGate()
        self._waited_s = 0.0  # at the gate, by who is inside
        self._look_at_s = 0.0
        self._connection: sqlite3.Connection | None = None
        # For checkpoints: one runs them, the other one pins the WAL meanwhile.
        self._mover: sqlite3.Connection | None = None
        self._pin: sqlite3.Connection | None = None
        self._pinned_generation = 0
        # guards: the two are used by one thread at a time. Held across I/O, but nobody ever waits for it: who finds it
        # taken has nothing to do; and a fork, which must wait.
        self._checkpointing = threading.Lock()
        self._checkpointer = 0  # the thread that does
        self._changes = 0  # of the connection, at the last checkpoint
        self._transactions = 0  # since then
        self._has_warned_of_wal = False

    # --- using it

    @contextmanager
    def transaction(self, *, generation: int | None = None, sending: bool = False) -> Iterator[sqlite3.Connection]:
        """A write transaction: committed at the end, rolled back if the block raises.

        Parameters:
          generation: The only one of the files at the path (``file.generation``) for which it makes sense; None for
            any.
          sending: True for what only adds messages: it is refused while the last of the room is kept for settling.

        Raises:
          OtherFile: If it is not that generation.
          BrokerError: What SQLite's error means, after a rollback.
        """
        try:
            with self._gate as self._waited_s:
                connection = self._ready(generation, sending=sending)
                self._patiently(lambda: connection.execute("begin immediate"))
                try:
                    yield connection
                    self._patiently(connection.commit)
                except BaseException:
                    self._rollback(connection)
                    raise
                self._transactions += 1
                due = self._is_checkpoint_due(connection)
        except sqlite3.Error as e:
            raise self._failure(e) from e
        if due:
            self.checkpoint()

    def execute(self, statement: str, parameters: Sequence[Any]) -> None:
        """One writing statement, which commits by itself: the way of a single send, so nothing is in it twice."""
        gate = self._gate
        due = False
        self._waited_s = gate.acquire()
        try:
            try:
                connection = self._connection
                if connection is None or monotonic() >= self._look_at_s or self.file.is_short:
                    connection = self._ready(None, sending=True)
                try:
                    connection.execute(statement, parameters)
                except sqlite3.OperationalError as e:
                    if not is_busy(e):
                        raise
                    self._patiently(lambda: connection.execute(statement, parameters))
                self._transactions += 1
                if self._transactions % _LOOK_EVERY == 0:
                    due = self._is_checkpoint_due(connection)
            finally:
                gate.release()
        except sqlite3.Error as e:
            raise self._failure(e) from e
        if due:
            self.checkpoint()

    def run(self, statement: Callable[[sqlite3.Connection], T], *, generation: int | None = None) -> T:
        """Reads, outside a transaction. For ``generation`` see ``transaction``."""
        try:
            with self._gate as self._waited_s:
                connection = self._ready(generation)
                try:
                    return statement(connection)
                except sqlite3.OperationalError as e:
                    if not is_busy(e):
                        raise
                    return self._patiently(lambda: statement(connection))
        except sqlite3.Error as e:
            raise self._failure(e) from e

    def _failure(self, error: sqlite3.Error) -> BrokerError:
        """What to raise; outside the gate."""
        translated = translate(error, self.path)
        if isinstance(translated, BrokerFull):
            self._make_room()
        return translated

    def _patiently(self, action: Callable[[], T]) -> T:
        """Tries until other processes let it: for as long as the budget lasts, of which waiting at the gate took some,
        but at least once."""
        deadline = None
        while True:
            try:
                return action()
            except sqlite3.OperationalError as e:
                now = SYSTEM_CLOCK.monotonic()
                deadline = deadline or now + BUSY_BUDGET_S - self._waited_s
                if not is_busy(e) or now >= deadline:
                    raise
                SYSTEM_CLOCK.sleep(BUSY_STEP_S)

    @staticmethod
    def _rollback(connection: sqlite3.Connection) -> None:
        try:
            connection.rollback()
        except sqlite3.Error:  # a full disk or an I/O error has rolled back already; the first error is what counts
            logger.debug("Rolling back failed.", exc_info=True)

    # --- checkpoints

    def _is_checkpoint_due(self, connection: sqlite3.Connection) -> bool:
        changes = connection.total_changes - self._changes
        return changes * _BYTES_A_CHANGE + self._transactions * _BYTES_A_TRANSACTION > CHECKPOINT_BYTES

    def wal_bytes(self) -> int:
        """The size of the write-ahead log, without opening it."""
        try:
            return os.stat(self._wal_path).st_size
        except OSError:
            return 0

    def checkpoint(self) -> None:
        """Moves what is committed from the WAL into the file. Outside the gate, so that others can go on."""
        if not self._checkpointing.acquire(blocking=False):
            return
        self._checkpointer = threading.get_ident()
        try:
            with self._gate as self._waited_s:
                mover, pin = self._pin_wal()
            try:
                mover.execute("pragma wal_checkpoint(passive)").fetchone()
            finally:
                pin.rollback()
            if self.wal_bytes() > WAL_LIMIT_BYTES:
                self._finish_checkpoint(mover)
                self._warn_of_wal()
            self._look_at_s = 0.0  # that much was written: how much room is left?
        except (sqlite3.Error, BrokerError) as e:  # the next one will do
            logger.debug("A checkpoint of %s did not come about: %s", self.path, e)
        finally:
            self._checkpointer = 0
            self._checkpointing.release()

    def _pin_wal(self) -> tuple[sqlite3.Connection, sqlite3.Connection]:
        """Begins a read transaction that keeps the WAL from being reset; inside the gate.

        A reader keeps it only if there were frames in the WAL that were not moved yet when it began; else it reads the
        file itself. So there are two: while the first one reads, whichever way, no one can move what is committed
        after it. The second one begins after such a commit, and so it pins the WAL.
        """
        writer = self._ready(None)
        if self._pinned_generation != self.file.generation:
            self._close_pins()
            self._pinned_generation = self.file.generation
        mover = self._mover = self._mover or connect(self.path)
        pin = self._pin = self._pin or connect(self.path)
        try:
            _begin_reading(mover)
            self._patiently(lambda: writer.execute("begin immediate"))
            writer.execute(f"pragma user_version = {version_of(writer)}")  # writes a page, changes nothing
            self._patiently(writer.commit)
            _begin_reading(pin)
        finally:
            mover.rollback()
            self._changes = writer.total_changes
            self._transactions = 0
        return mover, pin

    def _finish_checkpoint(self, mover: sqlite3.Connection) -> None:
        """Moves the little that is left while nobody can write, so that the next writer starts the WAL anew."""
        with self._gate as self._waited_s:
            writer = self._ready(None)
            self._patiently(lambda: writer.execute("begin immediate"))
            try:
                mover.execute("pragma wal_checkpoint(passive)").fetchone()
            finally:
                writer.rollback()

    def _make_room(self) -> None:
        """The disk is full. What stands in the WAL is moved, if there is room for it in the file, so that the WAL can
        start anew where it lies: settling needs little, and goes on."""
        if not self._checkpointing.acquire(blocking=False):
            return
        self._checkpointer = threading.get_ident()
        try:
            if self._mover is not None and self._pinned_generation == self.file.generation:
                self._finish_checkpoint(self._mover)
        except (sqlite3.Error, BrokerError) as e:
            logger.debug("No room could be made in %s: %s", self.path, e)
        finally:
            self._checkpointer = 0
            self._checkpointing.release()

    def _warn_of_wal(self) -> None:
        size = self.wal_bytes()
        if size <= WAL_WARNING_BYTES:
            self._has_warned_of_wal = False
        elif not self._has_warned_of_wal:
            self._has_warned_of_wal = True
            logger.warning(
                "The write-ahead log of %s has grown to %d MiB: some process keeps a read transaction open, and it "
                "grows until that ends.",
                self.path,
                size >> 20,
            )

    # --- opening and closing

    def _ready(self, generation: int | None, *, sending: bool = False) -> sqlite3.Connection:
        """The connection, inside the gate, to the file that lies at the path, as far as was known a second ago."""
        connection = self._connection
        if connection is None or monotonic() >= self._look_at_s:
            connection = self._look(connection)
        if generation is not None and generation != self.file.generation:
            raise OtherFile(f"The queue file {self.path} was replaced.")
        if sending and self.file.is_short:
            raise BrokerFull(
                f"Hardly any room is left on the disk of the queue file {self.path}; it is kept for settling what runs."
            )
        return connection

    def _look(self, connection: sqlite3.Connection | None) -> sqlite3.Connection:
        if connection is not None and not self.file.look(partial(spare_bytes, connection)):
            self._connection = None
            self._leave(connection)
        connection = self._open()
        self._look_at_s = monotonic() + FILE_LOOK_INTERVAL_S
        return connection

    def _leave(self, connection: sqlite3.Connection) -> None:
        """Closes a connection to a file that was moved, or lost its log. SQLite sees the former by itself, and then
        leaves the log at the path alone."""
        if self.file.is_there:
            try:
                connection.execute("pragma wal_checkpoint(passive)").fetchone()
            except sqlite3.Error as e:
                logger.error("What stood in the lost log of %s could not be saved: %s", self.path, e)
        connection.close()
        self.file.closed()

    def _open(self) -> sqlite3.Connection:
        connection = self._connection
        if connection is None:
            identity = self.file.prepare()
            connection = connect(self.path)
            try:
                set_up(
                    connection, self.path, durable=self._durable, wal_bytes=WAL_LIMIT_BYTES, patiently=self._patiently
                )
            except BaseException:
                connection.close()
                raise
            self._connection = connection
            self._changes = self._transactions = 0
            self.file.opened(identity)
            self.file.look(partial(spare_bytes, connection))
        return connection

    def close(self) -> None:
        """Closes the connection; the next use opens it again."""
        with self._checkpointing, self._gate:
            self._close()

    def _close(self) -> None:
        self._close_pins()
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self.file.closed()

    def _close_pins(self) -> None:
        for connection in (self._pin, self._mover):
            if connection is not None:
                connection.close()
        self._mover = self._pin = None

    @property
    def is_open(self) -> bool:
        """True if there is a connection."""
        return self._connection is not None or self._mover is not None or self._pin is not None

    @property
    def is_in_use(self) -> bool:
        """True if a thread is in the middle of something. Waits for nothing."""
        return self._gate.is_taken or self._checkpointing.locked()

    def before_fork(self) -> None:
        """Brings the file to rest: no thread is in a transaction, and no connection is open, until ``after_fork``.

        Raises:
          RuntimeError: If the calling thread is in the middle of something itself: waiting would be for ever.
        """
        if self._gate.is_mine or self._checkpointer == threading.get_ident():
            raise RuntimeError(f"A signal handler forks while this very thread uses {self.path}.")
        self._checkpointing.acquire()
        self._gate.acquire()
        self._close()

    def after_fork(self) -> None:
        """Lets the parent go on."""
        self._gate.release()
        self._checkpointing.release()


def _begin_reading(connection: sqlite3.Connection) -> None:
    connection.execute("begin")
    connection.execute("select 1 from owner limit 1").fetchone()
