"""SQLite's errors to ours, and those of the system around its files: the only place where they are translated."""

from __future__ import annotations

import errno
import os
import shlex
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

#: A write that the system refused: no room for SQLite's shared memory, a quota, a limit on the size of files
#: (``ulimit -f``), a disk that fails. SQLite keeps SQLITE_FULL for the plain case.
_NO_ROOM = frozenset((sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE, sqlite3.SQLITE_IOERR_SHMMAP))
_NO_ROOM_ERRNOS = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
_READ_ONLY_ERRNOS = frozenset((errno.EACCES, errno.EPERM, errno.EROFS))

#: What SQLite says, with the code of a mistake in a statement, where a file is not as our statements know it. The
#: statements are constants, so it is the file that is wrong.
_NOT_AS_WE_MADE_IT = (
    "no such table",
    "no such column",
    "already exists",
    "has no column named",
    "malformed JSON",
    "JSON cannot hold",
    "Could not decode to UTF-8",
)


class Refused(BrokerError):
    """What SQLite refuses whenever it is tried: a value that is too large, or not allowed in its column."""


def is_busy(error: sqlite3.Error) -> bool:
    """True if another connection holds what is needed: to be tried again."""
    return _code(error) & _PRIMARY in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def damage(reason: str) -> sqlite3.DatabaseError:
    """What SQLite would raise if it had seen itself that the file is damaged."""
    error = sqlite3.DatabaseError(reason)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def translate(error: sqlite3.Error, path: Path) -> BrokerError:
    """The error of ours that says what ``error`` means to a user; to be raised ``from`` it."""
    code = _code(error)
    if _means_damage(error, code, path):
        return BrokerCorrupt(
            f"The queue file {path} is damaged or not a SQLite database: {error}. What can be read of it is salvaged "
            f"by: greenroom sqlite recover {shlex.quote(str(path))}",
            path=str(path),
        )
    if code in _NO_ROOM and not _is_read_only_disk(path):
        return BrokerFull(f"The disk of the queue file {path} takes no more: {error}.")
    match code & _PRIMARY:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return BrokerBusy(f"The queue file {path} stayed locked by another process: {error}.")
        case sqlite3.SQLITE_FULL:
            return BrokerFull(f"No room left on the disk of the queue file {path}: {error}.")
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH:
            return BrokerReadOnly(f"The queue file {path} cannot be written: {error}.")
        case sqlite3.SQLITE_CANTOPEN:
            if path.exists() and not _may_write(path):
                return BrokerReadOnly(f"The queue file {path}, or its folder, cannot be written: {error}.")
            return ConnectionFailed(f"The queue file {path} cannot be opened: {error}.")
        case sqlite3.SQLITE_TOOBIG | sqlite3.SQLITE_CONSTRAINT | sqlite3.SQLITE_MISMATCH:
            return Refused(f"The queue file {path} does not take this: {error}.")
    if code in _NO_ROOM:
        return BrokerReadOnly(f"The queue file {path} cannot be written: {error}.")
    if isinstance(error, sqlite3.ProgrammingError):
        return ConnectionClosed(f"The connection to the queue file {path} was closed: {error}.")
    return BrokerError(f"The queue file {path} could not be used: {error}.")


def translate_os(error: OSError, path: Path) -> BrokerError:
    """The error of ours for one that the system raised while a file of the queue was made or opened."""
    reason = error.strerror or str(error)
    if error.errno in _NO_ROOM_ERRNOS:
        return BrokerFull(f"No room left on the disk for the queue file {path}: {reason}.")
    if error.errno in _READ_ONLY_ERRNOS:
        return BrokerReadOnly(f"The queue file {path}, or a file beside it, cannot be made: {reason}.")
    return ConnectionFailed(f"The queue file {path}, or a file beside it, cannot be made: {reason}.")


def _means_damage(error: sqlite3.Error, code: int, path: Path) -> bool:
    if code & _PRIMARY in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return True
    if code == sqlite3.SQLITE_READONLY:  # the file itself says so, in a byte that we never write
        return _may_write(path)
    return code in (0, sqlite3.SQLITE_ERROR) and any(text in str(error) for text in _NOT_AS_WE_MADE_IT)


def _may_write(path: Path) -> bool:
    return os.access(path, os.R_OK | os.W_OK) and os.access(path.parent, os.W_OK | os.X_OK)


def _is_read_only_disk(path: Path) -> bool:
    try:
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0)
