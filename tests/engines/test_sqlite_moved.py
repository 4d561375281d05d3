"""F54: the file is deleted, renamed or replaced while this process uses it.

How soon that is noticed, and how long whoever restores a file has for it, is cut to nothing here;
``tests/chaos/test_damaged_files.py`` does the same to real workers, with the real times.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from greenroom.engines.sqlite import database, queue_file
from greenroom.engines.sqlite.backup import back_up
from greenroom.engines.sqlite.transport import SqliteTransport
from greenroom.errors import BrokerCorrupt, BrokerMoved, ConnectionFailed
from greenroom.ports.admin import Counts
from greenroom.testing.contract.kit import ack, bodies, claim, consumer_of, drain, envelopes
from greenroom.testing.contract.processes import in_child
from tests.engines.kit import other_process, query

#: Another process that holds a message of the queue at ``path``, and says when it has claimed it.
HOLDER = """
from greenroom.engines.sqlite.transport import SqliteTransport
from greenroom.testing.contract.kit import ack, claim, consumer_of, envelopes

transport = SqliteTransport(path)
transport.push(envelopes(b"theirs"))
consumer = consumer_of(transport)
(delivery,) = claim(consumer, 1)
say(f"{consumer._owner.number}")
hear()
say(f"{len(consumer.exchange([ack(delivery)], 0).settled)}")
transport.close()
"""


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every use of the connection looks at the file, and what is wrong with it is final."""
    monkeypatch.setattr(database, "FILE_LOOK_INTERVAL_S", 0.0)
    monkeypatch.setattr(queue_file, "GRACE_S", 0.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


@pytest.fixture
def transport(path: Path) -> Iterator[SqliteTransport]:
    transport = SqliteTransport(path)
    transport.push(envelopes(b"before"))
    yield transport
    transport.close()


def files_of(path: Path) -> list[Path]:
    """The file and those that SQLite keeps beside it."""
    return [found for suffix in ("", "-wal", "-shm") if (found := path.with_name(path.name + suffix)).exists()]


def move(path: Path, to: Path) -> None:
    """Moves a queue as a whole."""
    for file in files_of(path):
        file.rename(to.with_name(to.name + file.name.removeprefix(path.name)))


def make_queue(path: Path, *content: bytes) -> None:
    transport = SqliteTransport(path)
    transport.push(envelopes(*content))
    transport.close()


# --- gone


@pytest.mark.parametrize("how", ["delete", "rename", "delete_all", "rename_all"])
def test_f54_a_file_that_is_gone(transport: SqliteTransport, path: Path, tmp_path: Path, how: str) -> None:
    """Who has used a file that was deleted or renamed is told so, each time; it is not made anew behind one's back."""
    for file in files_of(path) if how.endswith("all") else [path]:
        file.unlink() if how.startswith("delete") else file.rename(tmp_path / f"old{file.name.removeprefix('queue')}")
    for size in (1, 2, 1):
        with pytest.raises(BrokerMoved, match="deleted or renamed") as e:
            transport.push(envelopes(*[b"after"] * size))
        assert e.value.path == str(path)
    with pytest.raises(BrokerMoved):
        transport.counts()
    assert not path.exists()
    if how == "rename_all":
        assert query(tmp_path / "old.db", "select cast(body as blob) from message") == [(b"before",)]


def test_f54_a_file_that_comes_back(transport: SqliteTransport, path: Path, tmp_path: Path) -> None:
    """Once the file is back, it is used as if nothing had happened."""
    move(path, tmp_path / "elsewhere.db")
    with pytest.raises(BrokerMoved):
        transport.push(envelopes(b"lost"))
    move(tmp_path / "elsewhere.db", path)
    transport.push(envelopes(b"after"))
    assert drain(consumer_of(transport)) == [b"before", b"after"]


def test_f54_a_moment_of_grace(transport: SqliteTransport, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At first a file that is gone is a broken connection, which workers wait for to end: somebody may be restoring
    it."""
    monkeypatch.setattr(queue_file, "GRACE_S", 60.0)
    path.unlink()
    for _ in range(2):
        with pytest.raises(ConnectionFailed, match="deleted or renamed"):
            transport.push(envelopes(b"after"))


def test_f54_another_program_begins_anew(transport: SqliteTransport, path: Path) -> None:
    """A process that has not used the file before makes a new one; then those who knew the old one go on there."""
    for file in files_of(path):
        file.unlink()
    with pytest.raises(BrokerMoved):
        transport.push(envelopes(b"lost"))
    in_child(lambda: make_queue(path, b"new"))
    transport.push(envelopes(b"after"))
    assert drain(consumer_of(transport)) == [b"new", b"after"]


def test_f54_a_log_without_its_file(path: Path) -> None:
    """A queue that was deleted without its write-ahead log is not made anew beside it: that log may hold messages."""

    def die_with_a_log() -> None:
        transport = SqliteTransport(path)
        transport.push(envelopes(b"1"))

    in_child(die_with_a_log)
    assert len(files_of(path)) == 3
    path.unlink()
    transport = SqliteTransport(path)
    with pytest.raises(BrokerCorrupt, match="write-ahead log"):
        transport.push(envelopes(b"2"))
    assert not path.exists()
    for file in files_of(path):
        file.unlink()
    transport.push(envelopes(b"2"))
    assert transport.counts() == {"default": Counts(ready=1)}
    transport.close()


# --- replaced


def test_f54_senders_go_on_in_the_new_file(
    transport: SqliteTransport, path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Another queue at the path is opened at the next send, with one warning; nothing more goes to the old one."""
    make_queue(tmp_path / "new.db", b"new")
    move(path, tmp_path / "old.db")
    move(tmp_path / "new.db", path)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            transport.push(envelopes(b"after"))
    assert sum("was replaced" in record.message for record in caplog.records) == 1
    assert drain(consumer_of(transport)) == [b"new", b"after", b"after", b"after"]
    assert query(tmp_path / "old.db", "select cast(body as blob) from message") == [(b"before",)]


def test_f54_the_log_of_the_old_file(transport: SqliteTransport, path: Path, tmp_path: Path) -> None:
    """A new file beside the log of the old one is refused: SQLite would write the old pages into it. It is left as it
    was, and used once the log is gone."""
    make_queue(tmp_path / "new.db", b"new")
    (tmp_path / "new.db").replace(path)
    content = path.read_bytes()
    for _ in range(2):
        with pytest.raises(BrokerMoved, match="write-ahead log of the old one"):
            transport.push(envelopes(b"after"))
    assert path.read_bytes() == content
    for file in files_of(path)[1:]:
        file.unlink()
    transport.push(envelopes(b"after"))
    assert drain(consumer_of(transport)) == [b"new", b"after"]


def test_f54_replaced_by_something_else(transport: SqliteTransport, path: Path, tmp_path: Path) -> None:
    """What is no queue is refused, and left as it was."""
    move(path, tmp_path / "old.db")
    path.write_bytes(b"something else entirely " * 100)
    for _ in range(2):
        with pytest.raises(BrokerCorrupt):
            transport.push(envelopes(b"after"))
    assert path.read_bytes() == b"something else entirely " * 100


def test_f54_replaced_during_a_fork(transport: SqliteTransport, path: Path, tmp_path: Path) -> None:
    """A process whose connection is closed at that moment finds out when it opens the file again."""
    make_queue(tmp_path / "new.db", b"new")

    def swap() -> None:
        move(path, tmp_path / "old.db")
        move(tmp_path / "new.db", path)

    in_child(swap)
    transport.push(envelopes(b"after"))
    assert transport._process.get().database.file.generation == 2
    assert drain(consumer_of(transport)) == [b"new", b"after"]


def test_f54_checkpoints_follow(transport: SqliteTransport, path: Path, tmp_path: Path) -> None:
    """The connections for checkpoints move to the new file, too."""
    share = transport._process.get()
    share.database.checkpoint()
    make_queue(tmp_path / "new.db", b"new")
    move(path, tmp_path / "old.db")
    move(tmp_path / "new.db", path)
    transport.push(envelopes(b"after"))
    share.database.checkpoint()
    shutil.copyfile(path, tmp_path / "copy.db")
    assert query(tmp_path / "copy.db", "select count(*) from message") == [(2,)]


# --- the log alone

SENDS = """
from greenroom.engines.sqlite import database, queue_file
from greenroom.engines.sqlite.transport import SqliteTransport
from greenroom.errors import ConnectionFailed
from greenroom.testing.contract.kit import envelopes

transport = SqliteTransport(path)
sent = 0

def send():
    global sent
    try:
        transport.push(envelopes(b"theirs"))
        sent += 1
        return "sent"
    except ConnectionFailed:
        return "waits"

say(send())
while hear() == "send":
    say(send())
say(sent)
transport.close()
"""


@pytest.mark.parametrize("files", [("-wal",), ("-wal", "-shm")])
def test_f54_the_log_is_deleted(transport: SqliteTransport, path: Path, files: tuple[str, ...]) -> None:
    """Somebody tidies up and deletes what looks like rubbish. What stood in the log, and what was sent since, is saved,
    and the file is opened anew."""
    consumer = consumer_of(transport)
    for suffix in files:
        path.with_name(path.name + suffix).unlink()
    transport.push(envelopes(b"after"))
    assert path.with_name(f"{path.name}-wal").exists()
    assert bodies(claim(consumer, 2)) == [b"before", b"after"]
    transport.close()
    assert query(path, "pragma integrity_check") == [("ok",)]


def test_f54_nobody_opens_it_before_all_have_noticed(
    transport: SqliteTransport, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever notices first waits for the others: what they wrote into the lost log meanwhile is saved, too."""
    monkeypatch.setattr(queue_file, "GRACE_S", 60.0)  # until it is said to be over, below
    with other_process(SENDS, path) as other:
        assert other.hear() == "sent"
        path.with_name(f"{path.name}-wal").unlink()
        path.with_name(f"{path.name}-shm").unlink()
        with pytest.raises(ConnectionFailed, match="write-ahead log"):
            transport.push(envelopes(b"ours"))
        answers = []
        while "waits" not in answers:  # with the times of a real program: within a second, and for two
            other.say("send")
            answers.append(other.hear())
        while answers[-1] == "waits":
            other.say("send")
            answers.append(other.hear())
        with pytest.raises(ConnectionFailed):
            transport.push(envelopes(b"ours"))
        monkeypatch.setattr(queue_file, "GRACE_S", 0.0)
        transport.push(envelopes(b"ours"))
        other.say("end")
        sent = int(other.hear())
        other.end()
    assert sent >= 2
    assert transport.counts() == {"default": Counts(ready=1 + sent + 1)}
    assert query(path, "pragma integrity_check") == [("ok",)]


# --- workers


def test_f54_a_worker_goes_on_in_the_new_file(
    transport: SqliteTransport, path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What it had claimed is lost to it, and reported; it claims from the new file under a place of its own there."""
    consumer = consumer_of(transport)
    (delivery,) = claim(consumer, 1)
    make_queue(tmp_path / "new.db", b"new")
    move(path, tmp_path / "old.db")
    move(tmp_path / "new.db", path)
    answer = consumer.exchange([ack(delivery)], 10)
    assert [s.delivery.id for s in answer.lost] == [delivery.id]
    assert bodies(answer.deliveries) == [b"new"]
    assert "goes on in the new file" in caplog.text
    assert query(path, "select count(*) from owner") == [(1,)]
    assert query(tmp_path / "old.db", "select state from message") == [(4,)]
    assert len(consumer.exchange([ack(answer.deliveries[0])], 0).settled) == 1


def test_f54_a_worker_leaves_others_alone(transport: SqliteTransport, path: Path, tmp_path: Path) -> None:
    """An owner of the new file may have the number that this one had in the old file. What it holds stays its own."""
    consumer = consumer_of(transport)
    (delivery,) = claim(consumer, 1)
    move(path, tmp_path / "old.db")
    with other_process(HOLDER, path) as other:
        assert int(other.hear()) == consumer._owner.number, "the numbers differ, so nothing is shown"
        answer = consumer.exchange([ack(delivery)], 10)
        assert (len(answer.lost), answer.deliveries) == (1, [])
        consumer.close()
        other.say("settle")
        assert other.hear() == "1"
        other.end()


def test_f54_a_worker_that_closes(transport: SqliteTransport, path: Path, tmp_path: Path) -> None:
    """A worker that ends right after the file was replaced gives nothing back that is not its own."""
    consumer = consumer_of(transport)
    claim(consumer, 1)
    move(path, tmp_path / "old.db")
    with other_process(HOLDER, path) as other:
        assert int(other.hear()) == consumer._owner.number
        consumer.close()
        other.say("settle")
        assert other.hear() == "1"
        other.end()


def test_f54_a_restored_backup(transport: SqliteTransport, path: Path, tmp_path: Path) -> None:
    """A backup of the same queue knows this worker and what it held then: that runs again."""
    consumer = consumer_of(transport)
    (delivery,) = claim(consumer, 1)
    back_up(path, tmp_path / "backup.db")
    consumer.exchange([ack(delivery)], 0)
    move(path, tmp_path / "old.db")
    (tmp_path / "backup.db").rename(path)
    assert consumer.exchange([], 0).lost == ()
    (again,) = claim(consumer, 1)
    assert again.body == b"before"
    assert len(consumer.exchange([ack(again)], 0).settled) == 1
    assert transport.counts(["default"]) == {"default": Counts()}
