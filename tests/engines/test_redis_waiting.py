"""Waiting on a Redis server: what it costs, how soon it ends, and that no wake token is eaten."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from greenroom.clock import SYSTEM_CLOCK
from greenroom.engines.redis.consumer import RedisConsumer
from greenroom.engines.redis.transport import RedisTransport
from greenroom.ports.transport import MAX_TRIP
from greenroom.testing.contract.kit import QUEUE, ack, claim_one, consumer_of, envelope, envelopes, settle
from scripts.servers import Redis


@pytest.fixture
def transport(redis_url: str, tmp_path: Path) -> Iterator[RedisTransport]:
    transport = RedisTransport(redis.Redis.from_url(redis_url), run_folder=tmp_path)
    yield transport
    transport.close()


def blocked_clients(transport: RedisTransport) -> int:
    """How many wait commands the server has."""
    count: int = transport._client.info("clients")["blocked_clients"]
    return count


def tokens(transport: RedisTransport, queue: str = QUEUE) -> int:
    """How many wake tokens lie there: one or none."""
    count: int = transport.share.call("ZCARD", transport.keys.of(queue).wake)
    return count


@pytest.mark.parametrize("queues", [1, 40])
def test_an_idle_process_sends_less_than_a_command_a_second(redis_server: Redis, tmp_path: Path, queues: int) -> None:
    """However many queues it serves, a process that has nothing to do asks the server about once in two seconds."""
    transport = RedisTransport(redis.Redis.from_url(redis_server.url), run_folder=tmp_path)
    consumer = consumer_of(transport, *(f"q{i}" for i in range(queues)))
    consumer.exchange((), 10)
    consumer.wait(0.5)
    before, started = commands(redis_server), time.monotonic()
    while time.monotonic() - started < 5:
        consumer.exchange((), 10)
        consumer.wait(1.0)
    assert commands(redis_server) - before <= 5
    transport.close()


def commands(server: Redis) -> int:
    """How many commands workers have sent."""
    stats = server.cli("INFO", "commandstats")
    return sum(entry["calls"] for name, entry in stats.items() if name in ("cmdstat_evalsha", "cmdstat_bzpopmin"))


def test_a_push_starts_soon(transport: RedisTransport) -> None:
    """What is pushed while a consumer waits ends the wait within milliseconds."""
    consumer = consumer_of(transport)
    consumer.exchange((), MAX_TRIP)
    took_ms: list[float] = []
    for _ in range(20):
        sent_at: list[float] = []

        def send(sent_at: list[float] = sent_at) -> None:
            sent_at.append(time.monotonic())
            transport.push(envelopes(b"x"))

        timer = threading.Timer(0.02, send)
        timer.start()
        while not (deliveries := consumer.exchange((), MAX_TRIP).deliveries):
            consumer.wait(5.0)
        took_ms.append((time.monotonic() - sent_at[0]) * 1000)
        timer.join()
        settle(consumer, *map(ack, deliveries))
    assert statistics.median(took_ms) < 50


def test_who_has_no_room_waits_for_nothing(transport: RedisTransport) -> None:
    """A consumer that only settles leaves no command behind it that could take a token."""
    consumer = consumer_of(transport)
    transport.push(envelopes(b"1"))
    held = claim_one(consumer)
    consumer.exchange((), 1)
    consumer.wait(0.01)
    consumer.wait(0.01)
    assert blocked_clients(transport) == 1
    settle(consumer, ack(held))
    assert blocked_clients(transport) == 0


def test_who_has_found_something_waits_for_nothing(transport: RedisTransport) -> None:
    """A consumer whose trip brought messages leaves no command behind it, and puts the token back that it took."""
    consumer = consumer_of(transport)
    consumer.exchange((), 1)
    consumer.wait(0.01)
    consumer.wait(0.01)
    assert blocked_clients(transport) == 1
    transport.push(envelopes(b"1", b"2"))
    assert len(consumer.exchange((), 1).deliveries) == 1
    assert blocked_clients(transport) == 0
    assert tokens(transport) == 1


def test_a_token_that_was_taken_in_vain_wakes_another(transport: RedisTransport) -> None:
    """A token that comes to a consumer without room is put back, and ends the wait of another one."""
    full, idle = consumer_of(transport), consumer_of(transport)
    full.exchange((), 1)
    for _ in range(2):
        full.wait(0.01)
    transport.push(envelopes(b"1"))
    full.exchange((), 0)
    started = time.monotonic()
    idle.wait(5.0)
    assert time.monotonic() - started < 1.5
    assert claim_one(idle).body == b"1"


def test_what_a_claim_leaves_wakes_another(transport: RedisTransport) -> None:
    """Whoever takes a token and cannot claim all that is ready leaves a token for the others."""
    first, second = consumer_of(transport), consumer_of(transport)
    transport.push(envelopes(b"1", b"2", b"3"))
    for consumer in (first, second):
        consumer.exchange((), 0)
    first.wait(1.0)
    assert tokens(transport) == 0
    assert len(first.exchange((), 2).deliveries) == 2
    assert tokens(transport) == 1
    second.wait(1.0)
    assert len(second.exchange((), 2).deliveries) == 1
    assert tokens(transport) == 0


def test_queues_that_come_later_are_waited_for(transport: RedisTransport) -> None:
    """A consumer that subscribes to a queue between two waits is woken by what comes there."""
    consumer = consumer_of(transport, "a")
    consumer.exchange((), 1)
    consumer.wait(0.01)
    consumer.subscribe(["b"])
    consumer.exchange((), 1)
    timer = threading.Timer(0.05, lambda: transport.push([envelope(b"1", "b")]))
    timer.start()
    started = time.monotonic()
    consumer.wait(5.0)
    timer.join()
    assert time.monotonic() - started < 0.9  # sooner than it looks around
    assert claim_one(consumer).body == b"1"


def test_an_earlier_due_time_wakes(transport: RedisTransport) -> None:
    """A delayed message that is due sooner than what a consumer knows of ends its wait when it is pushed, so that it
    learns of it; one that is due later does not."""
    consumer = consumer_of(transport)
    now_ms = SYSTEM_CLOCK.now_ms()
    transport.push([envelope(b"far", due_ms=now_ms + 60_000)])
    consumer.exchange((), 1)
    consumer.wait(1.0)
    assert tokens(transport) == 0
    transport.push([envelope(b"farther", due_ms=now_ms + 70_000)])
    assert tokens(transport) == 0
    transport.push([envelope(b"near", due_ms=now_ms + 50_000)])
    assert tokens(transport) == 1


def test_a_closed_consumer_leaves_no_command(transport: RedisTransport) -> None:
    """A consumer that closes while its command waits ends that, too."""
    consumer = consumer_of(transport)
    consumer.exchange((), 1)
    consumer.wait(0.01)
    consumer.wait(0.01)
    consumer.close()
    deadline = time.monotonic() + 5
    while blocked_clients(transport):
        assert time.monotonic() < deadline


def test_a_server_that_forgot_the_wait(transport: RedisTransport) -> None:
    """A wait command that the server should have answered long ago is made anew."""
    consumer = consumer_of(transport)
    consumer.exchange((), 1)
    consumer.wait(0.01)
    assert isinstance(consumer, RedisConsumer)
    assert consumer._waiter.is_outstanding
    consumer._waiter._sent_s -= 60
    consumer.wait(0.01)
    assert not consumer._waiter.is_outstanding
    consumer.wait(0.01)
    assert consumer._waiter.is_outstanding
