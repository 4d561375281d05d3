"""The loop executor: async actors on one event loop, a task a message, ``count`` at a time.

Fed in batches by one ``call_soon_threadsafe``, and answering through the outbox: 5 to 12 us a message, against 91 for a
``run_in_executor`` a call. A task a message, and not standing tasks that take the next one, because each message then
has a context of its own for nothing.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .. import failpoints
from ..context import executing
from ..core.outbox import NOT_WAITING, Outbox
from ..core.ready import Buckets
from ..core.run import Run
from ..forksafe import in_child
from ..logging import get_logger, one_line
from ..middleware.shutdown import Shutdown
from ..middleware.time_limit import TimeLimitExceeded
from .coroutines import cancel
from .slot import Slot
from .steps import Steps, compile_steps
from .strays import leave, leave_with

logger = get_logger("greenroom.worker", "LoopThread")

#: Seconds after which a loop that does not answer is reported.
BLOCKED_AFTER_S = 1.0
#: Seconds between two cancellations of the same actor.
STRIKE_EVERY_S = 1.0


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A loop of uvloop's where that is installed, else of asyncio's."""
    try:
        import uvloop  # type: ignore[import-not-found,unused-ignore]  # an extra
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


class LoopExecutor:
    """Owned by the loop's thread, which starts with the first message; ``feed`` is called by the pump, ``tick`` and
    ``notify_shutdown`` by others, through ``call_soon_threadsafe``. ``cells`` are those of the board, ``count`` of
    them."""

    def __init__(self, broker: Any, count: int, outbox: Outbox, cells: memoryview) -> None:
        self.broker = broker
        self.count = count
        self.outbox = outbox
        self._cells = cells
        self.slots = [Slot(index) for index in range(count)]
        self._free = list(reversed(self.slots))
        self._ready = Buckets()
        self._pop = failpoints.after("start.before_attempt_persist", self._ready.pop)
        self._steps: Steps | None = None
        self._hook_pool: ThreadPoolExecutor | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._beat_s = 0.0  # when the loop answered last
        self._asked_s = 0.0  # when it was asked last
        self._reported = False
        self._stops = False  # actors are to be told of it
        self._ended = False  # the loop is to end

    @property
    def idle(self) -> bool:
        """True if nothing waits for a free place."""
        return not len(self._ready)

    @property
    def waiting(self) -> int:
        """How many runs wait for a free place."""
        return len(self._ready)

    def feed(self, runs: Sequence[Run], priority: int) -> None:
        """Pump: hands runs of one priority over, in one call of the loop's."""
        loop = self._loop or self._start()
        self._ready.push(runs, priority)
        loop.call_soon_threadsafe(self._admit)

    def drain(self) -> list[Run]:
        """Takes back what has not started."""
        runs = []
        while (run := self._ready.pop()) is not None:
            runs.append(run)
        return runs

    # --- on the loop

    def _start(self) -> asyncio.AbstractEventLoop:
        loop = self._loop = new_event_loop()
        self._thread = threading.Thread(target=self._main, args=(loop,), name="loop", daemon=True)
        self._thread.start()
        return loop

    def _main(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            while not self._ended:
                self._run_loop(loop)
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    def _run_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            loop.run_forever()
        except (SystemExit, KeyboardInterrupt) as e:  # out of a task or a callback that an actor has made
            logger.error("A task raised %s; the event loop goes on.", type(e).__name__, exc_info=e)

    def _admit(self) -> None:
        assert self._loop is not None
        create_task = self._loop.create_task
        while self._free:
            run = self._pop()
            if run is None:
                return
            slot = self._free.pop()
            run.slot = slot
            slot.run = run
            slot.task = create_task(self._run(run, slot), context=contextvars.Context())

    async def _run(self, run: Run, slot: Slot) -> None:
        executing.set(run)
        self._cells[slot.index] = run.delivery.mark  # from here on a crash is charged to it
        steps = self._steps
        if steps is None or steps.hooks is not self.broker._hooks:  # its middleware was changed
            steps = self._steps = compile_steps(self.broker)
        try:
            if steps.blocking:
                await self._run_blocking(steps, run)
            elif steps.begin(run):
                result, exception = await _call(steps, run)
                steps.finish(run, result, exception)
                exception = None
            run.settlement = steps.settle(run)
        except BaseException as e:  # noqa: BLE001  # a hook's SystemExit must cost neither the loop nor the message
            steps.rescue(run, e)
        self._finished(run, slot)

    async def _run_blocking(self, steps: Steps, run: Run) -> None:
        """The same where a middleware's hooks may block: they run on a thread beside the loop."""
        assert self._loop is not None
        if self._hook_pool is None:
            self._hook_pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loop-hooks")
        context = contextvars.copy_context()
        if await self._beside(context.run, steps.begin, run):
            result, exception = await _call(steps, run)
            await self._beside(context.run, steps.finish, run, result, exception)
            exception = None

    async def _beside(self, function: Callable[..., Any], *args: Any) -> Any:
        """Calls a function on the thread for hooks. Goes on waiting where an actor has cancelled its own task: the
        message must be settled all the same."""
        assert self._loop is not None
        future = self._loop.run_in_executor(self._hook_pool, function, *args)
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError:
                continue
        return future.result()

    def _finished(self, run: Run, slot: Slot) -> None:
        self._cells[slot.index] = 0  # before it can be settled: its mark may then be another's
        run._exception = None
        slot.run = slot.task = None
        slot.forget_policies()
        slot.strikes = 0
        self._free.append(slot)
        self._admit()
        outbox = self.outbox
        outbox.append(run)
        if outbox.ring_at < NOT_WAITING:
            outbox.tell(self.idle)

    # --- called by the ticker

    def tick(self, now_s: float) -> None:
        """Cancels what runs over its time limit, and reports a loop that is blocked."""
        loop = self._loop
        if loop is None or self._ended:
            return
        for slot in self.slots:
            if self._stops:
                self._tell_of_shutdown(loop, slot)
            run, deadline = slot.run, slot.deadline
            if run is not None and deadline and now_s >= deadline + slot.strikes * STRIKE_EVERY_S:
                slot.strikes += 1
                if slot.strikes == 1:
                    logger.warning("Time limit exceeded. Cancelling message %s.", one_line(run.message_id, 255))
                loop.call_soon_threadsafe(cancel, slot, run, TimeLimitExceeded)
        self._watch(loop)

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        real_now_s = time.monotonic()
        if self._beat_s >= self._asked_s:
            self._reported = False
            self._asked_s = real_now_s
            loop.call_soon_threadsafe(self._beat)
        elif real_now_s - self._asked_s >= BLOCKED_AFTER_S and not self._reported and self._thread is not None:
            self._reported = True
            frame = sys._current_frames().get(self._thread.ident or 0)
            stack = "".join(traceback.format_stack(frame)) if frame is not None else "(no stack)\n"
            logger.warning(
                "The event loop has been blocked for %.1f s: no other coroutine runs meanwhile. It is here:\n%s",
                real_now_s - self._asked_s,
                stack,
            )

    def _beat(self) -> None:
        self._beat_s = time.monotonic()

    def notify_shutdown(self) -> None:
        """Cancels the actors that asked to be told of a shutdown; ``tick`` does so with those that begin yet."""
        self._stops = True
        loop = self._loop
        if loop is None:
            return
        for slot in self.slots:
            self._tell_of_shutdown(loop, slot)

    def _tell_of_shutdown(self, loop: asyncio.AbstractEventLoop, slot: Slot) -> None:
        run = slot.run
        if run is not None and slot.notify_shutdown:
            loop.call_soon_threadsafe(cancel, slot, run, Shutdown)

    # --- the end

    def stop(self) -> None:
        """Nothing more will be fed."""

    def join(self, deadline_s: float) -> bool:
        """Waits until nothing runs, until ``deadline_s`` on the monotonic clock, then cancels what does and ends the
        loop. True if nothing had to be cancelled."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return True
        done = threading.Event()

        async def wind_up() -> None:
            tasks = [slot.task for slot in self.slots if slot.task is not None]
            if tasks:
                await asyncio.wait(tasks, timeout=max(0.0, deadline_s - time.monotonic()))
            done.set()

        clean = True
        asyncio.run_coroutine_threadsafe(wind_up(), loop)
        if not done.wait(max(0.0, deadline_s - time.monotonic()) + 1.0):
            logger.warning("The event loop does not answer; it is left behind.")
            return False
        for slot in self.slots:
            task = slot.task
            if task is not None:
                clean = False
                loop.call_soon_threadsafe(task.cancel)
        self._ended = True
        loop.call_soon_threadsafe(loop.stop)
        thread.join(1.0)
        if self._hook_pool is not None:
            self._hook_pool.shutdown(wait=False)
        self._loop = self._thread = None
        return clean


async def _call(steps: Steps, run: Run) -> tuple[Any, BaseException | None]:
    started_s = time.perf_counter()
    slot = run.slot
    try:
        result = await steps.acall(run)
        if not steps.home[0]:
            leave(run)
        return result, None
    except BaseException as e:  # noqa: BLE001  # whatever an actor raises is its failure
        if not steps.home[0]:
            leave(run, e)
        return None, e
    finally:
        slot.busy_s += time.perf_counter() - started_s
        slot.runs += 1


@in_child
def _keep_children_from_the_loop() -> None:
    leave_with(LoopExecutor._run.__code__)
