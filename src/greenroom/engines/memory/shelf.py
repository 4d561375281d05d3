"""How messages stand in memory: one shelf a queue."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from typing import Any

from ...ports.admin import Counts, DeadLetter
from ...ports.transport import Envelope, ErrorText, Incident

#: The history of a message keeps this many incidents, the last ones.
MAX_HISTORY = 25


class Kept:
    """A message as the engine keeps it. Changed under the transport's lock only."""

    __slots__ = ("attempt", "crashes", "envelope", "history", "number", "owner")

    def __init__(self, envelope: Envelope, number: int, crashes: int, history: tuple[Incident, ...]) -> None:
        self.envelope = envelope
        self.number = number
        self.attempt = 0
        self.crashes = crashes
        self.history = history
        self.owner: Any = None  # the consumer that has claimed it

    def note(self, now_ms: int, error: ErrorText | None) -> None:
        """Adds an incident of the attempt that ends now to the history."""
        self.history = (*self.history, Incident(now_ms, self.attempt, error))[-MAX_HISTORY:]


#: Stands for the due time of what is parked, where one is needed for the order: it comes after all else.
NEVER_MS = 2**62

#: (priority, or due time in ms; number; message). Numbers are unique, so messages are never compared.
Heap = list[tuple[int, int, Kept]]


class Shelf:
    """The messages of one queue that nobody has claimed. Changed under the transport's lock only."""

    __slots__ = ("claimed", "dead", "delayed", "name", "parked", "ready")

    def __init__(self, name: str) -> None:
        self.name = name
        self.ready: Heap = []
        self.delayed: Heap = []
        self.parked: dict[int, Kept] = {}  # by their numbers; they count as delayed
        self.claimed = 0  # how many
        self.dead: list[tuple[int, DeadLetter]] = []  # numbered in the order of their deaths

    def place(self, kept: Kept, due_ms: int | None, now_ms: int) -> None:
        """Puts a message where it waits: among the delayed until ``due_ms``, else where its number belongs."""
        if due_ms is not None and due_ms > now_ms:
            heapq.heappush(self.delayed, (due_ms, kept.number, kept))
        else:
            heapq.heappush(self.ready, (kept.envelope.priority, kept.number, kept))

    def later(self) -> Heap:
        """What is delayed, and then what is parked, in the order of their turns."""
        return sorted(self.delayed) + [(NEVER_MS, number, kept) for number, kept in self.parked.items()]

    def counts(self) -> Counts:
        """What the ``Admin`` port calls counts."""
        return Counts(len(self.ready), len(self.delayed) + len(self.parked), self.claimed, len(self.dead))


def pop_lowest(heaps: Iterable[Heap], limit: int, *, upto: float = math.inf) -> list[Kept]:
    """Takes up to ``limit`` messages out of several heaps in their common order, with keys up to ``upto``."""
    heads = [(heap[0][0], heap[0][1], heap) for heap in heaps if heap]
    heapq.heapify(heads)
    popped: list[Kept] = []
    while heads and len(popped) < limit and heads[0][0] <= upto:
        heap = heads[0][2]
        popped.append(heapq.heappop(heap)[2])
        if heap:
            heapq.heapreplace(heads, (heap[0][0], heap[0][1], heap))
        else:
            heapq.heappop(heads)
    return popped
