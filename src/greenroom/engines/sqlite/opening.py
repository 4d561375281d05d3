"""A connection to a queue file: how it is opened, and the settings that it gets."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

from ...errors import ConnectionFailed
from .migrations import APPLICATION_ID, SCHEMA_VERSION, bring_up_to_date, not_ours

#: Smaller than SQLite's default of 4 096: a single send then writes, checksums and syncs half as many bytes (22 us
#: against 27), and a trip of a thousand messages costs the same within a tenth.
PAGE_BYTES = 2048

#: Runs an action until other processes let it, and returns what it returned.
Patiently = Callable[[Callable[[], object]], object]


def connect(path: Path) -> sqlite3.Connection:
    """A connection that waits for nobody by itself. Reads nothing yet."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=0, check_same_thread=False, cached_statements=128)
    connection.execute("pragma busy_timeout = 0")
    return connection


def set_up(connection: sqlite3.Connection, path: Path, *, durable: bool, wal_bytes: int, patiently: Patiently) -> None:
    """Makes sure that the file is a queue of ours, of this version, and sets the connection up.

    Parameters:
      wal_bytes: To what the write-ahead log is cut when it starts anew.

    Raises:
      BrokerCorrupt: If it is something else.
      SchemaMismatch: If it is of a newer version.
      ConnectionFailed: If its file system cannot do what SQLite needs.
    """

    def pragma(text: str) -> object:
        return patiently(lambda: (connection.execute(f"pragma {text}").fetchone() or (None,))[0])

    # In this order: another process that makes the queue now sets them all at once.
    is_used = pragma("user_version") or pragma("schema_version")
    if is_used and pragma("application_id") != APPLICATION_ID:
        raise not_ours(path)
    pragma(f"page_size = {PAGE_BYTES}")  # heeded by a file that is still empty
    if pragma("journal_mode = wal") != "wal":
        raise ConnectionFailed(f"The queue file {path} cannot use a write-ahead log on this file system.")
    for text in (
        f"synchronous = {'full' if durable else 'normal'}",
        "wal_autocheckpoint = 0",
        f"journal_size_limit = {wal_bytes}",
        "cache_size = -32000",
        "temp_store = memory",
        "trusted_schema = off",
    ):
        pragma(text)
    if pragma("user_version") != SCHEMA_VERSION:
        bring_up_to_date(connection, path, patiently)


def spare_bytes(connection: sqlite3.Connection) -> int:
    """How much of the file is free for new rows, because rows were deleted."""
    pages: int = connection.execute("pragma freelist_count").fetchone()[0]
    return pages * PAGE_BYTES
