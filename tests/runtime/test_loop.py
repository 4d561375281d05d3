"""Async actors on a worker's loop: many at a time, each in a context of its own, and none that harms the others."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from greenroom import Middleware, actor
from greenroom.middleware import (
    CurrentMessage,
    Retries,
    Shutdown,
    ShutdownNotifications,
    SkipMessage,
    TimeLimit,
    TimeLimitExceeded,
)
from greenroom.ports.admin import Counts
from greenroom.testing.clock import ManualClock
from tests.runtime.async_kit import AsyncGate
from tests.runtime.cli_kit import wait_until
from tests.runtime.worker_kit import ENGINES, EngineTestBroker, Gate, collector, make_broker, working

MakeBroker = Callable[..., EngineTestBroker]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=ENGINES)
def make(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> Iterator[MakeBroker]:
    """Makes the test's broker, on a clock that stands still."""
    brokers = []

    def make(*middleware: Middleware) -> EngineTestBroker:
        policies = [TimeLimit(interval=2), ShutdownNotifications(), CurrentMessage(), *middleware]
        brokers.append(make_broker(request.param, tmp_path, [*policies, Retries(max_retries=0)], clock=clock))
        return brokers[-1]

    yield make
    for broker in brokers:
        broker.close()


class Note(Middleware):
    """Notes what each message became, by its first argument."""

    def __init__(self) -> None:
        self.outcomes: list[tuple[Any, Any, str | None]] = []

    def after_process_message(self, broker: Any, message: Any, *, result: Any = None, exception: Any = None) -> None:
        kind = None if exception is None else type(exception).__name__
        self.outcomes.append((message.args[0] if message.args else None, result, kind))


def test_they_run_at_the_same_time(make: MakeBroker) -> None:
    """A hundred coroutines that sleep for 0.1 s take much less than the ten seconds that they sleep in all."""
    broker, done = make(), []

    @actor(broker=broker)
    async def work() -> None:
        await asyncio.sleep(0.1)
        done.append(1)

    work.send_many([()] * 100)
    started_s = time.monotonic()
    with working(broker):
        wait_until(lambda: len(done) == 100, "all have run")
        assert time.monotonic() - started_s < 5


def test_no_more_than_the_concurrency_and_no_threads(make: MakeBroker) -> None:
    """``concurrency`` bounds how many run at a time. They pin no thread: ten thousand messages, five hundred at a time,
    run on the one thread of the loop."""
    broker, gate, threads, most = make(), AsyncGate(), set(), []
    running = 0

    @actor(broker=broker)
    async def work(number: int) -> None:
        nonlocal running
        running += 1
        most.append(running)
        threads.add(threading.get_ident())
        await gate(number)
        running -= 1

    work.send_many([(number,) for number in range(10_000)])
    before = threading.active_count()
    with working(broker, 2, concurrency=500):
        wait_until(lambda: len(gate.entered) == 500, "as many wait as may")
        # The pump, the ticker, the hook thread, the loop, two for sync actors, one of an engine.
        assert threading.active_count() - before <= 7
        gate.open()
        wait_until(lambda: len(gate.left) == 10_000, "all have run")
    assert max(most) == 500
    assert len(threads) == 1


def test_each_has_its_own_context(make: MakeBroker) -> None:
    """What one coroutine puts into a context variable no other sees; each sees its own message as the current one."""
    broker, gate, seen = make(), AsyncGate(), []
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=-1)

    @actor(broker=broker)
    async def work(number: int) -> None:
        fresh = variable.get()
        variable.set(number)
        await gate(number)
        seen.append((fresh, variable.get(), CurrentMessage.get_current_message().args[0]))

    work.send_many([(number,) for number in range(20)])
    with working(broker):
        gate.wait_for(*range(20))
        gate.open()
        broker.wait_until_empty()
    assert sorted(seen) == [(-1, number, number) for number in range(20)]


# --- hooks


class Where(Middleware):
    """Notes the threads of its hooks."""

    def __init__(self, *, blocking: bool) -> None:
        self.blocking = blocking
        self.threads: dict[str, int] = {}

    def before_process_message(self, broker: Any, message: Any) -> None:
        self.threads["before"] = threading.get_ident()

    def after_process_message(self, broker: Any, message: Any, *, result: Any = None, exception: Any = None) -> None:
        self.threads["after"] = threading.get_ident()


@pytest.mark.parametrize("blocking", [False, True])
def test_where_hooks_run(make: MakeBroker, blocking: bool) -> None:
    """Hooks around an async actor run on the loop, unless the middleware says that they block: then beside it."""
    broker = make(where := Where(blocking=blocking))

    @actor(broker=broker)
    async def work() -> None:
        where.threads["actor"] = threading.get_ident()

    work.send()
    with working(broker):
        broker.wait_until_empty()
    assert set(where.threads) == {"before", "after", "actor"}
    assert len(set(where.threads.values())) == (2 if blocking else 1)


def test_the_onion(make: MakeBroker) -> None:
    """``awrap`` goes around async actors, the first middleware outermost; it sees results and exceptions."""
    order: list[Any] = []

    class Layer(Middleware):
        def __init__(self, name: str) -> None:
            self.name = name

        async def awrap(self, broker: Any, message: Any, call_next: Callable[[], Any]) -> Any:
            order.append(f"{self.name} in")
            try:
                result = await call_next()
            except ValueError:
                order.append(f"{self.name} error")
                raise
            order.append((f"{self.name} out", result))
            return result

    class Inner(Layer):
        pass

    broker = make(Layer("a"), Inner("b"), note := Note())

    @actor(broker=broker)
    async def work(fails: bool) -> int:
        if fails:
            raise ValueError
        return 7

    work.send(False)
    with working(broker):
        broker.wait_until_empty()
        assert order == ["a in", "b in", ("b out", 7), ("a out", 7)]
        order.clear()
        work.send(True)
        broker.wait_until_empty()
    assert order == ["a in", "b in", "b error", "a error"]
    assert note.outcomes == [(False, 7, None), (True, None, "ValueError")]


class SkipAll(Middleware):
    """Skips every message, behind the time limit in the list."""

    def __init__(self, *, blocking: bool) -> None:
        self.blocking = blocking

    def before_process_message(self, broker: Any, message: Any) -> None:
        raise SkipMessage("not today")


@pytest.mark.parametrize("blocking", [False, True])
def test_a_skipped_message_leaves_nothing_behind(make: MakeBroker, blocking: bool) -> None:
    """A message that a hook skips gives its place back as it was."""
    broker = make(SkipAll(blocking=blocking))

    @actor(broker=broker, time_limit=1000, notify_shutdown=True)
    async def work() -> None:
        raise AssertionError

    work.send_many([()] * 5)
    with working(broker, concurrency=2) as worker:
        broker.wait_until_empty()
        assert worker._loop is not None
        assert {(s.run, s.task, s.deadline, s.notify_shutdown) for s in worker._loop.slots} == {
            (None, None, 0.0, False)
        }


# --- cancellation


def test_a_time_limit_cancels(make: MakeBroker, clock: ManualClock) -> None:
    """At its limit an actor sees ``CancelledError``, hooks and the dead letter see ``TimeLimitExceeded``; the others go
    on."""
    broker, gate, seen = make(note := Note()), AsyncGate(), []

    @actor(broker=broker, time_limit=1000)
    async def limited(name: str) -> None:
        try:
            await gate(name)
        except BaseException as e:
            seen.append(type(e))
            raise

    @actor(broker=broker, time_limit=None)
    async def unlimited(name: str) -> str:
        await gate(name)
        return "fine"

    limited.send("limited")
    unlimited.send("unlimited")
    with working(broker):
        gate.wait_for("limited", "unlimited")
        clock.advance_ms(1000)
        wait_until(lambda: note.outcomes, "the limit has struck")
        gate.open()
        broker.wait_until_empty()
    assert seen == [asyncio.CancelledError]
    assert note.outcomes == [("limited", None, "TimeLimitExceeded"), ("unlimited", "fine", None)]
    assert [letter.error.type for letter in broker.dead()] == ["TimeLimitExceeded"]


@pytest.mark.parametrize("blocking", [False, True])
def test_an_actor_may_catch_it_and_return(make: MakeBroker, clock: ManualClock, blocking: bool) -> None:
    """An actor that catches its cancellation and returns has succeeded, however often it was cancelled; nothing of it
    remains for those who come after."""
    broker, gate = make(note := Note(), Where(blocking=blocking)), AsyncGate()
    cancelled: list[int] = []

    @actor(broker=broker, time_limit=1000)
    async def work(name: str) -> str:
        while len(cancelled) < 2:
            try:
                await gate(name)
            except asyncio.CancelledError:
                cancelled.append(1)
        return "done"

    work.send("a")
    with working(broker, concurrency=1):
        gate.wait_for("a")
        clock.advance_ms(1000)
        wait_until(lambda: len(cancelled) == 1, "it is cancelled")
        clock.advance_ms(1000)
        broker.wait_until_empty()
        work.send("b")
        broker.wait_until_empty()
    assert note.outcomes == [("a", "done", None), ("b", "done", None)]


@pytest.mark.parametrize("blocking", [False, True])
@pytest.mark.parametrize("waits", [False, True])
def test_an_actor_that_cancels_itself(make: MakeBroker, blocking: bool, waits: bool) -> None:
    """A cancellation of the actor's own making is its failure if it meets it, and nothing to the worker if not."""
    broker = make(note := Note(), Where(blocking=blocking))

    @actor(broker=broker)
    async def work(name: str) -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        if waits:
            await asyncio.sleep(0)
        return "done"

    work.send("a")
    work.send("b")
    with working(broker, concurrency=1):
        broker.wait_until_empty()
    outcome = (None, "CancelledError") if waits else ("done", None)
    assert note.outcomes == [("a", *outcome), ("b", *outcome)]


@pytest.mark.parametrize("when", ["runs", "begins"])
def test_told_of_a_shutdown(make: MakeBroker, when: str) -> None:
    """Actors that ask for it are cancelled when their worker stops, and fail by ``Shutdown``; also those that are about
    to begin. The others are waited for."""
    held, gate = Gate(), AsyncGate()

    class Hold(Middleware):
        blocking = True

        def before_process_message(self, broker: Any, message: Any) -> None:
            held(message.args[0])

    broker = make(Hold(), note := Note())

    @actor(broker=broker, notify_shutdown=True)
    async def asks(name: str) -> None:
        await gate(name)

    asks.send("asks")
    with working(broker) as worker:
        held.wait_for("asks")
        if when == "runs":
            held.open()
            gate.wait_for("asks")
        stopping = threading.Thread(target=worker.stop, args=(20_000,))
        stopping.start()
        wait_until(lambda: worker._loop is None or worker._loop._stops, "actors were told")
        held.open()
        stopping.join(30)
    assert note.outcomes == [("asks", None, "Shutdown")]
    assert issubclass(Shutdown, TimeLimitExceeded.__mro__[1])


def test_stopping_waits_for_coroutines(make: MakeBroker) -> None:
    """A worker that stops gives back what has not started, and waits for what runs."""
    broker, gate = make(note := Note()), AsyncGate()
    work = actor(gate.__call__, broker=broker, actor_name="work")
    work.send_many([(number,) for number in range(10)])
    with working(broker, concurrency=3) as worker:
        wait_until(lambda: len(gate.entered) == 3, "three run")
        stopping = threading.Thread(target=worker.stop, args=(20_000,))
        stopping.start()
        wait_until(lambda: broker.counts() == Counts(ready=7, claimed=3), "the others are given back")
        gate.open()
        stopping.join(30)
        assert not stopping.is_alive()
    assert sorted(outcome[2] is None for outcome in note.outcomes) == [True] * 3
    assert broker.counts() == Counts(ready=7)


def test_stopping_loses_nothing_that_was_just_claimed(make: MakeBroker) -> None:
    """A worker may be stopped at any moment of a drain: each message has run once, or waits; none has failed."""
    broker, done = make(note := Note()), []

    @actor(broker=broker)
    async def work(number: int) -> None:
        await asyncio.sleep(0)
        done.append(number)

    work.send_many([(number,) for number in range(2000)])
    for stopped_after in (1, 50, 300, 700, 1200):
        with working(broker):
            wait_until(lambda n=stopped_after: len(done) >= n, "some have run", step_s=0.0005)
        counts = broker.counts()
        assert counts == Counts(ready=2000 - len(done))
    assert len(set(done)) == len(done)
    assert {outcome[2] for outcome in note.outcomes} == {None}


def test_after_the_grace_coroutines_are_cancelled(make: MakeBroker) -> None:
    """What runs on beyond the grace is cancelled, and the loop ends; its message is not settled."""
    broker, gate, seen = make(), AsyncGate(), []

    @actor(broker=broker)
    async def work() -> None:
        try:
            await gate(1)
        except asyncio.CancelledError:
            seen.append(1)
            raise

    work.send()
    worker = working(broker, timeout_ms=50)
    with worker as running:
        gate.wait_for(1)
        assert running._loop is not None
        thread = running._loop._thread
        assert thread is not None
    assert not thread.is_alive()
    assert seen == [1]
    assert not broker.dead()


# --- what could stop the loop


def test_a_blocked_loop_is_reported(make: MakeBroker, caplog: pytest.LogCaptureFixture) -> None:
    """A coroutine that blocks the loop for a second is reported, once, with the line at which it does."""
    broker, gate = make(), Gate()

    @actor(broker=broker)
    async def blocks_the_loop() -> None:
        gate(1)

    blocks_the_loop.send()
    with working(broker):
        wait_until(lambda: "The event loop has been blocked for" in caplog.text, "it is reported")
        gate.open()
        broker.wait_until_empty()
    assert "in blocks_the_loop\n" in caplog.text
    assert caplog.text.count("has been blocked") == 1
    assert broker.counts() == Counts()


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_a_task_of_an_actor_may_raise_anything(
    make: MakeBroker, kind: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """asyncio hands ``SystemExit`` of any task to whoever runs the loop. The loop goes on, and the actor has failed."""
    broker = make(note := Note())

    async def child() -> None:
        raise kind("no")

    @actor(broker=broker)
    async def work(name: str) -> str:
        if name == "bad":
            await asyncio.gather(child())
        await asyncio.sleep(0)
        return "fine"

    for name in ("bad", "good"):
        work.send(name)
    with working(broker):
        broker.wait_until_empty()
        work.send("after")
        broker.wait_until_empty()
    assert sorted(note.outcomes, key=str) == sorted(
        [("bad", None, kind.__name__), ("good", "fine", None), ("after", "fine", None)], key=str
    )
    assert f"A task raised {kind.__name__}" in caplog.text


def test_sync_and_async_actors_beside_each_other(make: MakeBroker) -> None:
    """Both kinds run in one worker: each on its own side, whatever the other does."""
    broker, gate, agate = make(), Gate(), AsyncGate()
    collect, notes = collector(broker)
    blocked = actor(gate.__call__, broker=broker, actor_name="blocked")
    waits = actor(agate.__call__, broker=broker, actor_name="waits")
    for number in range(2):
        blocked.send(number)
        waits.send(number)
    with working(broker, 3):
        gate.wait_for(0, 1)
        agate.wait_for(0, 1)
        collect.send("sync")
        wait_until(lambda: notes == ["sync"], "a third thread is free")
        agate.open()
        wait_until(lambda: len(agate.left) == 2, "coroutines end while threads are blocked")
        gate.open()
        broker.wait_until_empty()
