"""Owners that lose their place while they live: what drops a lock, who notices, and that nothing is lost by it.

The other process is told each step by hand, so it renews its lock when the test says so, and not each second."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from greenroom.engines.sqlite.transport import SqliteTransport
from greenroom.host import liveness
from greenroom.testing.contract.kit import ack, bodies, claim, consumer_of, drain, envelopes, nothing_comes, settle
from tests.engines.kit import Other, other_process, query

WORKS = """
from greenroom.core.verdict import Verdict
from greenroom.engines.sqlite.transport import SqliteTransport
from greenroom.names import new_storage_id
from greenroom.ports.transport import Envelope, Settlement

transport = SqliteTransport(path)
consumer = transport.consumer("other")
consumer.subscribe(["default"])
board = consumer.board(1)
held = []

def claim():
    held.extend(consumer.exchange((), 10).deliveries)
    board.cells[0] = held[0].mark if held else 0
    return " ".join(delivery.body.decode() for delivery in held)

def settle():
    answer = consumer.exchange([Settlement(delivery, Verdict.ACK) for delivery in held], 0)
    held.clear()
    return f"{len(answer.settled)} settled, {len(answer.lost)} lost"

def renew():
    consumer.extend()
    return "renewed"

def close():
    os.close(consumer._owner._locks._file.number)
    return "closed"

def read():
    open(consumer._owner._locks.path).close()
    return "read"

def close_all():
    os.closerange(3, 1000)
    return "closed"

def send():
    transport.push([Envelope("default", new_storage_id(), b"sent")])
    return "sent"

def wait():
    import time
    started = time.monotonic()
    for _ in range(3):
        consumer.wait(0.2)
    return time.monotonic() - started > 0.3

while word := hear():
    say(globals()[word]())
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


@pytest.fixture
def transport(path: Path) -> Iterator[SqliteTransport]:
    transport = SqliteTransport(path)
    yield transport
    transport.close()


@pytest.fixture
def other(transport: SqliteTransport, path: Path) -> Iterator[Other]:
    """Another worker, which holds and runs the one message that there is."""
    transport.push(envelopes(b"1"))
    with other_process(WORKS, path) as other:
        assert ask(other, "claim") == "1"
        yield other


def ask(other: Other, word: str) -> str:
    other.say(word)
    return other.hear()


def lock_of(path: Path) -> Path:
    return path.with_name(path.name + "-wake") / "lock"


def delete(path: Path) -> None:
    lock_of(path).unlink()


def delete_folder(path: Path) -> None:
    shutil.rmtree(lock_of(path).parent)


@pytest.mark.parametrize("loss", ["deleted", "close", "read"])
def test_who_loses_its_lock_is_taken_for_dead(
    transport: SqliteTransport, path: Path, other: Other, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock file is deleted, or a task closes a descriptor of it, and the worker does not renew its lock: the
    message runs once more elsewhere, what the worker settles too late is lost, and then it works on as a new owner."""
    monkeypatch.setattr(liveness, "FOLLOW_MS", 0)
    if loss == "deleted":
        delete(path)
    else:
        ask(other, loss)
    heir = consumer_of(transport)
    (again,) = claim(heir, 1)
    assert (again.body, again.attempt, again.crashes) == (b"1", 2, 1)
    assert ask(other, "settle") == "0 settled, 1 lost"
    assert settle(heir, ack(again)).settled
    transport.push(envelopes(b"2"))
    assert ask(other, "claim") == "2"
    assert nothing_comes(heir), "it is alive for the others, too"
    assert ask(other, "settle") == "1 settled, 0 lost"
    assert transport.counts() == {}
    assert [name for (name,) in query(path, "select name from owner order by id")] == ["contract", "other"]


@pytest.mark.parametrize("loss", ["close", "read"])
def test_who_renews_its_lock_in_time_loses_nothing(
    transport: SqliteTransport, path: Path, other: Other, loss: str
) -> None:
    """A lock that was dropped is taken again before anybody looks: the owner stays what it was."""
    ask(other, loss)
    ask(other, "renew")
    assert nothing_comes(consumer_of(transport))
    assert ask(other, "settle") == "1 settled, 0 lost"
    assert query(path, "select id from owner order by id") == [(1,), (2,)]


@pytest.mark.parametrize("loss", [delete, delete_folder])
def test_the_living_follow_to_a_new_lock_file(
    transport: SqliteTransport, path: Path, other: Other, loss: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody tidies up and deletes the lock file. Who finds or makes a new one gives the others time to come over,
    and takes nobody for dead before; so a whole fleet loses nothing."""
    assert callable(loss)
    monkeypatch.setattr(liveness, "FOLLOW_MS", 60_000)  # however long the next lines take
    loss(path)
    heir = consumer_of(transport)
    assert nothing_comes(heir)
    ask(other, "renew")
    monkeypatch.setattr(liveness, "FOLLOW_MS", 0)
    second = consumer_of(SqliteTransport(path))
    assert nothing_comes(second)
    second._share.close()
    assert ask(other, "settle") == "1 settled, 0 lost"
    assert nothing_comes(heir)


def test_a_worker_makes_the_lock_file_anew(transport: SqliteTransport, path: Path, other: Other) -> None:
    """Nobody has to start for that: whoever renews its lock next makes the file, and keeps its place."""
    mine = consumer_of(transport)
    delete(path)
    ask(other, "renew")
    assert lock_of(path).exists()
    mine.extend()
    assert mine._owner._locks._file.file_id[1] == lock_of(path).stat().st_ino
    assert lock_of(path).stat().st_mode & 0o777 == 0o600
    transport.push(envelopes(b"2"))
    assert bodies(claim(mine, 1)) == [b"2"]
    assert ask(other, "settle") == "1 settled, 0 lost"


def test_a_task_that_closes_all_descriptors(transport: SqliteTransport, path: Path, other: Other) -> None:
    """A task closes all that its process has open: database, locks, bells. The worker opens them anew, sends and
    claims again, and does not spin where it waits."""
    assert ask(other, "close_all") == "closed"
    assert ask(other, "renew") == "renewed"
    assert ask(other, "send") == "sent"
    assert ask(other, "claim").split()[-1] == "sent"
    assert ask(other, "settle") == "2 settled, 0 lost"
    assert ask(other, "wait") == "True"
    assert nothing_comes(consumer_of(transport))


def test_an_owner_whose_row_is_gone(transport: SqliteTransport, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Somebody has taken the owner out of the file: it says so once, and goes on under a new number. What it held runs
    again."""
    consumer = consumer_of(transport)
    transport.push(envelopes(b"1"))
    held = claim(consumer, 1)
    with transport.share.database.transaction() as connection:
        connection.execute("delete from owner")
    assert settle(consumer, *map(ack, held)).settled, "nobody has taken it away"
    transport.push(envelopes(b"2"))
    consumer.reap_soon()
    assert drain(consumer) == [b"2"]
    assert query(path, "select id from owner") == [(2,)]
    assert sum("has lost its place" in record.message for record in caplog.records) == 1


def test_what_a_lost_owner_claimed_is_not_lost(transport: SqliteTransport, path: Path, other: Other) -> None:
    """An owner that is not in the file any more claims before it notices, and is killed then: others give that back,
    though nobody knows whose it was."""
    with transport.share.database.transaction() as connection:
        connection.execute("delete from owner")
    transport.push(envelopes(b"2"))
    assert ask(other, "claim") == "1 2"
    other.kill()
    assert drain(consumer_of(transport)) == [b"1", b"2"]
    assert transport.counts() == {}


def test_without_the_lock_file_nobody_is_taken_for_dead(
    transport: SqliteTransport, path: Path, other: Other, caplog: pytest.LogCaptureFixture
) -> None:
    """The lock file is gone and cannot be made: that is said once, all go on, and nobody can tell who is dead."""
    mine = consumer_of(transport)
    delete(path)
    lock_of(path).mkdir()
    for _ in range(3):
        mine.extend()
        mine.reap_soon()
        assert mine.exchange((), 10).deliveries == []
    assert ask(other, "renew") == "renewed"
    assert ask(other, "settle") == "1 settled, 0 lost"
    assert sum("cannot be used" in record.message for record in caplog.records) == 1
    lock_of(path).rmdir()
    mine.extend()
    assert lock_of(path).is_file()


def test_a_board_goes_along(transport: SqliteTransport, path: Path) -> None:
    """An owner that gets another place takes its board there: what it runs is charged to it, and to no successor."""
    lost, newcomer = consumer_of(transport, owner="lost"), transport.consumer("third")
    board = lost.board(1)
    with transport.share.database.transaction() as connection:
        connection.execute("delete from owner where name = 'lost'")
    newcomer.close()
    lost._owner._locks.unlock(0, lost._owner)
    successor = transport.consumer("successor")
    transport.push(envelopes(b"1"))
    lost.reap_soon()
    (held,) = claim(lost, 1)
    assert [successor._owner.slot, lost._owner.slot] == [0, 1]
    board.cells[0] = held.mark
    lost._owner._locks.unlock(1, lost._owner)
    (again,) = claim(consumer_of(transport), 1)
    assert again.crashes == 1


def test_a_board_that_somebody_has_deleted(
    transport: SqliteTransport, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody tidies up while the process lives: the board is made anew, and crashes are charged as ever. Where it
    cannot be made that is said once."""
    consumer = consumer_of(transport)
    board = consumer.board(1)
    transport.push(envelopes(b"1"))
    (held,) = claim(consumer, 1)
    board.cells[0] = held.mark
    file = lock_of(path).with_name("0.board")
    file.unlink()
    file.mkdir()
    for _ in range(3):
        consumer.reap_soon()
        consumer.exchange((), 0)
    assert sum("0.board cannot be used" in record.message for record in caplog.records) == 1
    file.rmdir()
    consumer.reap_soon()
    consumer.exchange((), 0)
    consumer._owner._locks.unlock(0, consumer._owner)
    (again,) = claim(consumer_of(transport), 1)
    assert again.crashes == 1


def test_closing_leaves_no_board(transport: SqliteTransport, path: Path) -> None:
    """A board is removed with its owner; what a dead one has left is removed by the next in its place."""
    consumer = consumer_of(transport)
    consumer.board(1)
    file = lock_of(path).with_name("0.board")
    assert file.stat().st_mode & 0o777 == 0o600
    consumer.close()
    assert not file.exists()
    with other_process(WORKS, path) as other:
        ask(other, "claim")
        other.kill()
    assert file.exists()
    consumer_of(transport)
    assert not file.exists()
    assert os.listdir(lock_of(path).parent)
