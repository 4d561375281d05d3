"""Trips to a Redis server that go wrong: answers that are lost, connections that are cut, servers that refuse."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis

from greenroom.engines.redis import trip as trip_module
from greenroom.engines.redis.connection import Connection, Connector
from greenroom.engines.redis.consumer import RedisConsumer
from greenroom.engines.redis.errors import Unsent
from greenroom.engines.redis.share import Replicas
from greenroom.engines.redis.transport import RedisTransport
from greenroom.errors import BrokerError, BrokerFull, BrokerReadOnly, BrokerTimeout, ConnectionClosed, ConnectionFailed
from greenroom.names import new_storage_id
from greenroom.ports.admin import Counts
from greenroom.ports.store import Put, StoreOp
from greenroom.ports.transport import MAX_TRIP, Envelope, Settlement
from greenroom.testing.contract.kit import (
    QUEUE,
    ack,
    bodies,
    claim,
    claim_one,
    consumer_of,
    dead,
    drain,
    envelope,
    envelopes,
    release,
    retry,
    settle,
)
from scripts.servers import Redis
from tests.runtime.cli_kit import PATIENCE_S, wait_until

Make = Callable[..., RedisTransport]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes transports on a server that end with the test."""
    made: list[RedisTransport] = []

    def make(url: str, **settings: Any) -> RedisTransport:
        client = redis.Redis.from_url(url, socket_timeout=settings.pop("timeout_s", 5))
        made.append(RedisTransport(client, run_folder=tmp_path, **settings))
        return made[-1]

    yield make
    for transport in made:
        with suppress(BrokerError):
            transport.close()


@pytest.fixture
def transport(redis_url: str, make: Make) -> RedisTransport:
    return make(redis_url)


class Faulty(Connection):
    """A connection of which a test says that the next command, or that so many answers from now one, is lost."""

    __slots__ = ("loses_answer", "loses_command")

    def send(self, packed: bytes) -> None:
        if self.loses_command:
            self.loses_command = 0
            raise ConnectionClosed("lost on the way")
        super().send(packed)

    def read(self) -> Any:
        answer = super().read()
        if self.loses_answer:
            self.loses_answer -= 1
            if not self.loses_answer:
                raise ConnectionClosed("lost on the way back")
        return answer


def faulty(consumer: Any) -> Faulty:
    """Has the trips of a consumer go over a faulty connection."""
    assert isinstance(consumer, RedisConsumer)
    good = consumer.trips._connection
    connection = Faulty(good._raw, good.where)
    connection.loses_answer = connection.loses_command = 0
    consumer.trips._connection = connection
    return connection


# --- lost answers


def test_a_claim_whose_answer_was_lost_is_not_leaked(transport: RedisTransport) -> None:
    """What a trip has claimed whose answer never came is handed out by the next one, once."""
    transport.push(envelopes(b"1", b"2", b"3"))
    consumer = consumer_of(transport)
    consumer.exchange((), 0)
    faulty(consumer).loses_answer = 1
    with pytest.raises(ConnectionClosed):
        consumer.exchange((), 2)
    got = consumer.exchange((), 3).deliveries
    assert bodies(got) == [b"1", b"2", b"3"]
    assert [delivery.attempt for delivery in got] == [1, 1, 1]
    assert len(settle(consumer, *map(ack, got)).settled) == 3


def test_a_claim_of_many_queues_whose_answer_was_lost(transport: RedisTransport) -> None:
    """The order and the marks of what comes late are those that were claimed, also of messages with a past."""
    sent = [envelope(b"%d" % i, "abc"[i % 3], priority=i % 2) for i in range(30)]
    transport.push(sent)
    consumer = consumer_of(transport, *"abc")
    first = claim(consumer, 30)
    settle(consumer, *map(release, first))
    faulty(consumer).loses_answer = 1
    with pytest.raises(ConnectionClosed):
        consumer.exchange((), 30)
    again = claim(consumer, 30)
    assert [(d.id, d.mark, d.attempt, d.body) for d in again] == [(d.id, d.mark, 2, d.body) for d in first]


@pytest.mark.parametrize("what", ["answer", "command"])
def test_a_trip_that_was_cut_off_is_made_once(transport: RedisTransport, what: str) -> None:
    """Whether a trip was lost on its way there or its answer on the way back: made again as it was, it is applied
    exactly once."""
    transport.push(envelopes(b"ack", b"dead", b"retry", b"release", b"next"))
    consumer = consumer_of(transport)
    one, two, three, four = claim(consumer, 4)
    trip = [ack(one, envelope(b"pushed")), dead(two), retry(three, envelope(b"again")), release(four)]
    setattr(faulty(consumer), f"loses_{what}", 1)
    with pytest.raises(ConnectionClosed):
        consumer.exchange(trip, 10)
    answer = consumer.exchange(trip, 10)
    assert sorted(answer.settled, key=trip.index) == trip
    assert not answer.lost
    assert bodies(answer.deliveries) == [b"release", b"next", b"pushed", b"again"]
    settle(consumer, *map(ack, answer.deliveries))
    assert transport.counts([QUEUE]) == {QUEUE: Counts(dead=1)}


def test_after_a_lost_answer_others_are_settled(transport: RedisTransport) -> None:
    """Whoever goes on with other settlements, and without room, loses neither these nor what was claimed."""
    transport.push(envelopes(b"1", b"2", b"3"))
    consumer = consumer_of(transport)
    one, two = claim(consumer, 2)
    faulty(consumer).loses_answer = 1
    with pytest.raises(ConnectionClosed):
        consumer.exchange([ack(one)], 5)
    assert settle(consumer, ack(two)).settled
    assert bodies(consumer.exchange([ack(one)], 5).deliveries) == [b"3"]


def test_what_was_claimed_late_is_given_back_at_the_end(transport: RedisTransport) -> None:
    """A consumer that closes before it learned what a trip has claimed gives that back, too."""
    transport.push(envelopes(b"1"))
    consumer = consumer_of(transport)
    faulty(consumer).loses_answer = 1
    with pytest.raises(ConnectionClosed):
        consumer.exchange((), 5)
    consumer.close()
    assert drain(consumer_of(transport)) == [b"1"]


# --- what the server says


def test_scripts_that_were_forgotten_are_loaded_again(redis_url: str, transport: RedisTransport) -> None:
    """A server that has forgotten its scripts gets them again, and nobody notices."""
    consumer = consumer_of(transport)
    for number in range(3):
        redis.Redis.from_url(redis_url).script_flush()
        transport.push(envelopes(b"%d" % number))
        redis.Redis.from_url(redis_url).script_flush()
        transport.push(envelopes(b"a", b"b"))
        redis.Redis.from_url(redis_url).script_flush()
        assert len(drain(consumer)) == 3


def test_a_connection_that_was_closed_while_idle_is_made_again(redis_server: Redis, make: Make) -> None:
    """A sender whose connection the server closed while it was not used does not notice."""
    transport = make(redis_server.url)
    transport.push(envelopes(b"1"))
    connection = transport.share.free._free[-1]
    redis_server.cli("CLIENT", "KILL", "TYPE", "normal")
    connection.used_at_s = 0.0
    transport.push(envelopes(b"2"))
    assert drain(consumer_of(transport)) == [b"1", b"2"]


def test_killed_clients(redis_server: Redis, make: Make) -> None:
    """When all connections are killed, again and again, a consumer says so and goes on; nothing is lost or doubled."""
    transport = make(redis_server.url)
    transport.push(envelopes(*(b"%d" % i for i in range(50))))
    consumer = consumer_of(transport)
    found: list[bytes] = []
    held: list[Settlement] = []
    for _ in range(200):
        redis_server.cli("CLIENT", "KILL", "TYPE", "normal")
        with suppress(BrokerError):
            consumer.wait(0.001)
        with suppress(BrokerError):
            answer = consumer.exchange(held, 3)
            found += bodies([s.delivery for s in answer.settled])
            assert not answer.lost
            held = [ack(delivery) for delivery in answer.deliveries]
        if len(found) == 50:
            break
    assert sorted(found) == sorted(b"%d" % i for i in range(50))


def test_no_memory_left(redis_server: Redis, make: Make) -> None:
    """A server at its memory limit takes no messages and says so; all kinds of settlements still go through."""
    transport = make(redis_server.url)
    transport.push(envelopes(b"1", b"2", b"3", b"4", b"5"))
    consumer = consumer_of(transport)
    one, two, three, four = claim(consumer, 4)
    redis_server.cli("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(BrokerFull):
        transport.push(envelopes(b"6"))
    with pytest.raises(BrokerFull):
        transport.push(envelopes(b"7", b"8"))
    trip = [ack(one), ack(two, envelope(b"pushed")), retry(three, envelope(b"again")), dead(four)]
    assert len(settle(consumer, *trip).settled) == 4
    assert bodies(claim(consumer, 3)) == [b"5", b"pushed", b"again"]
    redis_server.cli("CONFIG", "SET", "maxmemory", "0")
    transport.push(envelopes(b"9"))
    assert drain(consumer) == [b"9"]


def test_a_replica_refuses(start_redis: Callable[..., Redis], make: Make) -> None:
    """What is sent to a replica is refused with its own error, and so is a trip."""
    replica = start_redis(replicaof="127.0.0.1 1")  # where nobody is: it never has data to load
    transport = make(replica.url)
    with pytest.raises(BrokerReadOnly):
        transport.push(envelopes(b"1"))
    with pytest.raises(BrokerReadOnly):
        transport.push(envelopes(b"1", b"2"))


def test_a_primary_that_became_a_replica(redis_server: Redis, start_redis: Callable[..., Redis], make: Make) -> None:
    """A trip to a server that became a replica is refused, changes nothing, and succeeds once it is primary again."""
    transport = make(redis_server.url)
    transport.push(envelopes(b"1", b"2"))
    consumer = consumer_of(transport)
    one = claim_one(consumer)
    other = start_redis()
    redis_server.cli("CONFIG", "SET", "replica-read-only", "yes")
    redis_server.cli("REPLICAOF", "127.0.0.1", "1")
    with pytest.raises(BrokerReadOnly):
        consumer.exchange([ack(one)], 1)
    redis_server.cli("REPLICAOF", "NO", "ONE")
    other.stop()
    answer = consumer.exchange([ack(one)], 1)
    assert len(answer.settled) == 1
    assert bodies(answer.deliveries) == [b"2"]


def test_a_server_that_is_not_there(redis_server: Redis, make: Make) -> None:
    """Who cannot connect is told where to, and that nothing was done; the password is not in the text."""
    url = redis_server.url.replace("redis://", "redis://user:secret@")
    redis_server.stop()
    transport = make(url)
    with pytest.raises(ConnectionFailed, match=str(redis_server.port)) as caught:
        transport.push(envelopes(b"1"))
    assert "secret" not in str(caught.value)
    with pytest.raises(ConnectionFailed):
        consumer_of(transport)


def test_a_wrong_password(redis_server: Redis, make: Make) -> None:
    """A server that refuses the user is no server that is down: the error says what it says."""
    with pytest.raises(ConnectionFailed, match="refuses"):
        make(redis_server.url.replace("redis://", "redis://user:secret@")).push(envelopes(b"1"))


def test_an_answer_that_does_not_come(redis_server: Redis, make: Make) -> None:
    """When a server does not answer, a sender is told in time that it is not known whether the message is kept. Pushed
    again under its id, it is there once."""
    transport, other = make(redis_server.url), make(redis_server.url)
    for sender in (transport, other):
        sender.push(envelopes(b"before"))
        sender.share.free._free[-1]._raw._sock.settimeout(0.3)  # the connection of now has less patience
    one, many = envelopes(b"1"), envelopes(b"2", b"3")
    redis_server.pause()
    try:
        for sender, batch in ((transport, one), (other, many)):
            with pytest.raises(BrokerTimeout) as caught:
                sender.push(batch)
            assert caught.value.outcome == "unknown"
    finally:
        redis_server.resume()
    for batch in (one, many, one, many):
        transport.push(batch)
    assert sorted(drain(consumer_of(transport))) == [b"1", b"2", b"3", b"before", b"before"]


def test_a_repeated_push_beside_new_messages(transport: RedisTransport) -> None:
    """Of a batch in which some messages are there already only the others are new, and what is claimed stays so."""
    old = envelopes(b"1", b"2", b"3")
    transport.push(old)
    consumer = consumer_of(transport)
    claim_one(consumer)
    transport.push([*old, *envelopes(b"4")])
    assert transport.counts([QUEUE])[QUEUE] == Counts(ready=3, claimed=1)
    assert drain(consumer) == [b"2", b"3", b"4"]


def test_replicas_that_must_have_it(start_redis: Callable[..., Redis], make: Make) -> None:
    """With ``wait_replicas`` a push returns once so many have it, and says if they do not; the server keeps it."""
    redis_server = start_redis(repl_diskless_sync_delay=0)
    transport = make(redis_server.url, wait_replicas=1, wait_timeout_ms=100, timeout_s=2 * PATIENCE_S)
    for batch in (envelopes(b"1"), envelopes(b"2", b"3")):
        with pytest.raises(BrokerTimeout, match="0 of 1"):
            transport.push(batch)
    consumer = consumer_of(transport)
    one = claim_one(consumer)
    with pytest.raises(BrokerTimeout, match="0 of 1"):
        consumer.exchange([ack(one, envelope(b"4"))], 0)
    start_redis(replicaof=f"127.0.0.1 {redis_server.port}")
    transport.share.replicas = Replicas(1, int(PATIENCE_S * 1000))
    transport.push(envelopes(b"5"))
    assert settle(consumer, ack(one, envelope(b"4"))).settled
    assert drain(consumer) == [b"2", b"3", b"4", b"5"]


def test_data_that_was_lost(redis_server: Redis, make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """When a server has lost its data, what a worker held is lost to it; it says so and goes on under a new name."""
    transport = make(redis_server.url)
    transport.push(envelopes(b"1"))
    consumer = consumer_of(transport)
    one = claim_one(consumer)
    assert isinstance(consumer, RedisConsumer)
    name = consumer.owner_id
    redis_server.cli("FLUSHALL")
    late = ack(one, envelope(b"no"))
    assert consumer.exchange([late], 5).lost == [late]
    assert consumer.owner_id != name
    assert "lost its data" in caplog.text
    transport.push(envelopes(b"2"))
    assert drain(consumer) == [b"2"]


def test_bodies_that_are_gone(redis_server: Redis, make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """A server that evicts keys loses messages. That is said, and nothing stands still for it."""
    transport = make(redis_server.url)
    transport.push(envelopes(b"1", b"2"))
    redis_server.cli("DEL", transport.keys.of(QUEUE).bodies.decode())
    transport.push(envelopes(b"3"))
    consumer = consumer_of(transport)
    with caplog.at_level(logging.ERROR):
        assert bodies(consumer.exchange((), 10).deliveries) == [b"3"]
    assert "2 messages of default are lost" in caplog.text
    assert transport.counts([QUEUE])[QUEUE] == Counts(claimed=1)


# --- sizes


def test_large_messages_come_in_turns(transport: RedisTransport) -> None:
    """A claim of large messages brings no more than some of them, and the rest stands where it stood. What was pushed
    at once may be larger than one command."""
    body = b"x" * (2 * 1024 * 1024)
    sent = [Envelope(QUEUE, new_storage_id(), body) for _ in range(50)]
    transport.push(sent)
    consumer = consumer_of(transport)
    answer = consumer.exchange((), MAX_TRIP)
    assert 32 <= len(answer.deliveries) < 50
    assert answer.more
    rest = claim(consumer, 50 - len(answer.deliveries))
    assert [delivery.id for delivery in [*answer.deliveries, *rest]] == [kept.id for kept in sent]
    trip = [retry(delivery, Envelope(QUEUE, new_storage_id(), body)) for delivery in [*answer.deliveries, *rest]]
    assert len(settle(consumer, *trip).settled) == 50
    assert transport.counts([QUEUE])[QUEUE] == Counts(ready=50)


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_a_trip_in_turns_that_is_cut_off(transport: RedisTransport, monkeypatch: pytest.MonkeyPatch, lost: int) -> None:
    """What is too large for one command goes in turns. Wherever these are cut off, made again as they were they are
    applied exactly once, and only the last of them claims."""
    monkeypatch.setattr("greenroom.engines.redis.trip.PART_BYTES", 10)
    transport.push(envelopes(b"1", b"2", b"3", b"next"))
    consumer = consumer_of(transport)
    trip = [retry(delivery, envelope(delivery.body * 8)) for delivery in claim(consumer, 3)]
    faulty(consumer).loses_answer = lost
    with pytest.raises(ConnectionClosed):
        consumer.exchange(trip, 10)
    answer = consumer.exchange(trip, 10)
    assert sorted(answer.settled, key=trip.index) == trip
    assert not answer.lost
    assert bodies(answer.deliveries) == [b"next", b"1" * 8, b"2" * 8, b"3" * 8]


def test_a_queue_that_no_key_can_be_named_after(transport: RedisTransport) -> None:
    """Half of a surrogate pair is refused before anything is sent, and refuses only the settlement that it is in."""
    with pytest.raises(ValueError, match="surrogates"):
        transport.push([*envelopes(b"1"), envelope(b"x", "\ud800")])
    transport.push(envelopes(b"2", b"3"))
    consumer = consumer_of(transport)
    two, three = claim(consumer, 2)
    answer = settle(consumer, retry(two, envelope(b"x", "\ud800")), ack(three))
    assert [s.delivery.body for s, _ in answer.refused] == [b"2"]
    assert len(answer.settled) == 1


def test_threads_have_connections_of_their_own(redis_url: str, transport: RedisTransport) -> None:
    """Threads that send at the same time use as many connections as they are, and these are used again."""
    barrier = threading.Barrier(4)

    def send() -> None:
        for _ in range(20):
            barrier.wait(10)
            transport.push(envelopes(b"x"))

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 <= len(transport.share.free._free) <= 4
    assert transport.counts([QUEUE])[QUEUE] == Counts(ready=80)


def test_a_sender_that_is_interrupted(transport: RedisTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C between a command and its answer: the next sender does not get that answer."""
    transport.push(envelopes(b"1"))
    read = Connection.read

    def interrupted(_connection: Connection) -> None:
        monkeypatch.setattr(Connection, "read", read)
        raise KeyboardInterrupt

    for count in (1, 2):
        monkeypatch.setattr(Connection, "read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            transport.push(envelopes(*(b"?" for _ in range(count))))
        assert transport.share.call("ECHO", "mine") == b"mine"


# --- trips of an unusual kind


@pytest.mark.parametrize("writes", [(), (Put("key", b"value"),)])
def test_the_same_settlement_twice_in_a_trip(transport: RedisTransport, writes: tuple[StoreOp, ...]) -> None:
    """Whoever settles a message twice in one trip has settled it once, and nothing is left of it or its neighbour."""
    transport.push(envelopes(b"1", b"2"))
    consumer = consumer_of(transport)
    one, two = claim(consumer, 2)
    answer = consumer.exchange([ack(one, writes=writes), ack(two, writes=writes), ack(one, writes=writes)], 0)
    assert len(answer.settled) == 2
    assert [s.delivery.id for s in answer.lost] == [one.id]
    assert transport.counts([QUEUE]) == {QUEUE: Counts()}


def test_contradictions_in_a_trip(transport: RedisTransport) -> None:
    """Of settlements that contradict each other one is applied."""
    transport.push(envelopes(b"1", b"2"))
    consumer = consumer_of(transport)
    one, two = claim(consumer, 2)
    answer = consumer.exchange([dead(one), ack(one), release(two), dead(two)], 0)
    assert (len(answer.settled), len(answer.lost)) == (2, 2)
    assert transport.counts([QUEUE]) == {QUEUE: Counts(ready=1)}


@pytest.fixture
def unasked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The connection is found to be closed when replicas are asked about what was done before; later they all have it.
    What was asked."""
    call, asked = Connection.call, []

    def cut(connection: Connection, *args: Any) -> Any:
        if args[0] != "WAIT":
            return call(connection, *args)
        asked.append(args[0])
        if len(asked) == 1:
            raise Unsent("cut off")
        return 1

    monkeypatch.setattr(Connection, "call", cut)
    return asked


def test_replicas_cannot_be_asked_about_a_push(redis_url: str, make: Make, unasked: list[str]) -> None:
    """What was pushed is not pushed again, for it may have been consumed by now."""
    transport = make(redis_url, wait_replicas=1)
    with pytest.raises(BrokerTimeout):
        transport.push(envelopes(b"1"))
    assert len(unasked) == 1
    assert transport.counts([QUEUE]) == {QUEUE: Counts(ready=1)}


def test_replicas_cannot_be_asked_about_a_trip(redis_url: str, make: Make, unasked: list[str]) -> None:
    """What a trip has claimed is handed out by the next one, and what it has settled is settled."""
    make(redis_url).push(envelopes(b"1", b"2"))
    consumer = consumer_of(make(redis_url, wait_replicas=1))
    trip = [ack(claim_one(consumer), envelope(b"next"))]
    with pytest.raises(BrokerTimeout):
        consumer.exchange(trip, 5)
    answer = consumer.exchange(trip, 5)
    assert answer.settled == trip
    assert bodies(answer.deliveries) == [b"2", b"next"]
    assert len(unasked) == 3


def test_what_came_late_and_is_lost(transport: RedisTransport) -> None:
    """A claim whose answer came late is not handed out if others have it by now."""
    transport.push(envelopes(b"1"))
    consumer = consumer_of(transport)
    assert isinstance(consumer, RedisConsumer)
    consumer.exchange((), 0)
    faulty(consumer).loses_answer = 1
    with pytest.raises(ConnectionClosed):
        consumer.exchange((), 1)
    consumer.exchange((), 0)
    assert consumer._carried
    transport.share.call("ZADD", transport.keys.leases, 0, consumer.owner_id)
    (got,) = [*consumer.exchange((), 5).deliveries, *consumer.exchange((), 5).deliveries]
    assert got.token == consumer.owner_id


def test_large_results_go_in_parts(transport: RedisTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written with settlements and does not go into one command goes in several: the server closes the
    connection of whoever sends too much at once."""
    monkeypatch.setattr(trip_module, "PART_BYTES", 1000)
    transport.push(envelopes(*[b"x"] * 10))
    consumer = consumer_of(transport)
    settlements = [ack(delivery, writes=(Put(delivery.id, b"x" * 400),)) for delivery in claim(consumer, 10)]
    assert [len(part) for part in trip_module.parts_of(settlements)] == [2, 2, 2, 2, 2]
    assert len(consumer.exchange(settlements, 0).settled) == 10


def test_more_than_lua_hands_over(transport: RedisTransport) -> None:
    """A push may be of any length, and is one all the same."""
    transport.push(envelopes(*[b"x"] * 9_000))
    assert transport.counts([QUEUE]) == {QUEUE: Counts(ready=9_000)}


def test_a_glance_in_vain(redis_url: str) -> None:
    """A sender looks for its answer before it sleeps. If that was in vain it sleeps at once the next times, and then
    looks again; an answer that is there already is seen at the first look."""
    connection = Connector(redis.Redis.from_url(redis_url)).new()
    try:
        connection.send_command("BLPOP", "nothing", 0)
        connection.glance()
        rest = connection._rest
        assert rest > 0
        for _ in range(rest):
            connection.glance()
        assert connection._rest == 0
        connection.close()
        connection.send_command("PING")
        wait_until(connection.has_answer, "the answer has come")
        connection.glance()
        assert connection._rest == 0
        assert connection.read() == b"PONG"
    finally:
        connection.close()
