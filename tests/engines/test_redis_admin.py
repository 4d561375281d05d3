"""What the ``Admin`` of the Redis engine does beyond the contract: bounded steps, what is not kept, odd data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from greenroom.engines.redis import admin as admin_module
from greenroom.engines.redis import retention as retention_module
from greenroom.engines.redis.admin import CHUNK
from greenroom.engines.redis.consumer import PURGE_INTERVAL_S, PURGE_STEP_S
from greenroom.engines.redis.transport import RedisTransport
from greenroom.errors import MessageTooLarge
from greenroom.ports.admin import Counts
from greenroom.ports.retention import DEAD_LETTER_TTL_MS, Retention
from greenroom.ports.transport import MAX_TRIP, ErrorText
from greenroom.testing.clock import ManualClock
from greenroom.testing.contract.kit import ack, claim, consumer_of, dead, envelope, envelopes, killed, settle

DAY_MS = 24 * 60 * 60 * 1000
P = "{dramatiq}:g1:"
#: No script may hold up the server for longer, in seconds. All scripts of a test together take a third of it.
LONGEST_S = 0.1

Make = Callable[..., RedisTransport]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def server(redis_url: str) -> Iterator[Any]:
    """A client of the server."""
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


@pytest.fixture
def make(redis_url: str, tmp_path: Any, clock: ManualClock) -> Iterator[Make]:
    made: list[RedisTransport] = []

    def make(**keywords: Any) -> RedisTransport:
        made.append(RedisTransport(redis.Redis.from_url(redis_url), clock=clock, run_folder=tmp_path, **keywords))
        return made[-1]

    yield make
    for transport in made:
        transport.close()


@pytest.fixture
def transport(make: Make) -> RedisTransport:
    return make()


def kill_many(transport: RedisTransport, count: int, queue: str = "default") -> list[str]:
    """So many dead letters, all of the same millisecond; their ids."""
    sent = envelopes(*[b"%d" % number for number in range(count)], queue=queue)
    consumer = consumer_of(transport, queue)
    for start in range(0, count, MAX_TRIP):
        part = sent[start : start + MAX_TRIP]
        transport.push(part)
        settle(consumer, *(dead(delivery, ErrorText("E", "x")) for delivery in claim(consumer, len(part))))
    consumer.close()
    return [one.id for one in sent]


def busy_s(server: Any) -> float:
    """For how long the server has been at work so far, in seconds of its processor's: others may have that, too."""
    cpu = server.info("cpu")
    return float(cpu["used_cpu_user_main_thread"] + cpu["used_cpu_sys_main_thread"])


# --- retention


def test_old_dead_letters_are_deleted(make: Make, clock: ManualClock, server: Any) -> None:
    """Dead letters are kept for seven days by default, or for as long as was said; with all that belongs to them."""
    transport = make(retention=Retention(ttl_ms=None))
    kill_many(transport, 2)
    clock.advance_ms(DEAD_LETTER_TTL_MS)
    consumer_of(transport).exchange((), 1)
    consumer_of(make()).exchange((), 1)
    assert transport.counts()["default"].dead == 2
    clock.advance_ms(1)
    consumer_of(transport).exchange((), 1)
    assert transport.counts()["default"].dead == 2, "this one was told to keep them for ever"
    consumer_of(make()).exchange((), 1)
    assert transport.counts() == {}
    assert server.keys(P + "x*") == []


def test_the_newest_are_kept(make: Make, clock: ManualClock) -> None:
    """No more dead letters are kept than was said: the newest, of all queues together."""
    transport = make(retention=Retention(limit=3))
    for body, queue in ((b"1", "a"), (b"2", "b"), (b"3", "a"), (b"4", "b"), (b"5", "b"), (b"6", "a")):
        killed(make(retention=Retention()), body, queue=queue)
        clock.advance_ms(1)
    consumer_of(transport).exchange((), 1)
    assert [letter.body for letter in transport.dead()] == [b"6", b"5", b"4"]


@pytest.mark.parametrize("retention", [Retention(ttl_ms=10), Retention(limit=1)], ids=["old", "many"])
def test_many_are_deleted_in_steps(make: Make, clock: ManualClock, retention: Retention, server: Any) -> None:
    """A thousand go in one script, and the rest with later trips, soon; then it is quiet again."""
    plain = make(retention=Retention(ttl_ms=None))
    kill_many(plain, 1500, "a")
    kill_many(plain, 1000, "b")
    clock.advance_ms(1000)
    before_s = busy_s(server)
    consumer = consumer_of(make(retention=retention))
    last = 0 if retention.limit is None else 1
    left = 2500
    for _ in range(10):
        consumer.exchange((), 1)
        counts = sum(found.dead for found in plain.counts().values())
        assert left - counts <= retention_module.CHUNK
        left = counts
        clock.advance_ms(int(PURGE_STEP_S * 1000))
    assert left == last
    assert busy_s(server) - before_s < LONGEST_S
    clock.advance_ms(int(PURGE_INTERVAL_S * 1000))
    kill_many(plain, 3)
    clock.advance_ms(11)
    consumer.exchange((), 1)
    assert sum(found.dead for found in plain.counts().values()) <= 1


# --- paging


def test_pages_of_dead_letters_of_one_moment(transport: RedisTransport) -> None:
    """Letters of the same millisecond, in several queues, are shown once each, also when what was shown goes."""
    ids = {*kill_many(transport, 30, "a"), *kill_many(transport, 30, "b")}
    seen: list[str] = []
    page = transport.dead(limit=7)
    while page:
        seen += [letter.id for letter in page]
        if len(seen) % 2:
            transport.drop([page[-1].id, page[0].id])
        page = transport.dead(limit=7, after=page[-1].place)
    assert sorted(seen) == sorted(ids)


def test_pages_of_messages_due_at_one_moment(transport: RedisTransport, clock: ManualClock) -> None:
    """Delayed messages of one due time are shown once each, in the order of their arrival."""
    due_ms = clock.now_ms() + 1000
    transport.push([envelope(b"%d" % number, due_ms=due_ms) for number in range(50)])
    transport.push([envelope(b"later", due_ms=due_ms + 1), envelope(b"sooner", due_ms=due_ms - 1)])
    seen: list[bytes] = []
    page = transport.peek("default", limit=7)
    while page:
        seen += [message.body for message in page]
        page = transport.peek("default", limit=7, after=page[-1].place)
    assert seen == [b"sooner", *(b"%d" % number for number in range(50)), b"later"]


def test_a_page_ends_with_its_bytes(transport: RedisTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large bodies make a page end early, never empty; the next one goes on."""
    monkeypatch.setattr(admin_module, "PAGE_BYTES", 1000)
    transport.push(envelopes(*[b"x" * 600] * 3))
    killed(transport, *[b"y" * 600] * 3, queue="dead")
    first = transport.peek("default", limit=10)
    assert len(first) == 2
    assert len(transport.peek("default", limit=10, after=first[-1].place)) == 1
    letters = transport.dead(limit=10)
    assert len(letters) == 2
    assert len(transport.dead(limit=10, after=letters[-1].place)) == 1


@pytest.mark.parametrize("priority", [-1000, -1, 0, 24, 1000])
def test_a_priority_is_shown_as_it_was(transport: RedisTransport, priority: int) -> None:
    """All priorities fit into a score together with their turn, and are read out of it again."""
    transport.push([envelope(b"first", priority=priority), envelope(b"second", priority=priority)])
    consumer = consumer_of(transport)
    claim(consumer, 1)
    assert [(m.priority, m.body) for m in transport.peek("default")] == [(priority, b"first"), (priority, b"second")]


# --- purging


@pytest.mark.parametrize("delay_ms", [None, 60_000], ids=["ready", "delayed"])
def test_a_purge_goes_in_steps_and_ends(
    transport: RedisTransport, clock: ManualClock, delay_ms: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A purge deletes a thousand at a time, and others write in between. What they push meanwhile stays, so it has an
    end, whatever priority and due time that has."""
    due_ms = None if delay_ms is None else clock.now_ms() + delay_ms
    for _ in range(3):
        transport.push([envelope(priority=number % 3, due_ms=due_ms) for number in range(CHUNK)])
    steps = 0
    plain = transport._run

    def run(script: Any, keys: Any, *args: Any) -> Any:
        nonlocal steps
        steps += 1
        answer = plain(script, keys, *args)
        transport.push([envelope(b"new", priority=-5, due_ms=due_ms), envelope(b"new", priority=5, due_ms=due_ms)])
        return answer

    monkeypatch.setattr(transport, "_run", run)
    assert transport.purge("default") == 3 * CHUNK
    monkeypatch.setattr(transport, "_run", plain)
    assert steps <= 8
    counts = transport.counts()["default"]
    assert counts.ready + counts.delayed == 2 * steps


def test_a_purge_takes_all_that_belongs_to_a_message(transport: RedisTransport, server: Any) -> None:
    """Bodies, numbers and histories go with the messages."""
    transport.push(envelopes(b"1", b"2"))
    consumer = consumer_of(transport)
    consumer.board(1).cells[0] = claim(consumer, 2)[0].mark
    consumer.close()
    assert transport.purge("default") == 2
    assert server.keys(P + "*:default") == [P + "w:default"]


def test_purging_many_dead_letters(transport: RedisTransport, server: Any) -> None:
    """Thousands of dead letters of one moment go in several steps."""
    kill_many(transport, 2_300)
    assert transport.purge("default", dead=True) == 2_300
    assert server.keys(P + "x*") == []


# --- moving


def test_a_full_step_takes_no_long_script(transport: RedisTransport, server: Any) -> None:
    """1 000 dead letters are looked up, put back and dropped, each in one script that does not hold up the server."""
    ids = kill_many(transport, 2 * MAX_TRIP)
    before_s = busy_s(server)
    letters = transport.dead_letters(ids[:MAX_TRIP])
    assert [letter.id for letter in letters] == ids[:MAX_TRIP]
    assert transport.move({letter.id: envelope(b"again") for letter in letters}) == MAX_TRIP
    assert transport.drop(ids[MAX_TRIP:]) == MAX_TRIP
    assert busy_s(server) - before_s < LONGEST_S
    assert transport.counts() == {"default": Counts(ready=MAX_TRIP)}


def test_a_move_beyond_the_bounds_moves_nothing(make: Make) -> None:
    """An envelope that cannot be kept refuses the whole step."""
    transport = make(max_body=100)
    first, second = killed(transport, b"1", b"2")
    with pytest.raises(MessageTooLarge):
        transport.move({first.id: envelope(b"fine"), second.id: envelope(b"x" * 101)})
    with pytest.raises(ValueError, match="priority"):
        transport.move({first.id: envelope(b"fine"), second.id: envelope(b"", priority=1001)})
    assert transport.counts() == {"default": Counts(dead=2)}


# --- pausing


def test_a_pause_holds_at_once(transport: RedisTransport) -> None:
    """A queue that was paused a moment ago is not claimed from: the trip itself looks."""
    consumer = consumer_of(transport)
    consumer.exchange((), 1)
    transport.pause(["default"])
    transport.push(envelopes(b"1"))
    assert consumer.exchange((), 1).deliveries == []
    transport.resume(["default"])
    assert len(claim(consumer, 1)) == 1


def test_nothing_is_nothing(transport: RedisTransport, server: Any) -> None:
    """Pausing, resuming, dropping, moving and looking up nothing sends nothing that the server would refuse."""
    transport.pause([])
    transport.resume([])
    assert (transport.drop([]), transport.move({}), transport.dead_letters([])) == (0, 0, [])
    assert transport.counts([]) == {}
    assert transport.peek("default", limit=0) == []
    assert transport.dead(limit=0) == []
    assert server.keys(P + "*") == []


def test_f24_what_was_deleted_by_hand_is_shown_as_far_as_it_is_there(transport: RedisTransport, server: Any) -> None:
    """F24: bodies and owners were deleted on the server: what is left is told, and does not fail."""
    transport.push(envelopes(b"1", b"2"))
    killed(transport, b"3", queue="dead")
    consumer = consumer_of(transport)
    delivery = claim(consumer, 1)[0]
    server.delete(P + "m:default", P + "xm:dead", P + "xe:dead")
    assert [(m.body, m.state) for m in transport.peek("default")] == [(b"", "claimed"), (b"", "ready")]
    assert [(letter.body, letter.error) for letter in transport.dead()] == [(b"", None)]
    assert transport.counts(["default"])["default"].claimed == 0
    assert settle(consumer, ack(delivery)).settled
