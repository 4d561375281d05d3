"""SQLite's errors to ours: the only place where they are translated."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from ...errors import (
    BrokerBusy,
    BrokerCorrupt,
    BrokerError,
    BrokerFull,
    BrokerReadOnly,
    ConnectionClosed,
    ConnectionFailed,
)

_PRIMARY = 0xFF  # the low byte of an extended result code is the primary one


def is_busy(error: sqlite3.Error) -> bool:
    """True if another connection holds what is needed: to be tried again."""
    return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def translate(error: sqlite3.Error, path: Path) -> BrokerError:
    """The error of ours that says what ``error`` means to a user; to be raised ``from`` it."""
    code = _code(error)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return BrokerBusy(f"The queue file {path} stayed locked by another process: {error}.")
    if code == sqlite3.SQLITE_FULL:
        return BrokerFull(f"No room left on the disk of the queue file {path}: {error}.")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
        return BrokerReadOnly(f"The queue file {path} cannot be written: {error}.")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return BrokerCorrupt(f"The queue file {path} is damaged or not a SQLite database: {error}.", path=str(path))
    if code == sqlite3.SQLITE_CANTOPEN:
        return ConnectionFailed(f"The queue file {path} cannot be opened: {error}.")
    if isinstance(error, sqlite3.ProgrammingError):
        return ConnectionClosed(f"The connection to the queue file {path} was closed: {error}.")
    return BrokerError(f"The queue file {path} could not be used: {error}.")


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & _PRIMARY
