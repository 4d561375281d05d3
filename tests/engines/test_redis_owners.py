"""Owners of claims on a Redis server: their names there, their leases, and what becomes of the messages of those that
died, on this host or on another one."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from greenroom.board import Board, Fate
from greenroom.clock import SYSTEM_CLOCK, Clock
from greenroom.engines.redis import pulse
from greenroom.engines.redis.consumer import LOOK_INTERVAL_S, RedisConsumer
from greenroom.engines.redis.reaper import CHUNK, LONGEST_GAP_S
from greenroom.engines.redis.run_place import number_of
from greenroom.engines.redis.transport import RedisTransport
from greenroom.engines.redis.waiting import BLOCK_S
from greenroom.errors import BrokerError, ConnectionFailed
from greenroom.host import liveness
from greenroom.host.deaths import EVIDENCE_S
from greenroom.ports.admin import Counts
from greenroom.testing.clock import ManualClock
from greenroom.testing.contract.kit import ack, claim, consumer_of, envelopes, settle
from greenroom.testing.contract.processes import in_child
from tests.engines.kit import other_process
from tests.runtime.cli_kit import wait_until

LEASE_MS = 6_000
P = "{dramatiq}:g1:"

#: Another process, which holds one message that it runs and more that it does not.
RUNS = """
import redis
from greenroom.engines.redis.transport import RedisTransport

transport = RedisTransport(redis.Redis.from_url(sys.argv[2]), run_folder=path)
consumer = transport.consumer("other")
consumer.subscribe(["default", "second"])
board = consumer.board(1, parent_pid=int(sys.argv[3]) if len(sys.argv) > 3 else os.getppid())
held = []
while len(held) < int(sys.argv[4] if len(sys.argv) > 4 else 2):
    held += consumer.exchange((), 1000).deliveries
board.cells[0] = held[0].mark
say(board.path)
hear()
transport.close()
"""

Make = Callable[..., RedisTransport]


@pytest.fixture
def server(redis_url: str) -> Iterator[Any]:
    client = redis.Redis.from_url(redis_url, decode_responses=True)
    yield client
    client.close()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(SYSTEM_CLOCK.now_ms())  # other processes of a test have the server's


@pytest.fixture
def make(redis_url: str, tmp_path: Path, clock: ManualClock) -> Iterator[Make]:
    """Makes transports on the server; those of one ``host`` see each other's processes."""
    made: list[RedisTransport] = []

    def make(host: str = "", *, clock: Clock = clock, **keywords: Any) -> RedisTransport:
        folder = tmp_path / host
        client = redis.Redis.from_url(redis_url)
        made.append(RedisTransport(client, clock=clock, run_folder=folder, lease_ms=LEASE_MS, **keywords))
        return made[-1]

    yield make
    for transport in made:
        transport.close()


@pytest.fixture
def transport(make: Make) -> RedisTransport:
    return make()


@pytest.fixture
def dead(transport: RedisTransport, tmp_path: Path, redis_url: str) -> Board:
    """The board of another process that this one has started, and that was killed while it ran the first of two
    messages."""
    transport.push(envelopes(b"1", b"2"))
    with other_process(RUNS, tmp_path, redis_url) as other:
        board = Board.open(Path(other.hear()))
        other.kill()
    assert board is not None
    return board


def claimed(consumer: RedisConsumer, limit: int = 100) -> list[tuple[bytes, int]]:
    return [(delivery.body, delivery.crashes) for delivery in consumer.exchange((), limit).deliveries]


def look(consumer: RedisConsumer, clock: ManualClock, seconds: float = LOOK_INTERVAL_S) -> list[tuple[bytes, int]]:
    """What a trip brings that comes after a look around."""
    clock.advance_ms(int(seconds * 1000))
    return claimed(consumer)


# --- this host


def test_a_dead_owners_messages_are_given_back(
    transport: RedisTransport, clock: ManualClock, tmp_path: Path, redis_url: str, server: Any
) -> None:
    """What a killed process held is ready again, where it stood, at the next look of anybody; what it ran is charged.
    Nothing of the dead one is left, on the server or in the folder."""
    transport.push(envelopes(b"1", b"2", b"3"))
    consumer = consumer_of(transport)
    with other_process(RUNS, tmp_path, redis_url, "0", "3") as other:
        board = Path(other.hear())
        assert look(consumer, clock) == [], "the living keep what they hold"
        other.kill()
    assert look(consumer, clock) == [(b"1", 1), (b"2", 0), (b"3", 0)]
    assert server.hkeys(P + "owners") == server.zrange(P + "leases", 0, -1) == [consumer.owner_id]
    assert not board.exists()
    assert sorted(path.suffix for path in board.parent.iterdir()) == ["", ".owner"]


def test_looking_costs_no_command(
    transport: RedisTransport, clock: ManualClock, tmp_path: Path, redis_url: str, server: Any
) -> None:
    """While all neighbours live, a look around sends nothing."""
    consumer = consumer_of(transport)
    transport.push(envelopes(b"1", b"2"))
    with other_process(RUNS, tmp_path, redis_url) as other:
        other.hear()
        consumer.exchange((), 0)
        server.config_resetstat()
        for _ in range(5):
            clock.advance_ms(int(LOOK_INTERVAL_S * 1000))
            consumer._look_around()
        assert set(server.info("commandstats")) <= {"cmdstat_config|resetstat", "cmdstat_info"}


def test_an_owner_that_ends_well_leaves_nothing(
    transport: RedisTransport, tmp_path: Path, redis_url: str, server: Any
) -> None:
    """Closing gives back what is held, uncharged, and takes all traces of the owner away."""
    transport.push(envelopes(b"1", b"2"))
    with other_process(RUNS, tmp_path, redis_url) as other:
        folder = Path(other.hear()).parent
        other.say("close")
        other.end()
    assert transport.counts() == {"default": Counts(ready=2)}
    assert server.exists(P + "owners", P + "leases", P + "running") == 0
    assert server.keys("*:t:*") == server.keys("*:h:*") == []
    assert [path.name for path in folder.iterdir()] == ["lock"]
    assert claimed(consumer_of(transport)) == [(b"1", 0), (b"2", 0)]


def test_a_child_of_a_worker_keeps_nobody_alive(transport: RedisTransport, tmp_path: Path, redis_url: str) -> None:
    """A worker dies while a child that it forked lives on: its messages are given back all the same."""
    forks = "if os.fork() == 0:\n    os.close(1)\n    hear()\n    os._exit(0)\nsay('forked')\nhear()\n"
    program = RUNS.replace("hear()\n", forks, 1)
    transport.push(envelopes(b"1", b"2"))
    with other_process(program, tmp_path, redis_url, "0") as other:
        other.hear()
        assert other.hear() == "forked"
        os.kill(other.pid, signal.SIGKILL)
        assert other.process.wait(10) == -signal.SIGKILL
        assert claimed(consumer_of(transport)) == [(b"1", 1), (b"2", 0)]


def test_owners_of_one_process_do_not_take_each_other_for_dead(
    make: Make, transport: RedisTransport, clock: ManualClock
) -> None:
    """Consumers of two transports live side by side in one process; closing one leaves the other its lock."""
    transport.push(envelopes(b"1", b"2"))
    first, neighbour = consumer_of(transport), make()
    held = claim(first, 2)
    second = consumer_of(neighbour)
    assert look(second, clock) == []
    neighbour.close()
    in_child(lambda: _sees_nothing(make))
    assert len(settle(first, *map(ack, held)).settled) == 2


def _sees_nothing(make: Make) -> None:
    assert claimed(consumer_of(make())) == []


def test_whoever_started_it_is_given_a_moment(transport: RedisTransport, clock: ManualClock, dead: Board) -> None:
    """While the parent lives and has not said how its child ended, nobody takes the child's messages, for 0.3 s at the
    most; once it has spoken, that is kept."""
    consumer = consumer_of(transport)
    assert claimed(consumer) == []
    clock.advance_ms(int(EVIDENCE_S * 1000) - 1)
    assert claimed(consumer) == []
    dead.write_fate(Fate.DIED, -signal.SIGSEGV)
    clock.advance_ms(21)
    first, second = consumer.exchange((), 10).deliveries
    assert (first.crashes, second.crashes) == (1, 0)
    (incident,) = consumer.history(first)
    assert incident.error is not None
    assert incident.error.message.endswith("was killed by SIGSEGV")


@pytest.mark.parametrize("content", [b"", b"\xff" * 4096, b"garbage"])
def test_what_lies_in_the_folder_may_be_nonsense(
    transport: RedisTransport, dead: Board, content: bytes, tmp_path: Path
) -> None:
    """Somebody has written over the files of a dead owner, and left others that mean nothing: what it held comes back
    all the same, and is charged to nobody."""
    assert dead.path is not None
    for path in (dead.path, dead.path.with_suffix(".owner")):
        path.unlink()
        path.write_bytes(content)
    for name in ("x.owner", "../owner", f"{'f' * 16}.owner", ".owner", "owner"):
        (dead.path.parent / name.replace("/", "")).write_bytes(content)
    assert claimed(consumer_of(transport)) == [(b"1", 0), (b"2", 0)]


def test_much_is_given_back_in_steps(
    transport: RedisTransport, clock: ManualClock, tmp_path: Path, redis_url: str, server: Any
) -> None:
    """However much a dead owner held, in however many queues, no script takes long for it: 1 000 messages at a time,
    and what ran is charged once."""
    count = 2 * CHUNK + 10
    for queue in ("default", "second"):
        transport.push(envelopes(*[b"x"] * (count // 2), queue=queue)[:1000])
        transport.push(envelopes(*[b"x"] * (count // 2 - 1000), queue=queue))
    with other_process(RUNS, tmp_path, redis_url, "0", str(count)) as other:
        other.hear()
        other.kill()

    def held() -> int:
        return sum(counts.claimed for counts in transport.counts().values())

    consumer = consumer_of(transport)
    assert held() == count - CHUNK
    assert server.hlen(P + "owners") == 2, "it is there until it has nothing left"
    consumer.exchange((), 0)
    assert held() == count - 2 * CHUNK
    consumer.exchange((), 0)
    assert held() == 0
    extras = [*server.hvals(P + "e:default"), *server.hvals(P + "e:second")]
    assert (len(extras), extras.count("1:1")) == (count, 1)
    assert server.hkeys(P + "owners") == [consumer.owner_id]


def test_many_look_at_the_same_time(make: Make, dead: Board) -> None:
    """However many look for the dead at once, one of them gives back what there is, and a crash is charged once."""
    dead.write_fate(Fate.DIED, 1)
    others = [make(clock=SYSTEM_CLOCK) for _ in range(4)]
    start = threading.Barrier(len(others))
    found: list[tuple[bytes, int]] = []

    def take(transport: RedisTransport) -> None:
        start.wait(10.0)
        consumer = consumer_of(transport)
        for _ in range(3):
            found.extend(claimed(consumer))

    threads = [threading.Thread(target=take, args=(other,)) for other in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [(b"1", 1), (b"2", 0)]


def test_who_waits_is_woken_by_whoever_gives_back(make: Make, tmp_path: Path, redis_url: str) -> None:
    """What a dead owner held is ready for all: who waits at the server is woken at once."""
    transport = make(clock=SYSTEM_CLOCK)
    transport.push(envelopes(b"1", b"2"))
    with other_process(RUNS, tmp_path, redis_url, "0") as other:
        other.hear()
        waits = consumer_of(transport)
        while not waits._waiter.is_outstanding:  # there is a token yet
            waits.exchange((), 1)
            waits.wait(0.01)
        waits._look_at = SYSTEM_CLOCK.monotonic() + 60.0  # it does not look itself
        waiting = threading.Thread(target=waits.wait, args=(30.0,))
        waiting.start()
        other.kill()
        consumer_of(transport)
        waiting.join(BLOCK_S / 2)
        assert not waiting.is_alive()


def test_a_folder_that_cannot_be_used(make: Make, tmp_path: Path) -> None:
    """A run folder that others may write to is refused, with a word on how to name another one."""
    transport = make()
    consumer_of(transport)
    folder = next(path for path in tmp_path.iterdir() if path.is_dir())
    transport.close()
    folder.chmod(0o777)
    with pytest.raises(ConnectionFailed, match="GREENROOM_RUN_FOLDER"):
        transport.consumer("one")
    folder.chmod(0o700)


@pytest.mark.parametrize("what", ["lock", "folder"])
def test_who_tidies_up_harms_nobody(
    make: Make,
    transport: RedisTransport,
    clock: ManualClock,
    tmp_path: Path,
    what: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The lock file, or the whole folder, is deleted: the living make it anew, each with byte, file and board, and
    nobody is taken for dead."""
    transport.push(envelopes(b"1"))
    consumer = consumer_of(transport)
    board = consumer.board(1)
    held = claim(consumer, 1)
    folder = next(path for path in tmp_path.iterdir() if path.is_dir())
    shutil.rmtree(folder) if what == "folder" else (folder / "lock").unlink()
    look(consumer, clock)
    monkeypatch.setattr(liveness, "FOLLOW_MS", 0)
    in_child(lambda: _sees_nothing(make))
    assert board.path is not None
    assert board.path.exists()
    assert settle(consumer, ack(held[0])).settled


# --- other hosts


def silent(consumer: RedisConsumer) -> None:
    """It is gone, with its whole host: nobody renews its lease."""
    owner = consumer._owner
    owner._pulse.end()
    assert owner._place is not None
    owner._place.locks.unlock(number_of(owner.id), owner)


def tell(consumer: RedisConsumer, server: Any) -> None:
    """Has the server know what it runs."""
    consumer.extend()
    wait_until(lambda: server.hexists(P + "running", consumer.owner_id), "the server knows what runs")


def test_a_lost_host_is_waited_for(make: Make, clock: ManualClock, server: Any) -> None:
    """What a process of another host held comes back when its lease has ended and has been seen so for half a lease,
    and not before; what it said it ran is charged."""
    here, there = make("here"), make("there")
    here.push(envelopes(b"1", b"2"))
    lost = consumer_of(there)
    lost.board(2).cells[1] = claim(lost, 2)[1].mark
    tell(lost, server)
    silent(lost)
    consumer = consumer_of(here)
    for _ in range(LEASE_MS // 1000):
        assert look(consumer, clock) == []
    found: list[tuple[bytes, int]] = []
    waited_s = 0
    while not found:
        found = look(consumer, clock)
        waited_s += 1
    assert LEASE_MS / 2000 <= waited_s <= LEASE_MS / 2000 + 2
    assert found == [(b"1", 0), (b"2", 1)]
    (second,) = [d for d in here.peek("default") if d.crashes]
    assert second.last is not None
    assert second.last.error is not None
    assert "its lease has ended" in second.last.error.message
    assert server.hkeys(P + "owners") == [consumer.owner_id]
    assert server.hlen(P + "running") == 0


def test_who_has_a_gap_itself_takes_nobody_for_dead(make: Make, clock: ManualClock) -> None:
    """F22: the server, or this process, stood still, and all leases have ended meanwhile: the others have half a lease
    to come back."""
    here, there = make("here"), make("there")
    here.push(envelopes(b"1"))
    living, consumer = consumer_of(there), consumer_of(here)
    held = claim(living, 1)
    claimed(consumer)
    clock.advance_ms(10 * LEASE_MS)
    assert claimed(consumer) == []
    assert look(consumer, clock, LEASE_MS / 2000 - 0.1) == []
    assert settle(living, ack(held[0])).settled, "its lease had ended, and nobody had taken it for dead"


def test_looks_with_a_gap_do_not_count(make: Make, clock: ManualClock) -> None:
    """F75: the end of a lease is seen by two looks with a long time in between: the second one counts as the first."""
    here, there = make("here"), make("there")
    here.push(envelopes(b"1"))
    silent_one, consumer = consumer_of(there), consumer_of(here)
    claim(silent_one, 1)
    claimed(consumer)
    for _ in range(4):
        assert look(consumer, clock, max(LEASE_MS / 2000, LONGEST_GAP_S) * 4) == []


def test_a_renewal_in_between_counts(make: Make, clock: ManualClock, server: Any) -> None:
    """A lease that is renewed while somebody reaps its owner is left alone."""
    here, there = make("here"), make("there")
    here.push(envelopes(b"1"))
    slow, consumer = consumer_of(there), consumer_of(here)
    held = claim(slow, 1)
    clock.advance_ms(LEASE_MS + 1)
    reaper = consumer._owner.reaper
    told = [slow.owner_id.encode(), b"%d" % int(server.zscore(P + "leases", slow.owner_id))]
    for _ in range(2):
        assert reaper.note_expired(told) == []
        clock.advance_ms(LEASE_MS // 4 + 10)
    (id,) = reaper.note_expired(told)
    slow.exchange((), 0)
    assert consumer._owner._place is not None
    reaper.reap_expired([id], consumer._owner._place, consumer._owner.reaper.look(consumer._owner._place))
    assert settle(slow, ack(held[0])).settled


def test_who_was_half_buried_is_buried_by_the_next(make: Make, clock: ManualClock, server: Any) -> None:
    """Whoever gives back a lost host's messages dies in the middle of it: its trips are refused from the first step on,
    and somebody else makes the last one."""
    here, there = make("here"), make("there")
    here.push(envelopes(*[b"x"] * 1000))
    here.push(envelopes(*[b"x"] * 10))
    lost, consumer = consumer_of(there), consumer_of(here)
    held = [*claim(lost, 1000), *claim(lost, 10)]
    reaper = consumer._owner.reaper
    row = reaper._row_of(lost.owner_id)
    assert row is not None
    assert reaper.give_back(lost.owner_id, row).status == "more"
    silent(lost)
    found = len(claimed(consumer, 1000))
    for _ in range(6):
        found += len(look(consumer, clock))
    assert found == 1010
    assert settle(lost, ack(held[-1])).lost


def test_a_host_that_stands_still_is_charged_with_nothing(make: Make, clock: ManualClock, server: Any) -> None:
    """F07: the lease of a neighbour has ended, but its process lives: what it held goes to others, uncharged."""
    one, two = make(), make()
    one.push(envelopes(b"1"))
    still, consumer = consumer_of(one), consumer_of(two)
    still.board(1).cells[0] = claim(still, 1)[0].mark
    tell(still, server)
    found: list[tuple[bytes, int]] = []
    for _ in range(LEASE_MS // 1000 + LEASE_MS // 2000 + 2):
        found += look(consumer, clock)
    assert found == [(b"1", 0)]
    assert consumer._owner.id in server.hkeys(P + "owners")


# --- its own place


def test_who_was_taken_for_dead_leaves_nothing_behind(
    transport: RedisTransport, tmp_path: Path, server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """An owner that goes on under a new name takes its board along, and its old name is gone everywhere."""
    consumer = consumer_of(transport)
    board = consumer.board(1)
    transport.push(envelopes(b"1"))
    held = claim(consumer, 1)
    old, folder = consumer.owner_id, board.path.parent if board.path else tmp_path
    server.zrem(P + "leases", old)
    assert consumer.exchange([ack(held[0])], 1).lost
    assert consumer.owner_id != old
    assert [(d.body, d.attempt) for d in consumer.exchange((), 1).deliveries] == [(b"1", 2)]
    assert server.hkeys(P + "owners") == [consumer.owner_id]
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted([f"{consumer.owner_id}.board", f"{consumer.owner_id}.owner", "lock"])
    assert "taken for dead" in caplog.text


def test_f24_the_server_has_lost_its_data(
    transport: RedisTransport, server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """F24: all data is deleted under a worker: what it holds is lost to it, it says so, and works on."""
    consumer = consumer_of(transport)
    transport.push(envelopes(b"1"))
    held = claim(consumer, 1)
    server.flushall()
    assert consumer.exchange([ack(held[0])], 1).lost
    assert "lost its data" in caplog.text
    transport.push(envelopes(b"2"))
    (again,) = claim(consumer, 1)
    assert settle(consumer, ack(again)).settled


def test_the_lease_is_renewed_by_trips(make: Make, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each trip renews the lease, and as long as there are any the ticker sends nothing."""
    passed = ManualClock()
    monkeypatch.setattr(pulse, "SYSTEM_CLOCK", passed)
    transport = make(clock=SYSTEM_CLOCK)
    consumer = consumer_of(transport)
    before = server.zscore(P + "leases", consumer.owner_id)
    wait_until(lambda: SYSTEM_CLOCK.now_ms() + LEASE_MS > before + 5, "time has gone by")
    consumer.exchange((), 0)
    assert server.zscore(P + "leases", consumer.owner_id) > before
    for _ in range(3):
        passed.advance_ms(LEASE_MS // 3 - 1)
        consumer.exchange((), 0)
        consumer.extend()
    assert consumer._owner._pulse._thread is None


def test_the_lease_is_renewed_without_trips(make: Make, server: Any) -> None:
    """Where there was no trip for a third of a lease, the ticker has the lease renewed; and at once where what runs has
    changed."""
    transport = make(clock=SYSTEM_CLOCK)
    transport.push(envelopes(b"1", b"2"))
    consumer = consumer_of(transport)
    board = consumer.board(2)
    one, two = claim(consumer, 2)
    consumer._owner._pulse._renewed_s -= LEASE_MS / 3000
    before = server.zscore(P + "leases", consumer.owner_id)
    wait_until(lambda: SYSTEM_CLOCK.now_ms() + LEASE_MS > before + 5, "time has gone by")
    consumer.extend()
    wait_until(lambda: server.zscore(P + "leases", consumer.owner_id) > before, "the lease is renewed")
    board.cells[0], board.cells[1] = one.mark, two.mark
    consumer.extend()
    wait_until(lambda: server.hget(P + "running", consumer.owner_id) == f"{one.mark} {two.mark}", "it is told")
    board.cells[0] = board.cells[1] = 0
    wait_until(lambda: consumer.extend() or not server.exists(P + "running"), "that nothing runs is told, too")


def test_a_lost_lease_is_noticed_without_trips(make: Make, server: Any) -> None:
    """The ticker learns that the owner was taken for dead, and the next trip follows."""
    transport = make(clock=SYSTEM_CLOCK)
    consumer = consumer_of(transport)
    server.zrem(P + "leases", consumer.owner_id)
    consumer._owner._pulse._renewed_s -= LEASE_MS / 3000
    consumer.extend()
    wait_until(lambda: not consumer._owner._pulse.is_good, "the server has said so")
    old = consumer.owner_id
    consumer.extend()
    consumer.exchange((), 1)
    assert consumer.owner_id != old
    assert server.hkeys(P + "owners") == [consumer.owner_id]


def test_a_server_that_is_away_when_an_owner_ends(make: Make, start_redis: Callable[..., Any], tmp_path: Path) -> None:
    """Closing says so, and does not hang; the lock is given back all the same."""
    own = start_redis()
    transport = RedisTransport(redis.Redis.from_url(own.url), run_folder=tmp_path, lease_ms=LEASE_MS)
    consumer = consumer_of(transport)
    consumer.exchange((), 1)
    place, id = consumer._owner._place, consumer.owner_id
    assert place is not None
    own.kill()
    with pytest.raises(BrokerError):
        consumer.close()
    assert not place.locks.is_held(number_of(id), consumer._owner)
    transport.close()


def test_the_owners_are_deleted_by_hand(make: Make, clock: ManualClock, server: Any) -> None:
    """What an owner holds that nobody knows of any more is given back all the same when it ends."""
    transport = make()
    transport.push(envelopes(b"1"))
    consumer = consumer_of(transport)
    claim(consumer, 1)
    server.delete(P + "owners")
    consumer.close()
    other = consumer_of(transport)
    assert look(other, clock) == [(b"1", 0)]
    assert server.zrange(P + "leases", 0, -1) == [other.owner_id]


def test_leases_of_nobody_hide_no_others(make: Make, clock: ManualClock, server: Any) -> None:
    """Leases that have ended and whose owners nobody knows go away."""
    consumer = consumer_of(make())
    server.zadd(P + "leases", {f"{number:016x}": number for number in range(1, 26)})
    for _ in range(12):
        look(consumer, clock)
    assert server.zrange(P + "leases", 0, -1) == [consumer.owner_id]
