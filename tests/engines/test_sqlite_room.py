"""F50, F53, F55: the file is locked by others, the disk is full, the write-ahead log grows."""

from __future__ import annotations

import logging
import os
import resource
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from greenroom.engines.sqlite import database, queue_file
from greenroom.engines.sqlite.transport import SqliteTransport
from greenroom.errors import BrokerBusy, BrokerFull
from greenroom.ports.admin import Counts
from greenroom.testing.contract.kit import ack, claim, consumer_of, drain, envelope, envelopes
from greenroom.testing.contract.processes import in_child
from tests.engines.kit import other_process, query
from tests.runtime.cli_kit import PATIENCE_S, environment

LOCKS = """
connection = sqlite3.connect(path, isolation_level=None)
connection.execute("begin exclusive")
say("locked")
hear()
"""

SENDS = """
from greenroom.engines.sqlite.transport import SqliteTransport
from greenroom.testing.contract.kit import envelope

transport = SqliteTransport(path)
say("there")
hear()
for number in range(200):
    transport.push([envelope(b"%d" % number)])
say("sent")
"""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the queue is. The disk is looked at by every use of the connection."""
    monkeypatch.setattr(database, "FILE_LOOK_INTERVAL_S", 0.0)
    return tmp_path / "queue.db"


@pytest.fixture
def transport(path: Path) -> Iterator[SqliteTransport]:
    transport = SqliteTransport(path)
    yield transport
    transport.close()


# --- locked


def test_f50_all_who_wait_are_told_in_time(
    transport: SqliteTransport, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another process does not let go of the file, each of many threads is told so after the budget, and not
    after those of all before it, too. Then all goes on."""
    transport.push(envelopes(b"0"))
    budget_s, senders = 0.4, 40
    monkeypatch.setattr(database, "BUSY_BUDGET_S", budget_s)
    clock = database.SYSTEM_CLOCK
    waited: list[float] = []

    def send() -> None:
        begun = clock.monotonic()
        with pytest.raises(BrokerBusy, match="locked by another process"):
            transport.push(envelopes(b"x"))
        waited.append(clock.monotonic() - begun)

    with other_process(LOCKS, path) as other:
        assert other.hear() == "locked"
        threads = [threading.Thread(target=send) for _ in range(senders)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        other.kill()
    assert len(waited) == senders
    assert max(waited) < senders * budget_s / 2, "they waited one after the other"
    transport.push(envelopes(b"1"))
    assert transport.counts() == {"default": Counts(ready=2)}


def test_f50_eight_processes_send(path: Path) -> None:
    """Eight processes that send hundreds of messages each, one by one: no error, and all are there."""
    with ExitStack() as stack:
        others = [stack.enter_context(other_process(SENDS, path)) for _ in range(8)]
        assert {other.hear() for other in others} == {"there"}
        for other in others:
            other.say("go")
        assert {other.hear() for other in others} == {"sent"}
        for other in others:
            other.end()
    assert query(path, "select count(*) from message") == [(8 * 200,)]
    assert query(path, "pragma integrity_check") == [("ok",)]


# --- full

#: A worker and a sender on a disk of 32 MiB. What it prints is what the test looks at.
FULL_DISK = """
import logging, os, sqlite3, sys, threading
from collections import Counter
from pathlib import Path

import greenroom
from greenroom.brokers.sqlite import SqliteBroker
from greenroom.errors import BrokerFull

folder = Path(sys.argv[1])
broker = SqliteBroker(folder / "queue.db")
greenroom.set_broker(broker)
gate, started, done = threading.Event(), threading.Semaphore(0), Counter()

@greenroom.actor
def work(number, _payload=""):
    if number < 4:
        started.release()
        gate.wait(60)
    done[number] += 1

def until(condition, patience_s=30):
    for _ in range(patience_s * 200):
        if condition():
            return True
        threading.Event().wait(0.005)
    return False

def send_until_full(first):
    number = first
    while True:
        try:
            work.send(number, "x" * 2000)
        except BrokerFull:
            return number
        number += 1

worker = greenroom.Worker(broker, worker_threads=4)
for number in range(4):
    work.send(number)
worker.start()
for _ in range(4):
    assert started.acquire(timeout=30)

sent = send_until_full(4)
print("sent many", sent > 500)

# Others fill what was kept free, to the last byte.
with open(folder / "junk", "wb", buffering=0) as junk:
    try:
        while junk.write(bytes(4096)):
            pass
    except OSError:
        pass
disk = os.statvfs(folder)
print("bytes free", disk.f_bavail * disk.f_frsize)
gate.set()
print("running tasks finish", until(lambda: sum(done[n] for n in range(4)) == 4))
try:
    work.send(sent, "x" * 2000)
    print("sent on a full disk")
except BrokerFull as e:
    print("refused", type(e).__name__)

(folder / "junk").unlink()
print("all are run", until(lambda: len(done) == sent))
print("each once", set(done.values()) == {1})

# All rows are deleted, but the file does not shrink: there is room in it, and hardly any on the disk.
until(lambda: broker.transport.counts(["default"])["default"].claimed == 0)
def sends():
    try:
        work.send(sent, "x" * 2000)
    except BrokerFull:
        return False
    return True
print("goes on", until(sends))
print("and is run", until(lambda: done[sent] == 1))
worker.stop()
broker.close()
connection = sqlite3.connect(folder / "queue.db")
print(connection.execute("pragma integrity_check").fetchone()[0])
print("left", connection.execute("select count(*) from message").fetchone()[0])
"""


def may_mount() -> bool:
    """Whether this process may have a disk of its own."""
    command = ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=PATIENCE_S).returncode == 0
    except OSError:
        return False


def test_f53_a_full_disk(tmp_path: Path) -> None:
    """On a full disk sending is refused, what runs finishes and is settled at the latest when there is room again, and
    then all goes on: nothing is lost and nothing is run twice. (The disk has 32 MiB here; 16 are kept free.)"""
    if not may_mount():
        pytest.skip("making a small disk takes root")
    script = f'mount -t tmpfs -o size=32m none "{tmp_path}" && exec "{sys.executable}" -c "$0" "{tmp_path}"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, FULL_DISK],
        env=environment({}),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.stdout.splitlines() == [
        "sent many True",
        "bytes free 0",
        "running tasks finish True",
        "refused BrokerFull",
        "all are run True",
        "each once True",
        "goes on True",
        "and is run True",
        "ok",
        "left 0",
    ], done.stderr


def test_f53_a_limit_on_the_size_of_files(path: Path) -> None:
    """``ulimit -f``, or a quota: what the system does not write is no room, too. With the limit gone all goes on."""

    def work() -> None:
        transport = SqliteTransport(path)
        transport.push(envelopes(b"first"))
        consumer = consumer_of(transport)
        (delivery,) = claim(consumer, 1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
        sent = 0
        with pytest.raises(BrokerFull, match="takes no more"):  # noqa: PT012  # which push it is, is not known
            while True:
                transport.push([envelope(b"%2048d" % sent)])
                sent += 1
        for size in (1, 100):
            with pytest.raises(BrokerFull):
                transport.push([envelope(b"%4096d" % 0) for _ in range(size)])
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert len(consumer.exchange([ack(delivery)], 0).settled) == 1
        assert sent > 100
        transport.push(envelopes(b"last"))
        assert drain(consumer) == [*(b"%2048d" % number for number in range(sent)), b"last"]

    in_child(work)
    assert query(path, "pragma integrity_check") == [("ok",)]


def test_f53_a_reserve_is_kept(transport: SqliteTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    """While little is left on the disk nobody sends, and whoever runs messages can settle and claim."""
    transport.push(envelopes(b"1", b"2"))
    consumer = consumer_of(transport)
    (delivery,) = claim(consumer, 1)
    monkeypatch.setattr(queue_file, "RESERVE_BYTES", 1 << 60)
    for size in (1, 2):
        with pytest.raises(BrokerFull, match="kept for settling"):
            transport.push(envelopes(*[b"3"] * size))
    answer = consumer.exchange([ack(delivery)], 1)
    assert (len(answer.settled), len(answer.deliveries)) == (1, 1)
    monkeypatch.setattr(queue_file, "RESERVE_BYTES", 0)
    transport.push(envelopes(b"3"))


def test_f53_room_in_the_file_counts(transport: SqliteTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue that was drained has room in its file for what is sent next, however full the disk is."""
    transport.push([envelope(b"%2048d" % number) for number in range(1000)])
    monkeypatch.setattr(queue_file.QueueFile, "_free_bytes", lambda _file: 0)
    monkeypatch.setattr(queue_file, "RESERVE_BYTES", 1 << 20)
    with pytest.raises(BrokerFull):
        transport.push(envelopes(b"x"))
    drain(consumer_of(transport))
    transport.push(envelopes(b"x"))


# --- the log


def test_f55_a_log_that_grows(
    transport: SqliteTransport, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A reader that does not end keeps the log from starting anew. From 64 MiB on that is said, once, until it was
    smaller again. (All sizes are a sixteenth of the real ones here.)"""
    for size in ("CHECKPOINT_BYTES", "WAL_LIMIT_BYTES", "WAL_WARNING_BYTES"):
        monkeypatch.setattr(database, size, getattr(database, size) // 16)
    transport.push(envelopes(b"0"))

    def grow() -> None:
        with caplog.at_level(logging.WARNING):
            for _ in range(50):
                transport.push([envelope(b"%1024d" % 0) for _ in range(100)])

    for reads in (1, 2):
        reader = sqlite3.connect(path)
        reader.execute("begin")
        reader.execute("select count(*) from message").fetchone()
        grow()
        reader.close()
        assert sum("has grown to" in record.message for record in caplog.records) == reads
        grow()
    assert os.stat(f"{path}-wal").st_size < database.WAL_WARNING_BYTES
