"""The files of a queue: where they are made, with what permissions, and what is said where that is impossible."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from greenroom.brokers.sqlite import SqliteBroker
from greenroom.core.verdict import Verdict
from greenroom.engines.sqlite import database, migrations
from greenroom.engines.sqlite.transport import SqliteTransport
from greenroom.errors import (
    BrokerCorrupt,
    BrokerError,
    BrokerReadOnly,
    ConnectionFailed,
    MessageTooLarge,
    SchemaMismatch,
)
from greenroom.ports.admin import Counts
from greenroom.ports.transport import ErrorText, Settlement
from greenroom.testing.contract.kit import bodies, claim, consumer_of, envelope, envelopes
from greenroom.testing.contract.processes import in_child
from tests.engines.kit import query

NOBODY = 65534


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def use(path: Path, **options: int) -> None:
    """Makes all files that there are while a queue is used, and looks at their modes."""
    transport = SqliteTransport(path, **options)
    transport.push(envelopes(b"1"))
    consumer = consumer_of(transport)
    assert bodies(claim(consumer, 1)) == [b"1"]
    expected = options.get("mode", 0o600)
    folder = path.with_name(f"{path.name}-wake")
    files = [path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm"), *folder.iterdir()]
    assert {file.name: oct(mode_of(file)) for file in files} == {file.name: oct(expected) for file in files}
    assert {file.name for file in folder.iterdir()} == {"lock", "board", "0"}
    transport.close()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
@pytest.mark.parametrize(("mode", "folder_mode"), [(0o600, 0o700), (0o660, 0o770), (0o664, 0o775)])
def test_permissions(tmp_path: Path, umask: int, mode: int, folder_mode: int) -> None:
    """All files have the mode that was asked for, 0600 by default, and the folders those of who may enter; whatever
    the umask is."""
    before = os.umask(umask)
    try:
        use(tmp_path / "new" / "queue.db", mode=mode)
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "new") == folder_mode
    assert mode_of(tmp_path / "new" / "queue.db-wake") == folder_mode


def test_the_default_is_private(tmp_path: Path) -> None:
    """Nobody else reads messages: 0600 for files and 0700 for folders."""
    use(tmp_path / "new" / "queue.db")
    assert mode_of(tmp_path / "new") == 0o700


def test_what_exists_keeps_its_permissions(tmp_path: Path) -> None:
    """Only what is made is given a mode; a folder and a file that were there are left alone."""
    folder = tmp_path / "mine"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    (folder / "queue.db").touch(0o640)
    (folder / "queue.db").chmod(0o640)
    transport = SqliteTransport(folder / "queue.db", mode=0o600)
    transport.push(envelopes(b"1"))
    assert (mode_of(folder), mode_of(folder / "queue.db")) == (0o755, 0o640)
    transport.close()


def test_folders_are_made(tmp_path: Path) -> None:
    """A path of folders that are not there yet is made at the first use, not before."""
    path = tmp_path / "a" / "b" / "queue.db"
    broker = SqliteBroker(path)
    broker.declare_queue("default")
    assert not (tmp_path / "a").exists()
    assert broker.transport.counts(["default"]) == {"default": Counts()}
    assert path.exists()
    broker.close()


def test_a_relative_path_is_resolved_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that changes its folder goes on using the file that it began with, also after closing it."""
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    monkeypatch.chdir(tmp_path / "first")
    transport = SqliteTransport("queue.db")
    transport.push(envelopes(b"1"))
    monkeypatch.chdir(tmp_path / "second")
    transport.push(envelopes(b"2"))
    transport.close()
    transport.push(envelopes(b"3"))
    assert transport.path == tmp_path / "first" / "queue.db"
    assert transport.counts() == {"default": Counts(ready=3)}
    assert list((tmp_path / "second").iterdir()) == []
    transport.close()


# --- what cannot be


def failure(path: Path) -> BrokerError:
    """The error of the first use, which the second use meets again."""
    transport = SqliteTransport(path)
    with pytest.raises(BrokerError) as first:
        transport.push(envelopes(b"1"))
    with pytest.raises(type(first.value)):
        transport.consumer("test")
    transport.close()
    assert str(path) in str(first.value)
    return first.value


def test_a_folder_is_no_queue(tmp_path: Path) -> None:
    """A path that names a folder is said to be one."""
    error = failure(tmp_path)
    assert type(error) is ConnectionFailed
    assert "folder" in str(error)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    """A path below a file cannot be made."""
    (tmp_path / "file").touch()
    assert type(failure(tmp_path / "file" / "queue.db")) is ConnectionFailed


def as_nobody(
    work: Callable[[Path], object], *, prepare: Callable[[Path], object] = id, folder_mode: int = 0o555
) -> None:
    """Runs ``work`` in a child without the rights of root, in a folder that it can only read."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        transport = SqliteTransport(folder / "there.db")
        transport.push(envelopes(b"1"))
        transport.close()

        def unprivileged() -> None:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            work(folder)

        for path in folder.rglob("*"):
            path.chmod(0o777 if path.is_dir() else 0o444)
        folder.chmod(folder_mode)
        prepare(folder)
        try:
            in_child(unprivileged)
        finally:
            folder.chmod(0o755)


def test_a_folder_that_cannot_be_written() -> None:
    """No file can be made in it: the error says that it is about permissions."""

    def work(folder: Path) -> None:
        error = failure(folder / "queue.db")
        assert type(error) is BrokerReadOnly
        assert "Permission denied" in str(error)
        assert type(failure(folder / "new" / "queue.db")) is BrokerReadOnly

    as_nobody(work)


def test_a_file_that_cannot_be_written() -> None:
    """A queue that belongs to somebody else: the same class of error."""
    as_nobody(lambda folder: check_read_only(failure(folder / "there.db")))


def test_a_folder_that_takes_no_more_files() -> None:
    """SQLite needs files of its own beside the queue: a folder that cannot be written is read-only, whatever the file
    is."""

    def work(folder: Path) -> None:
        check_read_only(failure(folder / "there.db"))

    as_nobody(work, prepare=lambda folder: (folder / "there.db").chmod(0o666))


def test_a_wake_folder_that_cannot_be_used() -> None:
    """The folder beside the file, too, is needed: what it lacks is said with the path of the queue."""

    def work(folder: Path) -> None:
        check_read_only(failure(folder / "there.db"))

    def forbid(folder: Path) -> None:
        for path in folder.glob("there.db*"):
            path.chmod(0o666 if path.is_file() else 0o000)
        folder.chmod(0o777)

    as_nobody(work, prepare=forbid, folder_mode=0o777)


def check_read_only(error: BrokerError) -> None:
    assert isinstance(error, BrokerReadOnly), repr(error)


@pytest.mark.parametrize(
    "content", [b"not a database, but long enough to be taken for one. " * 100, b"\0" * 8192, b"x"]
)
def test_a_file_of_something_else(tmp_path: Path, content: bytes) -> None:
    """What is no SQLite database is refused and left as it was."""
    path = tmp_path / "queue.db"
    path.write_bytes(content)
    error = failure(path)
    assert type(error) is BrokerCorrupt
    assert error.path == str(path)
    assert path.read_bytes() == content


def test_a_damaged_file(tmp_path: Path) -> None:
    """A queue whose pages were overwritten is reported as damaged, with its path."""
    path = tmp_path / "queue.db"
    transport = SqliteTransport(path)
    transport.push(envelopes(*[b"%d" % n for n in range(2000)]))
    transport.close()
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    with pytest.raises(BrokerCorrupt, match="damaged") as e:
        transport.push(envelopes(b"1"))
    assert e.value.path == str(path)
    transport.close()


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("id", "x'ff00'"),
        ("id", "cast(x'ff00' as text)"),
        ("queue", "x'ff00'"),
        ("attempt", "'x'"),
        ("crashes", "x'ff00'"),
        ("crashes", "1e300"),
    ],
)
def test_a_column_that_makes_no_sense(tmp_path: Path, column: str, value: str) -> None:
    """A message whose columns hold what nobody writes into them is damage, too, and the first to meet it says so: to
    try again would be in vain."""
    path = tmp_path / "queue.db"
    transport = SqliteTransport(path)
    transport.push(envelopes(b"1"))
    consumer = consumer_of(transport)
    connection = sqlite3.connect(path)
    connection.execute(f"update message set {column} = {value}")
    connection.commit()
    connection.close()
    if column == "queue":
        consumer.subscribe([b"\xff\x00"])  # or nobody ever meets it

    def claim_and_retry() -> None:
        (delivery,) = consumer.exchange([], 1).deliveries
        consumer.exchange([Settlement(delivery, Verdict.RETRY, retry=envelope(b"2"), error=ErrorText("E", "no"))], 0)

    with pytest.raises(BrokerCorrupt) as e:
        claim_and_retry()
    assert e.value.path == str(path)
    transport.close()


@pytest.fixture(params=[0, 1, 7])
def foreign(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A database of another program, which counts its own versions."""
    path = tmp_path / "foreign.db"
    connection = sqlite3.connect(path)
    connection.execute("create table customers (name text)")
    connection.execute(f"pragma user_version = {request.param}")
    connection.commit()
    connection.close()
    return path


def test_a_database_of_another_program(foreign: Path) -> None:
    """It is refused, whatever its version is, and not a byte of it is changed."""
    before = foreign.read_bytes()
    error = failure(foreign)
    assert type(error) is BrokerCorrupt
    assert "not a Greenroom queue" in str(error)
    assert foreign.read_bytes() == before


def test_a_newer_schema(tmp_path: Path) -> None:
    """A file of a newer Greenroom is refused with both versions named, and stays as it was."""
    path = tmp_path / "queue.db"
    transport = SqliteTransport(path)
    transport.push(envelopes(b"1"))
    transport.close()
    connection = sqlite3.connect(path)
    connection.execute("pragma user_version = 99")
    connection.close()
    error = failure(path)
    assert isinstance(error, SchemaMismatch)
    assert (error.found, error.supported) == (99, migrations.SCHEMA_VERSION)
    assert "99" in str(error)
    assert str(migrations.SCHEMA_VERSION) in str(error)
    assert query(path, "pragma user_version") == [(99,)]
    assert query(path, "select count(*) from message") == [(1,)]


def test_an_old_sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SQLite without ``RETURNING`` is refused with its version and the one that is needed."""
    monkeypatch.setattr(database.sqlite3, "sqlite_version_info", (3, 34, 1))
    monkeypatch.setattr(database.sqlite3, "sqlite_version", "3.34.1")
    with pytest.raises(ConnectionFailed, match=r"3\.34\.1.*3\.35\.0"):
        SqliteTransport(tmp_path / "queue.db").push(envelopes(b"1"))


def test_a_file_that_could_not_be_opened_is_tried_again(tmp_path: Path) -> None:
    """What stood in the way may go: the next use opens the file."""
    path = tmp_path / "queue.db"
    path.mkdir()
    transport = SqliteTransport(path)
    with pytest.raises(ConnectionFailed):
        transport.push(envelopes(b"1"))
    path.rmdir()
    transport.push(envelopes(b"1"))
    assert transport.counts() == {"default": Counts(ready=1)}
    transport.close()


def test_too_large_a_body_changes_nothing(tmp_path: Path) -> None:
    """One body over the limit refuses its whole batch before anything is written."""
    transport = SqliteTransport(tmp_path / "queue.db", max_body=10)
    with pytest.raises(MessageTooLarge):
        transport.push(envelopes(b"1", b"x" * 11))
    assert transport.counts() == {}
    transport.close()


def test_a_broker_that_nobody_closes(tmp_path: Path) -> None:
    """Most programs never close their broker. Python says nothing of it, also where it warns of all that was left
    open."""
    code = """
import gc, sys
from greenroom.brokers.sqlite import SqliteBroker
from greenroom import Message
for _ in range(2):
    broker = SqliteBroker(sys.argv[1])
    broker.declare_queue("default")
    broker.enqueue(Message("default", "actor", (), {}, {}))
    if _ == 0:
        del broker
        gc.collect()
"""
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", code, str(tmp_path / "q.db")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == ""
    assert query(tmp_path / "q.db", "select count(*) from message") == [(2,)]
