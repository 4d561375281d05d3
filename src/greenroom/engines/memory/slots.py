"""Slots of the store in memory, and the line of messages that are parked before them.

The invariant: while somebody stands in line for a key, none of its slots is free. So whatever frees a slot, giving it
back or its end, hands it to the first in line at once, and who comes to the line asks once more as it gets there.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from ...ports.store import Lease, LeaseRelease, LeaseRenew, LeaseTake


class _Slot(msgspec.Struct, gc=False):
    """A slot that is taken."""

    fence: int
    end_ms: int


class Slots:
    """Changed under the transport's lock only.

    Parameters:
      now_ms: The engine's time.
      unpark: Makes a parked message ready; False if it was deleted meanwhile.
    """

    def __init__(self, now_ms: Callable[[], int], unpark: Callable[[Any], bool]) -> None:
        self._now_ms = now_ms
        self._unpark = unpark
        self._slots: dict[str, dict[str, _Slot]] = {}
        self._lines: dict[str, deque[tuple[Any, LeaseTake]]] = {}
        self._fences = itertools.count(1)
        # When to look at which key, a heap, and when first at each: a slot that is renewed is looked at and kept.
        self._looks: list[tuple[int, str]] = []
        self._first_look: dict[str, int] = {}

    def take(self, op: LeaseTake) -> Lease:
        """A slot, or the refusal."""
        now_ms = self._now_ms()
        self._end(op.key)
        mine = self._slots.get(op.key, {}).get(op.holder)
        if mine is not None:
            mine.end_ms = now_ms + op.ttl_ms
            self._look_at(mine.end_ms, op.key)
            return Lease(mine.fence, mine.end_ms)
        if self._taken(op.key) < op.limit:
            self._hand_over(op.key, op.limit)  # the limit was raised: first come, first served
        if self._taken(op.key) < op.limit:
            return self._give(op)
        others = self._slots.get(op.key, {}).values()
        return Lease(0, min((slot.end_ms for slot in others), default=now_ms + op.ttl_ms))

    def renew(self, op: LeaseRenew) -> bool:
        """Whether it is still held."""
        now_ms = self._now_ms()
        slot = self._slots.get(op.key, {}).get(op.holder)
        if slot is None or slot.end_ms <= now_ms:
            return False
        slot.end_ms = now_ms + op.ttl_ms
        self._look_at(slot.end_ms, op.key)
        return True

    def release(self, op: LeaseRelease) -> bool:
        """Whether it was held."""
        slot = self._slots.get(op.key, {}).pop(op.holder, None)
        if slot is None:
            return False
        self._end(op.key)
        self._hand_over(op.key)
        return slot.end_ms > self._now_ms()

    def park(self, parked: Any, op: LeaseTake) -> bool:
        """Asks for the slot once more; True if there is one by now. Else ``parked`` stands in line."""
        if self.take(op).fence:
            return True
        self._lines.setdefault(op.key, deque()).append((parked, op))
        return False

    def end_all(self) -> None:
        """Ends the slots that have not been renewed in time, and hands them on."""
        now_ms = self._now_ms()
        while self._looks and self._looks[0][0] <= now_ms:
            look_ms, key = heapq.heappop(self._looks)
            if self._first_look.get(key) == look_ms:
                del self._first_look[key]
                self._end(key)
                self._look_at(min((slot.end_ms for slot in self._slots.get(key, {}).values()), default=math.inf), key)

    def next_end_ms(self) -> int | None:
        """When the next slot ends for which somebody stands in line; None if there is none."""
        ends = (slot.end_ms for key in self._lines for slot in self._slots.get(key, {}).values())
        return min(ends, default=None)

    def _taken(self, key: str) -> int:
        return len(self._slots.get(key, ()))

    def _give(self, op: LeaseTake) -> Lease:
        slot = _Slot(next(self._fences), self._now_ms() + op.ttl_ms)
        self._slots.setdefault(op.key, {})[op.holder] = slot
        self._look_at(slot.end_ms, op.key)
        return Lease(slot.fence, slot.end_ms)

    def _look_at(self, at_ms: float, key: str) -> None:
        if at_ms < self._first_look.get(key, math.inf):
            self._first_look[key] = int(at_ms)
            heapq.heappush(self._looks, (int(at_ms), key))

    def _end(self, key: str) -> None:
        now_ms = self._now_ms()
        slots = self._slots.get(key, {})
        ended = [holder for holder, slot in slots.items() if slot.end_ms <= now_ms]
        for holder in ended:
            del slots[holder]
        if ended:
            self._hand_over(key)

    def _hand_over(self, key: str, limit: int | None = None) -> None:
        """Gives free slots to the first in line. ``limit``: if it is known better than by the line."""
        line = self._lines.get(key, deque())
        while line and self._taken(key) < (limit or line[0][1].limit):
            parked, op = line.popleft()
            if self._unpark(parked):
                self._give(op)
        if not line:
            self._lines.pop(key, None)
        if not self._taken(key):
            self._slots.pop(key, None)
