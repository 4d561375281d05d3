"""The bridge: a broker that a user wrote in Dramatiq's style, made a transport.

Such a broker brings ``enqueue``, ``declare_queue`` and ``consume``, which returns an iterator with ``ack``, ``nack``
and ``requeue``. Its guarantees are those that Dramatiq gives it: at least once, a retry is a message of its own. What
it is told, and by whom:

* one feeder thread a queue, and one for its delayed side (``q.DQ``) where the broker declares one, iterates; a feeder
  keeps iterating while tasks run, since many consumers keep their connection alive in there;
* the pump acks, nacks and requeues, as Dramatiq's worker threads do: from another thread than the one that iterates;
* a message with an ``eta`` is held here, unacknowledged, until it is due, and acknowledged once it has run;
* a consumer that fails is made anew, after a wait with full jitter; what it has handed out stays and is acknowledged
  through the new one, so a broker that gives it out again has it run twice.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from collections.abc import Set as AbstractSet
from queue import Empty, SimpleQueue
from typing import Any

from ..board import Board
from ..core.verdict import Verdict
from ..errors import BrokerError
from ..logging import get_logger
from ..message import decode_message
from ..names import dq_name, new_storage_id, q_name
from ..ports.transport import Delivery, Envelope, Exchange, Features, Incident, Settlement
from .feeder import Feeder, Held

logger = get_logger("greenroom.worker", "ConsumerThread")


class BridgeTransport:
    """A ``Transport`` over a broker of Dramatiq's style. Any thread may use it.

    Parameters:
      broker: The broker.
      queue_prefetch: How many messages of a queue its consumer may have handed out.
      delay_prefetch: The same for the delayed side of a queue.
      timeout_ms: After how long an idle consumer yields None.
      restart_delay_ms: The longest wait before a consumer that failed is made anew.
    """

    features = Features(delay=False, priority=False, lease=False, counts_delayed=False)

    def __init__(
        self, broker: Any, *, queue_prefetch: int, delay_prefetch: int, timeout_ms: int, restart_delay_ms: int
    ) -> None:
        self.broker = broker
        self.queue_prefetch = queue_prefetch
        self.delay_prefetch = delay_prefetch
        self.timeout_ms = timeout_ms
        self.restart_delay_s = restart_delay_ms / 1000

    def declare(self, queues: Collection[str]) -> None:
        for queue in queues:
            self.broker.declare_queue(queue)

    def push(self, batch: Sequence[Envelope]) -> None:
        """One by one: such a broker knows no batches."""
        for envelope in batch:
            delay_ms = None
            if envelope.due_ms is not None:
                delay_ms = max(0, envelope.due_ms - self.broker.clock.now_ms())
            self.broker.enqueue(decode_message(envelope.body), delay=delay_ms)

    def consumer(self, owner: str) -> BridgeConsumer:
        return BridgeConsumer(self)

    def close(self) -> None:
        """Does nothing: the broker belongs to the user."""


class BridgeConsumer:
    """A ``Consumer`` over the consumers of a user's broker. Owned by the pump; any thread may call ``wake``."""

    def __init__(self, transport: BridgeTransport) -> None:
        self._transport = transport
        self._clock = transport.broker.clock
        self._feeders: dict[str, Feeder] = {}
        self._news: SimpleQueue[Held | None] = SimpleQueue()
        self._woken = False
        self._paused: set[str] = set()
        self._ready: dict[str, deque[Held]] = {}
        self._delayed: list[tuple[int, int, Held]] = []
        self._numbers = itertools.count()
        self._marks = itertools.count(1)
        self._claimed: dict[str, Held] = {}
        # What a trip has settled, and is still to give back, if it failed later on: it is made again as it was.
        self._applied: set[str] = set()
        self._requeued: dict[Feeder, list[Any]] = {}

    def subscribe(self, queues: Collection[str]) -> None:
        broker = self._transport.broker
        for queue in dict.fromkeys(q_name(name) for name in queues):
            self._paused.discard(queue)
            self._ready.setdefault(queue, deque())
            self._feed_from(queue, self._transport.queue_prefetch)
            if dq_name(queue) in broker.get_declared_delay_queues():
                self._feed_from(dq_name(queue), self._transport.delay_prefetch)

    def _feed_from(self, queue_name: str, prefetch: int) -> None:
        feeder = self._feeders.get(queue_name)
        if feeder is None:
            feeder = self._feeders[queue_name] = Feeder(self._transport, queue_name, prefetch, self._news.put)
            feeder.start()
        feeder.resume()

    def pause(self, queues: Collection[str]) -> None:
        for queue in {q_name(name) for name in queues}:
            self._paused.add(queue)
            for name in (queue, dq_name(queue)):
                if name in self._feeders:
                    self._feeders[name].pause()

    def exchange(self, settle: Sequence[Settlement], limit: int, skip: AbstractSet[str] = frozenset()) -> Exchange:
        self._take_news()
        settled, lost = self._settle_all(settle)
        closed = self._paused | skip
        shelves = [shelf for queue, shelf in self._ready.items() if queue not in closed]
        deliveries = self._claim(shelves, limit)
        return Exchange(deliveries, settled, lost, more=any(shelves))

    def _settle_all(self, settle: Sequence[Settlement]) -> tuple[list[Settlement], list[Settlement]]:
        settled: list[Settlement] = []
        lost: list[Settlement] = []
        for settlement in settle:
            token = settlement.delivery.token
            held = self._claimed.get(token)
            if held is None:
                (settled if token in self._applied else lost).append(settlement)
                continue
            try:
                self._settle(held, settlement)
            except BrokerError:
                raise
            except Exception:
                logger.exception("Settling message %s failed; it is left to the broker.", held.proxy.message_id)
                lost.append(settlement)
            else:
                settled.append(settlement)
                self._applied.add(token)
            del self._claimed[token]
        self._give_back()
        self._applied.clear()
        return settled, lost

    def _settle(self, held: Held, settlement: Settlement) -> None:
        verdict, consumer = settlement.verdict, held.feeder.connected()
        if settlement.push:
            self._transport.push(settlement.push)
        if verdict is Verdict.RETRY and settlement.retry is not None and not self._has_pushed(settlement.retry):
            verdict = Verdict.DEAD
        if verdict is Verdict.DEAD:
            held.proxy.fail()
            consumer.nack(held.proxy)
        elif verdict is not Verdict.RELEASE:
            consumer.ack(held.proxy)
        elif settlement.due_ms is not None:
            self._delay(held, settlement.due_ms)
        else:
            self._requeued.setdefault(held.feeder, []).append(held.proxy)

    def _has_pushed(self, retry: Envelope) -> bool:
        try:
            self._transport.push((retry,))
        except Exception:
            logger.exception("A retry could not be enqueued; the message goes to the dead letters.")
            return False
        return True

    def _claim(self, shelves: Iterable[deque[Held]], limit: int) -> list[Delivery]:
        deliveries: list[Delivery] = []
        for shelf in shelves:
            while shelf and len(deliveries) < limit:
                held = shelf.popleft()
                held.attempt += 1
                held.leave_room()
                token = new_storage_id()
                self._claimed[token] = held
                deliveries.append(Delivery(held.queue, token, held.body, token, held.attempt, mark=next(self._marks)))
        return deliveries

    # --- what came, and what is due

    def _take_news(self) -> None:
        try:
            while True:
                self._take(self._news.get_nowait())
        except Empty:
            self._promote()

    def _take(self, held: Held | None) -> None:
        if held is None:
            return
        if held.due_ms is not None:
            self._delay(held, held.due_ms)
        else:
            self._ready[held.queue].append(held)

    def _delay(self, held: Held, due_ms: int) -> None:
        held.leave_room()
        heapq.heappush(self._delayed, (due_ms, next(self._numbers), held))

    def _promote(self) -> None:
        now_ms = self._clock.now_ms()
        while self._delayed and self._delayed[0][0] <= now_ms:
            held = heapq.heappop(self._delayed)[2]
            self._ready[held.queue].append(held)

    def wait(self, timeout_s: float) -> None:
        self._take_news()
        if not self._woken and not any(shelf for queue, shelf in self._ready.items() if queue not in self._paused):
            if self._delayed:
                timeout_s = min(timeout_s, max(0.0, (self._delayed[0][0] - self._clock.now_ms()) / 1000))
            try:
                self._take(self._news.get(timeout=timeout_s))
            except Empty:
                pass
        self._woken = False

    def wake(self) -> None:
        self._woken = True
        self._news.put(None)

    def board(self, places: int, *, parent_pid: int = 0) -> Board:
        """A board in memory: nobody would read another one, for such brokers count no crashes."""
        return Board.in_memory(places)

    def history(self, delivery: Delivery) -> Sequence[Incident]:
        """Nothing: such brokers keep none."""
        return ()

    def reap_soon(self) -> None:
        """Does nothing: such brokers find out by themselves who has died."""

    def is_cut_off(self) -> bool:
        """Never, as far as we know."""
        return False

    def extend(self) -> None:
        """Does nothing: such brokers have no lease that we know of."""

    def close(self) -> None:
        """Ends the feeders, and gives back what has not started. What still runs is left to the broker."""
        for feeder in self._feeders.values():
            feeder.stop()
        ended = {feeder for feeder in self._feeders.values() if feeder.has_ended()}
        self._take_news()
        waiting = [held for shelf in self._ready.values() for held in shelf] + [entry[2] for entry in self._delayed]
        for held in waiting:
            if held.feeder in ended:
                self._requeued.setdefault(held.feeder, []).append(held.proxy)
        self._ready.clear()
        self._delayed.clear()
        try:
            self._give_back()
        except Exception:
            logger.exception("Giving messages back failed; they are left to the broker.")
        for feeder in ended:
            feeder.disconnect()

    def _give_back(self) -> None:
        for feeder in list(self._requeued):
            feeder.connected().requeue(self._requeued[feeder])
            del self._requeued[feeder]
