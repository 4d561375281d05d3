"""Limiters and barriers, on both stores and on a backend that a program brings along."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greenroom.errors import RateLimitExceeded
from greenroom.rate_limits import (
    Barrier,
    BucketRateLimiter,
    ConcurrentRateLimiter,
    RateLimiter,
    RateLimiterBackend,
    WindowRateLimiter,
)
from greenroom.rate_limits.backends import RedisBackend, StubBackend
from greenroom.testing.clock import ManualClock
from tests.rate_limits.kit import CountingBackend, make_backend


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def url_for(request: pytest.FixtureRequest) -> str | None:
    """Where the server is, for those that need one."""
    return request.getfixturevalue("redis_url") if request.param.startswith("redis") else None


@pytest.fixture(params=["stub", "sqlite", "redis"])
def backend(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> Iterator[Any]:
    backend = make_backend(request.param, tmp_path, clock, url_for(request))
    yield backend
    backend.close()


@pytest.fixture(params=["stub", "sqlite", "redis", "redis as dramatiq", "counting"])
def any_backend(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> Iterator[Any]:
    if request.param == "counting":
        yield CountingBackend()
        return
    if request.param == "redis as dramatiq":
        backend: Any = RedisBackend(url=url_for(request), wire="dramatiq")
    else:
        backend = make_backend(request.param, tmp_path, clock, url_for(request))
    yield backend
    backend.close()


def is_granted(limiter: RateLimiter) -> bool:
    with limiter.acquire(raise_on_failure=False) as granted:
        return granted


def test_so_many_at_a_time(any_backend: RateLimiterBackend) -> None:
    """A concurrent limiter lets ``limit`` in; a place is free again when a block ends, also by an exception."""
    limiter = ConcurrentRateLimiter(any_backend, "key", limit=2)
    with limiter.acquire() as first, limiter.acquire() as second:
        assert (first, second) == (True, True)
        assert not is_granted(limiter)
        with pytest.raises(RateLimitExceeded, match="key 'key'"), limiter.acquire():
            raise AssertionError("the limit is reached")
    with pytest.raises(ZeroDivisionError), limiter.acquire():
        raise ZeroDivisionError
    with limiter.acquire(), limiter.acquire():
        pass


def test_limits_of_other_keys_are_others(any_backend: RateLimiterBackend) -> None:
    """What one key has taken, another one has not."""
    with ConcurrentRateLimiter(any_backend, "a").acquire():
        assert is_granted(ConcurrentRateLimiter(any_backend, "b"))
        assert not is_granted(ConcurrentRateLimiter(any_backend, "a"))


def test_a_slot_that_was_not_given_back_ends(backend: Any, clock: ManualClock) -> None:
    """A holder that dies costs its own slot until the TTL is over, and nobody else's."""
    limiter = ConcurrentRateLimiter(backend, "key", limit=2, ttl=1000)
    dead = limiter._enter()
    assert dead.granted
    clock.advance_ms(600)
    with limiter.acquire():
        with pytest.raises(RateLimitExceeded) as caught, limiter.acquire():
            pass
        assert caught.value.retry_at_ms == clock.now_ms() + 400
        clock.advance_ms(400)
        with limiter.acquire():
            assert not is_granted(limiter)


def test_a_late_release_takes_nobodys_slot(backend: Any, clock: ManualClock) -> None:
    """Who comes back after its slot has ended gives back nothing that is another's by now."""
    limiter = ConcurrentRateLimiter(backend, "key", ttl=1000)
    late = limiter._enter()
    clock.advance_ms(1000)
    with limiter.acquire():
        limiter._leave(late)
        assert not is_granted(limiter)


def test_so_often_in_a_bucket(backend: Any, clock: ManualClock) -> None:
    """A bucket limiter grants ``limit`` times in each window; a refusal says when the next window begins."""
    limiter = BucketRateLimiter(backend, "key", limit=3, bucket=1000)
    clock.advance_ms(1000 - clock.now_ms() % 1000 + 250)
    assert [is_granted(limiter) for _ in range(4)] == [True, True, True, False]
    with pytest.raises(RateLimitExceeded) as caught, limiter.acquire():
        pass
    assert caught.value.retry_at_ms == clock.now_ms() + 750
    clock.advance_ms(750)
    assert [is_granted(limiter) for _ in range(4)] == [True, True, True, False]


def test_so_often_in_any_window(backend: Any, clock: ManualClock) -> None:
    """A window limiter counts back from now: there is room as soon as the first grant is a window old, not earlier."""
    limiter = WindowRateLimiter(backend, "key", limit=2, window=10)
    assert is_granted(limiter)
    clock.advance_ms(4000)
    assert is_granted(limiter)
    clock.advance_ms(5999)
    with pytest.raises(RateLimitExceeded) as caught, limiter.acquire():
        pass
    assert caught.value.retry_at_ms == clock.now_ms() + 1
    clock.advance_ms(1)
    assert [is_granted(limiter) for _ in range(2)] == [True, False]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(steps=st.lists(st.integers(0, 900), min_size=1, max_size=60), limit=st.integers(1, 5))
def test_a_window_is_never_exceeded(steps: list[int], limit: int) -> None:
    """Whenever it is asked: no stretch of a second holds more grants than the limit, and none is refused without
    need."""
    clock = ManualClock()
    limiter = WindowRateLimiter(StubBackend(clock=clock), "key", limit=limit, window=1)
    grants: list[int] = []
    for step in steps:
        clock.advance_ms(step)
        now_ms = clock.now_ms()
        recent = [at_ms for at_ms in grants if at_ms > now_ms - 1000]
        granted = is_granted(limiter)
        assert granted == (len(recent) < limit)
        if granted:
            grants.append(now_ms)


def test_a_backend_that_only_counts(clock: ManualClock) -> None:
    """Buckets and windows work on a backend that was written for Dramatiq."""
    backend = CountingBackend()
    assert [is_granted(WindowRateLimiter(backend, "w", limit=2, window=60)) for _ in range(3)] == [True, True, False]
    assert [is_granted(BucketRateLimiter(backend, "b", limit=2, bucket=10**9)) for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize(
    ("make", "keywords"),
    [
        (ConcurrentRateLimiter, {"limit": 0}),
        (ConcurrentRateLimiter, {"ttl": 0}),
        (BucketRateLimiter, {"limit": 0}),
        (BucketRateLimiter, {"bucket": 0}),
        (WindowRateLimiter, {"limit": 0}),
        (WindowRateLimiter, {"window": 0}),
    ],
)
def test_impossible_limits_are_refused(make: Any, keywords: dict[str, int]) -> None:
    """A limit that nobody could ever pass is a mistake."""
    with pytest.raises(ValueError, match="at least 1"):
        make(StubBackend(), "key", **keywords)


def test_threads_never_pass_the_limit(any_backend: RateLimiterBackend) -> None:
    """Eight threads that press on one key: never more than three are inside, and all get in in the end."""
    limiter = ConcurrentRateLimiter(any_backend, "key", limit=3)
    inside: list[int] = []
    most = []
    lock = threading.Lock()

    def press() -> None:
        entered = 0
        while entered < 10:
            with limiter.acquire(raise_on_failure=False) as granted:
                if granted:
                    entered += 1
                    with lock:
                        inside.append(1)
                        most.append(len(inside))
                    with lock:
                        inside.pop()

    threads = [threading.Thread(target=press) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert len(most) == 80
    assert max(most) <= 3


def test_coroutines_acquire_without_blocking(backend: Any) -> None:
    """``aacquire`` is ``acquire`` for coroutines; what was cancelled while it asked leaves no slot taken."""
    limiter = ConcurrentRateLimiter(backend, "key")

    async def main() -> None:
        async with limiter.aacquire() as granted:
            assert granted
            with pytest.raises(RateLimitExceeded):
                async with limiter.aacquire():
                    pass
            async with limiter.aacquire(raise_on_failure=False) as second:
                assert not second
        for _ in range(5):
            task = asyncio.ensure_future(hold())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        async with limiter.aacquire() as granted:
            assert granted

    async def hold() -> None:
        async with limiter.aacquire():
            await asyncio.Event().wait()

    asyncio.run(main())


# --- barriers


def test_the_last_party_clears_a_barrier(any_backend: RateLimiterBackend) -> None:
    """Of those that do not block exactly the last one is told that the barrier is cleared."""
    barrier = Barrier(any_backend, "barrier")
    assert barrier.create(3)
    assert not barrier.create(5)
    assert [barrier.wait(block=False) for _ in range(3)] == [False, False, True]


def test_a_barrier_clears_once(backend: Any, clock: ManualClock) -> None:
    """Who comes too late, or to a barrier that was never made or is gone, does not clear it again."""
    barrier = Barrier(backend, "barrier", ttl=1000)
    barrier.create(2)
    assert [barrier.wait(block=False) for _ in range(5)] == [False, True, False, False, False]
    assert not Barrier(backend, "never made").wait(block=False)
    assert not Barrier(backend, "never made").wait(timeout=1000)
    clock.advance_ms(1000)
    assert barrier.create(1)
    assert barrier.wait()


def test_those_who_block_are_released_together(any_backend: RateLimiterBackend) -> None:
    """All who wait are told when the last party has come; until then a wait with a timeout says False."""
    barrier = Barrier(any_backend, "barrier")
    barrier.create(4)
    assert not barrier.wait(timeout=10)
    answers: list[bool] = []
    threads = [threading.Thread(target=lambda: answers.append(barrier.wait(timeout=30_000))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert answers == [True, True, True]


def test_dramatiqs_methods_on_a_store(backend: Any, clock: ManualClock) -> None:
    """Programs that use a backend by hand get the answers that they know."""
    assert backend.add("n", 1, ttl=1000)
    assert not backend.add("n", 5, ttl=1000)
    assert backend.incr("n", 2, maximum=3, ttl=1000)
    assert not backend.incr("n", 1, maximum=3, ttl=1000)
    assert backend.decr("n", 3, minimum=0, ttl=1000)
    assert not backend.decr("n", 1, minimum=0, ttl=1000)
    assert backend.incr("m", 2, maximum=2, ttl=1000)
    assert not backend.incr_and_sum("n", lambda: ["n", "m"], 1, maximum=2, ttl=1000)
    assert backend.incr_and_sum("n", lambda: ["n", "m"], 1, maximum=3, ttl=1000)
    assert not backend.wait("event", timeout=1)
    backend.wait_notify("event", ttl=1000)
    assert backend.wait("event", timeout=1)
    clock.advance_ms(1000)
    assert backend.add("n", 1, ttl=1000)
