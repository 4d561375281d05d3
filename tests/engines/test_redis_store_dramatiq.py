"""Results, limits and barriers that the real Dramatiq reads and writes as well."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import dramatiq as theirs
import pytest
import redis
from dramatiq.rate_limits import Barrier as TheirBarrier
from dramatiq.rate_limits import BucketRateLimiter as TheirBucket
from dramatiq.rate_limits import ConcurrentRateLimiter as TheirConcurrent
from dramatiq.rate_limits import WindowRateLimiter as TheirWindow
from dramatiq.rate_limits.backends import RedisBackend as TheirLimits
from dramatiq.results.backends import RedisBackend as TheirResults

from greenroom import Message, actor
from greenroom.brokers.redis import RedisBroker
from greenroom.errors import ResultFailure, ResultMissing, ResultPending, ResultTimeout, ResultUnknown
from greenroom.ports import watching
from greenroom.rate_limits import Barrier, BucketRateLimiter, ConcurrentRateLimiter, WindowRateLimiter
from greenroom.rate_limits.backends import RedisBackend as Limits
from greenroom.results import Results
from greenroom.results.backends import RedisBackend
from tests.runtime.cli_kit import wait_until
from tests.runtime.worker_kit import working

PATIENCE = 20_000


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def ours(redis_url: str) -> Iterator[RedisBackend]:
    backend = RedisBackend(url=redis_url)
    yield backend
    backend.close()


def messages() -> tuple[Message[Any], theirs.Message[Any]]:
    """One and the same message, as both have it."""
    mine: Message[Any] = Message(queue_name="default", actor_name="add", args=(), kwargs={}, options={})
    return mine, theirs.Message(**mine.asdict())


# Results


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("value", [None, 0, "text é", [1, {"a": None}], {"__t": "else"}])
def test_each_reads_what_the_other_wrote(client: redis.Redis, redis_url: str, *, prefix: bool, value: Any) -> None:
    """Values, under hashed keys and under texts."""
    ours = RedisBackend(url=redis_url, use_namespace_prefix_keys=prefix)
    other = TheirResults(client=client, use_namespace_prefix_keys=prefix)
    mine, yours = messages()
    ours.store_result(mine, value, 60_000)
    assert other.get_result(yours) == value
    assert other.get_result(yours, block=True, timeout=1000) == value
    assert 0 < client.pttl(other.build_message_key(yours)) <= 60_000
    mine, yours = messages()
    other.store_result(yours, value, 60_000)
    assert ours.get_result(mine) == value
    assert ours.get_result(mine, block=True, timeout=1000) == value
    assert 0 < client.pttl(other.build_message_key(yours)) <= 60_000
    ours.close()


def test_failures_are_read(client: redis.Redis, ours: RedisBackend) -> None:
    """The other learns the type and the text of a failure."""
    other = TheirResults(client=client)
    mine, yours = messages()
    ours.store_exception(mine, ValueError("no"), 60_000)
    with pytest.raises(theirs.results.ResultFailure, match="actor raised ValueError: no"):
        other.get_result(yours)
    mine, yours = messages()
    other.store_exception(yours, ValueError("no"), 60_000)
    with pytest.raises(ResultFailure, match="actor raised ValueError: no"):
        ours.get_result(mine)


@pytest.mark.parametrize("is_async", [False, True])
def test_who_blocks_is_woken_by_the_other(client: redis.Redis, ours: RedisBackend, *, is_async: bool) -> None:
    """A result that the other writes ends our wait."""
    other = TheirResults(client=client)
    mine, yours = messages()
    helper = threading.Timer(0.1, lambda: other.store_result(yours, 42, 60_000))
    helper.start()
    if is_async:
        assert asyncio.run(ours.aget_result(mine, block=True, timeout=PATIENCE)) == 42
    else:
        assert ours.get_result(mine, block=True, timeout=PATIENCE) == 42
    helper.join()


def test_the_other_is_woken_by_us(client: redis.Redis, ours: RedisBackend) -> None:
    """A result that we write ends the other's wait."""
    other = TheirResults(client=client)
    mine, yours = messages()
    helper = threading.Timer(0.1, lambda: ours.store_result(mine, 42, 60_000))
    helper.start()
    assert other.get_result(yours, block=True, timeout=PATIENCE) == 42
    helper.join()


def test_waiting_in_vain(ours: RedisBackend) -> None:
    """A wait ends at its timeout, also one of less than a second."""
    mine, _ = messages()
    with pytest.raises(ResultTimeout):
        ours.get_result(mine, block=True, timeout=50)
    with pytest.raises(ResultMissing):
        ours.get_result(mine)


@pytest.mark.parametrize("namespace", ["dramatiq", "another"])
def test_marks_harm_no_reader(client: redis.Redis, redis_url: str, namespace: str) -> None:
    """On the broker's server it is known which results are to come; the other sees nothing of that, and the mark goes
    when the result comes."""
    broker = RedisBroker(url=redis_url, namespace=namespace)
    backend = RedisBackend(url=redis_url)
    broker.add_middleware(Results(backend=backend, store_results=True))
    other = TheirResults(client=client)

    @actor(broker=broker)
    def add(x: int, y: int) -> int:
        return x + y

    sent = add.send(1, 2)
    yours = theirs.Message(**sent.asdict())
    with pytest.raises(ResultPending, match="enqueued"):
        backend.get_result(sent)
    with pytest.raises(theirs.results.ResultMissing):
        other.get_result(yours)
    with pytest.raises(ResultUnknown):
        backend.get_result(add.message(1, 2))
    with working(broker):
        assert backend.get_result(sent, block=True, timeout=PATIENCE) == 3
        assert sent.get_result(backend=backend) == 3
    assert other.get_result(yours) == 3
    assert not client.keys("*}:g1:sv:*")
    broker.close()
    backend.close()


def test_a_result_of_ones_own_wakes_coroutines_at_once(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Coroutines that wait for a result of ours do not wait for the next look."""
    monkeypatch.setattr(watching, "NET_S", PATIENCE / 1000)
    ours = RedisBackend(url=redis_url)
    mine, _ = messages()

    async def main() -> float:
        loop = asyncio.get_running_loop()
        waiting = asyncio.create_task(ours.aget_result(mine, block=True, timeout=PATIENCE))
        await asyncio.to_thread(wait_until, lambda: _listens(ours), "somebody waits")
        started_s = loop.time()
        await asyncio.to_thread(ours.store_result, mine, 42, 60_000)
        assert await waiting == 42
        return loop.time() - started_s

    assert asyncio.run(main()) < PATIENCE / 1000 / 2
    ours.close()


def _listens(backend: RedisBackend) -> bool:
    """Whether anybody watches a key."""
    transport = backend.store.transport
    return bool(transport.share.call("PUBSUB", "NUMSUB", transport.keys.watch)[1])


# Limits


@pytest.fixture
def limits(redis_url: str) -> Iterator[Limits]:
    backend = Limits(url=redis_url, wire="dramatiq")
    yield backend
    backend.close()


@pytest.fixture
def their_limits(client: redis.Redis) -> TheirLimits:
    return TheirLimits(client=client)


def test_a_concurrent_limit_is_shared(limits: Limits, their_limits: TheirLimits) -> None:
    """Holders of both kinds count together."""
    ours = ConcurrentRateLimiter(limits, "key", limit=2)
    other = TheirConcurrent(their_limits, "key", limit=2)
    with ours.acquire(), other.acquire():
        with ours.acquire(raise_on_failure=False) as granted:
            assert not granted
        with other.acquire(raise_on_failure=False) as granted:
            assert not granted
    with other.acquire(), ours.acquire():
        pass


def test_a_bucket_is_shared(limits: Limits, their_limits: TheirLimits) -> None:
    """Both count in one window."""
    hour = 60 * 60 * 1000
    ours = BucketRateLimiter(limits, "key", limit=3, bucket=hour)
    other = TheirBucket(their_limits, "key", limit=3, bucket=hour)
    granted = []
    for limiter in (ours, other, ours, other, ours):
        with limiter.acquire(raise_on_failure=False) as was_granted:
            granted.append(was_granted)
    assert granted == [True, True, True, False, False]


def test_a_window_is_shared(limits: Limits, their_limits: TheirLimits) -> None:
    """Both count in the counters of the last seconds."""
    ours = WindowRateLimiter(limits, "key", limit=3, window=600)
    other = TheirWindow(their_limits, "key", limit=3, window=600)
    granted = []
    for limiter in (ours, other, other, ours, other):
        with limiter.acquire(raise_on_failure=False) as was_granted:
            granted.append(was_granted)
    assert granted == [True, True, True, False, False]


@pytest.mark.parametrize("last", ["ours", "theirs"])
def test_a_barrier_is_shared(limits: Limits, their_limits: TheirLimits, client: redis.Redis, last: str) -> None:
    """Parties of both kinds clear one barrier, and those that wait for it are woken, whoever comes last."""
    ours, other = Barrier(limits, "key"), TheirBarrier(their_limits, "key")
    assert ours.create(3)
    assert not other.create(3)
    cleared: list[bool] = []
    waiting = [
        threading.Thread(target=lambda: cleared.append(ours.wait(timeout=PATIENCE))),
        threading.Thread(target=lambda: cleared.append(other.wait(timeout=PATIENCE))),
    ]
    for thread in waiting:
        thread.start()
    wait_until(lambda: client.get("key") == b"1", "two have come")
    assert (ours if last == "ours" else other).wait(block=False)
    for thread in waiting:
        thread.join(PATIENCE / 1000)
    assert cleared == [True, True]


def test_keys_and_their_ends(limits: Limits, client: redis.Redis) -> None:
    """What is written in Dramatiq's way ends when it should, and a refusal prolongs nothing."""
    assert limits.add("key", 1, 60_000)
    assert not limits.add("key", 1, 120_000)
    assert limits.incr("key", 1, 2, 60_000)
    assert client.get("key") == b"2"
    assert not limits.incr("key", 1, 2, 120_000)
    assert 0 < client.pttl("key") <= 60_000
    assert limits.decr("key", 2, 0, 60_000)
    assert not limits.decr("key", 1, 0, 60_000)
    assert not limits.wait("events", 20)
    limits.wait_notify("events", 60_000)
    assert limits.wait("events", None)
    assert 0 < client.pttl("events") <= 60_000


def test_a_wire_that_does_not_exist(redis_url: str) -> None:
    """A misspelt wire is refused."""
    with pytest.raises(ValueError, match="wire"):
        Limits(url=redis_url, wire="celery")  # type: ignore[arg-type]  # what is tested


def test_a_client_with_little_patience(redis_url: str) -> None:
    """A client gives up sooner than a wait may last: no wait ends with its error."""
    with redis.Redis.from_url(redis_url, socket_timeout=0.3) as client:
        results, limits = RedisBackend(client=client), Limits(client=client, wire="dramatiq")
        with pytest.raises(ResultTimeout):
            results.get_result(messages()[0], block=True, timeout=700)
        assert not limits.wait("nobody", 700)
        results.close()
        limits.close()
