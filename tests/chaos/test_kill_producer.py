"""``kill -9`` of a sender: what it was told is accepted is there, and batches are there as a whole or not at all."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from greenroom import Message
from greenroom.brokers.sqlite import SqliteBroker
from tests.runtime.cli_kit import PATIENCE_S, environment, wait_until

HEAD = """
import os, sys
from greenroom import actor
from greenroom.brokers.sqlite import SqliteBroker

broker = SqliteBroker(sys.argv[1])
accepted = 0

@actor(broker=broker)
def work(number):
    pass

def numbers(count):
    return ((n,) for n in range(accepted, accepted + count))
"""

SENDS_MANY = f"""{HEAD}
while True:
    accepted += work.send_many(numbers(3000))
    os.write(1, b"%d\\n" % accepted)
"""

SENDS_ONE = f"""{HEAD}
while True:
    work.send(accepted)
    accepted += 1
    os.write(1, b"%d\\n" % accepted)
"""


@contextmanager
def producer(program: str, path: Path, reports: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that sends until it is killed, and writes to ``reports`` how many messages were accepted."""
    with reports.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=out, env=environment({}))
    try:
        yield process
    finally:
        process.kill()
        process.wait(PATIENCE_S)


def reported(reports: Path) -> int:
    """The last whole line of the reports, or 0."""
    lines = reports.read_bytes().rpartition(b"\n")[0].split(b"\n")
    return int(lines[-1] or 0)


def kill_after(program: str, folder: Path, count: int) -> tuple[int, list[int]]:
    """Kills a producer once that many messages were accepted; how many it has reported, and what is in the file."""
    path, reports = folder / "queue.db", folder / "reports"
    with producer(program, path, reports) as process:
        wait_until(lambda: reported(reports) >= count, f"{count} messages are accepted", step_s=0.001)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(PATIENCE_S) == -signal.SIGKILL
    with sqlite3.connect(path) as connection:
        bodies = connection.execute("select cast(body as blob) from message order by seq").fetchall()
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
    connection.close()
    return reported(reports), [Message.decode(body).args[0] for (body,) in bodies]


@pytest.mark.parametrize("seed", range(5))
def test_a_killed_bulk_sender(tmp_path: Path, seed: int) -> None:
    """What ``send_many`` has returned for is there, in order; the thousand that the kill met is there or not."""
    accepted, found = kill_after(SENDS_MANY, tmp_path, random.Random(seed).randint(1, 30_000))
    assert accepted <= len(found) <= accepted + 3000
    assert len(found) % 1000 == 0
    assert found == list(range(len(found)))


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_sender(tmp_path: Path, seed: int) -> None:
    """What ``send`` has returned for is there; of what it has not returned for at most one message."""
    accepted, found = kill_after(SENDS_ONE, tmp_path, random.Random(seed).randint(1, 3000))
    assert accepted <= len(found) <= accepted + 1
    assert found == list(range(len(found)))


@pytest.mark.parametrize(("durable", "synchronous"), [(False, 1), (True, 2)])
def test_durable_syncs_every_commit(tmp_path: Path, durable: bool, synchronous: int) -> None:
    """``durable=True`` opens the file with ``synchronous=FULL``: each commit is synced. Without it ``NORMAL``, which a
    killed process survives, but a power loss may take the last commits along."""
    broker = SqliteBroker(tmp_path / "queue.db", durable=durable)
    database = broker.transport._process.get().database
    assert database.run(lambda connection: connection.execute("pragma synchronous").fetchone()) == (synchronous,)
    assert database.run(lambda connection: connection.execute("pragma journal_mode").fetchone()) == ("wal",)
    broker.close()
