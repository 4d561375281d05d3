"""In what order a worker runs what waits, and when it does not run it yet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from greenroom import actor
from greenroom.testing.clock import ManualClock
from tests.runtime.cli_kit import wait_until
from tests.runtime.worker_kit import ENGINES, EngineTestBroker, Gate, collector, make_broker, wait_for_orders, working


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=ENGINES)
def broker(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> Iterator[EngineTestBroker]:
    broker = make_broker(request.param, tmp_path, clock=clock)
    yield broker
    broker.close()


def test_first_in_first_out(broker: EngineTestBroker) -> None:
    """One thread runs messages in the order in which they were sent, over many trips."""
    collect, notes = collector(broker)
    collect.send_many((n,) for n in range(3000))
    with working(broker):
        broker.wait_until_empty()
    assert notes == list(range(3000))


def test_lower_priority_first(broker: EngineTestBroker) -> None:
    """The actor's priority decides, an option of the message is stronger, and equals keep their order."""
    notes: list[str] = []
    late, usual, urgent = (
        actor(notes.append, broker=broker, actor_name=name, priority=priority)
        for name, priority in (("late", 100), ("usual", 0), ("urgent", -100))
    )
    for number in (1, 2):
        late.send(f"late {number}")
        usual.send(f"usual {number}")
        urgent.send(f"urgent {number}")
    usual.send_with_options(args=("most urgent",), priority=-1000)
    urgent.send_with_options(args=("last",), priority=1000)
    with working(broker):
        broker.wait_until_empty()
    assert notes == ["most urgent", "urgent 1", "urgent 2", "usual 1", "usual 2", "late 1", "late 2", "last"]


def test_priorities_within_what_was_claimed(broker: EngineTestBroker) -> None:
    """What came later and is more urgent overtakes what was claimed already and has not started."""
    gate, notes = Gate(), []
    block = actor(gate, broker=broker, actor_name="block")
    usual = actor(notes.append, broker=broker, actor_name="usual")
    urgent = actor(notes.append, broker=broker, actor_name="urgent", priority=-1)
    usual.send_many((n,) for n in range(200))
    with working(broker) as worker:
        broker.wait_until_empty()  # the worker has learnt that its tasks are short, and claims ahead
        notes.clear()
        block.send()
        gate.wait_for(None)
        usual.send("usual")
        urgent.send("urgent")
        wait_until(lambda: broker.counts().claimed == 3, "all are claimed")
        wait_for_orders(worker)  # between two trips: all are handed over
        gate.open()
        broker.wait_until_empty()
    assert notes == ["urgent", "usual"]


def test_all_queues_in_one_order(broker: EngineTestBroker) -> None:
    """Queues are served by priority and then by order of arrival, none before the other."""
    notes: list[str] = []
    first = actor(notes.append, broker=broker, actor_name="first", queue_name="b")
    second = actor(notes.append, broker=broker, actor_name="second", queue_name="a")
    for number in range(3):
        first.send(f"b{number}")
        second.send(f"a{number}")
    second.send_with_options(args=("urgent",), priority=-5)
    with working(broker):
        broker.wait_until_empty("a")
        broker.wait_until_empty("b")
    assert notes == ["urgent", "b0", "a0", "b1", "a1", "b2", "a2"]


def test_a_delay(broker: EngineTestBroker, clock: ManualClock) -> None:
    """A delayed message runs when its time has come, not a millisecond before."""
    collect, notes = collector(broker)
    collect.send_with_options(args=("late",), delay=60_000)
    collect.send_with_options(args=("soon",), delay=1000)
    with working(broker):
        collect.send("now")
        wait_until(lambda: notes == ["now"], "the undelayed message has run")
        clock.advance_ms(999)
        collect.send("check")
        wait_until(lambda: notes == ["now", "check"], "a message that was sent now has run")
        clock.advance_ms(1)
        wait_until(lambda: notes == ["now", "check", "soon"], "the first delayed message has run")
        assert broker.counts().delayed == 1
        clock.advance_ms(59_000)
        broker.wait_until_empty()
    assert notes == ["now", "check", "soon", "late"]


def test_only_the_queues_that_were_asked_for(broker: EngineTestBroker) -> None:
    """A worker with a list of queues leaves the others alone."""
    collect, notes = collector(broker, queue_name="mine")
    other, _ = collector(broker, "other", queue_name="theirs")
    other.send("other")
    collect.send("mine")
    with working(broker, queues=["mine"]):
        broker.wait_until_empty("mine")
        collector(broker, "third", queue_name="also-theirs")[0].send("third")
        collect.send("again")
        broker.wait_until_empty("mine")
    assert notes == ["mine", "again"]
    assert broker.counts("theirs").ready == broker.counts("also-theirs").ready == 1


def test_a_queue_that_is_declared_later(broker: EngineTestBroker) -> None:
    """An actor that is declared while the worker runs is served, with a queue of its own."""
    collector(broker)
    with working(broker, worker_timeout=10_000):
        late, notes = collector(broker, "late", queue_name="late")
        late.send(1)
        wait_until(lambda: notes == [1], "the message of the new queue has run")


def test_pause_and_resume(broker: EngineTestBroker) -> None:
    """A paused worker finishes what it has, claims nothing more, and goes on when it is resumed."""
    collect, notes = collector(broker)
    gate = Gate()
    block = actor(gate, broker=broker, actor_name="block")
    with working(broker) as worker:
        block.send()
        gate.wait_for(None)
        worker.pause()
        wait_for_orders(worker)
        collect.send(1)
        gate.open()
        wait_until(lambda: broker.counts().claimed == 0, "what ran is settled")
        assert (notes, broker.counts().ready) == ([], 1)
        worker.resume()
        broker.wait_until_empty()
    assert notes == [1]


def test_threads_run_side_by_side(broker: EngineTestBroker) -> None:
    """As many messages run at a time as there are threads, and no more."""
    gate = Gate()
    block = actor(gate, broker=broker, actor_name="block")
    block.send_many((n,) for n in range(5))
    with working(broker, threads=4):
        gate.wait_for(0, 1, 2, 3)
        assert sorted(gate.entered) == [0, 1, 2, 3]
        gate.open()
        broker.wait_until_empty()
    assert sorted(gate.left) == [0, 1, 2, 3, 4]


def test_two_workers_share_a_queue(broker: EngineTestBroker) -> None:
    """Each message runs in one of them, once."""
    collect, notes = collector(broker)
    collect.send_many((n,) for n in range(2000))
    with working(broker, threads=2), working(broker, threads=2):
        broker.wait_until_empty()
    assert sorted(notes) == list(range(2000))


def test_a_message_that_sends_messages(broker: EngineTestBroker) -> None:
    """An actor may send to its own queue while it runs."""
    notes = []

    @actor(broker=broker)
    def count_down(number: int) -> None:
        notes.append(number)
        if number:
            count_down.send(number - 1)

    with working(broker, worker_timeout=10_000):
        count_down.send(20)
        broker.wait_until_empty()
    assert notes == list(range(20, -1, -1))
