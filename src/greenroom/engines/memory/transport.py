"""A complete transport in the memory of one process.

It keeps no promise after the process ends, and every other one: order, priorities, delays, fenced settlements, trips
that may be repeated. A forked child has a private copy: what it pushes, nobody else sees.

Every message stands in exactly one place: in its queue's ``ready`` or ``delayed`` heap, in ``claimed``, or among the
dead letters. It keeps its number from push to end, so what is given back stands again where it stood.
"""

from __future__ import annotations

import heapq
import math
import os
from collections import deque
from collections.abc import Collection, Sequence
from collections.abc import Set as AbstractSet
from queue import Empty, SimpleQueue
from typing import Any

from ...board import Board, Fate
from ...clock import SYSTEM_CLOCK, Clock
from ...core.verdict import Verdict
from ...errors import BrokerError
from ...logging import one_line
from ...ports.admin import DeadLetter
from ...ports.checks import check_park
from ...ports.transport import (
    CRASH,
    MAX_TRIP,
    ConsumerClosed,
    Delivery,
    Envelope,
    ErrorText,
    Exchange,
    Features,
    Incident,
    Settlement,
)
from .admin import MemoryAdmin
from .shelf import Kept, Shelf, pop_lowest

#: At most so many delayed messages become ready in one trip.
MAX_PROMOTED = 1000


class MemoryTransport(MemoryAdmin):
    """A ``Transport`` and its ``Admin`` in memory. Any thread may use it.

    Parameters:
      clock: Decides what is due.
      max_body: The largest body in bytes that it takes; None for no limit.
    """

    def __init__(self, *, clock: Clock = SYSTEM_CLOCK, max_body: int | None = None) -> None:
        super().__init__(clock, max_body)
        self._features = Features(
            transactional=True,
            wakes=True,
            counts_crashes=True,
            history=True,
            pause=True,
            store=True,
            max_body=max_body,
        )
        self._finished = 0

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
            told = self._ring()
            self._note_change()
        for notify in told:
            notify()

    def consumer(self, owner: str) -> MemoryConsumer:
        consumer = MemoryConsumer(self, owner)
        with self._lock.get():
            self._consumers.add(consumer)
            self._note_change()
        return consumer

    def inspect(self) -> dict[str, object]:
        """What there is to know of it."""
        return {"kept in": "the memory of each process"}

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

    @property
    def finished(self) -> int:
        """How many claimed messages have been settled for good or replaced by a retry, since the start."""
        return self._finished

    # What follows is called with the lock held.

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
            if settlement.error is not None:
                kept.note(now_ms, settlement.error)
            if settlement.park is not None and not self._keep.slots.park(kept, settlement.park):
                self._queue(kept.envelope.queue).parked[kept.number] = kept
            else:
                self._queue(kept.envelope.queue).place(kept, settlement.due_ms, now_ms)
                touched.add(kept.envelope.queue)
        elif settlement.verdict is Verdict.DEAD:
            self._bury(kept, settlement.error, now_ms)
        elif settlement.retry is not None and settlement.verdict is Verdict.RETRY:
            kept.note(now_ms, settlement.error)
            self._add(settlement.retry, now_ms, kept.crashes, kept.history)
            touched.add(settlement.retry.queue)
        for envelope in settlement.push:
            self._add(envelope, now_ms)
            touched.add(envelope.queue)
        if settlement.writes:
            self._keep.do(settlement.writes)
        return True

    def _check_settlement(self, settlement: Settlement) -> None:
        if settlement.verdict is Verdict.RETRY:
            if settlement.retry is None:
                raise ValueError("A settlement that says RETRY needs the envelope of the retry.")
            self._check_size(settlement.retry)
        for envelope in settlement.push:
            self._check_size(envelope)
        if settlement.writes:
            self._keep.check(settlement.writes)
        check_park(settlement)

    def _give_up(self, kept: Kept) -> None:
        del self._claimed[kept.number]
        self._queues[kept.envelope.queue].claimed -= 1
        kept.owner = None

    def _bury(self, kept: Kept, error: ErrorText | None, now_ms: int) -> None:
        queue, storage_id, body = kept.envelope.queue, kept.envelope.id, kept.envelope.body
        number = next(self._numbers)
        letter = DeadLetter(
            queue, storage_id, body, error, kept.attempt, kept.crashes, now_ms, kept.history, str(number)
        )
        self._queues[queue].dead.append((number, letter))

    def _promote(self, queues: Sequence[Shelf], now_ms: int) -> bool:
        """Makes ready what is due, the earliest first; True if there may be more of it."""
        promoted = pop_lowest([queue.delayed for queue in queues], MAX_PROMOTED, upto=now_ms)
        for kept in promoted:
            self._queues[kept.envelope.queue].place(kept, None, now_ms)
        return len(promoted) == MAX_PROMOTED

    def _claim(self, consumer: MemoryConsumer, queues: Sequence[Shelf], limit: int) -> list[Delivery]:
        lowest = pop_lowest([queue.ready for queue in queues], limit)
        return [self._hand_out(kept, consumer) for kept in lowest]

    def _hand_out(self, kept: Kept, consumer: MemoryConsumer) -> Delivery:
        envelope = kept.envelope
        kept.owner = consumer
        kept.attempt += 1
        self._claimed[kept.number] = kept
        self._queues[envelope.queue].claimed += 1
        return Delivery(
            envelope.queue,
            envelope.id,
            envelope.body,
            kept.number,
            kept.attempt,
            kept.crashes,
            kept.attempt > 1,
            kept.number,
        )

    def _give_back_all(self, consumer: MemoryConsumer, crash: ErrorText | None = None) -> None:
        """Releases all that ``consumer`` has claimed; what stands on its board is charged with the crash, if it is
        one."""
        now_ms = self._clock.now_ms()
        held = [kept for kept in self._claimed.values() if kept.owner is consumer]
        ran = consumer._board.running() if crash is not None and consumer._board is not None else ()
        for kept in held:
            if kept.number in ran:
                kept.crashes += 1
                kept.note(now_ms, crash)
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
        self._board: Board | None = None
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
            transport._keep.slots.end_all()
            transport._keep.purge(MAX_PROMOTED)
            self._open = frozenset(self._subscribed).difference(self._paused, transport._paused, skip)
            queues = [transport._queue(name) for name in self._subscribed if name in self._open]
            deliveries: list[Delivery] = []
            more = False
            if limit > 0:
                more = transport._promote(queues, now_ms)
                deliveries = transport._claim(self, queues, min(limit, MAX_TRIP))
            told = transport._ring(but=self)
            if settle or deliveries:
                transport._note_change()
            more = more or any(queue.ready for queue in queues)
        for notify in told:
            notify()
        return Exchange(deliveries, settled, lost, refused, more)

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

    def board(self, places: int, *, parent_pid: int = 0) -> Board:
        """A board in memory, read when the owner is taken for dead: see ``abandon``."""
        with self._transport._lock.get():
            self._check_open()
            self._board = Board.in_memory(places)
            return self._board

    def history(self, delivery: Delivery) -> Sequence[Incident]:
        """What befell a delivery before, the oldest first; nothing if it is not this consumer's any more."""
        with self._transport._lock.get():
            self._check_open()
            kept = self._transport._claimed.get(delivery.token)
            return kept.history if kept is not None and kept.owner is self else ()

    def reap_soon(self) -> None:
        """Nothing to do: nobody in a process outlives it."""

    def is_cut_off(self) -> bool:
        """Never: owners live in this process."""
        return False

    def extend(self) -> None:
        """Nothing to do: a claim in memory lasts as long as its consumer."""

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
        """For tests: the engine takes this owner for dead and gives its messages to others; what stands on its board is
        charged with a crash, unless it was ended on purpose. The consumer itself lives on, as a process does that was
        only very slow: what it settles now comes back as lost."""
        with self._transport._lock.get():
            self._check_open()
            board = self._board
            if board is None or board.fate is Fate.ENDED_ON_PURPOSE:
                self._transport._give_back_all(self)
            else:
                evidence = board.evidence(one_line(f"worker {self.owner} (PID {os.getpid()})", 300))
                self._transport._give_back_all(self, ErrorText(CRASH, evidence))

    def _check_open(self) -> None:
        if self._closed:
            raise ConsumerClosed(f"The consumer {self.owner!r} is closed.")

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
        end_ms = self._transport._keep.slots.next_end_ms()
        if end_ms is not None:
            due_ms = min(due_ms, end_ms)
        return max(0.0, (due_ms - self._transport._clock.now_ms()) / 1000)
