"""What the store keeps in the memory of one process: values, windows and sets; slots have a module of their own.

Changed under the transport's lock only. What its operations do to messages, it has ``Effects`` do.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from ...ports.checks import check_set, check_value
from ...ports.store import (
    Add,
    Bump,
    Delete,
    Get,
    GetParts,
    Grant,
    Lease,
    LeaseRelease,
    LeaseRenew,
    LeaseTake,
    Progress,
    Put,
    PutIf,
    SetAdd,
    SetDrop,
    SetLook,
    SetRemove,
    StoreOp,
)
from ...ports.transport import Envelope, unpack
from .slots import Slots


class Effects(Protocol):
    """What a store that is one with a transport can do to messages. Called with the lock held."""

    def now_ms(self) -> int:
        """The engine's time."""

    def push_now(self, batch: Sequence[Envelope]) -> None:
        """Adds messages, and does what they carry."""

    def unpark(self, parked: Any) -> bool:
        """Makes a parked message ready; False if it was deleted meanwhile."""


class _Entry(msgspec.Struct, gc=False):
    """One part of a value, and until when it is kept."""

    value: Any
    end_ms: int | None


class _Set(msgspec.Struct):
    """A set: each member with its outcome, None while it is missing, else whether it failed."""

    plan: SetAdd
    end_ms: int | None
    members: dict[str, bool | None]
    missing: int = 0
    failed: int = 0

    def progress(self) -> Progress:
        return Progress(len(self.members), self.missing, self.failed)


class Keep:
    """Owned by whoever holds the transport's lock."""

    def __init__(self, effects: Effects, max_value: int | None) -> None:
        self._effects = effects
        self._max_value = max_value
        self._values: dict[str, dict[int, _Entry]] = {}
        self.slots = Slots(effects.now_ms, effects.unpark)
        self._sets: dict[str, _Set] = {}
        self._ends: list[tuple[int, int, str, int | None]] = []  # a heap: when to look at a part, or at a set
        self._numbers = itertools.count()
        #: Keys whose watchers are to be told.
        self.touched: list[str] = []

    def check(self, ops: Sequence[StoreOp]) -> None:
        """Raises, before anything is done, for what cannot be done."""
        for op in ops:
            if type(op) not in _DOERS:
                raise ValueError(f"{op!r} is no operation of a store.")
            if isinstance(op, (Put, PutIf)):
                check_value(op.value, self._max_value)
            elif isinstance(op, SetAdd):
                check_set(op, self._max_value)

    def do(self, ops: Sequence[StoreOp]) -> list[Any]:
        """Does what ``check`` has let through."""
        return [_DOERS[type(op)](self, op) for op in ops]

    # --- values

    def _entry(self, key: str, part: int = 0) -> _Entry | None:
        entry = self._values.get(key, {}).get(part)
        if entry is None or (entry.end_ms is not None and entry.end_ms <= self._effects.now_ms()):
            return None
        return entry

    def _write(self, key: str, value: Any, ttl_ms: int | None, part: int = 0) -> None:
        end_ms = None if ttl_ms is None else self._effects.now_ms() + ttl_ms
        parts = self._values.setdefault(key, {})
        if end_ms is not None and (part not in parts or parts[part].end_ms is None):
            self._look_again(end_ms, key, part)
        parts[part] = _Entry(value, end_ms)

    def _put(self, op: Put) -> None:
        self._write(op.key, op.value, op.ttl_ms, op.part)
        self.touched.append(op.key)

    def _get(self, op: Get) -> Any:
        entry = self._entry(op.key, op.part)
        return None if entry is None else entry.value

    def _put_if(self, op: PutIf) -> bool:
        if self._get(Get(op.key)) != op.expect:
            return False
        self._put(Put(op.key, op.value, op.ttl_ms))
        return True

    def _get_parts(self, op: GetParts) -> list[tuple[int, Any]]:
        parts = self._values.get(op.key, {})
        numbers: Sequence[int] = range(op.start, op.start + op.limit)
        if not all(part in parts for part in numbers):  # a list without gaps is read in turns without being sorted
            numbers = sorted(part for part in parts if part >= op.start)
        alive = ((part, entry.value) for part in numbers if (entry := self._entry(op.key, part)) is not None)
        return list(itertools.islice(alive, op.limit))

    def _delete(self, op: Delete) -> bool:
        parts = self._values.get(op.key, {})
        numbers = list(parts) if op.part is None else [op.part]
        was_there = any(self._entry(op.key, part) is not None for part in numbers)
        for part in numbers:
            parts.pop(part, None)
        if not parts:
            self._values.pop(op.key, None)
        if was_there:
            self.touched.append(op.key)
        return was_there

    def _add(self, op: Add) -> bool:
        if self._entry(op.key) is not None:
            return False
        self._write(op.key, op.value, op.ttl_ms)
        self.touched.append(op.key)
        return True

    def _bump(self, op: Bump) -> int | None:
        entry = self._entry(op.key)
        if op.only_existing if entry is None else not isinstance(entry.value, int):
            return None
        value: int = (0 if entry is None else entry.value) + op.amount
        others = [self._get(Get(key)) for key in {*op.also} - {op.key}]
        judged = value + sum([other for other in others if isinstance(other, int)])
        if (op.high is not None and judged > op.high) or (op.low is not None and judged < op.low):
            return None
        self._write(op.key, value, op.ttl_ms)
        self.touched.append(op.key)
        return value

    # --- windows, as numbered parts that hold times or counts

    def _grant(self, op: Grant) -> int:
        return self._grant_sliding(op) if op.sliding else self._grant_in_bucket(op)

    def _grant_in_bucket(self, op: Grant) -> int:
        now_ms = self._effects.now_ms()
        window = now_ms // op.window_ms
        end_ms = (window + 1) * op.window_ms
        granted = self._get(Get(op.key, window)) or 0
        if granted >= op.limit:
            return end_ms
        self._write(op.key, granted + 1, end_ms - now_ms, window)
        return 0

    def _grant_sliding(self, op: Grant) -> int:
        now_ms = self._effects.now_ms()
        if op.limit <= 0:
            return now_ms + op.window_ms
        grants = self._values.setdefault(op.key, {})
        number = next(reversed(grants), 0)
        if grants and grants[number].value > now_ms:  # the clock was set back
            for entry in grants.values():
                entry.value = min(entry.value, now_ms)
                entry.end_ms = entry.value + op.window_ms
        before = grants.get(number + 1 - op.limit)
        if before is not None and before.value + op.window_ms > now_ms:
            return int(before.value) + op.window_ms
        self._write(op.key, now_ms, op.window_ms, number + 1)
        while (oldest := next(iter(grants))) <= number + 1 - op.limit and self._entry(op.key, oldest) is None:
            del grants[oldest]
        return 0

    # --- slots

    def _take(self, op: LeaseTake) -> Lease:
        return self.slots.take(op)

    def _renew(self, op: LeaseRenew) -> bool:
        return self.slots.renew(op)

    def _release(self, op: LeaseRelease) -> bool:
        return self.slots.release(op)

    # --- sets

    def _set(self, key: str) -> _Set | None:
        found = self._sets.get(key)
        if found is None or (found.end_ms is not None and found.end_ms <= self._effects.now_ms()):
            return None
        return found

    def _set_add(self, op: SetAdd) -> Progress:
        found = self._set(op.key)
        made = found is None
        if found is None:
            end_ms = None if op.ttl_ms is None else self._effects.now_ms() + op.ttl_ms
            found = self._sets[op.key] = _Set(op, end_ms, {})
            if end_ms is not None:
                self._look_again(end_ms, op.key, None)
        if made or found.missing:
            for member in op.members:
                if member not in found.members:
                    found.members[member] = None
                    found.missing += 1
        progress = found.progress()
        if made and not found.missing:
            self._complete(found)
        return progress

    def _set_remove(self, op: SetRemove) -> Progress | None:
        found = self._set(op.key)
        if found is None:
            return None
        is_new = found.members.get(op.member, False) is None
        if is_new:
            found.members[op.member] = op.failed
            found.missing -= 1
            found.failed += op.failed
        progress = found.progress()
        if is_new and not found.missing:
            self._complete(found)
        elif is_new and op.failed:
            self.touched.append(op.key)
        return progress

    def _set_look(self, op: SetLook) -> Progress | None:
        found = self._set(op.key)
        return None if found is None else found.progress()

    def _set_drop(self, op: SetDrop) -> bool:
        was_there = self._set(op.key) is not None
        self._sets.pop(op.key, None)
        if was_there:
            self.touched.append(op.key)
        return was_there

    def _complete(self, found: _Set) -> None:
        plan = found.plan
        self.touched.append(plan.key)
        self._effects.push_now([unpack(data) for data in (plan.then if found.failed else (*plan.then, *plan.then_ok))])
        if plan.parent is not None:
            self._set_remove(SetRemove(*plan.parent, failed=found.failed > 0))

    # --- tidying up

    def _look_again(self, end_ms: int, key: str, part: int | None) -> None:
        heapq.heappush(self._ends, (end_ms, next(self._numbers), key, part))

    def purge(self, limit: int) -> int:
        """Deletes up to ``limit`` parts and sets that have expired; returns how many."""
        now_ms = self._effects.now_ms()
        deleted = 0
        while deleted < limit and self._ends and self._ends[0][0] <= now_ms:
            _, _, key, part = heapq.heappop(self._ends)
            deleted += self._purge_set(key, now_ms) if part is None else self._purge_part(key, part, now_ms)
        return deleted

    def _purge_set(self, key: str, now_ms: int) -> bool:
        found = self._sets.get(key)
        if found is None or found.end_ms is None or found.end_ms > now_ms:
            return False
        del self._sets[key]
        return True

    def _purge_part(self, key: str, part: int, now_ms: int) -> bool:
        parts = self._values.get(key, {})
        entry = parts.get(part)
        if entry is None or entry.end_ms is None:
            return False
        if entry.end_ms > now_ms:  # it was written again
            self._look_again(entry.end_ms, key, part)
            return False
        del parts[part]
        if not parts:
            del self._values[key]
        return True


_DOERS: dict[type, Callable[[Keep, Any], Any]] = {
    Put: Keep._put,
    PutIf: Keep._put_if,
    Get: Keep._get,
    GetParts: Keep._get_parts,
    Delete: Keep._delete,
    Add: Keep._add,
    Bump: Keep._bump,
    Grant: Keep._grant,
    LeaseTake: Keep._take,
    LeaseRenew: Keep._renew,
    LeaseRelease: Keep._release,
    SetAdd: Keep._set_add,
    SetRemove: Keep._set_remove,
    SetLook: Keep._set_look,
    SetDrop: Keep._set_drop,
}
