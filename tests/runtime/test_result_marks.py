"""The marks of results that are to come: after a replay there is one again, after a purge there is none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from greenroom import actor
from greenroom.brokers.sqlite import SqliteBroker
from greenroom.brokers.stub import StubBroker
from greenroom.errors import ResultFailure, ResultPending, ResultUnknown
from greenroom.results import Results
from tests.runtime.cli_kit import wait_until
from tests.runtime.worker_kit import working


@pytest.fixture(params=["memory", "sqlite"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    broker = StubBroker() if request.param == "memory" else SqliteBroker(tmp_path / "queue.db")
    broker.add_middleware(Results(store_results=True))
    yield broker
    broker.close()


def state_of(broker: Any, message_id: str) -> str:
    with pytest.raises(ResultPending) as e:
        broker.get_result(message_id)
    return str(e.value.state)


def wait_until_unknown(broker: Any, message: Any) -> None:
    def is_unknown() -> bool:
        try:
            broker.get_result(message.message_id)
        except ResultUnknown:
            return True
        except ResultPending:
            return False
        raise AssertionError("there is a result")

    wait_until(is_unknown, "nothing is known of the message")


def test_a_replayed_message_is_pending_again(broker: Any) -> None:
    """Whoever asks is not told of the old failure any more, and gets the new result."""
    is_mended = []

    @actor(broker=broker, max_retries=0)
    def work() -> str:
        if not is_mended:
            raise ValueError("broken")
        return "done"

    message = work.send()
    with working(broker), pytest.raises(ResultFailure, match="broken"):
        broker.get_result(message.message_id, block=True, timeout=20_000)
    wait_until(broker.transport.dead, "there is a dead letter")
    is_mended.append(True)
    assert broker.replay([letter.id for letter in broker.transport.dead()]) == 1
    assert state_of(broker, message.message_id) == "enqueued"
    with working(broker):
        assert broker.get_result(message.message_id, block=True, timeout=20_000) == "done"


def test_a_letter_that_is_not_there_changes_nothing(broker: Any) -> None:
    """What is replayed a second time keeps what has come of the first."""

    @actor(broker=broker, max_retries=0)
    def work() -> str:
        raise ValueError("broken")

    message = work.send()
    with working(broker):
        wait_until(broker.transport.dead, "there is a dead letter")
        (letter,) = broker.transport.dead()
        broker.replay([letter.id])
        wait_until(lambda: [other for other in broker.transport.dead() if other.id != letter.id], "it is dead again")
        assert broker.replay([letter.id]) == 0
    with pytest.raises(ResultFailure):
        broker.get_result(message.message_id)


def test_purged_messages_leave_no_marks(broker: Any) -> None:
    """Nothing is known of a message that was purged, be it ready, delayed or about to be retried; results stay."""

    @actor(broker=broker, min_backoff=3_600_000)
    def work(what: str) -> str:
        if what == "fail":
            raise ValueError
        return what

    done, failed = work.send("done"), work.send("fail")
    with working(broker):
        assert broker.get_result(done.message_id, block=True, timeout=20_000) == "done"
        wait_until(lambda: broker.transport.counts(["default"])["default"].delayed, "it is to be retried")
    ready, delayed = work.send("x"), work.send_with_options(args=("x",), delay=3_600_000)
    assert state_of(broker, failed.message_id) == "retrying"
    assert broker.purge("default") == 3
    for message in (ready, delayed, failed):
        wait_until_unknown(broker, message)
    assert broker.get_result(done.message_id) == "done"


def test_a_flush_of_many(broker: Any) -> None:
    """All pages of a long queue are looked through; the other queues are left alone."""
    work = actor(lambda: None, broker=broker, actor_name="work")
    other = actor(lambda: None, broker=broker, actor_name="other", queue_name="other")
    messages = [work.message() for _ in range(1_500)]
    broker.enqueue_many(messages)
    kept = other.send()
    broker.flush("default")
    for message in (messages[0], messages[-1]):
        wait_until_unknown(broker, message)
    assert state_of(broker, kept.message_id) == "enqueued"
