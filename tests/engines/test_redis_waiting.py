"""Waiting on a Redis server: what it costs, how soon it ends, and that no wake token is eaten."""

from __future__ import annotations

import math
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
from greenroom.engines.redis.waiting import BLOCK_S
from greenroom.ports.transport import MAX_TRIP
from greenroom.testing.contract.kit import QUEUE, ack, claim_one, consumer_of, envelope, envelopes, settle
from scripts.servers import Redis
from tests.runtime.cli_kit import wait_until


@pytest.fixture
def transport(redis_url: str, tmp_path: Path) -> Iterator[RedisTransport]:
    transport = RedisTransport(redis.Redis.from_url(redis_url), run_folder=tmp_path)
    yield transport
    transport.close()


def blocked_clients(transport: RedisTransport) -> int:
    """How many wait commands the server has."""
    count: int = transport._client.info("clients")["blocked_clients"]
    return count


def until_it_waits(consumer: RedisConsumer, transport: RedisTransport) -> None:
    """Waits until the server has a consumer's wait command, and all tokens have been taken."""
    wait_until(lambda: consumer.wait(0.01) or blocked_clients(transport), "the server has its wait command")


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
    assert statistics.quantiles(took_ms)[0] < 50  # the quickest quarter: the machine may be busy with others


def test_who_has_no_room_waits_for_nothing(transport: RedisTransport) -> None:
    """A consumer that only settles leaves no command behind it that could take a token."""
    consumer = consumer_of(transport)
    transport.push(envelopes(b"1"))
    held = claim_one(consumer)
    consumer.exchange((), 1)
    until_it_waits(consumer, transport)
    settle(consumer, ack(held))
    assert blocked_clients(transport) == 0


def test_who_has_found_something_waits_for_nothing(transport: RedisTransport) -> None:
    """A consumer whose trip brought messages leaves no command behind it, and puts the token back that it took."""
    consumer = consumer_of(transport)
    consumer.exchange((), 1)
    until_it_waits(consumer, transport)
    transport.push(envelopes(b"1", b"2"))
    assert len(consumer.exchange((), 1).deliveries) == 1
    assert blocked_clients(transport) == 0
    assert tokens(transport) == 1


def test_a_token_that_was_taken_in_vain_wakes_another(transport: RedisTransport) -> None:
    """A token that comes to a consumer without room is put back, and ends the wait of another one."""
    full, idle = consumer_of(transport), consumer_of(transport)
    full.exchange((), 1)
    until_it_waits(full, transport)
    transport.push(envelopes(b"1"))
    assert tokens(transport) == 0
    full.exchange((), 0)
    assert tokens(transport) == 1
    idle._look_at = math.inf  # nothing else ends its wait
    started = time.monotonic()
    idle.wait(BLOCK_S)
    assert time.monotonic() - started < BLOCK_S / 2
    assert claim_one(idle).body == b"1"


def test_what_a_claim_leaves_wakes_another(transport: RedisTransport) -> None:
    """Whoever takes a token and cannot claim all that is ready leaves a token for the others."""
    first, second = consumer_of(transport), consumer_of(transport)
    transport.push(envelopes(b"1", b"2", b"3"))
    for consumer in (first, second):
        consumer.exchange((), 0)
    first.wait(1.0)
    wait_until(lambda: tokens(transport) == 0, "the token is taken")
    assert len(first.exchange((), 2).deliveries) == 2
    assert tokens(transport) == 1
    second.wait(1.0)
    wait_until(lambda: tokens(transport) == 0, "the token is taken")
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
    consumer._look_at = math.inf  # nothing else ends its wait
    timer.start()
    started = time.monotonic()
    consumer.wait(BLOCK_S)
    timer.join()
    assert time.monotonic() - started < BLOCK_S / 2
    assert claim_one(consumer).body == b"1"


def test_an_earlier_due_time_wakes(transport: RedisTransport) -> None:
    """A delayed message that is due sooner than what a consumer knows of ends its wait when it is pushed, so that it
    learns of it; one that is due later does not."""
    consumer = consumer_of(transport)
    now_ms = SYSTEM_CLOCK.now_ms()
    transport.push([envelope(b"far", due_ms=now_ms + 60_000)])
    consumer.exchange((), 1)
    consumer.wait(1.0)
    wait_until(lambda: tokens(transport) == 0, "the token is taken")
    transport.push([envelope(b"farther", due_ms=now_ms + 70_000)])
    assert tokens(transport) == 0
    transport.push([envelope(b"near", due_ms=now_ms + 50_000)])
    assert tokens(transport) == 1


def test_a_closed_consumer_leaves_no_command(transport: RedisTransport) -> None:
    """A consumer that closes while its command waits ends that, too."""
    consumer = consumer_of(transport)
    consumer.exchange((), 1)
    until_it_waits(consumer, transport)
    consumer.close()
    wait_until(lambda: not blocked_clients(transport), "the wait command has ended")


def test_a_wait_that_the_server_has_not_seen_yet_is_ended(
    transport: RedisTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who wants its wait ended may be heard before the wait itself, which came on another connection: it asks again,
    and does not sit the wait out."""
    consumer = consumer_of(transport)
    consumer.exchange((), 1)
    until_it_waits(consumer, transport)
    call, unheard = consumer._waiter._call, [1]
    monkeypatch.setattr(consumer._waiter, "_call", lambda *words: 0 if unheard and unheard.pop() else call(*words))
    started = time.monotonic()
    consumer.exchange((), 0)
    assert time.monotonic() - started < BLOCK_S / 2
    assert not unheard


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
