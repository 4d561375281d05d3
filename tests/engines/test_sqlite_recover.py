"""``recover``: what it reads, what it makes of it, what it refuses. Damage by the seed is in ``tests/chaos``."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from greenroom.core.verdict import Verdict
from greenroom.engines.sqlite.migrations import SCHEMA_VERSION
from greenroom.engines.sqlite.opening import PAGE_BYTES
from greenroom.engines.sqlite.pages import PageFile
from greenroom.engines.sqlite.recover import recover
from greenroom.engines.sqlite.transport import SqliteTransport
from greenroom.errors import BrokerBusy, BrokerCorrupt
from greenroom.ports.transport import Envelope, ErrorText, Settlement
from greenroom.testing.contract.kit import claim, consumer_of
from greenroom.testing.contract.processes import in_child
from tests.engines.kit import other_process, query

#: A process that uses the queue at ``path`` and neither reads nor writes at the moment.
IDLE = """
from greenroom.engines.sqlite.transport import SqliteTransport
from greenroom.testing.contract.kit import envelopes

transport = SqliteTransport(path)
transport.push(envelopes(b"1"))
say("uses it")
hear()
"""
DUE_MS = 4_000_000_000_000


def fill(path: Path, *, die: bool = False) -> None:
    """A queue with something of every kind, made by another process."""

    def work() -> None:
        transport = SqliteTransport(path)
        transport.push([Envelope("default", f"ready-{n}", b"%d" % n * 300, n % 3) for n in range(200)])
        transport.push([Envelope("later", f"delayed-{n}", b"d%d" % n, 0, DUE_MS + n) for n in range(10)])
        consumer = consumer_of(transport)
        first, second, third = claim(consumer, 3)
        error = ErrorText("ValueError", "no", "Traceback")
        retry = Envelope("default", "retried", b"again", 0, DUE_MS)
        consumer.exchange(
            [Settlement(first, Verdict.DEAD, error=error), Settlement(second, Verdict.RETRY, retry=retry, error=error)],
            0,
        )
        assert third.id.startswith("ready")
        with transport._process.get().database.transaction() as connection:
            connection.execute("insert into paused values ('later', 1)")
        if die:
            os._exit(0)
        transport.close()

    in_child(work)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "queue.db"
    fill(path)
    return path


@pytest.fixture
def new(tmp_path: Path) -> Path:
    return tmp_path / "new.db"


def rows(path: Path, table: str) -> list[tuple[object, ...]]:
    return query(path, f"select * from {table} order by 1")


def test_a_sound_file(path: Path, new: Path) -> None:
    """All of a sound file comes through, in its order; only what was claimed is ready again, and nobody owns it."""
    before = path.read_bytes()
    recovery = recover(path, new)
    assert path.read_bytes() == before
    assert (recovery.ready, recovery.delayed, recovery.dead, recovery.others) == (198, 11, 1, 1)
    assert (recovery.lost, recovery.is_exact, recovery.is_complete, recovery.may_repeat) == (0, True, True, False)
    assert (recovery.log, recovery.damage) == ("none", [])
    assert rows(new, "dead") == rows(path, "dead")
    assert rows(new, "paused") == rows(path, "paused")
    assert rows(new, "owner") == []
    columns = "seq, id, queue, priority, due_ms, attempt, crashes, history, body"
    assert query(new, f"select {columns} from message") == query(path, f"select {columns} from message")
    assert query(new, "select distinct state, lease from message order by 1") == [(2, 2**62), (3, 2**62)]
    assert query(new, "pragma user_version") == [(SCHEMA_VERSION,)]
    assert stat.S_IMODE(new.stat().st_mode) == 0o600


def test_results_and_lines_for_slots(path: Path, new: Path) -> None:
    """What is kept beside messages comes along; slots do not, since nobody holds them any more: whoever stood in line
    for one is ready."""
    connection = sqlite3.connect(path)
    connection.execute("insert into value values ('a', 0, x'01', null), ('a', 1, x'02', 5)")
    connection.execute("insert into gathering values (7, 'g', 2, 1, 0, x'03', null)")
    connection.execute("insert into member values (7, 'm', 1)")
    connection.execute("insert into slot (key, holder, end_ms) values ('k', 'h', 5)")
    connection.execute("update message set state = 3, due_ms = 4611686018427387904 where id = 'ready-100'")
    connection.execute("insert into parked select 1, seq, 'k', 'h', 1, 5 from message where id = 'ready-100'")
    connection.commit()
    connection.close()
    recovery = recover(path, new)
    assert (recovery.ready, recovery.delayed, recovery.others) == (198, 11, 5)
    for table in ("value", "gathering", "member"):
        assert rows(new, table) == rows(path, table)
    assert rows(new, "slot") == rows(new, "parked") == []
    assert query(new, "select state, due_ms from message where id = 'ready-100'") == [(2, None)]


def test_what_is_recovered_is_a_queue(path: Path, new: Path) -> None:
    """A worker takes the new file as it is."""
    recover(path, new)
    transport = SqliteTransport(new)
    assert len(claim(consumer_of(transport), 198)) == 198
    transport.close()


def test_a_log_is_read(tmp_path: Path, new: Path) -> None:
    """What a process that was killed has left in its log comes through; the log stays where it is."""
    path = tmp_path / "queue.db"
    fill(path, die=True)
    log = path.with_name("queue.db-wal").read_bytes()
    assert log
    recovery = recover(path, new)
    assert (recovery.ready, recovery.delayed, recovery.dead, recovery.log) == (198, 11, 1, "used")
    assert path.with_name("queue.db-wal").read_bytes() == log
    assert recovery.without_log is None
    with pytest.raises(BrokerCorrupt):  # all of it is in the log yet
        recover(path, tmp_path / "alone.db", ignore_log=True)


def test_a_lost_head(path: Path, new: Path) -> None:
    """Without the first page SQLite does not open a file at all: all rows are read from their pages."""
    data = bytearray(path.read_bytes())
    data[:PAGE_BYTES] = bytes(PAGE_BYTES)
    path.write_bytes(data)
    recovery = recover(path, new)
    assert (recovery.ready, recovery.delayed, recovery.dead) == (198, 11, 1)
    assert recovery.may_repeat
    assert not recovery.is_complete


def test_what_was_deleted_stays_deleted(path: Path, new: Path) -> None:
    """Pages that are free keep what was on them. Where the head is intact that is known, and left out."""

    def delete() -> None:
        connection = sqlite3.connect(path)
        connection.execute("pragma secure_delete = off")
        connection.execute("delete from message where priority > 0")
        connection.execute("delete from message where seq > 100")
        connection.commit()
        connection.close()

    in_child(delete)
    left = {row[1] for row in rows(path, "message")}
    (root,) = query(path, "select rootpage from sqlite_master where name = 'message'")[0]
    data = bytearray(path.read_bytes())
    data[(root - 1) * PAGE_BYTES : root * PAGE_BYTES] = b"\xff" * PAGE_BYTES
    path.write_bytes(data)
    recovery = recover(path, new)
    found = {row[1] for row in rows(new, "message")}
    assert left <= found
    assert len(found - left) < 50, "rows of free pages came back"
    assert not recovery.may_repeat


@pytest.mark.parametrize("column", ["priority", "state", "attempt", "crashes", "history"])
def test_a_column_that_makes_no_sense(path: Path, new: Path, column: str) -> None:
    """A message is not lost for a column that it can do without."""
    connection = sqlite3.connect(path)
    connection.execute("pragma ignore_check_constraints = on")
    value = {"history": "x'ff'", "priority": "10000000", "state": "77"}.get(column, "-5")
    connection.execute(f"update message set {column} = {value} where id = 'ready-100'")
    connection.commit()
    connection.close()
    recovery = recover(path, new)
    assert recovery.ready == 198
    assert query(new, "select priority, state, attempt, crashes, history from message where id = 'ready-100'")[0] in (
        (1, 2, 0, 0, None),
        (0, 2, 0, 0, None),
    )


def test_what_the_indexes_say(path: Path, new: Path) -> None:
    """How many are lost is known from the indexes, where these can be read."""
    data = bytearray(path.read_bytes())
    at = data.index(b"ready-150") // PAGE_BYTES * PAGE_BYTES
    lost = data[at : at + PAGE_BYTES].count(b"ready-")
    assert lost
    data[at : at + PAGE_BYTES] = bytes(PAGE_BYTES)
    path.write_bytes(data)
    recovery = recover(path, new)
    assert recovery.damage
    assert recovery.lost > 0
    assert recovery.is_exact
    assert recovery.ready + recovery.lost == 198


# --- what is refused


def test_a_file_in_use(tmp_path: Path, new: Path) -> None:
    """A file that a process has open is refused with the number of that process, also while it does nothing."""
    path = tmp_path / "queue.db"
    with other_process(IDLE, path) as other:
        assert other.hear() == "uses it"
        with pytest.raises(BrokerBusy, match=f"process {other.pid}"):
            recover(path, new)
    assert not new.exists()


def test_nothing_is_overwritten(path: Path, new: Path) -> None:
    """Neither a file at the target, nor the file itself, nor a log that would be taken for the new file's."""
    new.write_bytes(b"mine")
    for target in (new, path):
        with pytest.raises(FileExistsError):
            recover(path, target)
    assert new.read_bytes() == b"mine"
    new.rename(new.with_name("new.db-wal"))
    with pytest.raises(FileExistsError, match=r"new\.db-wal"):
        recover(path, new)


def test_no_file(tmp_path: Path, new: Path) -> None:
    """What is not there cannot be recovered."""
    with pytest.raises(FileNotFoundError):
        recover(tmp_path / "nothing.db", new)


def test_no_folder(path: Path, tmp_path: Path) -> None:
    """No folder is made for the new file."""
    with pytest.raises(FileNotFoundError, match="no folder"):
        recover(path, tmp_path / "folder" / "new.db")


@pytest.mark.parametrize("content", [b"", b"x" * 10, b"\0" * 5000, bytes(range(256)) * 40])
def test_nothing_of_a_queue(tmp_path: Path, new: Path, content: bytes) -> None:
    """Where there is nothing of a queue, no file is made."""
    path = tmp_path / "queue.db"
    path.write_bytes(content)
    with pytest.raises(BrokerCorrupt):
        recover(path, new)
    assert {file.name for file in tmp_path.iterdir()} == {"queue.db"}


def test_another_programs_database(tmp_path: Path, new: Path) -> None:
    """It is not ours to recover."""
    path = tmp_path / "other.db"
    connection = sqlite3.connect(path)
    connection.execute("create table customers (name text)")
    connection.close()
    with pytest.raises(BrokerCorrupt, match="not a Greenroom queue"):
        recover(path, new)


# --- pages


def large_database(path: Path, seed: int) -> None:
    """Rows of all sizes and types, some of them deleted, some in the log only."""
    chance = random.Random(seed)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(f"pragma page_size = {PAGE_BYTES}")
    connection.execute("pragma journal_mode = wal")
    connection.execute("create table t (n integer primary key, a, b, c)")

    def value() -> object:
        makers: list[Callable[[], object]] = [
            lambda: None,
            lambda: chance.choice([0, 1, -1, 127, -129, 2**31, -(2**47), 2**63 - 1, -(2**63)]),
            lambda: chance.randbytes(chance.randrange(6000)),
            lambda: "\u00e9x" * chance.randrange(100),
        ]
        return chance.choice(makers)()

    def fill() -> None:
        rows = [(chance.randrange(-(2**40), 2**60), value(), value(), value()) for _ in range(150)]
        connection.executemany("insert or ignore into t values (?, ?, ?, ?)", rows)

    fill()
    connection.execute("pragma wal_checkpoint(truncate)")
    connection.execute("delete from t where n % 3 = 0")
    fill()
    os._exit(0)


@pytest.mark.parametrize("seed", range(4))
def test_pages_say_what_sqlite_says(tmp_path: Path, seed: int) -> None:
    """Read by hand, page by page, a file and its log have the rows that SQLite reads: small and large, of any type."""
    path = tmp_path / "t.db"
    in_child(lambda: large_database(path, seed))
    copy = tmp_path / "copy.db"
    shutil.copyfile(path, copy)
    shutil.copyfile(f"{path}-wal", f"{copy}-wal")
    with PageFile(copy, PAGE_BYTES) as pages:
        found = {number: columns[1:] for number, columns in pages.rows() if len(columns) == 4}
    expected = {n: list(rest) for n, *rest in query(path, "select n, a, b, c from t")}
    assert len(expected) > 100
    assert found == expected


@pytest.mark.parametrize("seed", range(10))
def test_pages_of_noise(tmp_path: Path, seed: int) -> None:
    """Whatever the bytes are, reading them ends, and raises nothing."""
    chance = random.Random(seed)
    data = bytearray(chance.randbytes(40 * PAGE_BYTES))
    for at in range(0, len(data), PAGE_BYTES):
        data[at] = chance.choice((5, 13, 13, 13))
        data[at + 3 : at + 5] = (0, chance.randrange(256))
    data[: len(b"SQLite format 3\0")] = b"SQLite format 3\0"
    path = tmp_path / "noise.db"
    path.write_bytes(data)
    with PageFile(path, PAGE_BYTES) as pages:
        assert all(isinstance(number, int) for number, _columns in pages.rows())


def test_sqlites_own_shell_is_not_needed(path: Path, new: Path) -> None:
    """Recovering needs no other program."""
    command = [sys.executable, "-m", "greenroom", "sqlite", "recover", str(path), "-o", str(new)]
    subprocess.run(command, env={"PATH": ""}, check=True, timeout=60, capture_output=True)
    assert len(rows(new, "message")) == 209
