"""The one connection of a process to a queue file.

The law of this module:

* **One writer connection a process, behind a first-in first-out gate.** A transaction is short and bounded.
* **No busy handler of SQLite's.** ``timeout=0``, ``BEGIN IMMEDIATE`` and steps of 0.3 ms of our own: SQLite's handler
  sleeps ever longer and gives a single insert a p99 of 54 to 104 ms beside a bulk writer; this loop 6 ms.
* **The files are opened through SQLite only**, once a connection may exist in this process: closing a descriptor of
  theirs drops SQLite's locks, another process's close then deletes the WAL, and commits vanish. Checks use ``stat``.
* **Checkpoints run while this process holds SQLite's write lock.** In versions before 3.51.3 a checkpoint that races
  the reset of the WAL by a writer can lose commits (sqlite.org/wal.html, "the WAL-reset bug"). Nobody can reset the
  WAL without the write lock, and checkpoints exclude each other, so the race cannot happen; and a transaction pays
  nothing for it. A close that checkpoints holds SQLite's exclusive lock on the file, so it is alone.
* **No connection is open at a fork.** SQLite keeps its view of POSIX locks by inode in process memory; a child that
  opened the file again would trust locks that it does not have, and another process could delete the WAL under it.
  So the forking process closes its connection first (``before_fork``) and both open their own at the next use.
"""

from __future__ import annotations

import os
import sqlite3
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
#: A process checkpoints after it has written about so many bytes to the WAL, which is SQLite's own default.
CHECKPOINT_BYTES = 4 * 1024 * 1024
#: What a changed row adds to the WAL, about, and what a transaction adds to that.
_BYTES_A_CHANGE = 512
_BYTES_A_TRANSACTION = 2 * PAGE_BYTES
#: The WAL is cut to this when it starts anew. It is larger only if large bodies or a reader that pins it made it so.
WAL_LIMIT_BYTES = 4 * CHECKPOINT_BYTES
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
        self._second: sqlite3.Connection | None = None
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
                self._checkpoint_if_due(connection)
            except sqlite3.Error as e:
                raise translate(e, self.path) from e

    def execute(self, statement: str, parameters: Sequence[Any]) -> None:
        """One writing statement, which commits by itself: the way of a single send, so nothing is in it twice."""
        gate = self._gate
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
                self._checkpoint_if_due(connection)
        except sqlite3.Error as e:
            raise translate(e, self.path) from e
        finally:
            gate.release()

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

    def _checkpoint_if_due(self, connection: sqlite3.Connection) -> None:
        written = (
            connection.total_changes - self._changes
        ) * _BYTES_A_CHANGE + self._transactions * _BYTES_A_TRANSACTION
        if written > CHECKPOINT_BYTES or self.wal_bytes() > WAL_LIMIT_BYTES:
            self._checkpoint(connection)

    def wal_bytes(self) -> int:
        """The size of the write-ahead log, without opening it."""
        try:
            return os.stat(self._wal_path).st_size
        except OSError:
            return 0

    def _checkpoint(self, writer: sqlite3.Connection) -> None:
        """Moves what is committed from the WAL into the file. Inside the gate; gives up at once if others write."""
        try:
            writer.execute("begin immediate")
        except sqlite3.OperationalError:
            return  # somebody writes; the next look will do
        try:
            if self._second is None:
                self._second = self._connect()
            self._second.execute("pragma wal_checkpoint(passive)").fetchone()
            self._changes = writer.total_changes
            self._transactions = 0
        except sqlite3.Error as e:
            logger.warning("Checkpointing %s failed: %s", self.path, e)
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
        with self._gate:
            self._close()

    def _close(self) -> None:
        for connection in (self._second, self._connection):
            if connection is not None:
                connection.close()
        self._connection = self._second = None
        self._changes = self._transactions = 0

    def before_fork(self) -> None:
        """Brings the file to rest: no thread is in a transaction, and no connection is open, until ``after_fork``."""
        self._gate.acquire()
        self._close()

    def after_fork(self) -> None:
        """Lets the parent go on."""
        self._gate.release()


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
