"""Owners of claims in the file: their rows, their slots, and what becomes of the messages of those that died."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from greenroom.engines.sqlite.consumer import REAP_INTERVAL_S
from greenroom.engines.sqlite.transport import SqliteTransport
from greenroom.engines.sqlite.wake import SLOTS
from greenroom.errors import ConnectionClosed
from greenroom.ports.admin import Counts
from greenroom.ports.transport import Consumer, Transport
from greenroom.testing.clock import ManualClock
from greenroom.testing.contract.kit import ack, bodies, claim, consumer_of, drain, envelopes, settle
from greenroom.testing.contract.processes import in_child
from tests.engines.kit import other_process, query

CLAIMS = """
from greenroom.engines.sqlite.transport import SqliteTransport

transport = SqliteTransport(path)
consumer = transport.consumer("other")
consumer.subscribe(["default"])
say(len(consumer.exchange((), 2).deliveries))
hear()
transport.close()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def transport(path: Path, clock: ManualClock) -> Iterator[Transport]:
    transport = SqliteTransport(path, clock=clock)
    yield transport
    transport.close()


def look(consumer: Consumer, clock: ManualClock) -> list[bytes]:
    """A trip after which the consumer has looked for owners that died."""
    clock.advance_ms(int(REAP_INTERVAL_S * 1000))
    return bodies(consumer.exchange((), 100).deliveries)


def test_a_dead_owners_messages_are_given_back(transport: Transport, path: Path, clock: ManualClock) -> None:
    """What a killed process held is ready again, where it stood, at the next look of anybody; its row is gone."""
    transport.push(envelopes(b"1", b"2", b"3"))
    consumer = consumer_of(transport)
    with other_process(CLAIMS, path) as other:
        assert other.hear() == "2"
        assert look(consumer, clock) == [b"3"], "the living keep what they hold"
        other.kill()
        assert look(consumer, clock) == [b"1", b"2"]
    assert query(path, "select name from owner") == [("contract",)]


def test_an_owner_that_ends_well_leaves_nothing(transport: Transport, path: Path) -> None:
    """Closing gives back what is held and takes the owner's row away."""
    transport.push(envelopes(b"1", b"2"))
    with other_process(CLAIMS, path) as other:
        assert other.hear() == "2"
        assert query(path, "select name, pid, slot from owner") == [("other", other.pid, 0)]
        other.say("close")
        other.end()
    assert query(path, "select count(*) from owner") == [(0,)]
    assert transport.counts() == {"default": Counts(ready=2)}


def test_a_new_owner_takes_the_place_of_a_dead_one(transport: Transport, path: Path) -> None:
    """Who registers looks for the dead first: slots are used again, numbers of owners never, so an old lease is never
    taken for a new one."""
    transport.push(envelopes(b"1", b"2"))
    with other_process(CLAIMS, path) as other:
        other.hear()
        other.kill()
    consumer = consumer_of(transport)
    assert (consumer.owner, consumer.slot) == (2, 0)
    assert bodies(claim(consumer, 2)) == [b"1", b"2"]


def test_the_looks_are_spaced(transport: Transport, path: Path, clock: ManualClock) -> None:
    """Owners are probed once a second, not in every trip."""
    consumer = consumer_of(transport)
    assert look(consumer, clock) == []
    transport.push(envelopes(b"1", b"2"))
    with other_process(CLAIMS, path) as other:
        assert other.hear() == "2"
        other.kill()
        clock.advance_ms(int(REAP_INTERVAL_S * 1000) - 1)
        assert consumer.exchange((), 100).deliveries == []
        clock.advance_ms(1)
        assert len(consumer.exchange((), 100).deliveries) == 2


def test_owners_of_one_process_do_not_take_each_other_for_dead(transport: Transport, clock: ManualClock) -> None:
    """Two consumers, also of two transports on the same file, live side by side in one process."""
    transport.push(envelopes(b"1", b"2"))
    first, second = consumer_of(transport), consumer_of(SqliteTransport(transport.path, clock=clock))
    held = claim(first, 2)
    assert look(second, clock) == []
    assert len(settle(first, *map(ack, held)).settled) == 2
    second._share.close()


def test_closing_one_transport_leaves_the_owners_of_another(transport: Transport, path: Path) -> None:
    """In one process two transports share the lock file: closing one must not drop the locks of the other."""
    transport.push(envelopes(b"1", b"2"))
    held = claim(consumer_of(transport), 2)
    second = SqliteTransport(path)
    consumer_of(second).close()
    second.close()
    with other_process(CLAIMS, path) as other:
        assert other.hear() == "0", "another process took this one for dead"
    assert len(held) == 2


def test_a_child_of_a_worker_keeps_nobody_alive(path: Path) -> None:
    """A worker dies while a child that it forked lives on: its messages are given back all the same."""
    program = """
from greenroom.engines.sqlite.transport import SqliteTransport

transport = SqliteTransport(path)
consumer = transport.consumer("other")
consumer.subscribe(["default"])
say(len(consumer.exchange((), 2).deliveries))
if os.fork() == 0:
    os.close(1)
    hear()
    os._exit(0)
os.kill(os.getpid(), 9)
"""
    transport = SqliteTransport(path)
    transport.push(envelopes(b"1", b"2"))
    with other_process(program, path) as other:
        assert other.hear() == "2"
        assert other.process.wait(10) == -signal.SIGKILL
        assert drain(consumer_of(transport)) == [b"1", b"2"]
    transport.close()


def test_a_consumer_belongs_to_its_process(transport: Transport) -> None:
    """A forked child cannot use its parent's consumer, and closing it there does nothing."""
    transport.push(envelopes(b"1"))
    consumer = consumer_of(transport)
    (delivery,) = claim(consumer, 1)

    def use() -> None:
        for action in (lambda: consumer.exchange((), 1), lambda: consumer.wait(0), lambda: consumer.subscribe(["q"])):
            with pytest.raises(ConnectionClosed, match="not to its fork"):
                action()
        consumer.close()

    in_child(use)
    assert settle(consumer, ack(delivery)).settled


def test_more_owners_than_places_on_the_board(transport: Transport, clock: ManualClock) -> None:
    """More than 64 processes may wait at a file. Those beyond the board look once a second instead of being rung."""
    consumers = [consumer_of(transport, owner=str(number)) for number in range(SLOTS + 6)]
    assert [consumer.slot for consumer in consumers] == list(range(SLOTS + 6))
    transport.push(envelopes(*[b"%d" % number for number in range(SLOTS + 6)]))
    for number, consumer in enumerate(consumers):
        assert bodies(consumer.exchange((), 1).deliveries) == [b"%d" % number]
    consumers[-1].wait(0.01)
    consumers[3].close()
    assert consumer_of(transport).slot == 3
    transport.close()
    assert transport.counts() == {"default": Counts(ready=SLOTS + 6)}


def test_a_wait_is_a_look_and_not_a_claim(transport: Transport, path: Path) -> None:
    """Waiting leaves no trace in the file, and no announcement on the board."""
    consumer = consumer_of(transport)
    consumer.wait(0.01)
    assert query(path, "select count(*) from message") == [(0,)]
    assert not any(consumer._share.wake.board)
