"""A history that cannot be read, because its column is damaged, costs its message nothing else."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from greenroom import actor
from greenroom.brokers.sqlite import SqliteBroker
from greenroom.core.verdict import Verdict
from greenroom.ports.transport import ErrorText, Settlement
from tests.runtime.cli_kit import wait_until
from tests.runtime.worker_kit import working

DAMAGED = [b"\xff\x00", "{", '[{"at_ms":"x"}]', "5", 7]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[SqliteBroker]:
    broker = SqliteBroker(tmp_path / "queue.db")
    yield broker
    broker.close()


def damage(broker: SqliteBroker, value: object, table: str = "message") -> None:
    with closing(sqlite3.connect(broker.path)) as connection, connection:
        connection.execute(f"update {table} set history = ?", (value,))


@pytest.mark.parametrize("value", DAMAGED)
def test_a_worker_goes_on(broker: SqliteBroker, value: object) -> None:
    """A message that has crashed its workers, of which nobody can tell how, is dead-lettered; the others run."""
    ran = []
    work = actor(lambda: ran.append(1), broker=broker, actor_name="work", max_crashes=1)
    work.send()
    with closing(sqlite3.connect(broker.path)) as connection, connection:
        connection.execute("update message set crashes = 1")
    damage(broker, value)
    work.send()
    with working(broker) as worker:
        wait_until(lambda: ran, "the other one ran")
        wait_until(broker.transport.dead, "there is a dead letter")
        assert worker.fatal_error is None


@pytest.mark.parametrize("value", DAMAGED)
def test_it_can_be_looked_at_retried_and_replayed(broker: SqliteBroker, value: object) -> None:
    """Whoever looks is told that the history is damaged; a retry begins a new one where it can."""
    actor(lambda: None, broker=broker, actor_name="work").send()
    damage(broker, value)
    (peeked,) = broker.transport.peek("default")
    assert peeked.last is not None
    assert peeked.last.error is not None
    assert peeked.last.error.type == "HistoryDamaged"
    consumer = broker.transport.consumer("test")
    consumer.subscribe(["default"])
    for verdict in (Verdict.RELEASE, Verdict.DEAD):
        (delivery,) = consumer.exchange((), 1).deliveries
        settlement = Settlement(delivery, verdict, error=ErrorText("ValueError", "no"))
        assert list(consumer.exchange((settlement,), 0).settled) == [settlement]
    consumer.close()
    damage(broker, value, "dead")
    (letter,) = broker.transport.dead_letters([broker.transport.dead()[0].id])
    assert [incident.error.type for incident in letter.history if incident.error] == ["HistoryDamaged"]
    assert broker.replay([letter.id]) == 1
    (peeked,) = broker.transport.peek("default")
    assert peeked.last is not None
    assert peeked.last.error == ErrorText("ValueError", "no")
