"""Replaying, pausing and counting by a broker's own methods, beside a worker, on both engines."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from greenroom import actor
from greenroom.brokers.sqlite import SqliteBroker
from greenroom.clock import SYSTEM_CLOCK
from greenroom.errors import BrokerError
from greenroom.middleware import AgeLimit, Retries
from greenroom.ports.retention import DEAD_LETTER_TTL_MS, Retention
from greenroom.ports.transport import Features
from tests.runtime.cli_kit import wait_until
from tests.runtime.worker_kit import ENGINES, EngineTestBroker, collector, make_broker, working


@pytest.fixture(params=ENGINES)
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    broker = make_broker(request.param, tmp_path, [Retries(min_backoff=1, max_backoff=1), AgeLimit(max_age=3_600_000)])
    yield broker
    broker.close()


def test_a_replayed_message_has_all_its_retries_again(broker: EngineTestBroker) -> None:
    """A message that died is replayed: it is tried as often as a new one, and when it dies again, its letter tells the
    old failures and the new ones."""
    attempts = []

    @actor(broker=broker, max_retries=2)
    def fail(name: str) -> None:
        attempts.append(name)
        raise RuntimeError(f"attempt {len(attempts)}")

    with working(broker):
        fail.send("x")
        wait_until(broker.dead, "the message has died")
        (letter,) = broker.dead()
        assert broker.replay([letter.id, "unheard"]) == 1
        wait_until(lambda: len(attempts) == 6 and broker.dead(), "the message has died again")
    (again,) = broker.transport.dead_letters([broker.dead()[0].id])
    texts = [incident.error.message for incident in again.history]
    assert [*texts, again.error.message] == [f"attempt {number}" for number in range(1, 7)]


def test_a_replayed_message_succeeds(broker: EngineTestBroker) -> None:
    """Once what was wrong is put right, a replay runs the message, also one that is older than its ``max_age``."""
    is_mended = []
    ran = []

    @actor(broker=broker, max_retries=0, max_age=60_000)
    def work(value: int) -> None:
        if not is_mended:
            raise RuntimeError
        ran.append(value)

    with working(broker):
        message = work.message(7)
        broker.enqueue(message._replace(message_timestamp=SYSTEM_CLOCK.now_ms() - 7_200_000))
        work.send(8)
        wait_until(lambda: len(broker.dead()) == 2, "both are dead")
        is_mended.append(True)
        assert broker.replay([letter.id for letter in broker.dead()]) == 2
        wait_until(lambda: sorted(ran) == [7, 8], "both have run")
    assert broker.dead() == []


def test_a_replay_has_a_bound(broker: EngineTestBroker) -> None:
    """More ids than one step may carry are a mistake."""
    with pytest.raises(ValueError, match="1001"):
        broker.replay([str(number) for number in range(1_001)])


def test_a_queue_is_paused_for_a_worker(broker: EngineTestBroker) -> None:
    """While a queue is paused its messages wait and others run; once it is resumed they run at once."""
    collect, notes = collector(broker)
    other, others = collector(broker, "other", queue_name="others")
    broker.pause_queue("default")
    with working(broker):
        collect.send(1)
        other.send(2)
        wait_until(lambda: others == [2], "the other queue's message has run")
        assert notes == []
        assert broker.get_queue_message_counts("default") == (1, 0, 0)
        broker.resume_queue("default")
        wait_until(lambda: notes == [1], "the message has run")


def test_the_counts_of_a_queue(broker: EngineTestBroker) -> None:
    """Ready, delayed and dead messages are counted; any name of the queue will do."""
    collect, _ = collector(broker)
    collect.send(1)
    collect.send_with_options(args=(2,), delay=3_600_000)
    collect.send_with_options(args=(3,), delay=3_600_000)
    for name in ("default", "default.DQ", "default.XQ"):
        assert broker.get_queue_message_counts(name) == (1, 2, 0)
    assert broker.get_queue_message_counts("unheard") == (0, 0, 0)


@pytest.mark.parametrize("method", ["pause_queue", "resume_queue"])
def test_what_cannot_be_paused(broker: EngineTestBroker, method: str) -> None:
    """A name that no queue has is told."""
    with pytest.raises(ValueError, match="Invalid queue name"):
        getattr(broker, method)("not a name")


@pytest.mark.parametrize("method", ["pause_queue", "resume_queue"])
def test_an_engine_that_knows_no_pauses(method: str) -> None:
    """Where the engine cannot pause, that is said, with what to do instead."""
    broker = EngineTestBroker(SimpleNamespace(features=Features(pause=False)))
    with pytest.raises(BrokerError, match="-Q"):
        getattr(broker, method)("default")


# --- what a SqliteBroker is told


def retention_of(broker: SqliteBroker) -> Retention:
    return broker.transport._retention


@pytest.mark.parametrize(
    ("keywords", "expected"),
    [
        ({}, Retention(DEAD_LETTER_TTL_MS, None)),
        ({"dead_letter_ttl_ms": 5_000, "dead_letter_limit": 3}, Retention(5_000, 3)),
        ({"dead_letter_ttl_ms": math.inf}, Retention(None, None)),
        ({"dead_letter_ttl_ms": 0, "dead_letter_limit": 0}, Retention(0, 0)),
    ],
)
def test_how_long_dead_letters_are_kept(tmp_path: Path, keywords: dict[str, Any], expected: Retention) -> None:
    """Seven days if nothing is said; ``math.inf`` for ever."""
    assert retention_of(SqliteBroker(tmp_path / "q.db", **keywords)) == expected


def test_how_long_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dramatiq's variable is read where no keyword is given; ours wins over it."""
    monkeypatch.setenv("dramatiq_dead_message_ttl", "1000")
    assert retention_of(SqliteBroker(tmp_path / "q.db")).ttl_ms == 1_000
    monkeypatch.setenv("greenroom_dead_message_ttl", "2000")
    assert retention_of(SqliteBroker(tmp_path / "q.db")).ttl_ms == 2_000
    assert retention_of(SqliteBroker(tmp_path / "q.db", dead_letter_ttl_ms=3_000)).ttl_ms == 3_000


def test_how_long_by_a_url(tmp_path: Path) -> None:
    """A URL says it as well."""
    url = f"sqlite:///{tmp_path}/q.db?dead_letter_ttl_ms=7000&dead_letter_limit=9"
    assert retention_of(SqliteBroker.from_url(url)) == Retention(7_000, 9)
    assert retention_of(SqliteBroker.from_url(f"sqlite:///{tmp_path}/q.db?dead_letter_ttl_ms=inf")).ttl_ms is None


@pytest.mark.parametrize(
    "keywords", [{"dead_letter_ttl_ms": -1}, {"dead_letter_limit": -1}, {"dead_letter_ttl_ms": math.nan}]
)
def test_what_is_no_retention(tmp_path: Path, keywords: dict[str, Any]) -> None:
    """Negative numbers are refused, by name."""
    with pytest.raises(ValueError, match=next(iter(keywords))):
        SqliteBroker(tmp_path / "q.db", **keywords)
