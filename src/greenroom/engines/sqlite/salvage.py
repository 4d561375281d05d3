"""Reading the tables of a damaged copy, around the damage: what ``recover`` does with each row."""

from __future__ import annotations

import sqlite3
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ...core.options import MAX_PRIORITY, MIN_PRIORITY
from .pages import PageFile
from .rows import CLAIMED, DELAYED, NEVER_MS, READY

#: How many lines of SQLite's report are kept.
REPORT_LINES = 20

#: The first and the last of the row numbers that could not be read.
Range = tuple[int, int]

_LAST_ROW = 2**63 - 1
#: After so many vain attempts the rest of a table is looked for on its pages.
_MOST_MISSES = 5000
_FIRST_LEASE = 2**61
#: Who was at work when the file was damaged is not any more: owners, who held a slot, who stood in line for one.
_LEFT_OUT = frozenset(("message", "dead", "owner", "slot", "parked"))

_READ_MESSAGES = (
    "select seq, id, queue, priority, state, due_ms, attempt, crashes, history, cast(body as blob)"
    " from message where seq between ? and ? order by seq"
)
_WRITE_MESSAGE = (
    "insert or ignore into message (seq, id, queue, priority, state, due_ms, attempt, crashes, history, body)"
    " values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_READ_DEAD = (
    "select seq, id, queue, attempt, crashes, history, died_ms, error_type, error_message, error_traceback,"
    " cast(body as blob) from dead where seq between ? and ? order by seq"
)
_WRITE_DEAD = (
    "insert or ignore into dead (seq, id, queue, attempt, crashes, history, died_ms, error_type, error_message,"
    " error_traceback, body) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
#: Between them, these indexes name every row of the two tables.
_INDEXES = {
    "message": (("message_ready", "state = 2"), ("message_delayed", "state = 3"), ("message_claimed", "state = 4")),
    "dead": (("dead_by_queue", "true"),),
}
_COLUMNS = 11


class Salvaged(msgspec.Struct):
    """What was read of the copy."""

    #: Rows of tables other than those of messages and dead letters.
    others: int = 0
    #: Messages and dead letters that an index names and nobody found.
    lost: int = 0
    #: False if more may be lost.
    is_exact: bool = True
    #: True if it was not to be seen which pages are free, so that rows that were deleted may be among what was read.
    may_repeat: bool = False


class Salvager:
    """Reads a copy and writes a new queue file.

    Parameters:
      copy: The damaged file, with its log beside it if that counts.
      new: An open connection to an empty queue.
      progress: Called now and then with the number of rows so far.
    """

    def __init__(self, copy: Path, new: sqlite3.Connection, progress: Callable[[int], None]) -> None:
        self._copy = copy
        self._new = new
        self._progress = progress
        self._rows = 0
        self._salvaged = Salvaged()

    def run(self, *, page_bytes: int) -> Salvaged:
        """Reads all there is."""
        old = open_damaged(self._copy)
        try:
            failed = {
                "message": self._read(old, _READ_MESSAGES, _WRITE_MESSAGE, _message),
                "dead": self._read(old, _READ_DEAD, _WRITE_DEAD, _dead),
            }
            for table in self._other_tables():
                self._read_other(old, table)
            if any(failed.values()):
                self._read_by_hand(failed, page_bytes)
            for table, ranges in failed.items():
                self._count_lost(old, table, is_whole=not ranges)
        finally:
            old.close()
        return self._salvaged

    # --- messages and dead letters

    def _read(
        self, old: sqlite3.Connection, read: str, write: str, clean: Callable[[tuple[Any, ...]], tuple[Any, ...] | None]
    ) -> list[Range]:
        failed: list[Range] = []
        for row in rows_in_ranges(old, read, failed):
            cleaned = clean(row)
            if cleaned is None:
                failed.append((row[0], row[0]))
            else:
                self._write(write, cleaned)
        return failed

    def _write(self, statement: str, row: tuple[Any, ...]) -> None:
        self._new.execute(statement, row)
        self._rows += 1
        if self._rows % 1000 == 0:
            self._progress(self._rows)

    def _read_by_hand(self, failed: dict[str, list[Range]], page_bytes: int) -> None:
        for ranges in failed.values():
            ranges.sort()
        known = {row[0] for row in self._new.execute("select id from message union all select id from dead")}
        with PageFile(self._copy, page_bytes) as pages:
            self._salvaged.may_repeat = not pages.has_header
            for seq, columns in pages.rows():
                kind = _kind_of(columns)
                if kind is None or columns[1] in known or not _is_in(seq, failed[kind]):
                    continue
                known.add(columns[1])
                _null, *rest = columns
                if kind == "dead":
                    row, statement = _dead((seq, *rest)), _WRITE_DEAD
                else:
                    del rest[4]  # the lease
                    row, statement = _message((seq, *rest)), _WRITE_MESSAGE
                if row is not None:
                    self._write(statement, row)

    def _count_lost(self, old: sqlite3.Connection, table: str, *, is_whole: bool) -> None:
        named: set[int] = set()
        is_known = True
        for index, condition in _INDEXES[table]:
            try:
                for (seq,) in old.execute(f"select seq from {table} indexed by {index} where {condition}"):
                    named.add(seq)
            except sqlite3.Error:
                is_known = False
        for (seq,) in self._new.execute(f"select seq from {table}"):
            named.discard(seq)
        self._salvaged.lost += len(named)
        self._salvaged.is_exact &= is_whole or is_known

    # --- the other tables

    def _other_tables(self) -> list[str]:
        names = self._new.execute("select name from sqlite_master where type = 'table' and name not like 'sqlite_%'")
        return [name for (name,) in names if name not in _LEFT_OUT]

    def _read_other(self, old: sqlite3.Connection, table: str) -> None:
        """From both ends, up to the damage: these tables can be done without, but it would be a pity."""
        described = self._new.execute(f"pragma table_info({table})").fetchall()
        columns = ", ".join(f'"{column[1]}"' for column in described)
        key = [f'"{column[1]}"' for column in sorted(described, key=lambda column: int(column[5])) if column[5]]
        write = f"insert or ignore into {table} ({columns}) values ({', '.join('?' * len(described))})"
        for order in ("", " desc"):
            try:
                ordered = ", ".join(f"{column}{order}" for column in key)
                for row in old.execute(f"select {columns} from {table} order by {ordered}"):
                    self._write(write, row)
                    self._salvaged.others += 1
            except sqlite3.Error as e:
                if "no such table" in str(e):  # the file is of an older version
                    return
                self._salvaged.is_exact = False
            else:
                return


def open_damaged(path: Path) -> sqlite3.Connection:
    """A connection that complains as little as possible. For private copies."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
    try:
        connection.execute("pragma writable_schema = on")  # or a file that was cut short is not opened at all
    except sqlite3.Error:
        pass  # what is read next will say why
    return connection


def complaints_of(connection: sqlite3.Connection) -> list[str]:
    """What SQLite's own examination finds, the first lines of it; empty if the file is sound."""
    found = connection.execute(f"pragma integrity_check({REPORT_LINES})").fetchall()
    lines = [line for (text,) in found for line in text.splitlines() if line != "ok" and not line.startswith("***")]
    return lines[:REPORT_LINES]


def rows_in_ranges(connection: sqlite3.Connection, statement: str, failed: list[Range]) -> Iterator[tuple[Any, ...]]:
    """The rows of a statement that takes the first and the last row number, and gives rows in their order.

    A range that cannot be read is halved; what is left in the end is added to ``failed``.
    """
    todo = [(1, _LAST_ROW)]
    misses = 0
    while todo:
        first, last = todo.pop()
        if misses > _MOST_MISSES:
            failed.append((first, last))
            continue
        try:
            for row in connection.execute(statement, (first, last)):
                if not first <= row[0] <= last:
                    raise sqlite3.DatabaseError("The rows are out of order.")
                yield row
                first = row[0] + 1
        except sqlite3.Error:
            misses += 1
            if first >= last:
                failed.append((first, max(first, last)))
                continue
            middle = first + (last - first) // 2
            todo += [(middle + 1, last), (first, middle)]


def _is_in(number: int, ranges: Sequence[Range]) -> bool:
    """``ranges`` are in their order."""
    at = bisect_right(ranges, (number, _LAST_ROW)) - 1
    return at >= 0 and number <= ranges[at][1]


def _kind_of(columns: list[Any]) -> str | None:
    """The table whose row this can only be, or None."""
    if len(columns) != _COLUMNS or columns[0] is not None or not isinstance(columns[10], bytes):
        return None
    if not (_is_name(columns[1]) and _is_name(columns[2]) and isinstance(columns[4], int)):
        return None
    lease = columns[5]
    if isinstance(lease, int) and lease >= _FIRST_LEASE and READY <= columns[4] <= CLAIMED:
        return "message"
    if (lease is None or isinstance(lease, str)) and isinstance(columns[3], int) and isinstance(columns[6], int):
        return "dead"
    return None


def _message(row: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """A message as it is written: nobody has claimed it. None if it makes no sense."""
    seq, id, queue, priority, state, due_ms, attempt, crashes, history, body = row
    if not (_is_name(id) and _is_name(queue) and isinstance(body, bytes)):
        return None
    if not (isinstance(priority, int) and MIN_PRIORITY <= priority <= MAX_PRIORITY):
        priority = 0
    is_delayed = state == DELAYED and isinstance(due_ms, int) and due_ms < NEVER_MS  # nobody's turn comes any more
    state, due_ms = (DELAYED, due_ms) if is_delayed else (READY, None)
    return seq, id, queue, priority, state, due_ms, _count(attempt), _count(crashes), _history(history), body


def _dead(row: tuple[Any, ...]) -> tuple[Any, ...] | None:
    seq, id, queue, attempt, crashes, history, died_ms, *error, body = row
    if not (_is_name(id) and _is_name(queue) and isinstance(body, bytes)):
        return None
    texts = [text if isinstance(text, str) else None for text in error]
    return seq, id, queue, _count(attempt), _count(crashes), _history(history), _count(died_ms), *texts, body


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and "\ufffd" not in value


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value >= 0 else 0


def _history(value: Any) -> str | None:
    try:
        msgspec.json.decode(value, type=list[dict[str, Any]])
    except (msgspec.MsgspecError, TypeError, UnicodeError):
        return None
    return str(value)
