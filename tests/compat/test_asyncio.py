"""Coroutines from sync code."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import greenroom as dramatiq
from greenroom.asyncio import EventLoopThread, async_to_sync, get_event_loop_thread, set_event_loop_thread
from greenroom.brokers.stub import StubBroker
from greenroom.middleware import AsyncIO
from greenroom.threading import Interrupt, raise_thread_exception

logger = logging.getLogger(__name__)
MakeWorker = Callable[..., dramatiq.Worker]


@pytest.fixture
def loop_thread() -> Iterator[EventLoopThread]:
    """An event loop thread that runs."""
    thread = EventLoopThread(logger, interrupt_check_ival=0.01)
    thread.start(timeout=10)
    yield thread
    thread.stop()


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Stops what ``async_to_sync`` has started."""
    yield
    thread = get_event_loop_thread()
    set_event_loop_thread(None)
    if thread is not None:
        thread.stop()


async def turn() -> None:
    """Lets the loop turn once."""
    turned = asyncio.Event()
    asyncio.get_running_loop().call_soon(turned.set)
    await turned.wait()


async def double(x: int) -> int:
    await turn()
    return 2 * x


def test_a_coroutine_runs_on_the_loop(loop_thread: EventLoopThread) -> None:
    """``run_coroutine`` returns what it returns, from the loop's own thread."""

    async def where() -> int:
        return threading.get_ident()

    assert loop_thread.run_coroutine(double(2)) == 4
    assert loop_thread.run_coroutine(where()) == loop_thread.ident


@pytest.mark.parametrize("error", [ValueError("x"), TimeoutError("mine"), asyncio.CancelledError("mine")])
def test_what_it_raises_comes_out(loop_thread: EventLoopThread, error: BaseException) -> None:
    """Also a ``TimeoutError`` of its own, which is not mistaken for one of the waiting thread."""

    async def fail() -> None:
        raise error

    with pytest.raises(type(error)) as e:
        loop_thread.run_coroutine(fail())
    assert str(e.value) == str(error)


def test_a_thread_that_does_not_run_says_so() -> None:
    """Before its start, and after its stop."""
    thread = EventLoopThread(logger)
    with pytest.raises(RuntimeError, match=r"does not run|wait for itself"):
        thread.run_coroutine(double(1))
    thread.start()
    thread.stop()
    assert not thread.is_alive()
    with pytest.raises(RuntimeError, match="does not run"):
        thread.run_coroutine(double(1))


def test_it_does_not_wait_for_itself(loop_thread: EventLoopThread) -> None:
    """On the loop's own thread it raises instead of hanging for ever."""

    async def inside() -> int:
        return loop_thread.run_coroutine(double(1))

    with pytest.raises(RuntimeError, match="itself"):
        loop_thread.run_coroutine(inside())


def test_stopping_cancels_what_runs() -> None:
    """Nothing is left behind on a loop that was stopped."""
    thread = EventLoopThread(logger, interrupt_check_ival=0.01)
    thread.start()
    started, ended = threading.Event(), threading.Event()

    async def for_ever() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    def wait() -> None:
        with pytest.raises(asyncio.CancelledError):
            thread.run_coroutine(for_ever())

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert started.wait(10)
    thread.stop()
    assert ended.wait(10)
    waiting.join(10)
    assert not waiting.is_alive()


class Interrupted:
    """Interrupts a thread that waits for a coroutine, and keeps what came of it."""

    def __init__(self, loop_thread: EventLoopThread, coroutine: Callable[[threading.Event], Any]) -> None:
        self.outcome: Any = None
        started = threading.Event()
        thread = threading.Thread(target=self._wait, args=(loop_thread, coroutine(started)))
        thread.start()
        assert started.wait(10)
        assert thread.ident is not None
        raise_thread_exception(thread.ident, Interrupt)
        thread.join(10)
        assert not thread.is_alive()

    def _wait(self, loop_thread: EventLoopThread, coro: Any) -> None:
        try:
            self.outcome = loop_thread.run_coroutine(coro)
        except BaseException as e:  # noqa: BLE001  # it is what the test looks at
            self.outcome = e


def test_an_interrupt_cancels_the_coroutine(loop_thread: EventLoopThread) -> None:
    """It may clean up, then the interrupt goes on in the thread that waited."""
    ended: list[str] = []

    async def wait(started: threading.Event) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await turn()
            ended.append("cleaned up")
            raise

    assert isinstance(Interrupted(loop_thread, wait).outcome, Interrupt)
    assert ended == ["cleaned up"]


def test_a_coroutine_that_refuses_to_end_is_left(loop_thread: EventLoopThread, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its grace there is a ``RuntimeError``."""
    monkeypatch.setattr("greenroom.asyncio.CANCEL_GRACE_S", 0.05)
    leave = asyncio.Event()

    async def refuse(started: threading.Event) -> None:
        started.set()
        while not leave.is_set():
            try:
                await leave.wait()
            except asyncio.CancelledError:
                pass

    outcome = Interrupted(loop_thread, refuse).outcome
    loop_thread.loop.call_soon_threadsafe(leave.set)
    assert isinstance(outcome, RuntimeError)
    assert isinstance(outcome.__cause__, Interrupt)


def test_async_to_sync_needs_nothing() -> None:
    """It starts a loop when first needed, keeps it, and keeps the function's name."""
    sync = async_to_sync(double)
    assert get_event_loop_thread() is None
    assert [sync(1), sync(x=2)] == [2, 4]
    first = get_event_loop_thread()
    assert first is not None
    assert sync(3) == 6
    assert get_event_loop_thread() is first
    assert sync.__name__ == "double"


def test_async_to_sync_uses_the_thread_that_was_set(loop_thread: EventLoopThread) -> None:
    """``set_event_loop_thread`` says where coroutines run."""

    async def where() -> int:
        return threading.get_ident()

    set_event_loop_thread(loop_thread)
    assert get_event_loop_thread() is loop_thread
    assert async_to_sync(where)() == loop_thread.ident


def test_many_threads_start_one_loop() -> None:
    """However many need it first."""
    threads: set[Any] = set()
    barrier = threading.Barrier(8, timeout=10)

    def call() -> None:
        barrier.wait()
        async_to_sync(double)(1)
        threads.add(get_event_loop_thread())

    callers = [threading.Thread(target=call) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(10)
    assert len(threads) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_starts_its_own() -> None:
    """The loop thread of the parent does not exist in a child, which makes one of its own."""
    sync = async_to_sync(double)
    assert sync(1) == 2
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if get_event_loop_thread() is None and sync(2) == 4 else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_it_works_in_a_sync_actor(broker: StubBroker, worker: dramatiq.Worker) -> None:
    """With or without the AsyncIO middleware."""
    done: list[int] = []

    @dramatiq.actor
    def work(x: int) -> None:
        done.append(async_to_sync(double)(x))

    work.send(2)
    broker.join("default", timeout=10_000)
    assert done == [4]


def test_async_actors_need_no_middleware(broker: StubBroker, worker: dramatiq.Worker) -> None:
    """A coroutine function is an actor like any other."""
    done: list[int] = []

    @dramatiq.actor
    async def work(x: int) -> None:
        done.append(await double(x))

    work.send(2)
    broker.join("default", timeout=10_000)
    assert done == [4]


def test_the_middleware_is_accepted(broker: StubBroker, make_worker: MakeWorker) -> None:
    """It starts the loop thread with the worker and stops it with it."""
    broker.add_middleware(AsyncIO())
    worker = make_worker(broker)
    thread = get_event_loop_thread()
    assert thread is not None
    assert thread.is_alive()
    worker.stop()
    assert get_event_loop_thread() is None
    assert not thread.is_alive()
