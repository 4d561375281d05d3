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
  So the forking process closes its connection first (``before_fork``) and both open their own at the next use.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from ...clock import SYSTEM_CLOCK
from ...errors import BrokerCorrupt, BrokerReadOnly, ConnectionFailed, SchemaMismatch
from ...logging import get_logger
from .errors import is_busy, translate
from .gate import FifoGate

T = TypeVar("T")

SCHEMA_VERSION = 1
#: "Grnr", so that a file of another program is not taken for a queue.
APPLICATION_ID = 0x47726E72
#: No SQLite database is smaller, unless it is empty.
_SMALLEST_BYTES = 512
#: RETURNING came with 3.35.
MIN_SQLITE = (3, 35, 0)

#: How long a transaction may wait for other processes, and in what steps, in seconds.
BUSY_BUDGET_S = 30.0
BUSY_STEP_S = 0.0003

#: Smaller than SQLite's default of 4 096: a single send then writes, checksums and syncs half as many bytes (22 us
#: against 27), and a trip of a thousand messages costs the same within a tenth.
PAGE_BYTES = 2048
#: A process checkpoints after it has written about so many bytes to the WAL, 1 000 pages as SQLite by default. What it
#: costs is syncing these bytes, so larger steps save nothing.
CHECKPOINT_BYTES = 1000 * PAGE_BYTES
#: What a changed row adds to the WAL, about, and what a transaction adds to that.
_BYTES_A_CHANGE = 512
_BYTES_A_TRANSACTION = 2 * PAGE_BYTES
#: Beyond this the WAL is made to start anew, and is cut to it then.
WAL_LIMIT_BYTES = 8 * CHECKPOINT_BYTES
#: How many single sends lie between two looks at what was written.
_LOOK_EVERY = 64

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
        self.created = False
        self._durable = durable
        self._mode = mode
        self._wal_path = f"{path}-wal"
        self._gate = FifoGate()
        self._connection: sqlite3.Connection | None = None
        # For checkpoints: one runs them, the other one pins the WAL meanwhile.
        self._mover: sqlite3.Connection | None = None
        self._pin: sqlite3.Connection | None = None
        # guards: the two are used by one thread at a time. Held across I/O, but nobody ever waits for it: who finds it
        # taken has nothing to do; and a fork, which must wait.
        self._checkpointing = threading.Lock()
        self._changes = 0  # of the connection, at the last checkpoint
        self._transactions = 0  # since then

    # --- using it

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A write transaction: committed at the end, rolled back if the block raises.

        Raises:
          BrokerError: What SQLite's error means, after a rollback.
        """
        with self._gate:
            try:
                connection = self._open()
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
                raise translate(e, self.path) from e
        if due:
            self.checkpoint()

    def execute(self, statement: str, parameters: Sequence[Any]) -> None:
        """One writing statement, which commits by itself: the way of a single send, so nothing is in it twice."""
        gate = self._gate
        due = False
        gate.acquire()
        try:
            connection = self._connection or self._open()
            try:
                connection.execute(statement, parameters)
            except sqlite3.OperationalError as e:
                if not is_busy(e):
                    raise
                self._patiently(lambda: connection.execute(statement, parameters))
            self._transactions += 1
            if self._transactions % _LOOK_EVERY == 0:
                due = self._is_checkpoint_due(connection)
        except sqlite3.Error as e:
            raise translate(e, self.path) from e
        finally:
            gate.release()
        if due:
            self.checkpoint()

    def run(self, statement: Callable[[sqlite3.Connection], T]) -> T:
        """Reads, outside a transaction."""
        with self._gate:
            try:
                connection = self._open()
                try:
                    result = statement(connection)
                except sqlite3.OperationalError as e:
                    if not is_busy(e):
                        raise
                    result = self._patiently(lambda: statement(connection))
            except sqlite3.Error as e:
                raise translate(e, self.path) from e
            return result

    def _patiently(self, action: Callable[[], T]) -> T:
        deadline = None
        while True:
            try:
                return action()
            except sqlite3.OperationalError as e:
                now = SYSTEM_CLOCK.monotonic()
                deadline = deadline or now + BUSY_BUDGET_S
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
        try:
            with self._gate:
                mover, pin = self._pin_wal()
            try:
                mover.execute("pragma wal_checkpoint(passive)").fetchone()
            finally:
                pin.rollback()
            if self.wal_bytes() > WAL_LIMIT_BYTES:
                self._finish_checkpoint(mover)
        except sqlite3.Error as e:  # the next one will do
            logger.debug("A checkpoint of %s did not come about: %s", self.path, e)
        finally:
            self._checkpointing.release()

    def _pin_wal(self) -> tuple[sqlite3.Connection, sqlite3.Connection]:
        """Begins a read transaction that keeps the WAL from being reset; inside the gate.

        A reader keeps it only if there were frames in the WAL that were not moved yet when it began; else it reads the
        file itself. So there are two: while the first one reads, whichever way, no one can move what is committed
        after it. The second one begins after such a commit, and so it pins the WAL.
        """
        writer = self._open()
        mover = self._mover = self._mover or self._connect()
        pin = self._pin = self._pin or self._connect()
        try:
            _begin_reading(mover)
            self._patiently(lambda: writer.execute("begin immediate"))
            writer.execute(f"pragma user_version = {SCHEMA_VERSION}")  # writes a page, changes nothing
            self._patiently(writer.commit)
            _begin_reading(pin)
        finally:
            mover.rollback()
            self._changes = writer.total_changes
            self._transactions = 0
        return mover, pin

    def _finish_checkpoint(self, mover: sqlite3.Connection) -> None:
        """Moves the little that is left while nobody can write, so that the next writer starts the WAL anew."""
        with self._gate:
            writer = self._open()
            self._patiently(lambda: writer.execute("begin immediate"))
            try:
                mover.execute("pragma wal_checkpoint(passive)").fetchone()
            finally:
                writer.rollback()

    # --- opening and closing

    def _open(self) -> sqlite3.Connection:
        connection = self._connection
        if connection is None:
            self._prepare_files()
            connection = self._connect()
            try:
                self._set_up(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return connection

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, isolation_level=None, timeout=0, check_same_thread=False, cached_statements=128
        )
        connection.execute("pragma busy_timeout = 0")
        return connection

    def _prepare_files(self) -> None:
        """Makes the folder and an empty file with the right permissions. SQLite gives its other files the same."""
        folder = self.path.parent
        try:
            if not folder.is_dir():
                folder.mkdir(parents=True, exist_ok=True)
                folder.chmod(folder_mode(self._mode))
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, self._mode)
        except FileExistsError:
            if self.path.is_dir():
                raise ConnectionFailed(f"The queue file {self.path} cannot be opened: it is a folder.") from None
            # SQLite would take a tiny file for an empty database, and write over it.
            if self.path.is_file() and 0 < self.path.stat().st_size < _SMALLEST_BYTES:
                raise self._not_ours() from None
            return
        except PermissionError as e:
            raise BrokerReadOnly(f"The queue file {self.path} cannot be made: {e.strerror}.") from e
        except OSError as e:
            raise ConnectionFailed(f"The queue file {self.path} cannot be made: {e.strerror}.") from e
        # The file is new, so no connection to it can exist yet, and closing it by hand is safe.
        os.fchmod(descriptor, self._mode)
        os.close(descriptor)
        self.created = True

    def _set_up(self, connection: sqlite3.Connection) -> None:
        def pragma(text: str) -> object:
            row = self._patiently(lambda: connection.execute(f"pragma {text}").fetchone())
            return row[0] if row else None

        # In this order: another process that makes the queue now sets them all at once.
        is_used = pragma("user_version") or pragma("schema_version")
        if is_used and pragma("application_id") != APPLICATION_ID:
            raise self._not_ours()
        pragma(f"page_size = {PAGE_BYTES}")  # heeded by a file that is still empty
        if pragma("journal_mode = wal") != "wal":
            raise ConnectionFailed(f"The queue file {self.path} cannot use a write-ahead log on this file system.")
        for text in (
            f"synchronous = {'full' if self._durable else 'normal'}",
            "wal_autocheckpoint = 0",
            f"journal_size_limit = {WAL_LIMIT_BYTES}",
            "cache_size = -32000",
            "temp_store = memory",
            "trusted_schema = off",
        ):
            pragma(text)
        if pragma("user_version") != SCHEMA_VERSION:
            self._create_schema(connection)

    def _not_ours(self) -> BrokerCorrupt:
        return BrokerCorrupt(f"{self.path} is not a Greenroom queue.", path=str(self.path))

    def _create_schema(self, connection: sqlite3.Connection) -> None:
        self._patiently(lambda: connection.execute("begin immediate"))
        try:
            found = connection.execute("pragma user_version").fetchone()[0]
            if found == SCHEMA_VERSION:  # another process was faster
                return
            if found != 0:
                raise SchemaMismatch(
                    f"The queue file {self.path} has schema version {found}; this Greenroom reads version "
                    f"{SCHEMA_VERSION}. Use the version of Greenroom that wrote it, or another file.",
                    found=found,
                    supported=SCHEMA_VERSION,
                )
            for statement in _statements(files(__package__).joinpath("schema.sql").read_text("utf-8")):
                connection.execute(statement)
            connection.execute(f"pragma application_id = {APPLICATION_ID}")
            connection.execute(f"pragma user_version = {SCHEMA_VERSION}")
            connection.commit()
        finally:
            if connection.in_transaction:
                connection.rollback()

    def close(self) -> None:
        """Closes the connection; the next use opens it again."""
        with self._checkpointing, self._gate:
            self._close()

    def _close(self) -> None:
        for connection in (self._pin, self._mover, self._connection):
            if connection is not None:
                connection.close()
        self._connection = self._mover = self._pin = None
        self._changes = self._transactions = 0

    def before_fork(self) -> None:
        """Brings the file to rest: no thread is in a transaction, and no connection is open, until ``after_fork``."""
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


def folder_mode(mode: int) -> int:
    """The permissions of a folder for files of ``mode``: who may read may also enter."""
    return mode | ((mode & 0o444) >> 2)


def _statements(script: str) -> Iterator[str]:
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
