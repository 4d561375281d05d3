"""Coroutines from sync code: an event loop on a thread of its own, under the names of ``dramatiq.asyncio``.

Async actors need none of this: a worker runs them on its own loop. It is for sync actors, and any other sync code, that
has a coroutine function to call. The thread that calls waits; an ``Interrupt`` that lands in it cancels the coroutine.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine
from queue import Empty, SimpleQueue
from typing import Any, Generic, ParamSpec, TypeVar

from .errors import Interrupt
from .forksafe import PerProcess
from .logging import get_logger

__all__ = ["EventLoopThread", "async_to_sync", "get_event_loop_thread", "set_event_loop_thread"]

P = ParamSpec("P")
R = TypeVar("R")

#: Seconds that a cancelled coroutine has to clean up.
CANCEL_GRACE_S = 1.0
_STOP_TIMEOUT_S = 10.0


class EventLoopThread(threading.Thread):
    """A thread that runs an event loop. Any thread may call its methods.

    Parameters:
      logger: Where it tells of its start and end.
      interrupt_check_ival: Seconds between two looks for an interrupt while a thread waits in ``run_coroutine``; 0.1 by
        default.
    """

    def __init__(self, logger: logging.Logger, interrupt_check_ival: float = 0.1) -> None:
        super().__init__(name="asyncio", daemon=True)
        self.logger = logger
        self.interrupt_check_ival = interrupt_check_ival
        self.loop = asyncio.new_event_loop()
        self._running = threading.Event()

    def run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.call_soon(self._running.set)
        try:
            self.logger.debug("The event loop has started.")
            self.loop.run_forever()
        finally:
            self._running.clear()
            _close(self.loop)
            self.logger.debug("The event loop has ended.")

    def start(self, *, timeout: float | None = None) -> None:
        """Starts the thread; returns once the loop runs.

        Parameters:
          timeout: Seconds to wait for that; for ever by default.

        Raises:
          RuntimeError: If it does not run by then, or was started before.
        """
        super().start()
        if not self._running.wait(timeout):
            raise RuntimeError(f"The event loop did not start within {timeout} s.")

    def stop(self) -> None:
        """Stops the loop; what still runs on it is cancelled. Returns when the thread has ended."""
        if not self.is_alive():
            return
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.join(_STOP_TIMEOUT_S)

    def run_coroutine(self, coro: Coroutine[Any, Any, R]) -> R:
        """Runs a coroutine on the loop, and returns what it returns or raises what it raises.

        If an ``Interrupt`` lands in the calling thread meanwhile, the coroutine is cancelled, and the interrupt goes on
        when it has ended.

        Raises:
          RuntimeError: If the loop does not run, if called on the loop's own thread, or if an interrupted coroutine
            has not ended within 1.0 s.
        """
        if not self._running.is_set() or threading.current_thread() is self:
            coro.close()
            raise RuntimeError(
                "This event loop does not run." if self.loop.is_closed() else "This would wait for itself."
            )
        call = _Call(coro, self.loop)
        try:
            call.start()
            call.wait(self.interrupt_check_ival)
        except BaseException as e:
            call.cancel()
            if not call.has_ended(CANCEL_GRACE_S) and isinstance(e, Interrupt):
                raise RuntimeError("The interrupted coroutine did not end in time.") from e
            raise
        return call.outcome()


class _Call(Generic[R]):
    """A coroutine on its way through a loop. What begins with an underscore runs on the loop's thread, the rest is for
    the calling one.

    Not a ``concurrent.futures.Future``: an interrupt that lands while the caller holds that one's lock would stop the
    loop for ever; and its timeout cannot be told from a ``TimeoutError`` of the coroutine.
    """

    def __init__(self, coro: Coroutine[Any, Any, R], loop: asyncio.AbstractEventLoop) -> None:
        self._coro = coro
        self._loop = loop
        self._task: asyncio.Task[R] | None = None
        self._ended: SimpleQueue[None] = SimpleQueue()

    def start(self) -> None:
        self._loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        self._task = self._loop.create_task(self._coro)
        self._task.add_done_callback(lambda _task: self._ended.put(None))

    def wait(self, check_interval_s: float) -> None:
        while not self.has_ended(check_interval_s):
            pass  # an interrupt lands between two instructions of Python, so there have to be some

    def has_ended(self, timeout_s: float) -> bool:
        try:
            self._ended.get(timeout=timeout_s)
        except Empty:
            return False
        return True

    def cancel(self) -> None:
        self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if self._task is None:  # the interrupt was faster than `start`
            self._coro.close()
            self._ended.put(None)
        else:
            self._task.cancel()

    def outcome(self) -> R:
        assert self._task is not None
        try:
            return self._task.result()
        finally:
            self._task = None  # or the exception's traceback would keep this frame in a cycle


def _close(loop: asyncio.AbstractEventLoop) -> None:
    try:
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()


class _Current:
    """The event loop thread of this process. Any thread may use it."""

    def __init__(self) -> None:
        self.thread: EventLoopThread | None = None
        self._lock = threading.Lock()  # guards: only one thread is started

    def running(self) -> EventLoopThread:
        """The thread; started now if there is none."""
        with self._lock:
            if self.thread is None or not self.thread.is_alive():
                self.thread = EventLoopThread(get_logger(__name__, EventLoopThread))
                self.thread.start()
            return self.thread


_current: PerProcess[_Current] = PerProcess(_Current)


def get_event_loop_thread() -> EventLoopThread | None:
    """The event loop thread of this process, or None if none was set and none was needed yet."""
    return _current.get().thread


def set_event_loop_thread(event_loop_thread: EventLoopThread | None) -> None:
    """Sets the event loop thread that ``async_to_sync`` uses in this process. With None it makes one when needed."""
    _current.get().thread = event_loop_thread


def start_event_loop_thread() -> EventLoopThread:
    """The event loop thread of this process, started now if there is none that runs."""
    return _current.get().running()


def async_to_sync(async_fn: Callable[P, Awaitable[R]]) -> Callable[P, R]:
    """Makes a sync function of an async one. It runs on the event loop thread, which is started when first needed."""

    @functools.wraps(async_fn)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        return start_event_loop_thread().run_coroutine(_awaited(async_fn, *args, **kwargs))

    return wrapper


async def _awaited(async_fn: Callable[P, Awaitable[R]], *args: P.args, **kwargs: P.kwargs) -> R:
    return await async_fn(*args, **kwargs)
