"""A complete transport in the memory of one process.

It keeps no promise after the process ends, and every other one: order, priorities, delays, fenced settlements, trips
that may be repeated. A forked child has a private copy: what it pushes, nobody else sees.

Every message stands in exactly one place: in its queue's ``ready`` or ``delayed`` heap, in ``claimed``, or among the
dead letters. It keeps its number from push to end, so what is given back stands again where it stood.
"""

from __future__ import annotations

import heapq
import itertools
import math
import threading
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from collections.abc import Set as AbstractSet
from queue import Empty, SimpleQueue
from typing import Any

from ...clock import SYSTEM_CLOCK, Clock
from ...core.verdict import Verdict
from ...errors import BrokerError, ConnectionClosed, MessageTooLarge
from ...forksafe import PerProcess
from ...ports.admin import Counts, DeadLetter
from ...ports.transport import MAX_TRIP, Delivery, Envelope, ErrorText, Exchange, Features, Settlement

#: At most so many delayed messages become ready in one trip.
MAX_PROMOTED = 1000

#: The history of a message keeps this many errors, the last ones.
MAX_HISTORY = 25


class _Kept:
    """A message as the engine keeps it. Changed under the transport's lock only."""

    __slots__ = ("attempt", "crashes", "envelope", "history", "number", "owner")

    def __init__(self, envelope: Envelope, number: int, crashes: int, history: tuple[ErrorText, ...]) -> None:
        self.envelope = envelope
        self.number = number
        self.attempt = 0
        self.crashes = crashes
        self.history = history
        self.owner: MemoryConsumer | None = None


#: (priority, or due time in ms; number; message). Numbers are unique, so messages are never compared.
_Heap = list[tuple[int, int, _Kept]]


class _Queue:
    """One queue. Changed under the transport's lock only."""

    __slots__ = ("claimed", "dead", "delayed", "name", "ready")

    def __init__(self, name: str) -> None:
        self.name = name
        self.ready: _Heap = []
        self.delayed: _Heap = []
        self.claimed = 0
        self.dead: list[tuple[int, DeadLetter]] = []  # by the order of their deaths

    def place(self, kept: _Kept, due_ms: int | None, now_ms: int) -> None:
        """Puts a message where it waits: among the delayed until ``due_ms``, else where its number belongs."""
        if due_ms is not None and due_ms > now_ms:
            heapq.heappush(self.delayed, (due_ms, kept.number, kept))
        else:
            heapq.heappush(self.ready, (kept.envelope.priority, kept.number, kept))

    def counts(self) -> Counts:
        return Counts(len(self.ready), len(self.delayed), self.claimed, len(self.dead))


class MemoryTransport:
    """A ``Transport`` and its ``Admin`` in memory. Any thread may use it.

    Parameters:
      clock: Decides what is due.
      max_body: The largest body in bytes that it takes; None for no limit.
    """

    def __init__(self, *, clock: Clock = SYSTEM_CLOCK, max_body: int | None = None) -> None:
        self._features = Features(transactional=True, wakes=True, max_body=max_body)
        self._clock = clock
        self._numbers = itertools.count()
        self._queues: dict[str, _Queue] = {}
        self._claimed: dict[int, _Kept] = {}  # in the order of the claims
        self._finished = 0
        self._consumers: set[MemoryConsumer] = set()
        self._version = 0
        # guards: every message stands in exactly one place; held for one bounded operation, never across user code.
        # A fork waits for it, and the child begins with one of its own. Reentrant, for those who hold `changed`.
        self._lock = PerProcess(threading.RLock, before_fork=_acquire, after_fork=_release)
        self._lock.get()
        self._changed = PerProcess(lambda: threading.Condition(self._lock.get()))

    @property
    def features(self) -> Features:
        return self._features

    def declare(self, queues: Collection[str]) -> None:
        with self._lock.get():
            for name in queues:
                self._queue(name)

    def push(self, batch: Sequence[Envelope]) -> None:
        """All or nothing.

        Raises:
          MessageTooLarge: If a body is larger than ``max_body``; nothing was pushed.
        """
        for envelope in batch:
            self._check_size(envelope)
        with self._lock.get():
            now_ms = self._clock.now_ms()
            for envelope in batch:
                self._add(envelope, now_ms)
            self._tell({envelope.queue for envelope in batch})
            self._note_change()

    def consumer(self, owner: str) -> MemoryConsumer:
        consumer = MemoryConsumer(self, owner)
        with self._lock.get():
            self._consumers.add(consumer)
            self._note_change()
        return consumer

    def close(self) -> None:
        """Closes the consumers; the messages stay."""
        with self._lock.get():
            consumers = list(self._consumers)
        for consumer in consumers:
            consumer.close()

    def clock_moved(self) -> None:
        """Any thread: ends the waits of all consumers, because what is due has changed. For clocks set by hand."""
        with self._lock.get():
            for consumer in self._consumers:
                consumer._announce()
            self._note_change()

    def counts(self, queues: Collection[str] | None = None) -> dict[str, Counts]:
        """Messages by queue: of all declared queues, or of those named. A delayed message counts as delayed until a
        trip made it ready."""
        with self._lock.get():
            names = self._queues if queues is None else queues
            return {name: self._queues[name].counts() if name in self._queues else Counts() for name in names}

    def purge(self, queue: str, *, dead: bool = False) -> int:
        with self._lock.get():
            shelf = self._queue(queue)
            if dead:
                deleted = len(shelf.dead)
                shelf.dead.clear()
            else:
                deleted = len(shelf.ready) + len(shelf.delayed)
                shelf.ready.clear()
                shelf.delayed.clear()
            self._note_change()
            return deleted

    def dead(self, queue: str | None = None, *, limit: int = 100) -> list[DeadLetter]:
        with self._lock.get():
            shelves = [shelf for shelf in self._queues.values() if queue is None or shelf.name == queue]
            newest = itertools.chain.from_iterable(shelf.dead[-limit:] for shelf in shelves)
            return [letter for _, letter in heapq.nlargest(limit, newest)]

    def waiting_bodies(self, queue: str, *, delayed: bool) -> list[bytes]:
        """The bodies of what is ready in a queue, or else of what is delayed, in the order of their turns."""
        with self._lock.get():
            shelf = self._queue(queue)
            return [kept.envelope.body for _, _, kept in sorted(shelf.delayed if delayed else shelf.ready)]

    def take_body(self, queue: str, *, delayed: bool) -> bytes | None:
        """Takes the first of them out of the engine, for good; None if there is none."""
        with self._lock.get():
            shelf = self._queue(queue)
            taken = _pop_lowest([shelf.delayed if delayed else shelf.ready], 1)
            self._note_change()
            return taken[0].envelope.body if taken else None

    @property
    def finished(self) -> int:
        """How many claimed messages have been settled for good or replaced by a retry, since the start."""
        return self._finished

    @property
    def changed(self) -> threading.Condition:
        """Notified after every change, for those who wait for one. Its lock is the transport's: hold it for a look."""
        return self._changed.get()

    # What follows is called with the lock held.

    def _note_change(self) -> None:
        self._version += 1
        self._changed.get().notify_all()

    def _queue(self, name: str) -> _Queue:
        queue = self._queues.get(name)
        if queue is None:
            queue = self._queues[name] = _Queue(name)
        return queue

    def _check_size(self, envelope: Envelope) -> None:
        limit = self._features.max_body
        size = len(envelope.body)
        if limit is not None and size > limit:
            raise MessageTooLarge(f"The body has {size} bytes; at most {limit} are allowed.", size=size, limit=limit)

    def _add(self, envelope: Envelope, now_ms: int, crashes: int = 0, history: tuple[ErrorText, ...] = ()) -> None:
        kept = _Kept(envelope, next(self._numbers), crashes, history)
        self._queue(envelope.queue).place(kept, envelope.due_ms, now_ms)

    def _tell(self, queues: AbstractSet[str], but: MemoryConsumer | None = None) -> None:
        """Tells all consumers of these queues that something came into them."""
        for consumer in self._consumers:
            if consumer is not but and not queues.isdisjoint(consumer._open):
                consumer._announce()

    def _settle(self, consumer: MemoryConsumer, settlement: Settlement, now_ms: int, touched: set[str]) -> bool:
        """Carries out one settlement; False if the message is not this consumer's any more.

        Raises:
          BrokerError, ValueError: It can never be carried out; nothing was changed.
        """
        delivery = settlement.delivery
        key = (delivery.token, delivery.attempt)
        kept = self._claimed.get(delivery.token)
        if kept is None or kept.owner is not consumer or kept.attempt != delivery.attempt:
            return consumer._has_applied(key)
        self._check_settlement(settlement)
        self._give_up(kept)
        consumer._applied[-1].add(key)
        self._finished += settlement.verdict is not Verdict.RELEASE
        if settlement.verdict is Verdict.RELEASE:
            self._queue(kept.envelope.queue).place(kept, settlement.due_ms, now_ms)
            touched.add(kept.envelope.queue)
        elif settlement.verdict is Verdict.DEAD:
            self._bury(kept, settlement.error, now_ms)
        elif settlement.retry is not None and settlement.verdict is Verdict.RETRY:
            history = kept.history if settlement.error is None else (*kept.history, settlement.error)[-MAX_HISTORY:]
            self._add(settlement.retry, now_ms, kept.crashes, history)
            touched.add(settlement.retry.queue)
        for envelope in settlement.push:
            self._add(envelope, now_ms)
            touched.add(envelope.queue)
        return True

    def _check_settlement(self, settlement: Settlement) -> None:
        if settlement.verdict is Verdict.RETRY:
            if settlement.retry is None:
                raise ValueError("A settlement that says RETRY needs the envelope of the retry.")
            self._check_size(settlement.retry)
        for envelope in settlement.push:
            self._check_size(envelope)
        if settlement.writes or settlement.park is not None:
            raise BrokerError("The memory transport is not a Store: it knows neither writes nor limiter keys.")

    def _give_up(self, kept: _Kept) -> None:
        del self._claimed[kept.number]
        self._queues[kept.envelope.queue].claimed -= 1
        kept.owner = None

    def _bury(self, kept: _Kept, error: ErrorText | None, now_ms: int) -> None:
        queue, storage_id, body = kept.envelope.queue, kept.envelope.id, kept.envelope.body
        letter = DeadLetter(queue, storage_id, body, error, kept.attempt, kept.crashes, now_ms)
        self._queues[queue].dead.append((next(self._numbers), letter))

    def _promote(self, queues: Sequence[_Queue], now_ms: int) -> bool:
        """Makes ready what is due, the earliest first; True if there may be more of it."""
        promoted = _pop_lowest([queue.delayed for queue in queues], MAX_PROMOTED, upto=now_ms)
        for kept in promoted:
            self._queues[kept.envelope.queue].place(kept, None, now_ms)
        return len(promoted) == MAX_PROMOTED

    def _claim(self, consumer: MemoryConsumer, queues: Sequence[_Queue], limit: int) -> list[Delivery]:
        lowest = _pop_lowest([queue.ready for queue in queues], limit)
        return [self._hand_out(kept, consumer) for kept in lowest]

    def _hand_out(self, kept: _Kept, consumer: MemoryConsumer) -> Delivery:
        envelope = kept.envelope
        kept.owner = consumer
        kept.attempt += 1
        self._claimed[kept.number] = kept
        self._queues[envelope.queue].claimed += 1
        return Delivery(
            envelope.queue, envelope.id, envelope.body, kept.number, kept.attempt, kept.crashes, kept.attempt > 1
        )

    def _give_back_all(self, consumer: MemoryConsumer) -> None:
        """Releases all that ``consumer`` has claimed."""
        now_ms = self._clock.now_ms()
        held = [kept for kept in self._claimed.values() if kept.owner is consumer]
        for kept in held:
            self._give_up(kept)
            self._queues[kept.envelope.queue].place(kept, None, now_ms)
        self._tell({kept.envelope.queue for kept in held}, but=consumer)
        self._note_change()


class MemoryConsumer:
    """A ``Consumer`` of a ``MemoryTransport``. Owned by the pump's thread; any thread may call ``wake``."""

    def __init__(self, transport: MemoryTransport, owner: str) -> None:
        self.owner = owner
        self._transport = transport
        self._subscribed: dict[str, None] = {}  # a dict, for its order
        self._paused: set[str] = set()
        self._open: frozenset[str] = frozenset()  # what the last trip could claim from: only these end a wait
        # What the last two trips settled, so that a repeated one is recognised: sets of (number, attempt).
        self._applied: deque[set[tuple[Any, int]]] = deque(([set()]), maxlen=2)
        self._closed = False
        # A wait ends when a flag is set. Flags are set before the bell rings and looked at after it rang, so none is
        # missed; SimpleQueue.put may interrupt itself, which makes `wake` safe in a signal handler. What came before
        # a wait is found by its first look, so only `wake` has to be remembered.
        self._woken = False
        self._news = False
        self._bell: SimpleQueue[None] = SimpleQueue()

    def subscribe(self, queues: Collection[str]) -> None:
        with self._transport._lock.get():
            self._check_open()
            self._subscribed.update(dict.fromkeys(queues))
            self._paused.difference_update(queues)
            self._open = self._open.union(queues)
            self._transport._note_change()

    def pause(self, queues: Collection[str]) -> None:
        with self._transport._lock.get():
            self._check_open()
            self._paused.update(queues)
            self._open = self._open.difference(queues)
            self._transport._note_change()

    def exchange(self, settle: Sequence[Settlement], limit: int, skip: AbstractSet[str] = frozenset()) -> Exchange:
        if len(settle) > MAX_TRIP:
            raise ValueError(f"{len(settle)} settlements in one trip; at most {MAX_TRIP} are allowed.")
        transport = self._transport
        with transport._lock.get():
            self._check_open()
            now_ms = transport._clock.now_ms()
            settled, lost, refused = self._settle_all(settle, now_ms)
            self._open = frozenset(self._subscribed).difference(self._paused, skip)
            queues = [transport._queue(name) for name in self._subscribed if name in self._open]
            deliveries: list[Delivery] = []
            more = False
            if limit > 0:
                more = transport._promote(queues, now_ms)
                deliveries = transport._claim(self, queues, min(limit, MAX_TRIP))
            if settle or deliveries:
                transport._note_change()
            return Exchange(deliveries, settled, lost, refused, more or any(queue.ready for queue in queues))

    def claim(self, storage_id: str, queue: str) -> Delivery | None:
        """Claims the one ready message that was pushed under ``storage_id``; None if it is not ready here any more."""
        transport = self._transport
        with transport._lock.get():
            self._check_open()
            ready = transport._queue(queue).ready
            for index, (_, _, kept) in enumerate(ready):
                if kept.envelope.id == storage_id:
                    del ready[index]
                    heapq.heapify(ready)
                    transport._note_change()
                    return transport._hand_out(kept, self)
            return None

    def wait(self, timeout_s: float) -> None:
        clock = self._transport._clock
        with self._transport._lock.get():
            self._check_open()
            self._news = False
            wait_s = min(timeout_s, self._ready_in_s())
        deadline = clock.monotonic() + wait_s
        while not (self._woken or self._news):
            try:
                self._bell.get(timeout=max(0.0, deadline - clock.monotonic()))
            except Empty:
                break
        self._woken = False

    def wake(self) -> None:
        self._woken = True
        self._ring()

    def extend(self) -> None:
        """Nothing to do: a claim in memory lasts as long as its consumer."""
        self._check_open()

    def close(self) -> None:
        """Gives back what was claimed and not settled. Closing again does nothing."""
        with self._transport._lock.get():
            if self._closed:
                return
            self._closed = True
            self._transport._consumers.discard(self)
            self._transport._give_back_all(self)
        self.wake()

    def abandon(self) -> None:
        """For tests: the engine takes this owner for dead and gives its messages to others. The consumer itself lives
        on, as a process does that was only very slow: what it settles now comes back as lost."""
        with self._transport._lock.get():
            self._check_open()
            self._transport._give_back_all(self)

    def _check_open(self) -> None:
        if self._closed:
            raise ConnectionClosed(f"The consumer {self.owner!r} is closed.")

    def _has_applied(self, key: tuple[Any, int]) -> bool:
        """True if this or the last trip settled ``key``, which is then remembered for the next one."""
        if not any(key in applied for applied in self._applied):
            return False
        self._applied[-1].add(key)
        return True

    def _announce(self) -> None:
        """Under the lock: something came that a wait that is going on has not seen."""
        self._news = True
        self._ring()

    def _ring(self) -> None:
        if self._bell.empty():
            self._bell.put(None)

    def _settle_all(
        self, settle: Sequence[Settlement], now_ms: int
    ) -> tuple[list[Settlement], list[Settlement], list[tuple[Settlement, Exception]]]:
        settled: list[Settlement] = []
        lost: list[Settlement] = []
        refused: list[tuple[Settlement, Exception]] = []
        touched: set[str] = set()
        if settle:
            self._applied.append(set())
        for settlement in settle:
            try:
                ours = self._transport._settle(self, settlement, now_ms, touched)
            except (BrokerError, ValueError) as e:
                refused.append((settlement, e))
            else:
                (settled if ours else lost).append(settlement)
        self._transport._tell(touched, but=self)
        return settled, lost, refused

    def _ready_in_s(self) -> float:
        """Under the lock: seconds until something is ready, 0 if something is."""
        queues = [self._transport._queues[name] for name in self._open if name in self._transport._queues]
        if any(queue.ready for queue in queues):
            return 0.0
        due_ms = min((queue.delayed[0][0] for queue in queues if queue.delayed), default=math.inf)
        return max(0.0, (due_ms - self._transport._clock.now_ms()) / 1000)


def _pop_lowest(heaps: Iterable[_Heap], limit: int, *, upto: float = math.inf) -> list[_Kept]:
    """Takes up to ``limit`` messages out of several heaps in their common order, with keys up to ``upto``."""
    heads = [(heap[0][0], heap[0][1], heap) for heap in heaps if heap]
    heapq.heapify(heads)
    popped: list[_Kept] = []
    while heads and len(popped) < limit and heads[0][0] <= upto:
        heap = heads[0][2]
        popped.append(heapq.heappop(heap)[2])
        if heap:
            heapq.heapreplace(heads, (heap[0][0], heap[0][1], heap))
        else:
            heapq.heappop(heads)
    return popped


def _acquire(lock: Any) -> None:
    lock.acquire()


def _release(lock: Any) -> None:
    lock.release()
