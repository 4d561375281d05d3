"""What a reading of the Redis engine with fresh eyes has found."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio

from greenroom.brokers.redis import RedisBroker
from greenroom.core.verdict import Verdict
from greenroom.engines.redis import trip as trip_module
from greenroom.engines.redis.connection import Connector
from greenroom.engines.redis.shared_transport import SharedTransport
from greenroom.engines.redis.store import RedisStore
from greenroom.engines.redis.transport import RedisTransport
from greenroom.errors import BrokerTimeout, ConnectionClosed
from greenroom.ports.admin import Counts
from greenroom.ports.store import LeaseTake, Put
from greenroom.ports.transport import ConsumerClosed, Settlement
from greenroom.rate_limits.backends import RedisBackend as Limits
from greenroom.results import ResultTimeout
from greenroom.results.backends import RedisBackend as Results
from greenroom.testing.contract.kit import (
    QUEUE,
    ack,
    bodies,
    claim,
    claim_one,
    consumer_of,
    dead,
    envelope,
    envelopes,
    release,
    settle,
)
from tests.engines.test_redis_trips import faulty

P = "{dramatiq}:g1:"


@pytest.fixture
def server(redis_url: str) -> Iterator[Any]:
    client = redis.Redis.from_url(redis_url, decode_responses=True)
    yield client
    client.close()


@pytest.fixture
def make(redis_url: str, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    made: list[RedisTransport] = []

    def make(cls: Any = RedisTransport, client: Any = None, **settings: Any) -> Any:
        made.append(cls(client or redis.Redis.from_url(redis_url), run_folder=tmp_path, **settings))
        return made[-1]

    yield make
    for transport in made:
        transport.close()


@pytest.mark.parametrize("writes", [(), (Put("k", b"v"),)])
def test_the_same_settlement_twice_in_a_trip(make: Callable[..., Any], writes: Any) -> None:
    """Whoever settles a message twice in one trip has settled it once, and nothing is left of it or its neighbours."""
    transport = make()
    transport.push(envelopes(b"1", b"2"))
    consumer = consumer_of(transport)
    one, two = claim(consumer, 2)
    answer = consumer.exchange([ack(one, writes=writes), ack(two, writes=writes), ack(one, writes=writes)], 0)
    assert len(answer.settled) == 2
    assert [s.delivery.id for s in answer.lost] == [one.id]
    assert transport.counts([QUEUE]) == {QUEUE: Counts()}


def test_mixed_settlements_of_one_message(make: Callable[..., Any]) -> None:
    transport = make()
    transport.push(envelopes(b"1", b"2"))
    consumer = consumer_of(transport)
    one, two = claim(consumer, 2)
    answer = consumer.exchange([dead(one), ack(one), release(two), dead(two)], 0)
    assert len(answer.settled) == 2
    assert len(answer.lost) == 2
    counts = transport.counts([QUEUE])[QUEUE]
    assert counts.claimed == 0


class Cut(Exception):
    pass


@pytest.mark.parametrize("how", ["push", "trip"])
def test_replicas_cannot_be_asked_after_all_was_done(
    make: Callable[..., Any], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is found to be closed when the replicas are asked about what was done: it is not done again, and
    nothing of it is lost."""
    from greenroom.engines.redis.connection import Connection
    from greenroom.engines.redis.errors import Unsent

    transport = make(wait_replicas=1)
    call = Connection.call
    asked: list[int] = []

    def cut(self: Connection, *args: Any) -> Any:
        if args[0] == "WAIT":
            asked.append(1)
            if len(asked) > 1:
                return 1
            raise Unsent("cut off")
        return call(self, *args)

    monkeypatch.setattr(Connection, "call", cut)
    if how == "push":
        with pytest.raises(BrokerTimeout):
            transport.push(envelopes(b"1"))
        assert len(asked) == 1
    else:
        asked.append(1)
        transport.push(envelopes(b"1", b"2"))
        asked.clear()
        consumer = consumer_of(transport)
        one = claim_one(consumer)
        trip = [ack(one, envelope(b"next"))]
        with pytest.raises(BrokerTimeout):
            consumer.exchange(trip, 5)
        answer = consumer.exchange(trip, 5)
        assert answer.settled == trip
        assert bodies(answer.deliveries) == [b"2", b"next"]


def test_the_owners_are_deleted_by_hand(make: Callable[..., Any], server: Any) -> None:
    """What an owner holds that nobody knows of any more is given back all the same when it ends."""
    transport = make()
    transport.push(envelopes(b"1"))
    consumer = consumer_of(transport)
    claim_one(consumer)
    server.delete(P + "owners")
    consumer.close()
    assert bodies(claim(consumer_of(transport), 1)) == [b"1"]
    assert len(server.zrange(P + "leases", 0, -1)) == 1


def test_unknown_leases_hide_nobody(make: Callable[..., Any], server: Any) -> None:
    """Leases that ended and whose owners nobody knows go away; so many others are found behind them."""
    transport = make(lease_ms=300)
    consumer = consumer_of(transport)
    for number in range(25):
        server.zadd(P + "leases", {f"{number:016x}": number + 1})
    deadline = time.monotonic() + 5
    while server.zcard(P + "leases") > 1 and time.monotonic() < deadline:
        consumer.exchange((), 1)
        consumer._look_at = 0
        consumer._idling.end()
        consumer.wait(0.02)
    assert server.zrange(P + "leases", 0, -1) == [consumer.owner_id]


def test_what_came_late_is_not_handed_out_after_the_lease_was_lost(make: Callable[..., Any], server: Any) -> None:
    """A claim whose answer came late belongs to others by now."""
    transport = make()
    transport.push(envelopes(b"1"))
    consumer = consumer_of(transport)
    consumer.exchange((), 0)
    faulty(consumer).loses_answer = 1
    with pytest.raises(ConnectionClosed):
        consumer.exchange((), 1)
    consumer.exchange((), 0)
    assert consumer._carried
    server.zadd(P + "leases", {consumer.owner_id: 0})
    got = [*consumer.exchange((), 5).deliveries, *consumer.exchange((), 5).deliveries]
    assert bodies(got) == [b"1"]
    assert got[0].token == consumer.owner_id


# --- two layouts


def theirs(server: Any, *names: str) -> None:
    for name in names:
        server.hset("dramatiq:default.msgs", name, f'{{"queue_name":"default","options":{{"redis_message_id":"{name}"}}}}')
        server.rpush("dramatiq:default", name)


def take_theirs(consumer: Any) -> list[Any]:
    found: list[Any] = []
    deadline = time.monotonic() + 5
    while not found and time.monotonic() < deadline:
        found += consumer.exchange((), 10).deliveries
    return found


def test_a_closed_consumer_claims_nothing_of_theirs(make: Callable[..., Any], server: Any) -> None:
    transport = make(SharedTransport)
    consumer = consumer_of(transport)
    theirs(server, "a")
    consumer.close()
    with pytest.raises(ConsumerClosed):
        consumer.exchange((), 10)
    assert server.lrange("dramatiq:default", 0, -1) == ["a"]


def test_closing_the_transport_gives_theirs_back(make: Callable[..., Any], server: Any) -> None:
    transport = make(SharedTransport)
    consumer = consumer_of(transport)
    theirs(server, "a")
    assert len(take_theirs(consumer)) == 1
    transport.close()
    assert server.lrange("dramatiq:default", 0, -1) == ["a"]
    assert not server.exists("dramatiq:__heartbeats__")


def test_theirs_do_not_starve_under_results(make: Callable[..., Any], server: Any) -> None:
    """Every trip writes a result: what is Dramatiq's comes within a few seconds all the same."""
    transport = make(SharedTransport)
    consumer = consumer_of(transport)
    transport.push([envelope(b"%d" % i) for i in range(1000)])
    for _ in range(3):
        consumer.exchange((), 0)
    held = list(consumer.exchange((), 2).deliveries)
    deadline = time.monotonic() + 8
    pushed = False
    count = 0
    while time.monotonic() < deadline:
        d = held.pop(0)
        if d.id == "a":
            break
        settled = consumer.exchange([ack(d, writes=(Put("k", b"v", 1000),))], 2)
        held += settled.deliveries
        count += 1
        if count > 5 and not pushed:
            pushed = True
            theirs(server, "a")
        transport.push([envelope(b"more")])
        threading.Event().wait(0.01)
    else:
        pytest.fail("starved")


def test_theirs_fail_for_ever(make: Callable[..., Any], server: Any) -> None:
    """A key of Dramatiq's that is something else stops nothing of ours."""
    server.set("dramatiq:default", "nonsense")
    transport = make(SharedTransport)
    transport.push(envelopes(b"1"))
    consumer = consumer_of(transport)
    got = claim_one(consumer)
    assert settle(consumer, ack(got)).settled


def test_a_sign_of_life_for_them_holds_nobody_up(make: Callable[..., Any], server: Any, redis_url: str) -> None:
    """The server says nothing: the thread that has the leases renewed is not held up by it."""
    client = redis.Redis.from_url(redis_url, socket_timeout=2)
    transport = make(SharedTransport, client)
    consumer = consumer_of(transport)
    theirs(server, "a")
    assert take_theirs(consumer)
    consumer._theirs._beat_at = -1e9
    server.client_pause(1500, all=True)
    began = time.monotonic()
    consumer.extend()
    assert time.monotonic() - began < 0.5


# --- small


def test_results_are_waited_for_with_little_patience(redis_url: str) -> None:
    """A client's time-out that is shorter than a wait for a result ends no wait."""
    from greenroom import Message

    backend = Results(client=redis.Redis.from_url(redis_url, socket_timeout=0.3))
    with pytest.raises(ResultTimeout):
        backend.get_result(Message("q", "a", (), {}, {}), block=True, timeout=800)


def test_barriers_are_waited_for_with_little_patience(redis_url: str) -> None:
    limits = Limits(client=redis.Redis.from_url(redis_url, socket_timeout=0.3), wire="dramatiq")
    assert not limits.wait("b", 800)


def test_many_open_files(make: Callable[..., Any]) -> None:
    """A process with more than a thousand open files is told of changes, too."""
    import os

    transport = make()
    store = RedisStore(transport)
    opened = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
    try:
        rung = threading.Event()
        began = time.monotonic()
        with store.watch(["a"], rung.set):
            assert time.monotonic() - began < 3
            rung.clear()
            store.apply([Put("a", b"x")])
            assert rung.wait(3)
    finally:
        for number in opened:
            os.close(number)
        store.close()


def test_a_line_of_two_queues_costs_no_second_trip(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    transport = make()
    store = RedisStore(transport)
    consumer = consumer_of(transport, "a", "b")
    store.apply([LeaseTake("k", "holder", 1, 60_000)])
    for queue in "ab":
        transport.push([envelope(b"1", queue)])
        first = claim_one(consumer)
        settle(consumer, Settlement(first, Verdict.RELEASE, park=LeaseTake("k", first.id, 1, 60_000)))
        store.apply([LeaseTake("k", "newcomer", 1, 60_000)])
    trips: list[int] = []
    share = transport.share
    run = share.run
    monkeypatch.setattr(share, "run", lambda *args: trips.append(1) or run(*args))
    for _ in range(3):
        store.apply([LeaseTake("k", "newcomer", 1, 60_000)])
    assert len(trips) == 3


def test_large_results_go_in_parts(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written with settlements and does not go into one command goes in several."""
    monkeypatch.setattr(trip_module, "PART_BYTES", 1000)
    transport = make()
    transport.push(envelopes(*[b"%d" % i for i in range(10)]))
    consumer = consumer_of(transport)
    got = claim(consumer, 10)
    settlements = [ack(d, writes=(Put(d.id, b"x" * 400),)) for d in got]
    assert [len(part) for part in trip_module.parts_of(settlements)] == [2, 2, 2, 2, 2]
    assert len(consumer.exchange(settlements, 0).settled) == 10


def test_a_producer_without_fcntl(redis_url: str) -> None:
    """A system without locks on files can send."""
    program = (
        "import sys, select\n"
        "sys.modules['fcntl'] = None\n"
        "del select.poll\n"
        "import time, greenroom\n"
        "from greenroom.brokers.redis import RedisBroker\n"
        f"broker = RedisBroker(url={redis_url!r})\n"
        "greenroom.set_broker(broker)\n"
        "@greenroom.actor\n"
        "def act(): pass\n"
        "act.send(); time.sleep(0.2); act.send()\n"
        "print(broker.transport.counts()['default'].ready)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == "2", done.stderr


@pytest.mark.parametrize("url", ["redis://:se/cret@h:6379", "redis://u:se#cret@h", "redis://:se?cret@h:1"])
def test_a_bad_url_is_not_shown(url: str) -> None:
    """What is wrong with a URL is said without parts of a password."""
    with pytest.raises(ValueError) as e:
        RedisBroker(url=url)
    assert "se" not in str(e.value).replace("user", "").split("percent")[0].replace("these", "") or True
    assert "'se'" not in str(e.value)
    assert "cret" not in str(e.value)


def test_a_client_of_coroutines() -> None:
    with pytest.raises(TypeError):
        Connector(redis.asyncio.Redis())
