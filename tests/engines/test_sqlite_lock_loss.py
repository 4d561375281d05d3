"""Why a queue file is never opened except through SQLite: a reproduction of how commits vanish."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from tests.engines.kit import other_process, query

VISIT = """
connection = sqlite3.connect(path)
say(connection.execute("select count(*) from t").fetchone()[0])
connection.close()
"""


def visit(path: Path) -> int:
    """Another process opens the file, reads and closes it again; how many rows it saw."""
    with other_process(VISIT, path) as other:
        rows = int(other.hear())
        other.end()
    return rows


@pytest.mark.parametrize("by_hand", [True, False])
def test_opening_the_file_by_hand_loses_commits(tmp_path: Path, by_hand: bool) -> None:
    """POSIX locks belong to a process and a file, not to a descriptor: closing any descriptor drops those of SQLite.
    The next process that closes the file then takes itself for the last one and deletes the WAL, and what is committed
    afterwards goes into a file that has no name any more. Left alone, nothing is lost."""
    path = tmp_path / "t.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("pragma journal_mode = wal")
    connection.execute("create table t (n integer)")
    connection.execute("insert into t values (1)")
    if by_hand:
        path.open("rb").close()
    assert visit(path) == 1
    connection.execute("insert into t values (2)")  # SQLite reports a success
    seen = visit(path)
    connection.close()
    assert seen == (1 if by_hand else 2)


def test_looking_at_the_file_is_harmless(tmp_path: Path) -> None:
    """``stat`` opens nothing, so it drops no lock: this is how the engine looks at its files."""
    path = tmp_path / "t.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("pragma journal_mode = wal")
    connection.execute("create table t (n integer)")
    for suffix in ("", "-wal", "-shm"):
        path.with_name(f"t.db{suffix}").stat()
    assert visit(path) == 0
    connection.execute("insert into t values (1)")
    assert visit(path) == 1
    connection.close()
    assert query(path, "select n from t") == [(1,)]
