"""The pump: the one thread of a process that talks to the engine on behalf of its executors.

Its law:

* **One trip for everything.** A call of ``exchange`` settles what is finished and claims what comes next.
* **Natural batching, no timer.** The pump makes its next trip as soon as it is free; what finishes during a trip is
  the next batch. What keeps trips large is a threshold: while executors have ready work, nothing is claimed until a
  quarter of the target is free, and nothing is settled until a quarter has finished or 2 ms have passed.
* **No user code here**, so that nothing a task does can stop settling.
* **A trip that failed is made again as it was**, after a wait with full jitter, for ever; unless the error is one of
  the few that no waiting mends. Then the pump ends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from .. import failpoints
from ..composition.built_in import OPEN_GROUP
from ..core.outbox import Outbox
from ..core.prefetch import MAX_CLAIM
from ..core.run import Run
from ..core.verdict import Verdict
from ..errors import BrokerError
from ..logging import get_logger
from ..ports.transport import MAX_TRIP, Consumer, Delivery, Exchange, Incident, Settlement
from .errands import Errands
from .intake import Intake
from .isolation import Isolation
from .lanes import Lane, QueueCap, joint_limit
from .listener import PumpListener
from .loop import LoopExecutor
from .store_writer import StoreWriters
from .threads import ThreadExecutor
from .trips import PERMANENT, Trips, fitting
from .unanswered import Unanswered

logger = get_logger("greenroom.worker", "Pump")

#: Seconds for which finished runs may wait for company while executors have ready work.
COMPANY_S = 0.002
#: How many trips lie between two adjustments of the target.
_ADJUST_EVERY = 8


class Pump:
    """Owned by its own thread, but for ``ring``, ``order``, ``let_go`` and ``stop``, which others call."""

    def __init__(
        self,
        broker: Any,
        consumer: Consumer,
        threads: ThreadExecutor,
        loop: LoopExecutor,
        *,
        wait_s: float,
        keeps_history: bool,
        listener: PumpListener,
        queue_cap: int | None = None,
    ) -> None:
        self.consumer = consumer
        self._broker = broker
        self._threads = Lane(threads)
        self._loop = Lane(loop)
        self._intake = Intake(broker, self._threads, self._loop, self._history if keeps_history else None)
        self._isolation = Isolation(broker, self._intake, self._threads, self._loop)
        self._outbox: Outbox = threads.outbox
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
        self._owes_trip = False
        self._trips = Trips(consumer, self._listen)
        self._feeds = 0
        self._mean_body = 0.0
        self._finished: list[Run] = []  # taken from the outbox, not settled yet
        self._decided: list[Settlement] = []  # settled without having run: not decodable, unknown, released
        self._unanswered = Unanswered()
        self.writers = StoreWriters()
        self._errands = Errands(broker, self.writers, self.order, self._finish, self._decide)
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

    def reap_soon(self) -> None:
        """Any thread: makes a trip at once, also if there is nothing to claim or to settle, and has it look for owners
        that have died."""
        self.consumer.reap_soon()
        self.order(self._owe_trip)

    def let_go(self) -> None:
        """Any thread: what was claimed may be others' by now. Takes back all that has not started, also while a trip
        goes on; the next one gives it back, if it is ours all the same."""
        for lane in (self._threads, self._loop):
            runs = lane.executor.drain()
            if runs:
                logger.warning("The broker has not been heard for too long: %d messages are not started.", len(runs))
                self.order(partial(self._take_back, lane, runs))

    def _take_back(self, lane: Lane, runs: Sequence[Run]) -> None:
        lane.held -= len(runs)
        self._decide(_released(runs))

    def _owe_trip(self) -> None:
        self._owes_trip = True

    def stop(self, deadline_s: float) -> None:
        """Any thread: release what has not started, settle what finishes until ``deadline_s`` (monotonic), end."""
        self._trips.deadline_s = deadline_s
        self._stop_at_s = deadline_s
        self.consumer.wake()
        self._bell.put(None)

    # --- the loop

    def _main(self) -> None:
        gives_back_all = False
        try:
            while self._stop_at_s is None:
                self._follow_orders()
                self._step()
            self._wind_up(self._stop_at_s)
        except PERMANENT as e:
            logger.critical("Nothing is claimed or settled any more: %s: %s", type(e).__name__, e)
            self._drain()
            self._listener.failed(e)
        except Exception as e:
            gives_back_all = self._stop_at_s is None
            logger.critical("The pump has failed; nothing is claimed any more.", exc_info=True)
            self._listener.failed(e)
        finally:
            if gives_back_all or not self._holds():
                self._close()

    def _step(self) -> None:
        self._collect()
        if self._isolation.is_on:
            is_open = self._finished or self._decided or self._errands.waiting or self._unanswered
            self._decide(self._isolation.step(all_settled=not is_open))
        lanes = self._active_lanes()
        limit = self._limit(lanes)
        unsettled = len(self._finished) + len(self._decided)
        if unsettled and not limit and not self._dry and unsettled < self._quarter(lanes) and self._is_busy(lanes):
            self._wait_for_runs(COMPANY_S, lanes)
            self._collect()
            limit = self._limit(lanes)
            unsettled = len(self._finished) + len(self._decided)
        if unsettled or self._owes_trip:
            self._trip(limit)
        elif limit and self._dry:
            self._wait_for_messages()
        elif limit:
            self._trip(limit)
        elif self._isolation.is_on:
            self._wait_for_runs(self._isolation.wait_s(self._wait_s), lanes)
        else:
            self._wait_for_runs(self._wait_s, lanes)

    def _collect(self) -> None:
        """Takes what has finished out of the outbox. Its places are free from here on."""
        runs = self._outbox.take(MAX_CLAIM - len(self._finished))  # settled in turns as short as claims are
        if not runs:
            return
        self._finished += self._errands.leave(runs)
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
        if self._isolation.is_on or self._errands.waiting >= MAX_CLAIM:
            return 0
        if len(lanes) == 1:
            return lanes[0].limit()
        return joint_limit(lanes, self._threads.executor.count)

    def _quarter(self, lanes: tuple[Lane, ...]) -> int:
        return min([lane.target for lane in lanes if lane.is_in_use] or [0]) >> 2

    def _is_busy(self, lanes: tuple[Lane, ...]) -> bool:
        return any(lane.is_busy for lane in lanes)

    def _holds(self) -> bool:
        return bool(self._threads.held or self._loop.held)

    def _trip(self, limit: int) -> None:
        self._owes_trip = False
        runs: Sequence[Run] = self._finished[:MAX_TRIP]
        if OPEN_GROUP in self._broker.actors:  # who has finished that pushes a thousand
            runs = fitting(runs)
        self._finished = self._finished[len(runs) :]
        settle = [run.settlement for run in runs]
        room = MAX_TRIP - len(settle)
        settle += self._decided[:room]
        del self._decided[:room]
        skip = self._intake.skip()
        if self._cap is not None:
            self._cap.returned(runs)
            limit, skip = self._cap.bound(limit, skip)
        exchange = self._trips.make(settle, limit, skip)
        if exchange is None:
            return
        self._settled(runs, settle, exchange)
        if limit:
            self._dry = not exchange.more
            self._feed(exchange.deliveries)

    def _settled(self, runs: Sequence[Run], settle: Sequence[Settlement], exchange: Exchange) -> None:
        if self._errands.unfinished:
            self._errands.answered(exchange)
        if len(exchange.settled) == len(settle) and not (self._unanswered or exchange.reset):
            if runs:
                self._listener.settled(runs)
            return
        settled, lost = self._unanswered.sort_out(runs, settle, exchange)
        self._listener.settled(settled)
        if exchange.lost:
            self._lost(exchange.lost, lost)
        if exchange.refused:
            self._refused(exchange.refused)
        if exchange.reset:
            self._decide(_released(self._drain()))

    def _refused(self, refused: Sequence[tuple[Settlement, Exception]]) -> None:
        if self._cap is not None:  # they are held until they are decided anew
            self._cap.claimed([s.delivery for s, _ in refused])
        self._decide(self._errands.refused(refused))

    def _lost(self, settlements: Sequence[Settlement], runs: Sequence[Run]) -> None:
        """We were taken for dead, and others run what we held. So what has not started is let go: if some of it is ours
        all the same, it is given back."""
        late = [s for s in settlements if s.verdict is not Verdict.RELEASE]
        if late:
            self._listener.lost(late, runs)
            self._decide(_released(self._drain()))

    def _feed(self, deliveries: Sequence[Delivery]) -> None:
        if not deliveries:
            return
        size = sum([len(delivery.body) for delivery in deliveries]) / len(deliveries)
        self._mean_body = size if not self._mean_body else (self._mean_body + size) / 2
        self._feeds += 1
        if self._feeds % _ADJUST_EVERY == 1:
            self._threads.adjust(self._mean_body)
            self._loop.adjust(self._mean_body)
        admitted = self._intake.feed(deliveries)
        if self._cap is not None:
            self._cap.claimed(deliveries)
        self._errands.take(admitted)
        self._decide(admitted.decided)
        self._finished += admitted.condemned
        self._isolation.add(admitted.suspects)
        if failpoints.armed:
            failpoints.hit("prefetch.queued")

    def _finish(self, run: Run) -> None:
        self._finished.append(run)

    def _decide(self, settlements: Sequence[Settlement]) -> None:
        """Settles, with the next trips, what has not run: it is not held any more."""
        self._decided += settlements
        if self._cap is not None:
            self._cap.decided(settlements)

    def _history(self, delivery: Delivery) -> Sequence[Incident]:
        try:
            return self.consumer.history(delivery)
        except PERMANENT:
            raise
        except BrokerError as e:
            logger.warning("The history of message %s cannot be read: %s", delivery.id, e)
            return ()

    # --- waiting

    def _wait_for_runs(self, timeout_s: float, lanes: tuple[Lane, ...]) -> None:
        """Waits until a quarter of the target has finished, or there is nothing left to run."""
        enough = max(1, self._quarter(lanes) - len(self._finished))
        self._outbox.announce(enough)
        finished = len(self._outbox.items)
        if not finished or (finished < enough and self._is_busy(lanes)):
            self._listen(timeout_s)
        self._outbox.withdraw()
        self._owes_trip = self._owes_trip or bool(self._unanswered)

    def _wait_for_messages(self) -> None:
        """Waits in the engine, for a message or for a run that finishes."""
        self._intake.catch_up()
        self._wait_in_engine(self._wait_s, lambda: self._stop_at_s is None)
        self._dry = False

    def _wait_in_engine(self, timeout_s: float, is_wanted: Callable[[], bool]) -> None:
        self._waits_in_engine = True
        self._outbox.announce(1)
        try:
            if not self._outbox.items and self._orders.empty() and is_wanted():
                self.consumer.wait(timeout_s)
        except PERMANENT:
            raise
        except BrokerError as e:
            self._waits_in_engine = False
            self._trips.failed(e)
        finally:
            self._waits_in_engine = False
            self._outbox.withdraw()

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
        self._decided += _released(self._drain())
        failpoints.hit("shutdown.after_stop_fetch")
        while True:
            self._follow_orders()
            self._collect()
            if self._finished or self._decided or self._owes_trip:
                self._trip(0)
            elif not (self._holds() or self._errands.waiting or self._unanswered) or time.monotonic() >= deadline_s:
                return
            elif self._unanswered:
                self._wait_in_engine(min(1.0, max(0.0, deadline_s - time.monotonic())), lambda: True)
                self._owes_trip = True
            else:
                self._outbox.announce(1)
                if not self._outbox.items:
                    self._listen(min(1.0, max(0.0, deadline_s - time.monotonic())))
                self._outbox.withdraw()

    def _drain(self) -> list[Run]:
        """Takes back all that has not started."""
        drained = self._isolation.drain()
        for lane in (self._threads, self._loop):
            runs = lane.executor.drain()
            lane.held -= len(runs)
            drained += runs
        return drained

    def _close(self) -> None:
        """Ends the owner. Not where something runs: the owner lives on then, so that nobody else starts that."""
        try:
            self.consumer.close()
        except BrokerError as e:
            logger.warning("Closing the consumer failed: %s", e)


def _released(runs: Sequence[Run]) -> list[Settlement]:
    return [Settlement(run.delivery, Verdict.RELEASE) for run in runs]
