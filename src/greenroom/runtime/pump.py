"""The pump: the one thread of a process that talks to the engine on behalf of its executors.

Its law:

* **One trip for everything.** A call of ``exchange`` settles what is finished and claims what comes next.
* **Natural batching, no timer.** The pump makes its next trip as soon as it is free; what finishes during a trip is
  the next batch. What keeps trips large is a threshold: while executors have ready work, nothing is claimed until a
  quarter of the target is free, and nothing is settled until a quarter has finished or 2 ms have passed.
* **No user code here**, so that nothing a task does can stop settling.
* **A trip that failed is made again as it was**, after a wait with full jitter, for ever.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from ..backoff import full_jitter_s
from ..core.outbox import Outbox
from ..core.prefetch import MAX_CLAIM
from ..core.run import Run
from ..core.verdict import Verdict
from ..errors import BrokerError, BrokerFull
from ..logging import get_logger
from ..ports.transport import MAX_TRIP, Consumer, Delivery, ErrorText, Exchange, Settlement
from .intake import Intake
from .lanes import Lane, QueueCap, joint_limit
from .loop import LoopExecutor
from .threads import ThreadExecutor

logger = get_logger("greenroom.worker", "Pump")

#: Seconds for which finished runs may wait for company while executors have ready work.
COMPANY_S = 0.002
#: How many trips lie between two adjustments of the target.
_ADJUST_EVERY = 8


class PumpListener(Protocol):
    """Who is told of what the pump has done, on the pump's thread: a worker."""

    def settled(self, runs: Sequence[Run]) -> None:
        """The engine has settled these runs."""

    def crashed(self) -> None:
        """The pump has ended, because of an error that nothing should raise."""


class Pump:
    """Owned by its own thread, but for ``ring``, ``order`` and ``stop``, which others call."""

    def __init__(
        self,
        broker: Any,
        consumer: Consumer,
        threads: ThreadExecutor,
        loop: LoopExecutor,
        outbox: Outbox,
        *,
        wait_s: float,
        queue_cap: int | None = None,
        listener: PumpListener | None = None,
    ) -> None:
        self.consumer = consumer
        self._broker = broker
        self._threads = Lane(threads)
        self._loop = Lane(loop)
        self._intake = Intake(broker, self._threads, self._loop)
        self._outbox = outbox
        self._wait_s = wait_s
        self._cap = QueueCap(queue_cap) if queue_cap else None
        self._listener = listener
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._waits_in_engine = False
        self._stop_at_s: float | None = None
        self._orders: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._lanes: tuple[Lane, ...] = ()  # those that have actors
        self._actors_seen = -1
        self._dry = False
        self._trips = 0
        self._failures = 0
        self._no_room = False
        self._mean_body = 0.0
        self._finished: list[Run] = []  # taken from the outbox, not settled yet
        self._decided: list[Settlement] = []  # settled without having run: not decodable, unknown, released
        self.thread = threading.Thread(target=self._main, name="pump", daemon=True)

    # --- called by other threads

    def ring(self) -> None:
        """Any thread: ends whatever the pump waits for."""
        if self._waits_in_engine:
            self.consumer.wake()
        else:
            self._bell.put(None)

    def order(self, action: Callable[[], None]) -> None:
        """Any thread: has the pump do something small between two trips, such as subscribing to a queue."""
        self._orders.put(action)
        self.consumer.wake()
        self._bell.put(None)

    def stop(self, deadline_s: float) -> None:
        """Any thread: release what has not started, settle what finishes until ``deadline_s`` (monotonic), end."""
        self._stop_at_s = deadline_s
        self.consumer.wake()
        self._bell.put(None)

    # --- the loop

    def _main(self) -> None:
        try:
            while self._stop_at_s is None:
                self._follow_orders()
                self._step()
            self._wind_up(self._stop_at_s)
        except Exception:
            logger.critical("The pump has failed; nothing is claimed any more.", exc_info=True)
            if self._listener is not None:
                self._listener.crashed()
        finally:
            self._close()

    def _step(self) -> None:
        self._collect()
        lanes = self._active_lanes()
        limit = self._limit(lanes)
        unsettled = len(self._finished) + len(self._decided)
        if unsettled and not limit and not self._dry and unsettled < self._quarter(lanes) and self._is_busy(lanes):
            self._wait_for_runs(COMPANY_S, lanes)
            self._collect()
            limit = self._limit(lanes)
            unsettled = len(self._finished) + len(self._decided)
        if unsettled:
            self._trip(limit)
        elif limit and self._dry:
            self._wait_for_messages()
        elif limit:
            self._trip(limit)
        else:
            self._wait_for_runs(self._wait_s, lanes)

    def _collect(self) -> None:
        """Takes what has finished out of the outbox. Its places are free from here on."""
        runs = self._outbox.take(MAX_CLAIM - len(self._finished))  # settled in turns as short as claims are
        if not runs:
            return
        self._finished += runs
        on_loop = sum([run.actor.is_async for run in runs]) if self._loop.held else 0
        self._loop.held -= on_loop
        self._threads.held -= len(runs) - on_loop

    def _active_lanes(self) -> tuple[Lane, ...]:
        """The lanes that any actor uses. Both are one only in programs that have both kinds."""
        actors = self._broker.actors
        if len(actors) != self._actors_seen:
            self._actors_seen = len(actors)
            kinds = {actor.is_async for actor in list(actors.values())}
            loop = (self._loop,) if True in kinds else ()
            self._lanes = (self._threads, *loop) if False in kinds or not loop else loop
        return self._lanes

    def _limit(self, lanes: tuple[Lane, ...]) -> int:
        """How many messages to claim now."""
        if len(lanes) == 1:
            return lanes[0].limit()
        return joint_limit(lanes, self._threads.executor.count)

    def _quarter(self, lanes: tuple[Lane, ...]) -> int:
        return min([lane.target for lane in lanes if lane.is_in_use] or [0]) >> 2

    def _is_busy(self, lanes: tuple[Lane, ...]) -> bool:
        return any(lane.is_busy for lane in lanes)

    def _trip(self, limit: int) -> None:
        runs, self._finished = self._finished, []
        settle = [run.settlement for run in runs]
        room = MAX_TRIP - len(settle)
        settle += self._decided[:room]
        del self._decided[:room]
        skip = self._intake.skip()
        if self._cap is not None:
            self._cap.returned(runs)
            limit, skip = self._cap.bound(limit, skip)
        exchange = self._exchange(settle, 0 if self._no_room else limit, skip)
        if exchange is None:
            return
        self._settled(runs, settle, exchange)
        if limit:
            self._dry = not exchange.more
            self._feed(exchange.deliveries)

    def _exchange(self, settle: Sequence[Settlement], limit: int, skip: frozenset[str]) -> Exchange | None:
        """Makes a trip until it is answered. None if the pump was stopped meanwhile."""
        while True:
            try:
                exchange = self.consumer.exchange(settle, limit, skip)
            except BrokerError as e:
                self._no_room = isinstance(e, BrokerFull)
                if self._no_room:
                    limit = 0
                self._failed_trip(e)
                if self._stop_at_s is not None and time.monotonic() >= self._stop_at_s:
                    return None
            else:
                if self._failures:
                    logger.info("The broker answers again.")
                self._failures = 0
                self._no_room = False
                return exchange

    def _failed_trip(self, error: BrokerError) -> None:
        delay_s = full_jitter_s(self._failures)
        self._failures += 1
        logger.warning("A trip to the broker failed, trying again in %.1f s: %s", delay_s, error)
        self._listen(delay_s)

    def _settled(self, runs: Sequence[Run], settle: Sequence[Settlement], exchange: Exchange) -> None:
        if len(exchange.settled) == len(settle):
            if self._listener is not None and runs:
                self._listener.settled(runs)
            return
        settled = {id(s) for s in exchange.settled}
        if self._listener is not None:
            self._listener.settled([run for run in runs if id(run.settlement) in settled])
        for s in exchange.lost:
            logger.warning("Message %s is no longer ours: its %s was not applied.", s.delivery.id, s.verdict.name)
        for s, error in exchange.refused:
            logger.error("The %s of message %s is impossible: %s", s.verdict.name, s.delivery.id, error)
            reason = ErrorText(type(error).__name__, str(error))
            self._decided.append(Settlement(s.delivery, Verdict.DEAD, error=reason))

    def _feed(self, deliveries: Sequence[Delivery]) -> None:
        if not deliveries:
            return
        size = sum([len(delivery.body) for delivery in deliveries]) / len(deliveries)
        self._mean_body = size if not self._mean_body else (self._mean_body + size) / 2
        self._trips += 1
        if self._trips % _ADJUST_EVERY == 1:
            self._threads.adjust(self._mean_body)
            self._loop.adjust(self._mean_body)
        decided = self._intake.feed(deliveries)
        if self._cap is not None:
            self._cap.claimed(deliveries, decided)
        self._decided += decided

    # --- waiting

    def _wait_for_runs(self, timeout_s: float, lanes: tuple[Lane, ...]) -> None:
        """Waits until a quarter of the target has finished, or there is nothing left to run."""
        enough = max(1, self._quarter(lanes) - len(self._finished))
        self._outbox.announce(enough)
        finished = len(self._outbox.items)
        if not finished or (finished < enough and self._is_busy(lanes)):
            self._listen(timeout_s)
        self._outbox.withdraw()

    def _wait_for_messages(self) -> None:
        """Waits in the engine, for a message or for a run that finishes."""
        self._waits_in_engine = True
        self._outbox.announce(1)
        try:
            if not self._outbox.items and self._orders.empty() and self._stop_at_s is None:
                self.consumer.wait(self._wait_s)
        except BrokerError as e:
            self._waits_in_engine = False
            self._failed_trip(e)
        finally:
            self._waits_in_engine = False
            self._outbox.withdraw()
        self._dry = False

    def _listen(self, timeout_s: float) -> None:
        """Waits for the bell, and swallows all its strokes."""
        try:
            self._bell.get(timeout=timeout_s)
            while True:
                self._bell.get_nowait()
        except Empty:
            return

    def _follow_orders(self) -> None:
        while not self._orders.empty():
            self._orders.get()()
            self._dry = False

    # --- the end

    def _wind_up(self, deadline_s: float) -> None:
        """Releases what has not started, then settles what finishes until nothing runs or the grace is over."""
        self._cap = None
        for lane in (self._threads, self._loop):
            runs = lane.executor.drain()
            lane.held -= len(runs)
            self._decided += [Settlement(run.delivery, Verdict.RELEASE) for run in runs]
        while True:
            self._collect()
            if self._finished or self._decided:
                self._trip(0)
            elif not (self._threads.held or self._loop.held) or time.monotonic() >= deadline_s:
                return
            else:
                self._outbox.announce(1)
                if not self._outbox.items:
                    self._listen(min(1.0, max(0.0, deadline_s - time.monotonic())))
                self._outbox.withdraw()

    def _close(self) -> None:
        """Ends the owner. Where something still runs it lives on with its process, so that nobody else starts that."""
        if self._stop_at_s is not None and (self._threads.held or self._loop.held):
            return
        try:
            self.consumer.close()
        except BrokerError as e:
            logger.warning("Closing the consumer failed: %s", e)
