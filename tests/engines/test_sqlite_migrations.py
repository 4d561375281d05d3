"""F48: queue files of an older and of a newer version, and how a file is brought up to date while others use it."""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from greenroom.engines.sqlite import migrations
from greenroom.engines.sqlite.transport import SqliteTransport
from greenroom.errors import BrokerCorrupt, SchemaMismatch
from greenroom.ports.admin import Counts
from greenroom.testing.contract.kit import ack, bodies, claim, consumer_of, envelope, envelopes
from tests.engines.kit import other_process, query

SCRIPT = Path(__file__).with_name("schema_v1.sql")

#: A process of version 1: it has the file open, sends with a statement of its own, and writes its version number at
#: each checkpoint, as that version did.
OLD_SENDER = """
connection = sqlite3.connect(path, isolation_level=None, timeout=30)
connection.execute("pragma journal_mode = wal")
say("open")
for number in range(200):
    connection.execute(
        "insert into message (id, queue, priority, state, due_ms, body) values (?, 'old', 0, 2, null, ?)",
        (f"old-{number}", b"old"),
    )
    if number % 50 == 25:
        connection.execute("begin immediate")
        connection.execute("pragma user_version = 1")
        connection.execute("commit")
    if number == 20:
        say("sends")
say("sent")
hear()
connection.close()
"""

#: A process of this version that opens the file when it is told to, and sends.
NEW_SENDER = """
from greenroom.engines.sqlite.transport import SqliteTransport
from greenroom.testing.contract.kit import envelope

transport = SqliteTransport(path)
say("there")
hear()
for number in range(20):
    transport.push([envelope(b"new")])
transport.close()
say("sent")
"""


@pytest.fixture
def old_file(tmp_path: Path) -> Path:
    """A queue file of version 1."""
    path = tmp_path / "queue.db"
    connection = sqlite3.connect(path)
    connection.executescript(SCRIPT.read_text("utf-8"))
    connection.close()
    return path


@pytest.fixture
def transport(old_file: Path) -> Iterator[SqliteTransport]:
    transport = SqliteTransport(old_file)
    yield transport
    transport.close()


def structure(path: Path) -> set[tuple[str, str]]:
    """The names of all tables and indexes of a file."""
    return set(query(path, "select type, name from sqlite_master where name not like 'sqlite_%'"))


def test_f48_an_older_file_is_brought_up_to_date(transport: SqliteTransport, old_file: Path, tmp_path: Path) -> None:
    """A file of version 1 gets what has been added since, and has all its messages still."""
    transport.push(envelopes(b"new"))
    assert query(old_file, "pragma user_version") == [(migrations.SCHEMA_VERSION,)]
    assert transport.counts()["default"] == Counts(ready=2, delayed=1, claimed=1, dead=1)
    fresh = SqliteTransport(tmp_path / "fresh.db")
    fresh.push(envelopes(b"1"))
    assert structure(old_file) == structure(tmp_path / "fresh.db")
    fresh.close()


def test_f48_messages_of_an_older_file_are_run(transport: SqliteTransport) -> None:
    """What waited in it is handed out, what a worker of then had claimed too, and its dead letters can be read."""
    consumer = consumer_of(transport)
    deliveries = claim(consumer, 2)
    assert sorted(bodies(deliveries)) == [b"claimed", b"ready"]
    claimed = next(delivery for delivery in deliveries if delivery.id == "claimed")
    assert [incident.attempt for incident in consumer.history(claimed)] == [1]
    consumer.exchange([ack(delivery) for delivery in deliveries], 0)
    assert transport.counts()["default"] == Counts(delayed=1, dead=1)


def test_f48_a_newer_file_is_refused(old_file: Path) -> None:
    """A file of the next version is refused, both versions are named, and nothing in it is changed."""
    newer = migrations.SCHEMA_VERSION + 1
    connection = sqlite3.connect(old_file)
    connection.execute(f"pragma user_version = {newer}")
    connection.close()
    before = old_file.read_bytes()
    transport = SqliteTransport(old_file)
    with pytest.raises(SchemaMismatch, match=f"version {newer}.*up to {migrations.SCHEMA_VERSION}") as e:
        transport.push(envelopes(b"1"))
    assert (e.value.found, e.value.supported) == (newer, migrations.SCHEMA_VERSION)
    transport.close()
    assert query(old_file, "select count(*) from message") == [(3,)]
    # All but what SQLite itself counts when a file gets a write-ahead log.
    assert old_file.read_bytes()[100:] == before[100:]


def test_f48_migration_under_a_live_process_of_the_old_version(old_file: Path) -> None:
    """A process of version 1 that has the file open goes on with it. It even writes its own version number back, which
    costs nothing but another migration at the next opening."""
    with other_process(OLD_SENDER, old_file) as old:
        assert old.hear() == "open"
        assert old.hear() == "sends"
        for number in range(10):
            transport = SqliteTransport(old_file)
            transport.push(envelopes(b"%d" % number))
            transport.close()
        assert old.hear() == "sent"
        old.say("close")
        old.end()
    transport = SqliteTransport(old_file)
    assert transport.counts(["old"])["old"].ready == 200
    assert transport.counts(["default"])["default"].ready == 11
    transport.close()
    assert query(old_file, "pragma user_version") == [(migrations.SCHEMA_VERSION,)]
    assert query(old_file, "pragma integrity_check") == [("ok",)]


def test_f48_many_migrate_at_once(old_file: Path) -> None:
    """Of processes that open an older file at the same moment one brings it up to date; all go on."""
    with ExitStack() as stack:
        others = [stack.enter_context(other_process(NEW_SENDER, old_file)) for _ in range(4)]
        for other in others:
            assert other.hear() == "there"
        for other in others:
            other.say("go")
        for other in others:
            assert other.hear() == "sent"
            other.end()
    assert query(old_file, "select count(*) from message where queue = 'default' and state = 2") == [(1 + 4 * 20,)]
    assert query(old_file, "pragma user_version") == [(migrations.SCHEMA_VERSION,)]


def test_f48_a_migration_does_not_disturb_a_live_worker(old_file: Path) -> None:
    """Messages are claimed and settled without an error while the file is migrated again and again."""
    transport = SqliteTransport(old_file)
    consumer = consumer_of(transport)
    transport.push([envelope(b"%d" % number) for number in range(300)])
    stop = threading.Event()

    def migrate() -> None:
        while not stop.is_set():
            connection = sqlite3.connect(old_file, isolation_level=None, timeout=30)
            connection.execute("pragma user_version = 1")
            connection.close()
            other = SqliteTransport(old_file)
            other.push(envelopes(b"other"))
            other.close()

    migrator = threading.Thread(target=migrate)
    migrator.start()
    try:
        settled = 0
        while settled < 300:
            deliveries = claim(consumer, 5)
            settled += len(consumer.exchange([ack(delivery) for delivery in deliveries], 0).settled)
    finally:
        stop.set()
        migrator.join()
    transport.close()


def test_a_checkpoint_keeps_the_version(transport: SqliteTransport, old_file: Path) -> None:
    """A checkpoint of ours writes the version that it finds: a newer process may have migrated the file meanwhile."""
    transport.push(envelopes(b"1"))
    connection = sqlite3.connect(old_file)
    connection.execute("pragma user_version = 99")
    connection.close()
    transport._process.get().database.checkpoint()
    assert query(old_file, "pragma user_version") == [(99,)]


def test_a_version_that_was_lost(old_file: Path) -> None:
    """A file with our tables and no version is damaged; it is not filled a second time."""
    connection = sqlite3.connect(old_file)
    connection.execute("pragma user_version = 0")
    connection.close()
    transport = SqliteTransport(old_file)
    with pytest.raises(BrokerCorrupt, match="no version"):
        transport.push(envelopes(b"1"))
    transport.close()


def test_what_is_added_can_be_added_twice() -> None:
    """All statements behind version 1 say ``if not exists``: see the law of the module."""
    added = migrations.statements_after(1)
    assert added
    for statement in added:
        text = re.sub(r"--.*", "", statement).strip()
        assert re.match(r"create (table|index|unique index) if not exists ", text), text


def test_the_first_version_never_changes() -> None:
    """The part of version 1 is what files of that version have: who changes a table adds a version."""

    def plain(script: str) -> str:
        return " ".join(re.sub(r"--.*", "", script).split())

    first = migrations.statements_after(0)[: -len(migrations.statements_after(1))]
    assert plain("".join(first)) in plain(SCRIPT.read_text("utf-8"))
