"""A consistent copy of a queue file that is in use.

The copy is of one moment: a read transaction is held meanwhile. Writers are not held up; the write-ahead log cannot
start anew until the copy is done, so it grows by what they write. What is claimed in the copy is given back by the
first worker that opens it.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgspec

from .errors import damage, translate, translate_os
from .migrations import APPLICATION_ID, not_ours
from .salvage import complaints_of

#: Pages a step; between two steps others get the processor, and progress is told.
_STEP_PAGES = 1000
#: Seconds that opening may take while another process opens or closes the file.
_OPEN_TIMEOUT_S = 30.0


class Backup(msgspec.Struct, frozen=True):
    """What was copied."""

    source: str
    target: str
    bytes: int
    ready: int
    delayed: int
    #: Messages that were being run, or waited for their turn in a worker.
    claimed: int
    dead: int


def back_up(
    source: Path, target: Path, *, force: bool = False, progress: Callable[[int, int], None] = lambda _done, _all: None
) -> Backup:
    """Copies a queue file, in use or not, and examines the copy.

    Parameters:
      source: The queue file.
      target: The copy, for the eyes of its owner only.
      force: Replace ``target`` if it is there.
      progress: Called after each step with the number of pages that are copied, and of all.

    Raises:
      FileNotFoundError: If there is no ``source``, or no folder for the copy.
      FileExistsError: If there is something at ``target``; with ``force`` only if it is the queue itself, or in use.
      BrokerCorrupt: If ``source`` is no queue, or damaged; nothing is written.
      BrokerError: If it cannot be read, or the copy not be written.
    """
    if not source.is_file():
        raise FileNotFoundError(f"There is no file {source}.")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {target.parent}.")
    _refuse_to_overwrite(source, target, force)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
            copy = Path(folder) / "copy.db"
            copy.touch(0o600)
            _copy(source, copy, progress)
            backup = _examine(copy, source, target)
            copy.replace(target)
    except OSError as e:
        raise translate_os(e, target) from e
    return backup


def _refuse_to_overwrite(source: Path, target: Path, force: bool) -> None:
    if target.exists() and (not force or target.samefile(source)):
        raise FileExistsError(f"There is something at {target} already.")
    log = target.with_name(f"{target.name}-wal")
    if log.exists():  # SQLite would take it for that of the copy
        raise FileExistsError(f"There is a write-ahead log {log}: that file is in use, or was not closed.")


def _copy(source: Path, copy: Path, progress: Callable[[int, int], None]) -> None:
    mode = "rw" if os.access(source, os.W_OK) else "ro"
    try:
        with (
            closing(
                sqlite3.connect(f"{source.absolute().as_uri()}?mode={mode}", uri=True, timeout=_OPEN_TIMEOUT_S)
            ) as old,
            closing(sqlite3.connect(copy)) as new,
        ):
            old.isolation_level = None
            old.execute("pragma wal_autocheckpoint = 0")
            if old.execute("pragma application_id").fetchone()[0] != APPLICATION_ID:
                raise not_ours(source)
            old.execute("begin")
            old.execute("select 1 from sqlite_master").fetchone()
            old.backup(new, pages=_STEP_PAGES, progress=lambda _status, left, every: progress(every - left, every))
            old.execute("rollback")
    except sqlite3.Error as e:
        raise translate(e, source) from e


def _examine(copy: Path, source: Path, target: Path) -> Backup:
    try:
        with closing(sqlite3.connect(copy, isolation_level=None)) as connection:
            connection.execute("pragma synchronous = full")
            connection.execute("pragma journal_mode = delete")  # the copy is one file; whoever opens it sets it again
            complaints = complaints_of(connection)
            states = dict(connection.execute("select state, count(*) from message group by state").fetchall())
            dead = connection.execute("select count(*) from dead").fetchone()[0]
    except sqlite3.Error as e:
        complaints = [str(e)]
    if complaints:
        raise translate(damage(complaints[0]), source)
    return Backup(
        source=str(source),
        target=str(target),
        bytes=copy.stat().st_size,
        ready=states.get(2, 0),
        delayed=states.get(3, 0),
        claimed=states.get(4, 0),
        dead=dead,
    )
