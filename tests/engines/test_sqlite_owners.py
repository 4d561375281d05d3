"""Owners of claims in the file: their rows, their slots, and what becomes of the messages of those that died."""

from __future__ import annotations

import select
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from greenroom.board import Board, Fate
from greenroom.engines.sqlite.consumer import LOOK_INTERVAL_S
from greenroom.engines.sqlite.reaper import CHUNK
from greenroom.engines.sqlite.transport import SqliteTransport
from greenroom.engines.sqlite.wake import SLOTS
from greenroom.errors import ConnectionClosed
from greenroom.host.deaths import EVIDENCE_S
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

#: Holds one message that it runs and one that it does not.
RUNS = """
from greenroom.engines.sqlite.transport import SqliteTransport

transport = SqliteTransport(path)
consumer = transport.consumer("other")
consumer.subscribe(["default"])
board = consumer.board(1, parent_pid=int(sys.argv[2]) if len(sys.argv) > 2 else os.getppid())
board.cells[0] = consumer.exchange((), 2).deliveries[0].mark
say(board.path)
hear()
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
    clock.advance_ms(int(LOOK_INTERVAL_S * 1000))
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


def test_an_owner_whose_board_cannot_be_removed_ends_all_the_same(
    transport: Transport, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gives back its lock, too: others do not wait for its place."""
    consumer = transport.consumer("one")
    board = consumer.board(1)

    def fail() -> None:
        raise PermissionError("read-only by now")

    monkeypatch.setattr(board, "remove", fail)
    consumer.close()
    assert query(path, "select count(*) from owner") == [(0,)]
    assert not consumer._owner._locks.is_held(0, consumer._owner)


def test_a_new_owner_takes_the_place_of_a_dead_one(transport: Transport, path: Path) -> None:
    """Who registers looks for the dead first: slots are used again, numbers of owners never, so an old lease is never
    taken for a new one."""
    transport.push(envelopes(b"1", b"2"))
    with other_process(CLAIMS, path) as other:
        other.hear()
        other.kill()
    consumer = consumer_of(transport)
    assert (consumer._owner.number, consumer._owner.slot) == (2, 0)
    assert bodies(claim(consumer, 2)) == [b"1", b"2"]


def test_the_looks_are_spaced(transport: Transport, path: Path, clock: ManualClock) -> None:
    """Owners are probed once a second, not in every trip."""
    consumer = consumer_of(transport)
    assert look(consumer, clock) == []
    transport.push(envelopes(b"1", b"2"))
    with other_process(CLAIMS, path) as other:
        assert other.hear() == "2"
        other.kill()
        clock.advance_ms(int(LOOK_INTERVAL_S * 1000) - 1)
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
    assert [consumer._owner.slot for consumer in consumers] == list(range(SLOTS + 6))
    transport.push(envelopes(*[b"%d" % number for number in range(SLOTS + 6)]))
    for number, consumer in enumerate(consumers):
        assert bodies(consumer.exchange((), 1).deliveries) == [b"%d" % number]
    consumers[-1].wait(0.01)
    consumers[3].close()
    assert consumer_of(transport)._owner.slot == 3
    transport.close()
    assert transport.counts() == {"default": Counts(ready=SLOTS + 6)}


def test_a_wait_is_a_look_and_not_a_claim(transport: Transport, path: Path) -> None:
    """Waiting leaves no trace in the file, and no announcement on the board."""
    consumer = consumer_of(transport)
    consumer.wait(0.01)
    assert query(path, "select count(*) from message") == [(0,)]
    assert not any(consumer._share.wake.board)


# --- evidence


@pytest.fixture
def dead(transport: Transport, path: Path) -> Board:
    """The board of another process that this one has started, and that was killed while it ran the first of two
    messages."""
    transport.push(envelopes(b"1", b"2"))
    with other_process(RUNS, path) as other:
        board = Board.open(Path(other.hear()))
        other.kill()
    assert board is not None
    return board


def claimed(consumer: Consumer) -> list[tuple[bytes, int]]:
    return [(delivery.body, delivery.crashes) for delivery in consumer.exchange((), 10).deliveries]


def test_whoever_started_it_is_given_a_moment(transport: Transport, clock: ManualClock, dead: Board) -> None:
    """While the parent lives and has not said how its child ended, nobody takes the child's messages; they wait for
    0.3 s at the most, and look again before that."""
    consumer = consumer_of(transport)
    assert claimed(consumer) == []
    clock.advance_ms(int(EVIDENCE_S * 1000) - 1)
    assert claimed(consumer) == []
    clock.advance_ms(21)
    assert claimed(consumer) == [(b"1", 1), (b"2", 0)]


def test_the_moment_ends_when_the_parent_has_spoken(transport: Transport, clock: ManualClock, dead: Board) -> None:
    """The evidence is there: the next look takes it, and need not wait for its time."""
    consumer = consumer_of(transport)
    assert claimed(consumer) == []
    dead.write_fate(Fate.DIED, -signal.SIGSEGV)
    clock.advance_ms(20)
    first, _ = consumer.exchange((), 10).deliveries
    (incident,) = consumer.history(first)
    assert incident.error is not None
    assert incident.error.message.endswith("was killed by SIGSEGV")


def test_nobody_waits_for_a_dead_parent(transport: Transport, path: Path) -> None:
    """The parent has died, too, so nobody will say how it ended."""
    transport.push(envelopes(b"1", b"2"))
    with other_process("", path) as parent:
        parent.end()
    with other_process(RUNS, path, str(parent.pid)) as other:
        other.hear()
        other.kill()
    assert claimed(consumer_of(transport)) == [(b"1", 1), (b"2", 0)]


def test_nobody_waits_for_evidence_that_nobody_needs(transport: Transport, dead: Board) -> None:
    """Where nothing ran there is nobody to charge, so it does not matter how the process ended."""
    dead.cells[0] = 0
    assert claimed(consumer_of(transport)) == [(b"1", 0), (b"2", 0)]


def test_a_wait_ends_for_the_evidence(path: Path) -> None:
    """Who waits for messages while the parent of a dead process is given its moment looks again soon, and not when its
    wait would have been over."""
    transport = SqliteTransport(path)
    transport.push(envelopes(b"1", b"2"))
    with other_process(RUNS, path) as other:
        other.hear()
        other.kill()
    consumer = consumer_of(transport)
    started = time.monotonic()
    while not (found := claimed(consumer)):
        consumer.wait(20.0)
    assert found == [(b"1", 1), (b"2", 0)]
    assert EVIDENCE_S <= time.monotonic() - started < 10.0
    transport.close()


@pytest.mark.parametrize("content", [b"", b"\xff" * 4096, b"garbage"])
def test_a_board_that_cannot_be_read_charges_nobody(transport: Transport, dead: Board, content: bytes) -> None:
    """Somebody has written over the board: the messages come back all the same."""
    assert dead.path is not None
    dead.path.unlink()
    dead.path.write_bytes(content)
    assert claimed(consumer_of(transport)) == [(b"1", 0), (b"2", 0)]


def test_nonsense_on_a_board_is_harmless(transport: Transport, dead: Board) -> None:
    """Marks, a time and a parent that nobody can have written: what can be told is told."""
    for index, value in enumerate((99, -(2**63), 2**62, 2**63 - 1)):
        dead._numbers[index + 1] = value
    dead.cells[0] = -(2**63)
    assert claimed(consumer_of(transport)) == [(b"1", 0), (b"2", 0)]


def test_a_stale_board_charges_nobody(transport: Transport, path: Path, clock: ManualClock, dead: Board) -> None:
    """A dead owner has left its board; the next one in its place has none of its own and dies: nothing is charged to
    the messages that have the old marks by chance."""
    dead.write_fate(Fate.DIED, 1)
    with other_process(CLAIMS, path) as other:
        assert other.hear() == "2"
        other.kill()
    found = claimed(consumer_of(transport))
    assert found == [(b"1", 1), (b"2", 0)], "once, by the board's own process"


# --- much to give back, and many who look


def test_much_is_given_back_in_steps(transport: Transport, path: Path) -> None:
    """Whatever a dead owner held, no transaction takes long for it: 1 000 messages at a time, one trip after the
    other, and what ran is charged once."""
    count = 2 * CHUNK + 10
    transport.push(envelopes(*[b"x"] * count))
    program = RUNS.replace("exchange((), 2)", f"exchange((), {count})")
    with other_process(program, path, "0") as other:
        other.hear()
        assert transport.counts()["default"].claimed == count
        other.kill()
    consumer = consumer_of(transport)
    assert transport.counts()["default"].claimed == count - 1 - CHUNK
    assert query(path, "select count(*) from owner") == [(2,)], "it is there until it has nothing left"
    consumer.exchange((), 0)
    assert transport.counts()["default"].claimed == count - 1 - 2 * CHUNK
    consumer.exchange((), 0)
    assert transport.counts()["default"].claimed == 0
    assert query(path, "select crashes, count(*) from message group by crashes") == [(0, count - 1), (1, 1)]
    assert query(path, "select name from owner") == [("contract",)]


@pytest.mark.parametrize("how", ["a trip", "a registration"])
def test_whoever_gives_back_wakes_the_others(path: Path, clock: ManualClock, how: str) -> None:
    """What a dead owner held is ready for all: who waits is woken by whoever has looked."""
    transport = SqliteTransport(path, clock=clock)
    waits, looks = consumer_of(transport), consumer_of(transport)
    looks.exchange((), 0)
    transport.push(envelopes(b"1", b"2"))
    with other_process(RUNS, path, "0") as other:
        other.hear()
        other.kill()
    waits._owner.announce(None)
    if how == "a trip":
        clock.advance_ms(int(LOOK_INTERVAL_S * 1000))
        looks.exchange((), 0)
    else:
        consumer_of(transport)
    assert select.select([waits._owner._waiter._fifo], [], [], 0)[0]
    transport.close()


def test_two_look_at_the_same_time(path: Path, transport: Transport, dead: Board) -> None:
    """However many look for the dead at once, one of them gives back what there is, and a crash is charged once."""
    dead.write_fate(Fate.DIED, 1)
    others = [SqliteTransport(path) for _ in range(4)]
    start = threading.Barrier(len(others))
    found: list[tuple[bytes, int]] = []

    def look(transport: SqliteTransport) -> None:
        consumer = consumer_of(transport)
        start.wait(10.0)
        consumer.reap_soon()
        found.extend(claimed(consumer))

    threads = [threading.Thread(target=look, args=(other,)) for other in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [(b"1", 1), (b"2", 0)]
    for other in others:
        other.close()
