"""Looking into the engine in memory and acting on it: its ``Admin``, and what the views of a ``StubBroker`` show."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Collection, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from ...ports.admin import STATES, Counts, DeadLetter, Peeked, State, check_step, parse_place
from ...ports.transport import Envelope, Incident
from .shelf import MAX_HISTORY, NEVER_MS, Kept, Shelf, pop_lowest
from .state import MemoryState

#: Where a message stands: the number of its state in ``STATES``; its priority or due time; its own number; it.
_Standing = tuple[int, int, int, Kept]


class MemoryAdmin(MemoryState):
    """The ``Admin`` of a ``MemoryTransport``. Any thread may use it."""

    # --- looking

    def counts(self, queues: Collection[str] | None = None) -> dict[str, Counts]:
        """Messages by queue: of all declared queues, or of those named. A delayed message counts as delayed until a
        trip made it ready."""
        with self._lock.get():
            names = self._queues if queues is None else queues
            return {name: self._queues[name].counts() if name in self._queues else Counts() for name in names}

    def peek(
        self, queue: str, *, state: State | None = None, limit: int = 20, after: str | None = None
    ) -> list[Peeked]:
        """The messages of a queue: what is claimed, then what is ready, then what is delayed. See the port."""
        start = (-1, 0, 0) if after is None else parse_place(after, 3)
        with self._lock.get():
            states = STATES if state is None else (state,)
            standing = [place for known in states for place in self._standing(queue, known) if place[:3] > start]
            return [_peeked(*place) for place in standing[:limit]]

    def dead(self, queue: str | None = None, *, limit: int = 100, after: str | None = None) -> list[DeadLetter]:
        """Dead letters, newest first. See the port."""
        end = None if after is None else parse_place(after, 1)[0]
        with self._lock.get():
            shelves = [shelf for shelf in self._queues.values() if queue is None or shelf.name == queue]
            newest = itertools.chain.from_iterable(
                (shelf.dead if end is None else [entry for entry in shelf.dead if entry[0] < end])[-limit:]
                for shelf in shelves
            )
            return [letter for _, letter in heapq.nlargest(limit, newest)]

    def dead_letters(self, ids: Collection[str]) -> list[DeadLetter]:
        """Those of these dead letters that are there."""
        check_step(ids)
        with self._lock.get():
            found = {letter.id: letter for shelf in self._queues.values() for _, letter in shelf.dead}
            return [found[id] for id in dict.fromkeys(ids) if id in found]

    def paused(self) -> set[str]:
        """The queues that are paused."""
        with self._lock.get():
            return set(self._paused)

    # --- acting

    def move(self, replacements: Mapping[str, Envelope]) -> int:
        """Puts dead letters back into queues, in one step. See the port."""
        for envelope in replacements.values():
            self._check_size(envelope)
        with self._lock.get():
            letters = self.dead_letters(replacements)
            now_ms = self._clock.now_ms()
            for letter in letters:
                death = Incident(letter.died_ms, letter.attempt, letter.error)
                self._add(replacements[letter.id], now_ms, 0, (*letter.history, death)[-MAX_HISTORY:])
            self._bin({letter.id for letter in letters})
            self._tell({replacements[letter.id].queue for letter in letters})
            self._note_change()
            return len(letters)

    def drop(self, ids: Collection[str]) -> int:
        """Deletes dead letters; returns how many of them were there."""
        with self._lock.get():
            there = {letter.id for letter in self.dead_letters(ids)}
            self._bin(there)
            self._note_change()
            return len(there)

    def purge(self, queue: str, *, dead: bool = False) -> int:
        """Deletes what is ready or delayed now, or else what is dead; returns how many."""
        with self._lock.get():
            shelf = self._queue(queue)
            heaps: list[Any] = [shelf.dead] if dead else [shelf.ready, shelf.delayed, shelf.parked]
            deleted = sum(map(len, heaps))
            for heap in heaps:
                heap.clear()
            self._note_change()
            return deleted

    def pause(self, queues: Collection[str]) -> None:
        """Keeps all consumers from claiming of these queues until ``resume``."""
        with self._lock.get():
            self._paused.update(queues)
            self._note_change()

    def resume(self, queues: Collection[str]) -> None:
        """Ends the pause of these queues."""
        with self._lock.get():
            self._paused.difference_update(queues)
            for consumer in self._consumers:
                consumer._announce()
            self._note_change()

    # --- for the views of a StubBroker

    def waiting_bodies(self, queue: str, *, delayed: bool) -> list[bytes]:
        """The bodies of what is ready in a queue, or else of what is delayed, in the order of their turns."""
        with self._lock.get():
            shelf = self._queue(queue)
            return [kept.envelope.body for _, _, kept in (shelf.later() if delayed else sorted(shelf.ready))]

    def take_body(self, queue: str, *, delayed: bool) -> bytes | None:
        """Takes the first of them out of the engine, for good; None if there is none."""
        with self._lock.get():
            shelf = self._queue(queue)
            taken = pop_lowest([shelf.delayed if delayed else shelf.ready], 1)
            self._note_change()
            return taken[0].envelope.body if taken else None

    # --- with the lock held

    def _standing(self, queue: str, state: State) -> list[_Standing]:
        rank = STATES.index(state)
        if state == "claimed":
            held = (kept for kept in self._claimed.values() if kept.envelope.queue == queue)
            return sorted((rank, 0, kept.number, kept) for kept in held)
        shelf = self._queues.get(queue) or Shelf(queue)
        return sorted((rank, *entry) for entry in (shelf.ready if state == "ready" else shelf.later()))

    def _bin(self, ids: AbstractSet[str]) -> None:
        """Deletes dead letters."""
        for shelf in self._queues.values():
            shelf.dead = [entry for entry in shelf.dead if entry[1].id not in ids]


def _peeked(rank: int, key: int, number: int, kept: Kept) -> Peeked:
    state = STATES[rank]
    envelope = kept.envelope
    return Peeked(
        envelope.queue,
        envelope.id,
        envelope.body,
        state,
        envelope.priority,
        key if state == "delayed" and key != NEVER_MS else None,
        kept.attempt,
        kept.crashes,
        kept.owner.owner if kept.owner is not None else "",
        kept.history[-1] if kept.history else None,
        f"{rank}.{key}.{number}",
    )
