"""``back_up``: a copy of one moment, of a file in use."""

from __future__ import annotations

import sqlite3
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from greenroom.engines.sqlite import backup
from greenroom.engines.sqlite.backup import back_up
from greenroom.engines.sqlite.transport import SqliteTransport
from greenroom.errors import BrokerCorrupt
from greenroom.ports.admin import Counts
from greenroom.testing.contract.kit import bodies, claim, consumer_of, envelope, envelopes
from tests.engines.kit import query


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return tmp_path / "copy.db"


@pytest.fixture
def transport(path: Path) -> Iterator[SqliteTransport]:
    transport = SqliteTransport(path)
    transport.push([envelope(b"%d" % number) for number in range(100)])
    yield transport
    transport.close()


def test_a_copy(transport: SqliteTransport, path: Path, copy: Path) -> None:
    """All is there, for the owner's eyes only, in one file; the queue goes on."""
    claim(consumer_of(transport), 3)
    result = back_up(path, copy)
    assert (result.ready, result.delayed, result.claimed, result.dead) == (97, 0, 3, 0)
    assert result.bytes == copy.stat().st_size
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert {file.name for file in copy.parent.glob("copy*")} == {"copy.db"}
    transport.push(envelopes(b"more"))
    assert transport.counts()["default"].ready == 98


def test_a_copy_is_a_queue(transport: SqliteTransport, path: Path, copy: Path) -> None:
    """The first worker that opens it gets all, also what was claimed in the original."""
    claim(consumer_of(transport), 10)
    back_up(path, copy)
    other = SqliteTransport(copy)
    assert sorted(map(int, bodies(claim(consumer_of(other), 100)))) == list(range(100))
    other.close()
    assert transport.counts()["default"] == Counts(ready=90, claimed=10)


def test_of_one_moment_while_others_write(
    transport: SqliteTransport, path: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Senders are not held up, and the copy has all of each batch or nothing of it."""
    monkeypatch.setattr(backup, "_STEP_PAGES", 1)
    batches = 0

    def send(_done: int, _all: int) -> None:
        nonlocal batches
        transport.push([envelope(b"batch") for _ in range(7)])
        batches += 1

    result = back_up(path, copy, progress=send)
    assert batches > 10
    assert result.ready == 100, "it is not of the moment at which it began"
    assert transport.counts()["default"].ready == 100 + 7 * batches


def test_many_backups_beside_a_busy_sender(transport: SqliteTransport, path: Path, tmp_path: Path) -> None:
    """Whenever it is made, a copy is sound and holds whole batches."""
    stop = threading.Event()

    def send_on() -> None:
        while not stop.is_set():
            transport.push([envelope(b"%512d" % 0) for _ in range(10)])

    sender = threading.Thread(target=send_on)
    sender.start()
    try:
        results = [back_up(path, tmp_path / f"{number}.db") for number in range(8)]
    finally:
        stop.set()
        sender.join()
    assert all(result.ready % 10 == 0 for result in results)
    assert [result.ready for result in results] == sorted(result.ready for result in results)


def test_the_log_is_part_of_it(transport: SqliteTransport, path: Path, copy: Path) -> None:
    """What is committed and not yet in the file itself is in the copy."""
    assert path.stat().st_size < 10_000
    assert back_up(path, copy).ready == 100
    assert query(copy, "select count(*) from message") == [(100,)]


def test_progress_is_told(transport: SqliteTransport, path: Path, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pages, from the first step to the last."""
    monkeypatch.setattr(backup, "_STEP_PAGES", 5)
    told: list[tuple[int, int]] = []
    back_up(path, copy, progress=lambda done, every: told.append((done, every)))
    assert len(told) > 2
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1]


# --- what is refused


def test_nothing_is_overwritten(transport: SqliteTransport, path: Path, copy: Path) -> None:
    """A file at the target stays, unless it is to be replaced; the queue itself never is."""
    copy.write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        back_up(path, copy)
    assert copy.read_bytes() == b"mine"
    assert back_up(path, copy, force=True).ready == 100
    for force in (False, True):
        with pytest.raises(FileExistsError):
            back_up(path, path, force=force)
    assert transport.counts()["default"].ready == 100


def test_a_target_in_use(transport: SqliteTransport, path: Path, copy: Path) -> None:
    """A queue that somebody uses is not replaced: its log would be taken for that of the copy."""
    other = SqliteTransport(copy)
    other.push(envelopes(b"theirs"))
    with pytest.raises(FileExistsError, match="write-ahead log"):
        back_up(path, copy, force=True)
    assert other.counts()["default"].ready == 1
    other.close()


def test_what_is_not_there(path: Path, copy: Path, tmp_path: Path) -> None:
    """Neither a queue nor a folder is made."""
    with pytest.raises(FileNotFoundError):
        back_up(path, copy)
    SqliteTransport(path).push(envelopes(b"1"))
    with pytest.raises(FileNotFoundError):
        back_up(path, tmp_path / "folder" / "copy.db")
    assert not copy.exists()


def test_another_programs_database(path: Path, copy: Path) -> None:
    """It is not ours to copy."""
    connection = sqlite3.connect(path)
    connection.execute("create table customers (name text)")
    connection.close()
    with pytest.raises(BrokerCorrupt, match="not a Greenroom queue"):
        back_up(path, copy)
    assert not copy.exists()


def test_a_damaged_queue(transport: SqliteTransport, path: Path, copy: Path) -> None:
    """A copy that is damaged is no backup: none is written, and the one that is there stays."""
    transport.push([envelope(b"%512d" % number) for number in range(1000)])
    transport.close()
    data = bytearray(path.read_bytes())
    data[50 * 2048 : 53 * 2048] = b"\xff" * 3 * 2048
    path.write_bytes(data)
    copy.write_bytes(b"an earlier one")
    with pytest.raises(BrokerCorrupt) as e:
        back_up(path, copy, force=True)
    assert e.value.path == str(path)
    assert copy.read_bytes() == b"an earlier one"
    assert {file.name for file in copy.parent.iterdir() if file.is_file()} == {"queue.db", "copy.db"}
