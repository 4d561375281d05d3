"""Connections that a child inherited open, because nobody announced the fork (``forksafe``).

SQLite keeps its view of POSIX locks in process memory, by inode, and takes it along into the child; the locks
themselves are not inherited. A connection that the child opens would find there that the file is held open already, and
take no lock of its own. The next process that closes the file then takes itself for the last one and deletes the WAL,
and what the child commits afterwards goes into a file that has no name any more (``tests/forks`` reproduces it).

So SQLite has to forget the file in the child, and for that the child closes what it inherited. This is harmless, as it
would be with no socket: it drops locks of this process, and the parent's are the parent's. One thing is not: the last
one to close a file moves the WAL into it and deletes it by name, and what an inherited connection knows may be old by
then; under that name may lie the WAL of another process, which was killed. Whether it is the last one SQLite asks the
kernel, by an exclusive lock. So the child holds a shared one meanwhile, of the kind that belongs to a descriptor: that
is in the way of its own process, too.

If a thread of the parent's was in the middle of something, nothing helps: SQLite's own mutexes, and its write lock,
remain taken for ever in the child. Then this process refuses the file, and says what to do. The same where the system
has no locks that belong to a descriptor (all but Linux).
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from ...clock import SYSTEM_CLOCK
from ...errors import ConnectionFailed
from ...forksafe import keep
from ...logging import get_logger
from .database import BUSY_BUDGET_S, BUSY_STEP_S, Database

#: Where SQLite locks a database file; a shared lock on all of it says that the file is open.
_SHARED_FIRST = 0x40000002
_SHARED_SIZE = 510
_LINUX_FLOCK = "hhqqi"  # l_type, l_whence, l_start, l_len, l_pid: native alignment
#: Locks that belong to a descriptor; 0 where there are none.
_SET_LOCK: int = getattr(fcntl, "F_OFD_SETLK", 0)

logger = get_logger(__name__)

_refused: set[tuple[int, int] | None] = set()


def close_inherited(databases: Collection[Database]) -> None:
    """In a child, before it opens any: closes these, or refuses their files from now on."""
    calm = bool(_SET_LOCK) and not any(database.is_in_use for database in databases)
    for database in databases:
        if not (calm and _close(database)):
            keep(database)
            _refused.add(_identity(database.path))  # a file that is gone and made anew is another one


def check_usable(path: Path) -> None:
    """Raises ``ConnectionFailed`` if this process cannot use the file, because of how it was forked."""
    if _refused and (identity := _identity(path)) and identity in _refused:
        raise ConnectionFailed(
            f"The queue file {path} cannot be used in this process: it was forked by other means than os.fork, while "
            "the file was open and in use. Load the application after the fork (uWSGI: lazy-apps), or let the server "
            "announce its forks to Python (uWSGI: py-call-uwsgi-fork-hooks)."
        )


def _close(database: Database) -> bool:
    try:
        with _held_open(database.path):
            database.close()
    except FileNotFoundError:
        database.close()  # SQLite looks, too, and touches nothing once the file is gone
    except OSError as e:
        logger.warning("An inherited connection to %s cannot be closed: %s", database.path, e)
        return False
    return True


@contextmanager
def _held_open(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        lock = struct.pack(_LINUX_FLOCK, fcntl.F_RDLCK, os.SEEK_SET, _SHARED_FIRST, _SHARED_SIZE, 0)
        deadline = SYSTEM_CLOCK.monotonic() + BUSY_BUDGET_S
        while True:
            try:
                fcntl.fcntl(descriptor, _SET_LOCK, lock)
                break
            except BlockingIOError:  # another process closes the file as the last one
                if SYSTEM_CLOCK.monotonic() >= deadline:
                    raise
                SYSTEM_CLOCK.sleep(BUSY_STEP_S)
        yield
    finally:
        os.close(descriptor)  # this process has no other lock on the file that would go with it


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_dev, found.st_ino)
