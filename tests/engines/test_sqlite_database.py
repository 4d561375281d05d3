"""The one connection of a process: patience with other processes, checkpoints, forks."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from greenroom.engines.sqlite import database
from greenroom.engines.sqlite.database import CHECKPOINT_BYTES, WAL_LIMIT_BYTES
from greenroom.engines.sqlite.errors import Refused, translate, translate_os
from greenroom.engines.sqlite.transport import SqliteTransport
from greenroom.errors import (
    BrokerBusy,
    BrokerCorrupt,
    BrokerError,
    BrokerFull,
    BrokerReadOnly,
    ConnectionClosed,
    ConnectionFailed,
)
from greenroom.ports.admin import Counts
from greenroom.ports.transport import MAX_TRIP
from greenroom.testing.contract.kit import ack, bodies, claim, consumer_of, drain, envelope, envelopes
from greenroom.testing.contract.processes import in_child
from tests.engines.kit import other_process, query

LOCKS = """
connection = sqlite3.connect(path, isolation_level=None)
connection.execute("begin exclusive")
say("locked")
hear()
connection.rollback()
say("free")
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


@pytest.fixture
def transport(path: Path) -> Iterator[SqliteTransport]:
    transport = SqliteTransport(path)
    yield transport
    transport.close()


# --- other processes


@pytest.mark.parametrize("size", [1, 100])
def test_a_push_waits_for_another_process(transport: SqliteTransport, path: Path, size: int) -> None:
    """While another process holds the file a push waits, and it succeeds once the file is free."""
    transport.push(envelopes(b"0"))
    with other_process(LOCKS, path) as other:
        assert other.hear() == "locked"
        pusher = threading.Thread(target=transport.push, args=([envelope(b"x") for _ in range(size)],))
        pusher.start()
        pusher.join(0.1)
        assert pusher.is_alive(), "the push did not wait"
        other.say("go on")
        assert other.hear() == "free"
        pusher.join(10)
        assert not pusher.is_alive()
    assert transport.counts() == {"default": Counts(ready=1 + size)}


def test_a_trip_waits_for_another_process(transport: SqliteTransport, path: Path) -> None:
    """A worker's trip is as patient as a push."""
    transport.push(envelopes(b"1", b"2"))
    consumer = consumer_of(transport)
    (first,) = claim(consumer, 1)
    with other_process(LOCKS, path) as other:
        assert other.hear() == "locked"
        answers = []
        worker = threading.Thread(target=lambda: answers.append(consumer.exchange([ack(first)], 10)))
        worker.start()
        worker.join(0.1)
        assert worker.is_alive(), "the trip did not wait"
        other.say("go on")
        worker.join(10)
    assert len(answers[0].settled) == 1
    assert bodies(answers[0].deliveries) == [b"2"]


def test_patience_has_an_end(transport: SqliteTransport, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is kept waiting beyond the budget is told so; nothing was written, and the next push succeeds."""
    transport.push(envelopes(b"0"))
    monkeypatch.setattr(database, "BUSY_BUDGET_S", 0.02)
    with other_process(LOCKS, path) as other:
        assert other.hear() == "locked"
        for size in (1, 2):
            with pytest.raises(BrokerBusy, match="locked by another process"):
                transport.push([envelope(b"x") for _ in range(size)])
        other.kill()
    transport.push(envelopes(b"1"))
    assert transport.counts() == {"default": Counts(ready=2)}


def test_reading_does_not_wait(transport: SqliteTransport, path: Path) -> None:
    """Counting goes on while another process writes."""
    transport.push(envelopes(b"0"))
    with other_process(LOCKS, path) as other:
        assert other.hear() == "locked"
        assert transport.counts() == {"default": Counts(ready=1)}


def test_a_transaction_that_fails_is_rolled_back(transport: SqliteTransport) -> None:
    """What raises inside a transaction undoes it, and the next one begins anew."""
    share = transport._process.get()

    def fail() -> None:
        with share.database.transaction() as connection:
            connection.execute("insert into owner (name, pid, slot, started_ms) values ('x', 1, 0, 0)")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with share.database.transaction() as connection:
        assert connection.execute("select count(*) from owner").fetchone() == (0,)


def test_a_broken_statement_is_an_error_of_ours(transport: SqliteTransport) -> None:
    """SQLite's exceptions do not leave the engine."""
    share = transport._process.get()
    with pytest.raises(BrokerError, match="no such table"):
        share.database.run(lambda connection: connection.execute("select * from missing"))
    with pytest.raises(BrokerError, match="no such table"):
        share.database.execute("delete from missing", ())


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (sqlite3.SQLITE_BUSY, BrokerBusy),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, BrokerBusy),
        (sqlite3.SQLITE_LOCKED, BrokerBusy),
        (sqlite3.SQLITE_FULL, BrokerFull),
        (sqlite3.SQLITE_READONLY_DBMOVED, BrokerReadOnly),
        (sqlite3.SQLITE_CORRUPT_VTAB, BrokerCorrupt),
        (sqlite3.SQLITE_NOTADB, BrokerCorrupt),
        (sqlite3.SQLITE_CANTOPEN_ISDIR, ConnectionFailed),
        (sqlite3.SQLITE_IOERR_FSYNC, BrokerError),
        (sqlite3.SQLITE_IOERR_WRITE, BrokerFull),
        (sqlite3.SQLITE_IOERR_SHMSIZE, BrokerFull),
        (sqlite3.SQLITE_TOOBIG, Refused),
        (sqlite3.SQLITE_CONSTRAINT_NOTNULL, Refused),
    ],
)
def test_what_an_error_of_sqlite_means(code: int, expected: type[BrokerError]) -> None:
    """Each code, extended ones too, has one class of ours, and the path is in the text."""
    error = sqlite3.OperationalError("reason")
    error.sqlite_errorcode = code
    translated = translate(error, Path("/somewhere/queue.db"))
    assert type(translated) is expected
    assert "/somewhere/queue.db" in str(translated)
    assert "reason" in str(translated)


@pytest.mark.parametrize(
    "reason",
    ["no such table: message", "no such column: lease", "malformed JSON", "table message already exists"],
)
def test_a_file_that_is_not_as_we_made_it(reason: str) -> None:
    """Our statements are constants. Where SQLite calls one of them wrong, the file is."""
    error = sqlite3.OperationalError(reason)
    error.sqlite_errorcode = sqlite3.SQLITE_ERROR
    translated = translate(error, Path("/somewhere/queue.db"))
    assert type(translated) is BrokerCorrupt
    assert "greenroom sqlite recover /somewhere/queue.db" in str(translated)


def test_a_file_that_says_it_is_read_only(tmp_path: Path) -> None:
    """A byte of the head says whether a file may be written. If the system says otherwise, that byte is damaged."""
    path = tmp_path / "queue.db"
    error = sqlite3.OperationalError("attempt to write a readonly database")
    error.sqlite_errorcode = sqlite3.SQLITE_READONLY
    assert type(translate(error, path)) is BrokerReadOnly
    path.touch()
    assert type(translate(error, path)) is BrokerCorrupt


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, BrokerFull),
        (errno.EDQUOT, BrokerFull),
        (errno.EACCES, BrokerReadOnly),
        (errno.EROFS, BrokerReadOnly),
        (errno.EMFILE, ConnectionFailed),
    ],
)
def test_what_an_error_of_the_system_means(number: int, expected: type[BrokerError]) -> None:
    """The files beside the queue are made by hand: what the system says of them means what it means for the queue."""
    translated = translate_os(OSError(number, os.strerror(number)), Path("/somewhere/queue.db"))
    assert type(translated) is expected
    assert "/somewhere/queue.db" in str(translated)


def test_a_closed_connection(path: Path) -> None:
    """Using a connection that is closed is a lost connection."""
    assert type(translate(sqlite3.ProgrammingError("closed"), path)) is ConnectionClosed


# --- checkpoints


@pytest.mark.parametrize("batch", [1000, 1])
def test_the_wal_stays_bounded(transport: SqliteTransport, path: Path, batch: int) -> None:
    """Whether messages come in thousands or one by one, what they write is moved into the file as it goes: the WAL
    stays small and the file gets it all."""
    wal = path.with_name("queue.db-wal")
    largest = 0
    for number in range(50_000 // 1000 if batch == 1000 else 5000):
        transport.push([envelope(b"%512d" % number) for _ in range(batch)])
        if batch == 1000 or number % 100 == 0:
            largest = max(largest, wal.stat().st_size)
    assert transport.counts() == {"default": Counts(ready=50_000 if batch == 1000 else 5000)}
    assert largest < WAL_LIMIT_BYTES + CHECKPOINT_BYTES
    if batch == 1000:
        assert path.stat().st_size > WAL_LIMIT_BYTES + CHECKPOINT_BYTES, "too little was written to tell"


def test_the_wal_of_a_drain_stays_bounded(transport: SqliteTransport, path: Path) -> None:
    """A worker that settles and claims writes, too."""
    wal = path.with_name("queue.db-wal")
    for number in range(20):
        transport.push([envelope(b"%512d" % number) for _ in range(1000)])
    consumer = consumer_of(transport)
    settled, held, largest = 0, [], 0
    while settled < 20_000:
        answer = consumer.exchange(held, MAX_TRIP)
        settled += len(answer.settled)
        held = [ack(delivery) for delivery in answer.deliveries]
        largest = max(largest, wal.stat().st_size)
    assert largest < WAL_LIMIT_BYTES + CHECKPOINT_BYTES


def test_a_reader_that_stays_costs_room_and_nothing_else(transport: SqliteTransport, path: Path) -> None:
    """A reader of an old state keeps the WAL from starting anew; pushes go on, and it shrinks once the reader left."""
    reader = sqlite3.connect(path)
    transport.push(envelopes(b"0"))
    reader.execute("begin")
    assert reader.execute("select count(*) from message").fetchone() == (1,)
    for _ in range(30):
        transport.push([envelope(b"%512d" % 0) for _ in range(1000)])
    assert reader.execute("select count(*) from message").fetchone() == (1,)
    reader.close()
    for _ in range(30):
        transport.push([envelope(b"%512d" % 0) for _ in range(1000)])
    assert path.with_name("queue.db-wal").stat().st_size < WAL_LIMIT_BYTES + CHECKPOINT_BYTES
    assert transport.counts() == {"default": Counts(ready=60_001)}


def test_the_last_to_close_leaves_one_file(transport: SqliteTransport, path: Path) -> None:
    """A clean end moves all into the file: it can be copied alone."""
    transport.push(envelopes(b"1"))
    transport.close()
    assert not path.with_name("queue.db-wal").exists()
    assert query(path, "select count(*) from message") == [(1,)]


# --- forks


def test_forks_while_other_threads_use_the_connection(transport: SqliteTransport) -> None:
    """A fork waits until no thread is in a transaction. Parent and children go on, and every push is there once."""
    stop, pushed = threading.Event(), Counter[str]()

    def push_on(name: str) -> None:
        while not stop.is_set():
            transport.push(envelopes(f"{name}-{pushed[name]}".encode()))
            pushed[name] += 1

    threads = [threading.Thread(target=push_on, args=(name,)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    try:
        for number in range(15):
            in_child(lambda n=number: transport.push(envelopes(b"child-%d" % n, b"child-%d-too" % n)))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    found = Counter(body.partition(b"-")[0].decode() for body in drain(consumer_of(transport)))
    assert found == pushed + Counter(child=30)
    assert min(pushed.values()) > 0


def test_a_fork_closes_the_connection_first(transport: SqliteTransport) -> None:
    """Nobody carries SQLite's idea of its locks into a child; the parent opens the file again at the next use."""
    transport.push(envelopes(b"1"))
    share = transport._process.get()
    assert share.database._connection is not None

    def look() -> None:
        assert share.database._connection is None
        assert transport._process.peek() is None
        transport.push(envelopes(b"2"))

    in_child(look)
    assert transport._process.peek() is share
    assert share.database._connection is None
    assert transport.counts() == {"default": Counts(ready=2)}


def test_two_transports_survive_a_fork(path: Path, tmp_path: Path) -> None:
    """A fork brings all files of the process to rest, whichever transport they belong to."""
    first, second, other = SqliteTransport(path), SqliteTransport(path), SqliteTransport(tmp_path / "other.db")
    for transport in (first, second, other):
        transport.push(envelopes(b"parent"))

    def work() -> None:
        for transport in (other, second, first):
            transport.push(envelopes(b"child"))

    in_child(work)
    assert first.counts() == {"default": Counts(ready=4)}
    assert other.counts() == {"default": Counts(ready=2)}
    for transport in (first, second, other):
        transport.close()


def test_a_grandchild(transport: SqliteTransport) -> None:
    """A child may fork, too."""

    def work() -> None:
        transport.push(envelopes(b"child"))
        in_child(lambda: transport.push(envelopes(b"grandchild")))
        transport.push(envelopes(b"child"))

    in_child(work)
    assert drain(consumer_of(transport)) == [b"child", b"grandchild", b"child"]
