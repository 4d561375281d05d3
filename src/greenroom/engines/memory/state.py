"""What the engine in memory knows, under one lock."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from ...clock import Clock
from ...errors import MessageTooLarge
from ...forksafe import PerProcess
from ...ports.store import StoreOp
from ...ports.transport import Envelope, Incident
from .keep import Keep
from .shelf import Kept, Shelf
from .watches import Watches


class MemoryState:
    """The messages of a transport, and who consumes them. Methods that begin with ``_`` are called with the lock held.

    Parameters:
      clock: Decides what is due.
      max_body: The largest body in bytes; None for no limit.
    """

    def __init__(self, clock: Clock, max_body: int | None) -> None:
        self._clock = clock
        self._max_body = max_body
        self._numbers = itertools.count(1)
        self._queues: dict[str, Shelf] = {}
        self._claimed: dict[int, Kept] = {}  # in the order of the claims
        self._consumers: set[Any] = set()
        self._paused: set[str] = set()  # queues
        self._keep = Keep(self, max_body)
        self._watches = Watches()
        self._filled: set[str] = set()  # queues into which the store has put something that nobody was told of yet
        # guards: every message stands in exactly one place; held for one bounded operation, never across user code.
        # A fork waits for it, and the child begins with one of its own. Reentrant, for those who hold `changed`.
        self._lock = PerProcess(threading.RLock, before_fork=_acquire, after_fork=_release)
        self._lock.get()
        self._changed = PerProcess(lambda: threading.Condition(self._lock.get()))

    @property
    def changed(self) -> threading.Condition:
        """Notified after every change, for those who wait for one. Its lock is the transport's: hold it for a look."""
        return self._changed.get()

    def _note_change(self) -> None:
        self._changed.get().notify_all()

    def _queue(self, name: str) -> Shelf:
        queue = self._queues.get(name)
        if queue is None:
            queue = self._queues[name] = Shelf(name)
        return queue

    def _check_size(self, envelope: Envelope) -> None:
        size = len(envelope.body)
        limit = self._max_body
        if limit is not None and size > limit:
            raise MessageTooLarge(f"The body has {size} bytes; at most {limit} are allowed.", size=size, limit=limit)
        if envelope.writes:
            self._keep.check(envelope.writes)

    def _add(self, envelope: Envelope, now_ms: int, crashes: int = 0, history: tuple[Incident, ...] = ()) -> None:
        kept = Kept(envelope, next(self._numbers), crashes, history)
        self._queue(envelope.queue).place(kept, envelope.due_ms, now_ms)
        if envelope.writes:
            self._keep.do(envelope.writes)

    def _tell(self, queues: AbstractSet[str], but: Any = None) -> None:
        """Tells all consumers of these queues that something came into them."""
        for consumer in self._consumers:
            if consumer is not but and not queues.isdisjoint(consumer._open):
                consumer._announce()

    def _ring(self, but: Any = None) -> list[Callable[[], None]]:
        """Tells consumers of what the store has put into queues; returns whom to tell, without the lock, of keys."""
        if self._filled:
            self._tell(self._filled, but)
            self._filled = set()
        touched, self._keep.touched = self._keep.touched, []
        return self._watches.of(touched) if touched else []

    # --- for the store

    def apply_ops(self, ops: Sequence[StoreOp], *, changes: bool) -> list[Any]:
        """Does operations of the store, all or nothing."""
        with self._lock.get():
            self._keep.check(ops)
            answers = self._keep.do(ops)
            self._keep.purge(len(ops))
            told = self._ring()
            if changes:
                self._note_change()
        for notify in told:
            notify()
        return answers

    def purge_store(self, limit: int) -> int:
        """Deletes up to ``limit`` of what has expired in the store."""
        with self._lock.get():
            return self._keep.purge(limit)

    def watch_keys(self, keys: Iterable[str], notify: Callable[[], None]) -> Any:
        """A watch on keys of the store, in force when this returns."""
        with self._lock.get():
            return self._watches.add(keys, notify, self._lock)

    # The effects of the store on messages. See ``Effects``.

    def now_ms(self) -> int:
        """The engine's time."""
        return self._clock.now_ms()

    def push_now(self, batch: Sequence[Envelope]) -> None:
        """With the lock held: adds messages."""
        for envelope in batch:
            self._add(envelope, self._clock.now_ms())
            self._filled.add(envelope.queue)

    def unpark(self, parked: Kept) -> bool:
        """With the lock held: makes a parked message ready; False if it was deleted meanwhile."""
        queue = self._queues[parked.envelope.queue]
        if queue.parked.pop(parked.number, None) is None:
            return False
        queue.place(parked, None, self._clock.now_ms())
        self._filled.add(queue.name)
        return True


def _acquire(lock: Any) -> None:
    lock.acquire()


def _release(lock: Any) -> None:
    lock.release()
