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
from collections.abc import Callable, Iterable, Sequence
from queue import Empty, SimpleQueue

from ..backoff import full_jitter_s
from ..core.outbox import Outbox
from ..core.prefetch import claim_limit, hold_target
from ..core.run import Run
from ..core.verdict import Verdict
from ..errors import BrokerError, BrokerFull
from ..logging import get_logger
from ..ports.transport import MAX_TRIP, Consumer, Delivery, ErrorText, Exchange, Settlement
from .intake import Intake
from .threads import ThreadExecutor

logger = get_logger("greenroom.worker", "Pump")

#: Seconds for which finished runs may wait for company while executors have ready work.
COMPANY_S = 0.002
#: How many trips lie between two adjustments of the target.
_ADJUST_EVERY = 8


class Pump:
    """Owned by its own thread, but for ``ring``, ``subscribe``, ``pause`` and ``stop``, which others call."""

    def __init__(
        self,
        consumer: Consumer,
        intake: Intake,
        executor: ThreadExecutor,
        outbox: Outbox,
        *,
        wait_s: float,
        settled: Callable[[Sequence[Run]], None] | None = None,
    ) -> None:
        self.consumer = consumer
        self._intake = intake
        self._executor = executor
        self._ready = executor.ready
        self._outbox = outbox
        self._wait_s = wait_s
        self._on_settled = settled
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._waits_in_engine = False
        self._stop_at_s: float | None = None
        self._orders: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._held = 0
        self._target = executor.count
        self._dry = False
        self._trips = 0
        self._failures = 0
        self._no_room = False
        self._mean_body = 0.0
        self._measured = (0, 0.0)
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
        except BaseException:
            logger.critical("The pump has failed; nothing is claimed any more.", exc_info=True)
            raise
        finally:
            self._close()

    def _step(self) -> None:
        busy = not self._ready.empty()
        waiting = len(self._outbox.items) + len(self._decided)
        limit = claim_limit(self._target, self._held - waiting, busy=busy)
        if waiting and busy and not limit and not self._dry and waiting < (self._target >> 2):
            self._wait_for_runs(COMPANY_S)
            waiting = len(self._outbox.items) + len(self._decided)
            limit = claim_limit(self._target, self._held - waiting, busy=not self._ready.empty())
        if waiting:
            self._trip(limit)
        elif self._dry and limit:
            self._wait_for_messages()
        elif limit:
            self._trip(limit)
        else:
            self._wait_for_runs(self._wait_s)

    def _trip(self, limit: int) -> None:
        runs = self._outbox.take(MAX_TRIP - len(self._decided[:MAX_TRIP]))
        settle = [run.settlement for run in runs]
        if self._decided:
            settle += self._decided[: MAX_TRIP - len(settle)]
            del self._decided[: len(settle) - len(runs)]
        exchange = self._exchange(settle, 0 if self._no_room else limit)
        if exchange is None:
            return
        self._settled(runs, settle, exchange)
        if limit:
            self._dry = not exchange.more
            self._feed(exchange.deliveries)

    def _exchange(self, settle: Sequence[Settlement], limit: int) -> Exchange | None:
        """Makes a trip until it is answered. None if the pump was stopped meanwhile."""
        while True:
            try:
                exchange = self.consumer.exchange(settle, limit)
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
            self._held -= len(settle)
            if self._on_settled is not None and runs:
                self._on_settled(runs)
            return
        self._settled_in_part(runs, settle, exchange)

    def _settled_in_part(self, runs: Sequence[Run], settle: Sequence[Settlement], exchange: Exchange) -> None:
        settled = {id(s) for s in exchange.settled}
        self._held -= len(exchange.settled) + len(exchange.lost)
        if self._on_settled is not None:
            self._on_settled([run for run in runs if id(run.settlement) in settled])
        for s in exchange.lost:
            logger.warning("Message %s is no longer ours: its %s was not applied.", s.delivery.id, s.verdict.name)
        for s, error in exchange.refused:
            logger.error("The %s of message %s is impossible: %s", s.verdict.name, s.delivery.id, error)
            reason = ErrorText(type(error).__name__, str(error))
            self._decided.append(Settlement(s.delivery, Verdict.DEAD, error=reason))

    def _feed(self, deliveries: Sequence[Delivery]) -> None:
        if not deliveries:
            return
        self._held += len(deliveries)
        size = sum([len(delivery.body) for delivery in deliveries]) / len(deliveries)
        self._mean_body = size if not self._mean_body else (self._mean_body + size) / 2
        self._trips += 1
        if self._trips % _ADJUST_EVERY == 1:
            self._adjust()
        self._decided += self._intake.feed(deliveries)

    def _adjust(self) -> None:
        runs = busy_s = 0.0
        for slot in self._executor.slots:
            runs += slot.runs
            busy_s += slot.busy_s
        new_runs, new_busy_s = runs - self._measured[0], busy_s - self._measured[1]
        if new_runs < self._executor.count:
            return
        self._measured = (int(runs), busy_s)
        self._target = hold_target(
            self._target, slots=self._executor.count, mean_run_s=new_busy_s / new_runs, mean_body=self._mean_body
        )

    # --- waiting

    def _wait_for_runs(self, timeout_s: float) -> None:
        """Waits until a quarter of the target has finished, or there is nothing left to run."""
        self._outbox.announce(max(1, self._target >> 2))
        if not self._outbox.items or (not self._ready.empty() and len(self._outbox.items) < self._target >> 2):
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
        self.release(self._ready.drain())
        while self._held and time.monotonic() < deadline_s:
            if self._outbox.items or self._decided:
                self._trip(0)
                continue
            self._outbox.announce(1)
            if not self._outbox.items:
                self._listen(min(1.0, max(0.0, self._stop_at_s - time.monotonic()) if self._stop_at_s else 0.0))
            self._outbox.withdraw()
        if self._outbox.items or self._decided:
            self._trip(0)

    def release(self, runs: Iterable[Run]) -> None:
        """Decides that these runs, which have not started, are given back."""
        self._decided += [Settlement(run.delivery, Verdict.RELEASE) for run in runs]

    def _close(self) -> None:
        try:
            self.consumer.close()
        except BrokerError as e:
            logger.warning("Closing the consumer failed: %s", e)
