"""InlineBroker: messages run where they are sent."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import greenroom
from greenroom import Message, Middleware
from greenroom.errors import ActorNotFound, DecodeError, Retry
from greenroom.middleware import MiddlewareError
from greenroom.testing import InlineBroker, ManualClock, assert_enqueued, use_broker


async def nothing() -> None: ...


@pytest.fixture
def inline(clock: ManualClock) -> Iterator[InlineBroker]:
    with use_broker(InlineBroker(clock=clock)) as broker:
        yield broker


@pytest.fixture
def lenient(clock: ManualClock) -> Iterator[InlineBroker]:
    with use_broker(InlineBroker(clock=clock, fail_fast_default=False)) as broker:
        yield broker


@pytest.mark.usefixtures("inline")
def test_send_runs_the_actor_depth_first() -> None:
    """What an actor sends has run before its ``send`` returns, in the thread of the test."""
    seen: list[str] = []

    @greenroom.actor
    def outer(name: str) -> None:
        seen.append(f"{name} begins in {threading.current_thread() is threading.main_thread()}")
        inner.send(name)
        seen.append(f"{name} ends")

    @greenroom.actor(priority=10)
    def inner(name: str) -> None:
        seen.append(f"inner {name}")

    outer.send_many([("a",), ("b",)])
    assert seen == [
        "a begins in True",
        "inner a",
        "a ends",
        "b begins in True",
        "inner b",
        "b ends",
    ]
    assert_enqueued(inner, count=2)


def test_the_exception_comes_out_of_send(inline: InlineBroker) -> None:
    """The actor's own exception propagates, through actors that sent it, too; each is dead-lettered."""
    boom = ValueError("boom")

    @greenroom.actor(max_retries=0)
    def fail() -> None:
        raise boom

    @greenroom.actor(max_retries=0)
    def outer() -> None:
        fail.send()

    with pytest.raises(ValueError, match="boom") as caught:
        outer.send()
    assert caught.value is boom
    assert [letter.actor_name for letter in inline.dead_letters] == ["fail", "outer"]
    with pytest.raises(ValueError, match="boom"):
        inline.join("default")
    inline.join("default", fail_fast=False)


def test_it_can_be_kept_in(lenient: InlineBroker) -> None:
    """With ``fail_fast_default=False`` send returns, and the dead letter tells."""

    @greenroom.actor(max_retries=0)
    def fail() -> None:
        raise ValueError("boom")

    fail.send()
    (letter,) = lenient.dead_letters
    assert isinstance(letter._exception, ValueError)
    lenient.join("default")


def test_delays_are_recorded(inline: InlineBroker, clock: ManualClock) -> None:
    """A delayed message stands in the delayed queue, join does not wait for it; ticking the clock runs it."""
    ran: list[int] = []

    @greenroom.actor
    def put(x: int) -> None:
        ran.append(x)

    put.send_with_options(args=(1,), delay=60_000)
    inline.join("default")
    assert (ran, inline.queues["default.DQ"].qsize()) == ([], 1)
    assert_enqueued(put, args=(1,), delay="1 min")
    assert clock.tick("2 min") == 1
    assert ran == [1]


def test_retries_are_recorded(inline: InlineBroker, clock: ManualClock) -> None:
    """A failure comes out of send though it will be retried; the retry waits for the clock."""
    attempts: list[int] = []

    @greenroom.actor
    def flaky() -> None:
        attempts.append(1)
        if len(attempts) == 1:
            raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        flaky.send()
    (body,) = inline.queues["default.DQ"].queue
    assert Message.decode(body).options["retries"] == 1
    assert inline.dead_letters == []
    assert clock.tick("1 min") == 1
    assert len(attempts) == 2


def test_a_wish_to_retry_is_no_failure(inline: InlineBroker, clock: ManualClock) -> None:
    """``Retry`` does not come out of send."""
    attempts: list[int] = []

    @greenroom.actor
    def again() -> None:
        attempts.append(1)
        if len(attempts) == 1:
            raise Retry("again", delay=1_000)

    again.send()
    assert inline.queues["default.DQ"].qsize() == 1
    clock.tick("1s")
    assert len(attempts) == 2


@pytest.mark.usefixtures("lenient")
def test_all_retries_by_ticking(clock: ManualClock) -> None:
    """Twenty-one attempts, without a worker."""
    attempts: list[int] = []

    @greenroom.actor
    def fail() -> None:
        attempts.append(1)
        raise ValueError("boom")

    fail.send()
    assert clock.tick("45 days") == 20
    assert len(attempts) == 21


def test_hooks_run_as_with_a_worker(inline: InlineBroker) -> None:
    """Enqueue, process, ack and nack hooks all run, in their order, and ``wrap`` wraps."""
    seen: list[str] = []

    class Spy(Middleware):
        def before_enqueue(self, broker: object, message: Any, delay: object) -> None:
            seen.append("before_enqueue")

        def after_enqueue(self, broker: object, message: Any, delay: object) -> None:
            seen.append("after_enqueue")

        def before_process_message(self, broker: object, message: Any) -> None:
            seen.append("before_process")

        def after_process_message(self, broker: object, message: Any, **outcome: Any) -> None:
            seen.append(f"after_process {outcome.get('result')}")

        def before_ack(self, broker: object, message: Any) -> None:
            seen.append("before_ack")

        def after_ack(self, broker: object, message: Any) -> None:
            seen.append("after_ack")

        def after_nack(self, broker: object, message: Any) -> None:
            seen.append("after_nack")

        def wrap(self, broker: object, message: Any, call_next: Callable[[], Any]) -> Any:
            return call_next() + 1

    inline.add_middleware(Spy())  # type: ignore[arg-type]  # narrower hooks than the base's

    @greenroom.actor
    def one() -> int:
        return 1

    @greenroom.actor(max_retries=0)
    def fail() -> None:
        raise ValueError

    one.send()
    assert seen == [
        "before_enqueue",
        "after_enqueue",
        "before_process",
        "after_process 2",
        "before_ack",
        "after_ack",
    ]
    with pytest.raises(ValueError, match=r"^$"):
        fail.send()
    assert seen[-1] == "after_nack"


def test_a_veto_runs_nothing(inline: InlineBroker) -> None:
    """What a hook vetoes is not run, and nothing is mixed up afterwards."""
    ran: list[int] = []

    class Veto(Middleware):
        def before_enqueue(self, broker: object, message: Any, delay: object) -> None:
            if message.args == (13,):
                raise MiddlewareError("no")

    inline.add_middleware(Veto())

    @greenroom.actor
    def put(x: int) -> None:
        ran.append(x)

    with pytest.raises(MiddlewareError):
        put.send(13)
    put.send(14)
    assert ran == [14]


def test_all_of_many_run_before_the_first_failure_comes_out(inline: InlineBroker) -> None:
    """``send_many`` accepts all or nothing, so all run; the first exception comes out."""
    ran: list[int] = []

    @greenroom.actor(max_retries=0)
    def put(x: int) -> None:
        ran.append(x)
        if x < 3:
            raise ValueError(str(x))

    with pytest.raises(ValueError, match="1"):
        put.send_many([(1,), (2,), (3,)])
    assert ran == [1, 2, 3]
    assert len(inline.dead_letters) == 2


def test_strangers_are_refused(inline: InlineBroker) -> None:
    """An unknown actor and garbage raise at once, and become dead letters."""
    inline.declare_queue("default")
    with pytest.raises(ActorNotFound, match="nobody"):
        inline.enqueue(Message("default", "nobody", (), {}, {}))
    with pytest.raises(DecodeError):
        inline.queues["default"].put(b"garbage")
    assert len(inline.dead_letters) == 2


def test_an_async_actor_runs_on_a_loop_of_its_own() -> None:
    """Where no loop runs, ``send`` runs the coroutine to its end, inside ``awrap``."""
    seen: list[str] = []

    class Around(Middleware):
        async def awrap(self, broker: object, message: Any, call_next: Callable[[], Any]) -> Any:
            seen.append("in")
            result = await call_next()
            seen.append("out")
            return result

    with use_broker(InlineBroker()) as broker:
        broker.add_middleware(Around())

        @greenroom.actor(max_retries=0)
        async def put(x: int) -> None:
            await asyncio.create_task(nothing())  # it really waits
            seen.append(f"put {x}")
            if x == 2:
                raise ValueError("boom")

        put.send(1)
        assert seen == ["in", "put 1", "out"]
        with pytest.raises(ValueError, match="boom"):
            put.send(2)


def test_inside_a_loop_an_async_actor_is_awaited(inline: InlineBroker, clock: ManualClock) -> None:
    """In a running loop ``send`` of an async actor raises and sends nothing; awaiting runs it, and what it sends."""
    seen: list[str] = []

    @greenroom.actor(max_retries=0)
    async def outer(x: int) -> None:
        await asyncio.create_task(nothing())  # it really waits
        await inner.asend(x)
        seen.append(f"outer {x}")

    @greenroom.actor(max_retries=0)
    async def inner(x: int) -> None:
        seen.append(f"inner {x}")
        if x == 2:
            raise ValueError("boom")

    @greenroom.actor
    def plain() -> None:
        seen.append("plain")

    async def main() -> None:
        with pytest.raises(RuntimeError, match=r"await outer\.asend"):
            outer.send(1)
        with pytest.raises(RuntimeError, match=r"await outer\.asend"):
            outer.send_many([(1,)])
        assert not inline.enqueued
        await outer.asend(1)
        outer.send_with_options(args=(3,), delay=1_000)
        plain.send()
        await plain.asend()
        with pytest.raises(ValueError, match="boom"):
            await outer.asend(2)
        assert await inner.asend_many([(4,), (5,)]) == 2
        await asyncio.gather(inner.asend(6), inner.asend(7))

    asyncio.run(main())
    assert seen[:5] == ["inner 1", "outer 1", "plain", "plain", "inner 2"]
    assert seen[5:] == ["inner 4", "inner 5", "inner 6", "inner 7"]
    assert clock.tick("1s") == 2
    assert seen[-2:] == ["inner 3", "outer 3"]
