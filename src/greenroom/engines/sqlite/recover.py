"""Salvages what can be read of a damaged queue file into a new one. The damaged file is never changed.

The law of this module:

* **A copy is read, not the file.** Opening a database with SQLite may already change it: a log that was left behind is
  moved into it. So file and log are copied first, by hand; this is only safe in a process that has no connection to
  them (see ``database``), so it is for a command of its own. A file that any process has open is refused.
* **The log counts if it fits.** SQLite knows a log by its name only. If the file is sound without its log and damaged
  with it, the log belongs to another file and is left out. A log that hides all of the file looks sound: who knows
  better can have it left out.
* **Around the damage, then through it.** Rows are read by SQLite, in ranges that are halved around what it cannot read.
  What lies in the ranges that are left over is looked for on the pages by hand (``salvage``, ``pages``).
* **Twice rather than never.** What was claimed when the file was damaged is ready again.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import struct
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import msgspec

from ...errors import BrokerBusy, BrokerCorrupt
from .errors import translate, translate_os
from .migrations import APPLICATION_ID, SCHEMA_VERSION, not_ours, statements_after
from .opening import PAGE_BYTES
from .salvage import Salvaged, Salvager, complaints_of, open_damaged

#: Every connection to a file holds a lock here for as long as it is open.
_SHARED_FIRST, _SHARED_BYTES = 0x40000002, 510


class Recovery(msgspec.Struct, frozen=True):
    """What was salvaged, and what was not."""

    source: str
    target: str
    ready: int
    delayed: int
    dead: int
    #: Rows of other tables: results, groups, pauses.
    others: int
    #: Messages and dead letters that are known to be lost, by what the indexes say.
    lost: int
    #: False if more may be lost than is known.
    is_exact: bool
    #: True if messages that were done may be among the salvaged: it was not to be seen which pages are free.
    may_repeat: bool
    #: The write-ahead log: ``used``, ``left out`` or ``none``.
    log: str
    #: If the log was used: how many messages and dead letters the file has without it, None if that cannot be read.
    without_log: int | None
    #: What SQLite says about the file, its first lines; empty if it is sound.
    damage: list[str]

    @property
    def is_complete(self) -> bool:
        """True if nothing is lost."""
        return self.is_exact and not self.lost


def recover(
    source: Path,
    target: Path,
    *,
    ignore_log: bool = False,
    progress: Callable[[int], None] = lambda _rows: None,
) -> Recovery:
    """Reads ``source`` and writes what is there to a new queue file. Not for a process that uses the file itself.

    Parameters:
      source: The damaged file.
      target: The new file, for the eyes of its owner only.
      ignore_log: Leave the write-ahead log out, because it is known to belong to another file.
      progress: Called now and then with the number of rows read so far.

    Raises:
      FileNotFoundError: If there is no ``source``, or no folder for the new file.
      FileExistsError: If there is something at ``target``.
      BrokerBusy: If a process has ``source`` open.
      BrokerCorrupt: If nothing of a queue can be found in it; no file is written.
      BrokerError: If the new file cannot be written.
    """
    if not source.is_file():
        raise FileNotFoundError(f"There is no file {source}.")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {target.parent}.")
    for path in (target, target.with_name(f"{target.name}-wal")):
        if path.exists():
            raise FileExistsError(f"There is something at {path} already.")
    refuse_if_in_use(source)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
            copy = _copy_of(source, Path(folder), ignore_log)
            return _recover(source, target, copy, Path(folder) / "new.db", progress)
    except OSError as e:
        raise translate_os(e, target) from e
    except sqlite3.Error as e:
        raise translate(e, target) from e


def refuse_if_in_use(path: Path) -> None:
    """Raises ``BrokerBusy`` if another process has a connection to the file. Opens it by hand."""
    with path.open("rb") as file:
        if sys.platform == "darwin":
            probe = struct.pack("qqihh", _SHARED_FIRST, _SHARED_BYTES, 0, fcntl.F_WRLCK, os.SEEK_SET)
            _first, _bytes, pid, kind, _whence = struct.unpack("qqihh", fcntl.fcntl(file, fcntl.F_GETLK, probe))
        else:
            probe = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, _SHARED_FIRST, _SHARED_BYTES, 0)
            kind, _whence, _first, _bytes, pid = struct.unpack("hhqqi", fcntl.fcntl(file, fcntl.F_GETLK, probe))
    if kind != fcntl.F_UNLCK:
        raise BrokerBusy(f"The queue file {path} is in use by process {pid}. Stop all processes that use it first.")


class _Copy(NamedTuple):
    """What is read instead of the file."""

    path: Path
    log: str
    without_log: int | None
    damage: list[str]


def _recover(source: Path, target: Path, copy: _Copy, new: Path, progress: Callable[[int], None]) -> Recovery:
    with closing(_new_queue(new)) as connection:
        connection.execute("begin")
        salvaged = Salvager(copy.path, connection, progress).run(page_bytes=PAGE_BYTES)
        connection.commit()
        recovery = _describe(connection, salvaged, source, target, copy)
        if copy.damage and not (
            recovery.ready or recovery.delayed or recovery.dead or recovery.others or recovery.lost
        ):
            raise BrokerCorrupt(f"Nothing of a queue can be found in {source}: {copy.damage[0]}.", path=str(source))
        if complaints := complaints_of(connection):
            raise BrokerCorrupt(f"The new file would be damaged, too: {complaints[0]}", path=str(target))
    new.rename(target)
    return recovery


def _copy_of(source: Path, folder: Path, ignore_log: bool) -> _Copy:
    """A private copy to read from, with the log or without."""
    log = source.with_name(f"{source.name}-wal")
    has_log = log.exists() and log.stat().st_size > 0
    alone = folder / "alone.db"
    shutil.copyfile(source, alone)
    if ignore_log or not has_log:
        return _Copy(alone, "left out" if has_log else "none", None, _examine(alone, source))
    copy = folder / "copy.db"
    shutil.copyfile(source, copy)
    shutil.copyfile(log, folder / "copy.db-wal")
    damage = _examine(copy, source)
    if damage and not _examine(alone, source):
        return _Copy(alone, "left out", None, damage)
    return _Copy(copy, "used", _count(alone), damage)


def _count(copy: Path) -> int | None:
    with closing(open_damaged(copy)) as connection:
        try:
            count = "select (select count(*) from message) + (select count(*) from dead)"
            return int(connection.execute(count).fetchone()[0])
        except sqlite3.Error:
            return None


def _examine(copy: Path, source: Path) -> list[str]:
    """What SQLite says about a copy."""
    with closing(open_damaged(copy)) as connection:
        try:
            complaints = complaints_of(connection)
            if not complaints and not _is_ours(connection):
                raise not_ours(source)
        except sqlite3.Error as e:
            return [str(e)]
    return complaints


def _is_ours(connection: sqlite3.Connection) -> bool:
    """By its number; or by its tables, if that is what was damaged."""
    if connection.execute("pragma application_id").fetchone()[0] == APPLICATION_ID:
        return True
    ours = "select count(*) from sqlite_master where name in ('message', 'dead', 'owner')"
    return bool(connection.execute(ours).fetchone()[0] == 3)


def _new_queue(path: Path) -> sqlite3.Connection:
    path.touch(0o600, exist_ok=False)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(f"pragma page_size = {PAGE_BYTES}")
    connection.execute("pragma synchronous = full")
    for statement in statements_after(0):
        connection.execute(statement)
    connection.execute(f"pragma application_id = {APPLICATION_ID}")
    connection.execute(f"pragma user_version = {SCHEMA_VERSION}")
    return connection


def _describe(new: sqlite3.Connection, salvaged: Salvaged, source: Path, target: Path, copy: _Copy) -> Recovery:
    states = dict(new.execute("select state, count(*) from message group by state").fetchall())
    return Recovery(
        source=str(source),
        target=str(target),
        ready=states.get(2, 0),
        delayed=states.get(3, 0),
        dead=new.execute("select count(*) from dead").fetchone()[0],
        others=salvaged.others,
        lost=salvaged.lost,
        is_exact=salvaged.is_exact,
        may_repeat=salvaged.may_repeat,
        log=copy.log,
        without_log=copy.without_log,
        damage=copy.damage,
    )
