"""What a Greenroom consumer does with the queues that Dramatiq has left in its namespace."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from greenroom import Message
from greenroom.core.verdict import Verdict
from greenroom.engines.redis.dramatiq_layout import DramatiqLayout
from greenroom.engines.redis.run_place import number_of
from greenroom.engines.redis.share import ProcessShare
from greenroom.engines.redis.shared_transport import SharedTransport
from greenroom.engines.redis.two_layouts import TwoLayouts
from greenroom.errors import BrokerError, BrokerTimeout
from greenroom.names import new_storage_id
from greenroom.ports.admin import Counts
from greenroom.ports.store import Get, Put
from greenroom.ports.transport import CRASH, ConsumerClosed, Delivery, Envelope, ErrorText, Settlement
from greenroom.testing.clock import ManualClock
from greenroom.testing.contract.kit import DEADLINE_S
from tests.interop.layout_kit import ANOTHER, Theirs, name_of, take, transport_of
from tests.runtime.cli_kit import wait_until

ACK, DEAD, RETRY, RELEASE = Verdict.ACK, Verdict.DEAD, Verdict.RETRY, Verdict.RELEASE


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def theirs(redis_url: str, clock: ManualClock) -> Iterator[Theirs]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield Theirs(client, clock)


@pytest.fixture
def make(redis_url: str, clock: ManualClock, tmp_path: Path) -> Iterator[Callable[..., SharedTransport]]:
    made: list[SharedTransport] = []

    def make(*, wire: bool = False) -> SharedTransport:
        made.append(transport_of(redis_url, clock, tmp_path, wire=wire))
        return made[-1]

    yield make
    for transport in made:
        transport.close()


@pytest.fixture
def transport(make: Callable[..., SharedTransport]) -> SharedTransport:
    return make()


@pytest.fixture
def consumer(transport: SharedTransport) -> TwoLayouts:
    return consumer_of(transport)


def consumer_of(transport: SharedTransport) -> TwoLayouts:
    consumer = transport.consumer("test")
    consumer.subscribe(["default"])
    return consumer


def named(deliveries: list[Delivery]) -> list[str]:
    return [name_of(delivery) for delivery in deliveries]


def retry_of(delivery: Delivery, due_ms: int) -> Envelope:
    """What a worker would have it replaced by."""
    message = Message.decode(delivery.body).copy(options={"retries": 1, "eta": due_ms})
    return Envelope(delivery.queue, new_storage_id(), message.encode(), due_ms=due_ms)


# --- claiming


def test_a_claim_is_noted_where_dramatiq_looks(theirs: Theirs, consumer: TwoLayouts, clock: ManualClock) -> None:
    """A claimed message stands among the acks of our process, whose heartbeat is of now; when it is done nothing of it
    is left."""
    id = theirs.send("a")
    (delivery,) = take(consumer, clock)
    assert name_of(delivery) == "a"
    assert delivery.attempt == 1
    (me,) = theirs.client.zrange("dramatiq:__heartbeats__", 0, -1)
    assert theirs.client.smembers(f"dramatiq:__acks__.{me}.default") == {id}
    assert theirs.client.zscore("dramatiq:__heartbeats__", me) >= clock.now_ms() - 2_200
    done = consumer.exchange([Settlement(delivery, ACK)], 0)
    assert len(done.settled) == 1
    assert theirs.keys() == {"dramatiq:__heartbeats__"}
    consumer.close()
    assert theirs.keys() == set()


def test_first_in_first_out(theirs: Theirs, consumer: TwoLayouts, clock: ManualClock) -> None:
    """Messages of a list are claimed in its order, and no more than were asked for."""
    for number in range(10):
        theirs.send(str(number))
    first = consumer.exchange((), 8).deliveries  # the other half of a claim is for our own layout
    assert named([*first]) == ["0", "1", "2", "3"]
    assert named(take(consumer, clock)) == ["4", "5", "6", "7", "8", "9"]


def test_both_layouts_are_served(
    theirs: Theirs, transport: SharedTransport, consumer: TwoLayouts, clock: ManualClock
) -> None:
    """A layout that is never empty does not starve the other one."""
    for number in range(20):
        theirs.send(f"theirs-{number}")
        body = theirs.encoded(f"ours-{number}", "x")
        transport.push([Envelope("default", new_storage_id(), body)])
    claimed = [name_of(d) for _ in range(4) for d in consumer.exchange((), 3).deliveries]
    assert {name.partition("-")[0] for name in claimed} == {"theirs", "ours"}
    assert len(claimed) == 12


def test_what_is_not_done_is_put_back_at_the_end(theirs: Theirs, consumer: TwoLayouts, clock: ManualClock) -> None:
    """A consumer that closes leaves everything as it was."""
    for number in range(3):
        theirs.send(str(number))
    take(consumer, clock)
    assert theirs.waiting() == []
    consumer.close()
    assert sorted(theirs.waiting()) == ["0", "1", "2"]
    assert not theirs.client.exists("dramatiq:__heartbeats__")


def test_a_paused_queue_is_left_alone(theirs: Theirs, consumer: TwoLayouts, clock: ManualClock) -> None:
    """What is paused is not claimed of Dramatiq's layout either."""
    theirs.send("a")
    consumer.pause(["default"])
    assert take(consumer, clock) == []
    consumer.subscribe(["default"])
    assert named(take(consumer, clock)) == ["a"]


def test_an_id_without_a_message_is_dropped(theirs: Theirs, consumer: TwoLayouts, clock: ManualClock) -> None:
    """A stray id costs the others nothing."""
    for queue in ("dramatiq:default", "dramatiq:default.DQ"):
        theirs.client.rpush(queue, "stray")
    theirs.send("a")
    assert named(take(consumer, clock)) == ["a"]
    assert theirs.client.exists("dramatiq:default", "dramatiq:default.DQ") == 0


def test_garbage_is_handed_out(theirs: Theirs, consumer: TwoLayouts, clock: ManualClock) -> None:
    """What no message is comes as it is, so that a worker can dead-letter it; a delayed one at once."""
    theirs.send("", body=b"garbage")
    theirs.send("", body=b"late garbage", due_ms=clock.now_ms() + 1_000_000)
    assert sorted(d.body for d in take(consumer, clock)) == [b"garbage", b"late garbage"]


# --- delayed


def test_delayed_messages_come_when_they_are_due(theirs: Theirs, consumer: TwoLayouts, clock: ManualClock) -> None:
    """Whatever the order in the list, each message comes at its time, and until then it stays where Dramatiq finds
    it."""
    now_ms = clock.now_ms()
    for name, delay_ms in (("far", 3_600_000), ("third", 30_000), ("second", 20_000), ("first", 10_000)):
        theirs.send(name, due_ms=now_ms + delay_ms)
    assert take(consumer, clock) == []
    found = []
    for _ in range(35):
        clock.advance_ms(1_000)
        found += [(name_of(d), clock.now_ms() - now_ms) for d in take_now(consumer)]
    assert [name for name, _ in found] == ["first", "second", "third"]
    assert all(0 <= late % 10_000 <= 2_200 for _, late in found)
    assert theirs.waiting("default.DQ") == ["far"]


def take_now(consumer: TwoLayouts) -> list[Delivery]:
    found: list[Delivery] = []
    while True:
        exchange = consumer.exchange((), 100)
        found += exchange.deliveries
        if not exchange.more:
            return found


def test_a_wait_ends_when_one_is_due(theirs: Theirs, consumer: TwoLayouts, clock: ManualClock) -> None:
    """A wait is no longer than until the next delayed message of Dramatiq's is due."""
    theirs.send("soon", due_ms=clock.now_ms() + 5_000)
    take(consumer, clock)
    assert 2.5 < consumer._theirs.wake_in_s() < 3.0


def test_a_long_delayed_list_is_read_once(
    theirs: Theirs, consumer: TwoLayouts, clock: ManualClock, transport: SharedTransport
) -> None:
    """The times of thousands of delayed messages are learned, and what comes later is found at the end of the list."""
    now_ms = clock.now_ms()
    for number in range(1_300):
        theirs.send(f"far-{number}", due_ms=now_ms + 1_000_000 + number)
    theirs.send("near", due_ms=now_ms + 60_000)
    assert take(consumer, clock) == []
    assert theirs.client.zcard("{dramatiq}:g1:o:default") == 1_301
    theirs.send("nearer", due_ms=clock.now_ms() + 30_000)
    take(consumer, clock)
    clock.advance_ms(70_000)
    assert named(take(consumer, clock)) == ["nearer", "near"]
    assert theirs.client.llen("dramatiq:default.DQ") == 1_300


def test_a_delayed_message_that_another_took_is_forgotten(
    theirs: Theirs, consumer: TwoLayouts, clock: ManualClock
) -> None:
    """What a worker of Dramatiq's has taken out of the list is not ours any more."""
    theirs.send("a", due_ms=clock.now_ms() + 10_000)
    take(consumer, clock)
    theirs.claim(ANOTHER, "default.DQ")
    clock.advance_ms(20_000)
    assert take(consumer, clock) == []
    assert not theirs.client.exists("{dramatiq}:g1:o:default")


# --- settling


@pytest.mark.parametrize(("lives", "wire"), [(True, False), (False, False), (False, True)])
def test_a_retry_goes_where_it_will_be_found(
    theirs: Theirs, make: Callable[..., SharedTransport], clock: ManualClock, lives: bool, wire: bool
) -> None:
    """While a process of Dramatiq's lives, and always on its wire, a retry returns to its delayed list, in its words;
    else it goes to our own layout. The old message is gone."""
    consumer = consumer_of(make(wire=wire))
    theirs.send("a")
    if lives:
        theirs.beat()
    (delivery,) = take(consumer, clock)
    retry = retry_of(delivery, clock.now_ms() + 1_000)
    assert len(consumer.exchange([Settlement(delivery, RETRY, retry=retry)], 0).settled) == 1
    assert not theirs.client.exists("dramatiq:default.msgs")
    if lives or wire:
        (id,) = theirs.client.lrange("dramatiq:default.DQ", 0, -1)
        fields = json.loads(theirs.client.hget("dramatiq:default.DQ.msgs", id))
        assert fields["queue_name"] == "default.DQ"
        assert fields["options"] == {"redis_message_id": id, "retries": 1, "eta": retry.due_ms}
    else:
        assert theirs.keys() == {"dramatiq:__heartbeats__"}
    clock.advance_ms(2_000)
    assert named(take(consumer, clock)) == ["a"]


@pytest.mark.parametrize("lives", [True, False])
def test_what_is_given_back_for_later(theirs: Theirs, consumer: TwoLayouts, clock: ManualClock, lives: bool) -> None:
    """A message that is to come later, as one of an unknown actor, goes to the delayed list while Dramatiq lives."""
    id = theirs.send("a")
    if lives:
        theirs.beat()
    (delivery,) = take(consumer, clock)
    consumer.exchange([Settlement(delivery, RELEASE, due_ms=clock.now_ms() + 5_000)], 0)
    assert theirs.client.lrange("dramatiq:default.DQ", 0, -1) == ([id] if lives else [])
    assert take(consumer, clock) == []
    clock.advance_ms(6_000)
    assert named(take(consumer, clock)) == ["a"]


def test_what_is_given_back_is_first_again(theirs: Theirs, consumer: TwoLayouts, clock: ManualClock) -> None:
    """A message that is released stands at the head of its list."""
    theirs.send("a")
    theirs.send("b")
    (delivery,) = consumer.exchange((), 2).deliveries
    consumer.exchange([Settlement(delivery, RELEASE)], 0)
    assert theirs.waiting() == ["a", "b"]


def test_what_is_given_back_may_be_claimed_in_the_same_trip(
    theirs: Theirs, consumer: TwoLayouts, clock: ManualClock
) -> None:
    """The claim that follows a release in one trip is a claim of its own, and can be settled."""
    theirs.send("a")
    (first,) = consumer.exchange((), 2).deliveries
    clock.advance_ms(2_000)
    consumer._theirs.look_soon()
    exchange = consumer.exchange([Settlement(first, RELEASE)], 2)
    (second,) = exchange.deliveries
    assert len(exchange.settled) == 1
    assert len(consumer.exchange([Settlement(first, ACK)], 0).lost) == 1
    assert len(consumer.exchange([Settlement(second, ACK)], 0).settled) == 1
    assert theirs.keys() == {"dramatiq:__heartbeats__"}


def test_a_dead_letter_of_ours_says_why(
    theirs: Theirs, transport: SharedTransport, consumer: TwoLayouts, clock: ManualClock
) -> None:
    """A message of Dramatiq's that fails for good becomes a dead letter of ours, with its error."""
    theirs.send("a")
    (delivery,) = take(consumer, clock)
    error = ErrorText("ValueError", "no luck")
    assert len(consumer.exchange([Settlement(delivery, DEAD, error=error)], 0).settled) == 1
    (letter,) = transport.dead()
    assert (letter.body, letter.error) == (delivery.body, error)
    assert theirs.keys() == {"dramatiq:__heartbeats__"}


def test_a_dead_letter_on_the_wire_is_dramatiqs(
    theirs: Theirs, make: Callable[..., SharedTransport], clock: ManualClock
) -> None:
    """On Dramatiq's wire it lies where Dramatiq has its dead letters."""
    transport = make(wire=True)
    transport.declare(["default"])
    consumer = consumer_of(transport)
    id = theirs.send("a")
    (delivery,) = take(consumer, clock)
    consumer.exchange([Settlement(delivery, DEAD, error=ErrorText("ValueError", "no luck"))], 0)
    assert theirs.client.zrange("dramatiq:default.XQ", 0, -1) == [id]
    assert theirs.client.hkeys("dramatiq:default.XQ.msgs") == [id]
    assert [letter.id for letter in transport.dead()] == [id]


def test_results_and_next_stages_are_one_step_with_the_end(
    theirs: Theirs, transport: SharedTransport, consumer: TwoLayouts, clock: ManualClock
) -> None:
    """What is written and sent when a message of Dramatiq's is done happens with its end, or not at all: one that was
    taken away meanwhile leaves nothing."""
    from greenroom.engines.redis.store import RedisStore

    theirs.send("a")
    theirs.send("b")
    mine, lost = take(consumer, clock)
    (me,) = theirs.client.zrange("dramatiq:__heartbeats__", 0, -1)
    theirs.client.srem(f"dramatiq:__acks__.{me}.default", lost.id)
    settle = [
        Settlement(d, ACK, push=(envelope_to(f"after-{name_of(d)}", theirs),), writes=(Put(name_of(d), b"1"),))
        for d in (mine, lost)
    ]
    exchange = consumer.exchange(settle, 0)
    assert ([*exchange.settled], [*exchange.lost]) == ([settle[0]], [settle[1]])
    assert RedisStore(transport).apply([Get("a"), Get("b")]) == [b"1", None]
    assert named(take(consumer, clock)) == ["after-a"]


def envelope_to(name: str, theirs: Theirs) -> Envelope:
    return Envelope("default", new_storage_id(), theirs.encoded(name, "x"))


def test_what_was_taken_over_is_lost(theirs: Theirs, consumer: TwoLayouts, clock: ManualClock) -> None:
    """A message that others have taken away because we seemed dead is not settled by us."""
    theirs.send("a")
    (delivery,) = take(consumer, clock)
    (me,) = theirs.client.zrange("dramatiq:__heartbeats__", 0, -1)
    theirs.client.delete(f"dramatiq:__acks__.{me}.default")
    theirs.client.rpush("dramatiq:default", delivery.id)
    exchange = consumer.exchange([Settlement(delivery, ACK)], 0)
    assert len(exchange.lost) == 1
    assert theirs.waiting() == ["a"]


def test_an_answer_that_is_lost(
    theirs: Theirs, consumer: TwoLayouts, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the answer to a trip is lost it is made again: what it has settled is settled, once, and what it has claimed
    is claimed again."""
    for name in "abc":
        theirs.send(name)
    (first,) = consumer.exchange((), 2).deliveries
    run = ProcessShare.run
    failures = [BrokerTimeout("no answer")]

    def run_and_fail(self: ProcessShare, *args: Any) -> Any:
        answer = run(self, *args)
        if failures:
            raise failures.pop()
        return answer

    settle = [Settlement(first, RETRY, retry=envelope_to("again", theirs))]
    theirs.beat()
    clock.advance_ms(1_000)
    monkeypatch.setattr(ProcessShare, "run", run_and_fail)
    with pytest.raises(BrokerError):
        consumer.exchange(settle, 4)
    exchange = consumer.exchange(settle, 10)
    assert [*exchange.settled] == settle
    claimed = named([*exchange.deliveries, *take(consumer, clock)])
    assert sorted(claimed) == ["again", "b", "c"]


def test_our_side_fails_after_theirs(
    theirs: Theirs, consumer: TwoLayouts, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the trip on our side fails, what was claimed on Dramatiq's comes with the next one."""
    theirs.send("a")
    exchange = type(consumer._ours).exchange
    failures = [BrokerTimeout("no answer")]

    def fail_once(*args: Any) -> Any:
        if failures:
            raise failures.pop()
        return exchange(*args)

    monkeypatch.setattr(type(consumer._ours), "exchange", fail_once)
    with pytest.raises(BrokerError):
        consumer.exchange((), 10)
    assert named([*consumer.exchange((), 10).deliveries]) == ["a"]


def test_wire_moves_what_is_left_of_ours(
    theirs: Theirs, make: Callable[..., SharedTransport], clock: ManualClock
) -> None:
    """On Dramatiq's wire messages of our own layout still run, and their retries and next stages go to Dramatiq's."""
    make().push([envelope_to("ours", theirs)])
    consumer = consumer_of(make(wire=True))
    (delivery,) = take(consumer, clock)
    retry = retry_of(delivery, clock.now_ms() + 60_000)
    settled = consumer.exchange([Settlement(delivery, RETRY, retry=retry, push=(envelope_to("next", theirs),))], 0)
    assert len(settled.settled) == 1
    assert theirs.waiting("default.DQ") == ["ours"]
    assert theirs.waiting() == ["next"]
    assert not theirs.client.exists("{dramatiq}:g1:m:default")


# --- the dead, and the living


def test_messages_of_a_dead_worker_are_taken_over(theirs: Theirs, consumer: TwoLayouts, clock: ManualClock) -> None:
    """What a process of Dramatiq's had in its hands comes once its heartbeat has not changed for the timeout, by what
    we have seen ourselves; not before, however old it looks."""
    theirs.send("a")
    theirs.send("late", due_ms=clock.now_ms() + 1_000)
    theirs.claim(ANOTHER)
    theirs.claim(ANOTHER, "default.DQ")
    theirs.beat(at_ms=clock.now_ms() - 10_000_000)
    assert take(consumer, clock) == []
    clock.advance_ms(55_000)
    assert take(consumer, clock) == []
    clock.advance_ms(5_000)
    assert sorted(named(take(consumer, clock))) == ["a", "late"]


def test_messages_of_a_living_worker_are_not(theirs: Theirs, consumer: TwoLayouts, clock: ManualClock) -> None:
    """A process whose clock is far behind ours lives as long as its heartbeat changes."""
    theirs.send("a")
    theirs.claim(ANOTHER)
    for number in range(10):
        theirs.beat(at_ms=number)
        assert take(consumer, clock) == []
        clock.advance_ms(20_000)


def test_our_own_dead_are_taken_over_too(
    theirs: Theirs, transport: SharedTransport, consumer: TwoLayouts, clock: ManualClock
) -> None:
    """What a Greenroom worker of a lost host had claimed of Dramatiq's queues comes back in the same way."""
    theirs.send("a")
    (held,) = take(consumer, clock)
    other = consumer_of(transport)
    assert take(other, clock) == []
    clock.advance_ms(61_000)
    assert named(take(other, clock)) == ["a"]
    assert len(consumer.exchange([Settlement(held, ACK)], 0).lost) == 1


def test_a_heartbeat_keeps_what_is_held(
    theirs: Theirs, transport: SharedTransport, consumer: TwoLayouts, clock: ManualClock
) -> None:
    """A consumer that holds something of Dramatiq's for long gives signs of life meanwhile."""
    theirs.send("a")
    (held,) = take(consumer, clock)
    other = consumer_of(transport)
    for _ in range(20):
        clock.advance_ms(10_000)
        consumer.extend()
        assert take(other, clock) == []
    assert len(consumer.exchange([Settlement(held, ACK)], 0).settled) == 1


def test_how_often_the_lists_are_looked_at(theirs: Theirs, consumer: TwoLayouts, clock: ManualClock) -> None:
    """While a process of Dramatiq's lives, ten times a second; else no wait ends for it, and one look a second rides on
    the trips that are made."""
    take(consumer, clock)
    assert consumer._theirs.wake_in_s() == float("inf")
    theirs.beat()
    take(consumer, clock)
    assert consumer._theirs.keeps()
    consumer.exchange((), 10)
    assert 0.05 < consumer._theirs.wake_in_s() <= 0.1
    clock.advance_ms(61_000)
    take(consumer, clock)
    assert not consumer._theirs.keeps()
    assert consumer._theirs.wake_in_s() == float("inf")


# --- looking and acting


def test_counts_of_both_layouts(
    theirs: Theirs, transport: SharedTransport, consumer: TwoLayouts, clock: ManualClock
) -> None:
    """Messages of both layouts are counted together, those in the hands of Dramatiq's workers as claimed."""
    transport.declare(["default"])
    for name in "abc":
        theirs.send(name)
    theirs.send("late", due_ms=clock.now_ms() + 1_000_000)
    theirs.claim(ANOTHER)
    transport.push([envelope_to("ours", theirs)])
    assert transport.counts(["default"]) == {"default": Counts(3, 1, 1, 0)}
    assert transport.counts() == {"default": Counts(3, 1, 1, 0)}
    assert [name_of_peeked(m.body) for m in pages(transport)] == ["ours", "b", "c", "late"]
    assert transport.purge("default") == 4
    assert transport.counts(["default"]) == {"default": Counts(0, 0, 1, 0)}


def pages(transport: SharedTransport) -> list[Any]:
    found: list[Any] = []
    while page := transport.peek("default", limit=2, after=found[-1].place if found else None):
        found += page
    return found


def name_of_peeked(body: bytes) -> str:
    name = json.loads(body)["args"][0]
    assert isinstance(name, str)
    return name


def bury(theirs: Theirs, name: str, died_ms: int) -> str:
    """A worker of Dramatiq's gives a message up."""
    id = theirs.send(name)
    theirs.client.lrem("dramatiq:default", 0, id)
    theirs.client.hset("dramatiq:default.XQ.msgs", id, theirs.client.hget("dramatiq:default.msgs", id))
    theirs.client.hdel("dramatiq:default.msgs", id)
    theirs.client.zadd("dramatiq:default.XQ", {id: died_ms})
    return id


def test_dead_letters_of_both_layouts(
    theirs: Theirs, transport: SharedTransport, consumer: TwoLayouts, clock: ManualClock
) -> None:
    """Dead letters are shown together, page by page, newest first; Dramatiq's can be replayed and deleted, too."""
    transport.declare(["default"])
    transport.push([envelope_to("ours", theirs)])
    (delivery,) = take(consumer, clock)
    now_ms = clock.now_ms()
    consumer.exchange([Settlement(delivery, DEAD, error=ErrorText("E", "why"))], 0)
    old, same, same_2, new = (bury(theirs, str(ms), now_ms + ms) for ms in (-1_000, 500, 500, 1_000))
    found: list[Any] = []
    while page := transport.dead(limit=2, after=found[-1].place if found else None):
        found += page
    assert [letter.id for letter in found] == [new, same_2, same, delivery.id, old]
    assert [letter.id for letter in transport.dead_letters([old, delivery.id, "none"])] == [old, delivery.id]
    replaced = {id: Envelope("default", new_storage_id(), theirs.encoded("replayed", "x")) for id in (old, delivery.id)}
    assert transport.move(replaced) == 2
    assert named(take(consumer, clock)) == ["replayed", "replayed"]
    assert transport.drop([new, "none"]) == 1
    assert transport.purge("default", dead=True) == 2
    assert transport.dead() == []


def test_dead_letters_of_dramatiqs_expire(theirs: Theirs, consumer: TwoLayouts, clock: ManualClock) -> None:
    """Dramatiq's dead letters are deleted after the time that ours are."""
    week_ms = 7 * 24 * 3_600_000
    bury(theirs, "old", clock.now_ms() - week_ms - 1)
    young = bury(theirs, "young", clock.now_ms() - week_ms + 100_000)
    take(consumer, clock)
    assert theirs.client.hkeys("dramatiq:default.XQ.msgs") == [young]
    clock.advance_ms(200_000)
    take(consumer, clock)
    assert not theirs.client.exists("dramatiq:default.XQ", "dramatiq:default.XQ.msgs")


def test_a_place_that_is_none(transport: SharedTransport) -> None:
    """Places that no page has shown are refused."""
    for place in ("dramatiq:x", "dramatiq:1", "nothing", "a|b"):
        with pytest.raises(ValueError, match="place"):
            transport.dead(after=place)
    with pytest.raises(ValueError, match="place"):
        transport.peek("default", after="dramatiq:x.1")


@pytest.mark.parametrize("wire", [False, True])
def test_our_dead_of_this_host_are_buried_at_once(
    theirs: Theirs, make: Callable[..., SharedTransport], clock: ManualClock, wire: bool
) -> None:
    """What a worker of this host had claimed of Dramatiq's queues when it died is given back within a second. What it
    ran is charged with the crash, unless all is written for Dramatiq."""
    transport = make(wire=wire)
    dying, other = consumer_of(transport), consumer_of(transport)
    theirs.send("ran")
    theirs.send("held")
    claimed = {name_of(d): d for d in take(dying, clock)}
    dying.board(2).cells[0] = claimed["ran"].mark
    owner = dying._ours._owner
    assert owner._place is not None
    owner._place.locks.unlock(number_of(owner.id), owner)
    clock.advance_ms(1_100)
    found = {name_of(d): d for d in [*take(other, clock), *take(other, clock)]}
    assert {name: d.crashes for name, d in found.items()} == {"ran": 0 if wire else 1, "held": 0}
    if not wire:
        (incident,) = other.history(found["ran"])
        assert incident.error is not None
        assert incident.error.type == CRASH
    assert len(dying.exchange([Settlement(claimed["held"], ACK)], 0).lost) == 1


def test_who_dies_in_its_first_trip_is_buried(
    theirs: Theirs, make: Callable[..., SharedTransport], clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker is killed when it has claimed of Dramatiq's queues for the first time, and not yet of ours: whoever
    buries it knows what it held."""
    transport = make()
    dying, other = consumer_of(transport), consumer_of(transport)
    theirs.send("a")

    def killed(*_args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(dying._ours, "exchange", killed)
    with pytest.raises(KeyboardInterrupt):
        dying.exchange((), 10)
    monkeypatch.undo()
    assert theirs.waiting() == []
    owner = dying._ours._owner
    assert owner._place is not None
    owner._place.locks.unlock(number_of(owner.id), owner)
    clock.advance_ms(1_100)
    assert named([*take(other, clock), *take(other, clock)]) == ["a"]


def test_what_comes_back_after_it_was_lost(theirs: Theirs, consumer: TwoLayouts, clock: ManualClock) -> None:
    """A settlement of something that this consumer does not hold any more is lost, also when it holds nothing else."""
    theirs.send("a")
    (delivery,) = take(consumer, clock)
    consumer.exchange([Settlement(delivery, RELEASE)], 0)
    assert len(consumer.exchange([Settlement(delivery, ACK)], 0).lost) == 1
    assert theirs.waiting() == ["a"]


# --- one side must not harm the other


def test_a_closed_consumer_claims_nothing(theirs: Theirs, consumer: TwoLayouts) -> None:
    """Not on Dramatiq's side either."""
    theirs.send("a")
    consumer.close()
    with pytest.raises(ConsumerClosed):
        consumer.exchange((), 10)
    assert theirs.waiting() == ["a"]


def test_closing_the_transport_gives_all_back(
    theirs: Theirs, transport: SharedTransport, consumer: TwoLayouts, clock: ManualClock
) -> None:
    """What a consumer holds that nobody has closed."""
    theirs.send("a")
    assert len(take(consumer, clock)) == 1
    transport.close()
    assert theirs.waiting() == ["a"]
    assert not theirs.client.exists("dramatiq:__heartbeats__")


def test_theirs_do_not_starve_under_results(
    theirs: Theirs, transport: SharedTransport, consumer: TwoLayouts, clock: ManualClock
) -> None:
    """Trips that write results carry no look: then one is made for itself, every few seconds."""
    take(consumer, clock)
    transport.push([Envelope("default", new_storage_id(), theirs.encoded(f"ours-{n}", "x")) for n in range(30)])
    held = [*consumer.exchange((), 1).deliveries]
    theirs.send("a")
    names: list[str] = []
    while held:
        clock.advance_ms(500)
        settlements = [Settlement(delivery, ACK, writes=(Put("key", b"value"),)) for delivery in held]
        held = [*consumer.exchange(settlements, 1).deliveries]
        names += named(held)
    assert "a" in names[:15]


def test_keys_that_are_not_dramatiqs(theirs: Theirs, transport: SharedTransport, consumer: TwoLayouts) -> None:
    """Where something else has the name of one of Dramatiq's keys our own layout works, and takes its time to look
    again."""
    theirs.client.set("dramatiq:default", "something else")
    transport.push([Envelope("default", new_storage_id(), b"1")])
    (got,) = [delivery for _ in range(3) for delivery in consumer.exchange((), 10).deliveries]
    assert len(consumer.exchange([Settlement(got, ACK)], 10).settled) == 1
    assert consumer._theirs._look_at > consumer._clock.monotonic() + 5


def test_a_sign_of_life_holds_nobody_up(
    theirs: Theirs, consumer: TwoLayouts, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the server says nothing, the thread that asks for it goes on."""
    theirs.send("a")
    (held,) = take(consumer, clock)
    gate, callers = threading.Event(), []

    def stuck(*_args: Any) -> None:
        callers.append(threading.current_thread())
        gate.wait(DEADLINE_S)

    monkeypatch.setattr(DramatiqLayout, "beat", stuck)
    clock.advance_ms(60_000)
    consumer.extend()
    wait_until(lambda: bool(callers), "a sign of life is given")
    assert callers != [threading.current_thread()]
    gate.set()
    assert len(consumer.exchange([Settlement(held, ACK)], 0).settled) == 1


def test_the_wire_waits_for_replicas(theirs: Theirs, redis_url: str) -> None:
    """What is pushed for Dramatiq counts as kept once the replicas have it, too."""
    with redis.Redis.from_url(redis_url) as client:
        transport = SharedTransport(client, wire=True, wait_replicas=1, wait_timeout_ms=10)
        with pytest.raises(BrokerTimeout, match="0 of 1 replicas"):
            transport.push([Envelope("default", "1", theirs.encoded("a", "1"))])
        transport.close()
