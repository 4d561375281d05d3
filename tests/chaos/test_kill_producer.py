"""``kill -9`` of a sender: what it was told is accepted is there, and batches are there as a whole or not at all."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from greenroom.brokers.sqlite import SqliteBroker
from tests.runtime.cli_kit import PATIENCE_S, environment, wait_until
from tests.runtime.engine_kit import ENGINES, numbers_in, open_broker, url_of

HEAD = """
import os, sys
from greenroom import actor
from greenroom.brokers import from_url

broker = from_url(sys.argv[1])
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
def producer(program: str, url: str, reports: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that sends until it is killed, and writes to ``reports`` how many messages were accepted."""
    with reports.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-c", program, url], stdout=out, env=environment({}))
    try:
        yield process
    finally:
        process.kill()
        process.wait(PATIENCE_S)


def reported(reports: Path) -> int:
    """The last whole line of the reports, or 0."""
    lines = reports.read_bytes().rpartition(b"\n")[0].split(b"\n")
    return int(lines[-1] or 0)


def kill_after(program: str, url: str, folder: Path, count: int) -> tuple[int, list[int]]:
    """Kills a producer once that many messages were accepted; how many it has reported, and what is there."""
    reports = folder / "reports"
    with producer(program, url, reports) as process:
        wait_until(lambda: reported(reports) >= count, f"{count} messages are accepted", step_s=0.001)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(PATIENCE_S) == -signal.SIGKILL
    with closing(open_broker(url)) as broker:
        return reported(reports), numbers_in(broker)


@pytest.fixture(params=ENGINES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where the messages of a test are."""
    return url_of(request.param, tmp_path, request)


@pytest.mark.parametrize("seed", range(5))
def test_f04_a_killed_bulk_sender(tmp_path: Path, url: str, seed: int) -> None:
    """F04: what ``send_many`` has returned for is there, in order; the thousand that the kill met is there or not."""
    accepted, found = kill_after(SENDS_MANY, url, tmp_path, random.Random(seed).randint(1, 30_000))
    assert accepted <= len(found) <= accepted + 3000
    assert len(found) % 1000 == 0
    assert found == list(range(len(found)))


@pytest.mark.parametrize("seed", range(3))
def test_f04_a_killed_sender(tmp_path: Path, url: str, seed: int) -> None:
    """F04: what ``send`` has returned for is there; of what it has not returned for at most one message."""
    accepted, found = kill_after(SENDS_ONE, url, tmp_path, random.Random(seed).randint(1, 3000))
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
