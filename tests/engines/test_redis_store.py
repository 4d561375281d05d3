"""The store of the Redis engine: what lies on the server, for how long, who is told, and what a trip costs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from typing import Any, Self

import pytest
import redis

from greenroom.core.verdict import Verdict
from greenroom.engines.redis.store import RedisStore
from greenroom.engines.redis.transport import RedisTransport
from greenroom.errors import BrokerError
from greenroom.ports.store import (
    Add,
    Bump,
    Delete,
    Get,
    GetParts,
    Grant,
    LeaseRelease,
    LeaseTake,
    Put,
    SetAdd,
    SetLook,
    SetRemove,
    StoreOp,
)
from greenroom.ports.transport import Settlement, pack
from greenroom.testing.contract.kit import (
    DEADLINE_S,
    ack,
    bodies,
    claim,
    claim_one,
    consumer_of,
    envelope,
    envelopes,
    settle,
)
from greenroom.testing.contract.store_kit import do
from scripts.servers import Redis
from tests.proxy import Proxy
from tests.runtime.cli_kit import wait_until

NAMESPACE = "shop"


def store_at(url: str, **settings: Any) -> RedisStore:
    return RedisStore(RedisTransport(redis.Redis.from_url(url), namespace=NAMESPACE, **settings))


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def store(redis_url: str) -> Iterator[RedisStore]:
    store = store_at(redis_url)
    yield store
    store.close()


# What is kept, and how long

LASTING: list[StoreOp] = [
    Put("a", b"1", 60_000),
    Put("a", b"1", 60_000, part=3),
    Add("a", 1, 60_000),
    Bump("a", ttl_ms=60_000),
    Grant("a", 2, 60_000),
    Grant("a", 2, 60_000, sliding=False),
    LeaseTake("a", "holder", 1, 60_000),
    SetAdd("a", ("1", "2"), 60_000, parent=("b", "a")),
]


@pytest.mark.parametrize("op", LASTING, ids=lambda op: type(op).__name__)
def test_the_server_forgets_what_has_expired(store: RedisStore, client: redis.Redis, op: StoreOp) -> None:
    """All that has a TTL expires by itself, with nobody to purge it, and lies under the namespace."""
    do(store, op)
    do(store, SetRemove("a", "1"))
    keys = [key for key in client.keys("*") if not key.endswith(b"}:g1:seq")]
    assert keys
    for key in keys:
        assert key.startswith(b"{shop}:g1:s")
        assert 0 < client.pttl(key) <= 60_000 * 1.125 + 1


def test_a_value_that_ends(store: RedisStore) -> None:
    """On the server's clock, too, nothing is seen after its end."""
    store.apply([Put("a", b"1", 30), Put("a", b"1", 30, part=1), SetAdd("s", ("1",), 30), LeaseTake("l", "x", 1, 30)])
    wait_until(lambda: store.apply([Get("a"), GetParts("a"), SetLook("s")]) == [None, [], None], "all is gone")
    assert do(store, LeaseTake("l", "y", 1, 30)).fence


def test_a_ttl_of_nothing(store: RedisStore, client: redis.Redis) -> None:
    """What is kept for no time is not kept."""
    assert store.apply([Put("a", b"1", 0), Get("a"), Add("b", 1, 0), Get("b"), Bump("c", ttl_ms=0), Get("c")]) == [
        None,
        None,
        True,
        None,
        1,
        None,
    ]
    assert client.keys() == []


def test_parts_with_and_without_an_end(store: RedisStore, client: redis.Redis) -> None:
    """A list lasts as long as its longest part."""
    key = "{shop}:g1:sp:a"
    store.apply([Put("a", b"1", 60_000, part=1), Put("a", b"2", part=2)])
    assert client.pttl(key) == -1
    store.apply([Put("a", b"1", 60_000, part=1)])
    assert client.pttl(key) == -1
    store.apply(
        [Delete("a"), Put("a", b"1", 60_000, part=1), Put("a", b"1", 600_000, part=2), Put("a", b"1", 1, part=3)]
    )
    assert client.pttl(key) > 500_000


def test_a_complete_set_is_small(store: RedisStore, client: redis.Redis) -> None:
    """Of a set that is complete only its numbers are left."""
    do(store, SetAdd("a", ("1", "2"), then=(pack(envelopes(b"then")[0]),)))
    store.apply([SetRemove("a", "1"), SetRemove("a", "2")])
    assert [key for key in client.keys("*") if b"g1:s" in key and b"seq" not in key] == [b"{shop}:g1:st:a"]
    assert set(client.hkeys("{shop}:g1:st:a")) == {b"total", b"left", b"failed"}


def test_nothing_is_left_of_slots(store: RedisStore, client: redis.Redis) -> None:
    """Slots that were given back, and a line that was served, leave nothing behind but the sequence number."""
    consumer = consumer_of(store.transport)
    store.transport.push(envelopes(b"1"))
    do(store, LeaseTake("a", "holder", 1, 60_000))
    first = claim_one(consumer)
    settle(consumer, Settlement(first, Verdict.RELEASE, park=LeaseTake("a", first.id, 1, 60_000)))
    assert {b"{shop}:g1:sq:a", b"{shop}:g1:sx:a", b"{shop}:g1:ends"} <= set(client.keys())
    do(store, LeaseRelease("a", "holder"))
    again = claim_one(consumer)
    settle(consumer, ack(again, writes=(LeaseRelease("a", again.id),)))
    assert not [key for key in client.keys("*") if b":g1:s" in key and not key.endswith(b"seq")]
    assert not client.exists("{shop}:g1:ends")


def test_a_namespace_of_ones_own(redis_url: str, store: RedisStore) -> None:
    """A store is one with the transports of its namespace and server, and with no other."""
    there = redis.Redis.from_url(redis_url)
    settings = there.connection_pool.connection_kwargs
    assert store.is_one_with(RedisTransport(there, namespace=NAMESPACE))
    assert store.is_one_with(RedisTransport(redis.Redis("127.0.0.1", settings["port"]), namespace=NAMESPACE))
    assert not store.is_one_with(RedisTransport(there, namespace="another"))
    assert not store.is_one_with(RedisTransport(redis.Redis("127.0.0.1", 1), namespace=NAMESPACE))
    assert not store.is_one_with(RedisTransport(redis.Redis("127.0.0.1", settings["port"], 3), namespace=NAMESPACE))


# Keys are declared


def test_every_key_is_declared(redis_url: str, store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """No script touches a key that it was not given: a completion that pushes, writes and goes up, and a slot that is
    handed over to a queue which the giver does not know."""
    consumer = consumer_of(store.transport, "waiting")
    then = envelopes(b"then", queue="callbacks")[0]
    store.apply([SetAdd("out", ("in",), then=(pack(then),)), SetAdd("in", ("1",), parent=("out", "in"))])
    do(store, LeaseTake("slot", "holder", 1, 60_000))
    store.transport.push(envelopes(b"1", queue="waiting"))
    first = claim_one(consumer)
    settle(consumer, Settlement(first, Verdict.RELEASE, park=LeaseTake("slot", first.id, 1, 60_000)))
    declared: list[set[bytes]] = []
    share = store.transport.share
    run = share.run

    def note(script: Any, keys: Any, args: Any) -> Any:
        declared.append({key if isinstance(key, bytes) else key.encode() for key in keys})
        return run(script, keys, args)

    monkeypatch.setattr(share, "run", note)
    with Monitor(redis_url) as monitor:
        store.apply([SetRemove("in", "1"), LeaseRelease("slot", "holder")])
        used = monitor.keys_by_script()
    assert len(declared) >= 2
    for touched, known in zip(used, declared, strict=True):
        assert touched
        assert touched <= known
    assert bodies(claim(consumer_of(store.transport, "waiting", "callbacks"), 2)) == [b"1", b"then"]


class Monitor:
    """What the server does, as it says itself. A context manager."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url, decode_responses=False)
        self._monitor = self._client.monitor()

    def __enter__(self) -> Self:
        self._monitor.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._monitor.__exit__(*exc)
        self._client.close()

    def keys_by_script(self) -> list[set[bytes]]:
        """The keys that each script so far has touched."""
        self._client.echo("the end")
        found: list[set[bytes]] = []
        for line in self._monitor.listen():
            words = line["command"].split(" ")
            if words[0] == "ECHO":
                return found
            if words[0] == "EVALSHA":
                found.append(set())
            elif line["client_type"] == "lua" and len(words) > 1 and words[0] not in ("PUBSUB", "PUBLISH"):
                found[-1] |= {word.encode() for word in words[1:] if word.startswith("{shop}") and "watch" not in word}
        raise AssertionError


def test_a_trip_that_completes_nothing_is_one_trip(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the last member of a set costs a second trip."""
    trips: list[int] = []
    share = store.transport.share
    run = share.run
    monkeypatch.setattr(share, "run", lambda *args: trips.append(1) or run(*args))
    do(store, SetAdd("a", ("1", "2", "3"), then=(pack(envelopes(b"then")[0]),)))
    store.apply([SetRemove("a", "1")])
    store.apply([SetRemove("a", "2"), Put("b", b"1")])
    assert len(trips) == 3
    do(store, SetRemove("a", "3"))
    assert len(trips) == 5


# Who is told


def test_nobody_watches_nothing_is_said(redis_url: str, store: RedisStore) -> None:
    """While no process watches, changes publish nothing; and after the last watch is closed, nothing again."""
    listener = redis.Redis.from_url(redis_url).pubsub()
    listener.psubscribe("*")
    assert listener.get_message(timeout=DEADLINE_S)["type"] == "psubscribe"
    do(store, Put("a", b"1"))
    told = threading.Event()
    with store.watch(["b"], told.set):
        store.apply([Put("b", b"2"), Put("c", b"2")])
        assert told.wait(DEADLINE_S)
    wait_until(lambda: not store.transport.share.call("PUBSUB", "NUMSUB", store.transport.keys.watch)[1], "nobody")
    do(store, Put("d", b"3"))
    listener.ping()
    channels = []
    while (message := listener.get_message(timeout=DEADLINE_S))["type"] != "pong":
        channels.append(message["channel"])
    assert sorted(channels) == [b"{shop}:g1:k:b", b"{shop}:g1:k:c"]
    listener.close()


def test_a_lost_connection_tells_all(redis_url: str, store: RedisStore) -> None:
    """What was changed while the listener was cut off is not missed: once it is back every watch is told."""
    told = threading.Event()
    with store.watch(["a"], told.set):
        told.clear()
        client = redis.Redis.from_url(redis_url)
        assert client.client_kill_filter(_type="pubsub") == 1
        assert told.wait(DEADLINE_S)
        wait_until(lambda: store.transport.share.call("PUBSUB", "NUMSUB", store.transport.keys.watch)[1], "it is back")
        told.clear()
        do(store, Put("a", b"1"))
        assert told.wait(DEADLINE_S)


def test_who_is_told_is_watching_again(redis_url: str, redis_shared: Redis, store: RedisStore) -> None:
    """After a lost connection a watch is told when the server knows of it once more, not earlier: who looks then, and
    finds nothing new, misses nothing that comes later, however far away the server is."""
    told = threading.Event()
    with Proxy(redis_shared.port) as proxy:
        far = store_at(proxy.url(redis_url))
        with far.watch(["a"], told.set):
            told.clear()
            proxy.delay(100)
            proxy.reset()
            assert told.wait(DEADLINE_S)
            told.clear()
            do(store, Put("a", b"1"))
            assert told.wait(DEADLINE_S)
        far.close()


def test_a_server_that_is_away(start_redis: Callable[..., Any]) -> None:
    """Watching blocks nobody for long while the server is down, and goes on once it is up."""
    server = start_redis()
    store = store_at(server.url)
    server.kill()
    told = threading.Event()
    with store.watch(["a"], told.set):
        with pytest.raises(BrokerError):
            do(store, Get("a"))
        server.start()
        assert told.wait(DEADLINE_S)
        told.clear()
        do(store, Put("a", b"1"))
        assert told.wait(DEADLINE_S)
    store.close()


def test_a_thousand_watches_come_and_go(store: RedisStore) -> None:
    """Threads that watch and stop watching one key at the same time miss nothing that comes after their watch."""
    failures: list[int] = []

    def work(number: int) -> None:
        for turn in range(50):
            told = threading.Event()
            with store.watch(["shared", f"own {number}"], told.set):
                do(store, Put("shared" if turn % 2 else f"own {number}", b"1"))
                if not told.wait(DEADLINE_S):
                    failures.append(turn)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_large_numbers(store: RedisStore) -> None:
    """Counters, parts and times keep all of their digits."""
    large = 2**52 + 1
    assert store.apply([Add("a", large), Get("a"), Bump("a", 1), Bump("a", -large - 5)]) == [True, large, large + 1, -4]
    store.apply([Put("b", b"x", part=large), Put("b", b"y", part=large - 1)])
    assert do(store, GetParts("b")) == [(large - 1, b"y"), (large, b"x")]
    store.apply([Put("c", b"x", 2**62), Get("c")])
    assert do(store, Get("c")) == b"x"


def test_a_known_line_costs_no_second_trip(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who meets a line for the second time declares its queue's keys at once."""
    consumer = consumer_of(store.transport)
    store.transport.push(envelopes(b"1"))
    do(store, LeaseTake("a", "holder", 1, 60_000))
    first = claim_one(consumer)
    settle(consumer, Settlement(first, Verdict.RELEASE, park=LeaseTake("a", first.id, 1, 60_000)))
    trips: list[int] = []
    share = store.transport.share
    run = share.run
    monkeypatch.setattr(share, "run", lambda *args: trips.append(1) or run(*args))
    assert not do(store, LeaseTake("a", "newcomer", 1, 60_000)).fence
    assert len(trips) == 2
    assert not do(store, LeaseTake("a", "newcomer", 1, 60_000)).fence
    do(store, LeaseRelease("a", "holder"))
    assert len(trips) == 4
    assert claim_one(consumer).body == b"1"


def test_a_line_of_two_queues_costs_no_second_trip(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """All queues of a line are remembered, not only those that came last."""
    consumer = consumer_of(store.transport, "a", "b")
    do(store, LeaseTake("key", "holder", 1, 60_000))
    for queue in "ab":
        store.transport.push([envelope(b"1", queue)])
        first = claim_one(consumer)
        settle(consumer, Settlement(first, Verdict.RELEASE, park=LeaseTake("key", first.id, 1, 60_000)))
        do(store, LeaseTake("key", "newcomer", 1, 60_000))
    trips: list[int] = []
    share = store.transport.share
    run = share.run
    monkeypatch.setattr(share, "run", lambda *args: trips.append(1) or run(*args))
    for _ in range(3):
        do(store, LeaseTake("key", "newcomer", 1, 60_000))
    assert len(trips) == 3


def test_many_open_files(store: RedisStore) -> None:
    """A process with more than a thousand open files is told of changes, too."""
    store.transport.share.call("PING")
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        rung = threading.Event()
        with store.watch(["a"], rung.set) as watch:
            assert watch._listener._is_up
            rung.clear()
            store.apply([Put("a", b"x")])
            assert rung.wait(DEADLINE_S)
    finally:
        store.close()
        for number in opened:
            os.close(number)
