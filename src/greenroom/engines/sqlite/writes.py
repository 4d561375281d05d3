"""The operations of the store inside one transaction, and what others have to be told after its commit."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from ... import failpoints
from ...ports.checks import check_set, check_value
from ...ports.store import (
    Add,
    Bump,
    Delete,
    Get,
    GetParts,
    Grant,
    LeaseRelease,
    LeaseRenew,
    LeaseTake,
    Put,
    PutIf,
    SetAdd,
    SetDrop,
    SetLook,
    SetRemove,
    StoreOp,
)
from ...ports.transport import Envelope, unpack
from . import sets, slots, values
from .rows import insert

#: What only reads needs no transaction.
READS = (Get, GetParts, SetLook)


class Writes:
    """Does operations for one transaction. Belongs to it.

    ``do`` answers each at once. ``later`` is for those that travel with settlements, whose answers nobody waits for:
    puts and removals are gathered and done together by ``flush``, in half the time. What is gathered touches nothing
    that is gathered beside it, and everything else flushes first, so the order that matters is kept.
    """

    def __init__(self, connection: sqlite3.Connection, now_ms: int, max_body: int) -> None:
        self._connection = connection
        self._now_ms = now_ms
        self._max_body = max_body
        self._puts: list[Put] = []
        self._removals: dict[str, dict[str, bool]] = {}
        #: Keys whose watchers are to be told.
        self.touched: list[str] = []
        #: What was pushed by completions.
        self.pushed: list[Envelope] = []
        #: How many parked messages have become ready.
        self.woken = 0

    def do_all(self, ops: Sequence[StoreOp]) -> list[Any]:
        """Does all of it, and answers."""
        answers = []
        for op in ops:
            answers.append(self._do(op))
            self.flush()  # what a completion has set off
        return answers

    def later(self, ops: Sequence[StoreOp]) -> None:
        """Does all of it until ``flush`` has been called."""
        for op in ops:
            if isinstance(op, Put):
                if len(op.value) > self._max_body:
                    check_value(op.value, self._max_body)
                self._puts.append(op)
            elif isinstance(op, SetRemove):
                members = self._removals.get(op.key)
                if members is None:
                    members = self._removals[op.key] = {}
                members.setdefault(op.member, op.failed)
            else:
                self.flush()
                self._do(op)

    def insert(self, batch: Sequence[Envelope]) -> None:
        """Inserts envelopes, and does what they carry."""
        if not batch:
            return
        insert(self._connection, batch)
        for envelope in batch:
            if envelope.writes:
                self.later(envelope.writes)

    def park(self, slot: LeaseTake, token: tuple[int, int]) -> bool:
        """Releases a claimed message into the line for a slot; False if it was not held any more."""
        was_held, woken = slots.park(self._connection, slot, token, self._now_ms)
        self.woken += woken
        return was_held

    def end_slots(self) -> None:
        """Ends the slots that have not been renewed in time."""
        self.woken += slots.end_slots(self._connection, self._now_ms)

    def flush(self) -> None:
        """Does what was gathered."""
        while self._puts or self._removals:  # a completion pushes, and what it pushes may carry more
            puts, self._puts = self._puts, []
            removals, self._removals = self._removals, {}
            if puts:
                failpoints.hit("result.before_store")
                values.put_many(self._connection, puts, self._now_ms)
                failpoints.hit("result.after_store")
                self.touched += [op.key for op in puts]
            for key, members in removals.items():
                self._remove(key, members)

    def forget(self) -> None:
        """Drops what was gathered: what it came with was rolled back."""
        self._puts.clear()
        self._removals.clear()

    def _do(self, op: StoreOp) -> Any:
        doer = _DOERS.get(type(op))
        if doer is None:
            raise ValueError(f"{op!r} is no operation of a store.")
        return doer(self, op)

    # --- one method an operation

    def _get(self, op: Get) -> Any:
        return values.get(self._connection, op, self._now_ms)

    def _get_parts(self, op: GetParts) -> list[tuple[int, Any]]:
        return values.get_parts(self._connection, op, self._now_ms)

    def _put(self, op: Put) -> None:
        check_value(op.value, self._max_body)
        values.put_many(self._connection, (op,), self._now_ms)
        self.touched.append(op.key)

    def _put_if(self, op: PutIf) -> bool:
        check_value(op.value, self._max_body)
        return self._touch(op.key, values.put_if(self._connection, op, self._now_ms))

    def _delete(self, op: Delete) -> bool:
        return self._touch(op.key, values.delete(self._connection, op, self._now_ms))

    def _add(self, op: Add) -> bool:
        return self._touch(op.key, values.add(self._connection, op, self._now_ms))

    def _bump(self, op: Bump) -> int | None:
        value = values.bump(self._connection, op, self._now_ms)
        self._touch(op.key, value is not None)
        return value

    def _grant(self, op: Grant) -> int:
        return values.grant(self._connection, op, self._now_ms)

    def _lease_take(self, op: LeaseTake) -> Any:
        answer, woken = slots.take(self._connection, op, self._now_ms)
        self.woken += woken
        return answer

    def _lease_renew(self, op: LeaseRenew) -> bool:
        return slots.renew(self._connection, op, self._now_ms)

    def _lease_release(self, op: LeaseRelease) -> bool:
        was_held, woken = slots.release(self._connection, op, self._now_ms)
        self.woken += woken
        return was_held

    def _set_add(self, op: SetAdd) -> Any:
        check_set(op, self._max_body)
        progress, plan = sets.add(self._connection, op, self._now_ms)
        self._complete(op.key, progress.failed, plan)
        return progress

    def _set_remove(self, op: SetRemove) -> Any:
        return self._remove(op.key, {op.member: op.failed})

    def _set_look(self, op: SetLook) -> Any:
        return sets.look(self._connection, op.key, self._now_ms)

    def _set_drop(self, op: SetDrop) -> bool:
        return self._touch(op.key, sets.drop(self._connection, op.key, self._now_ms))

    # --- steps

    def _touch(self, key: str, has_changed: bool) -> bool:
        if has_changed:
            self.touched.append(key)
        return has_changed

    def _remove(self, key: str, members: dict[str, bool]) -> Any:
        done = [member for member, failed in members.items() if not failed]
        failed = [member for member, failed in members.items() if failed]
        progress, now_failed, plan = sets.remove(self._connection, key, done, failed, self._now_ms)
        if now_failed and plan is None:
            self.touched.append(key)
        if progress is not None:
            self._complete(key, progress.failed, plan)
        return progress

    def _complete(self, key: str, failed: int, plan: sets.Plan | None) -> None:
        """Pushes what waits for a set that is complete now, and goes up to the set that it is a member of."""
        if plan is None:
            return
        self.touched.append(key)
        batch = [unpack(data) for data in (plan.then if failed else (*plan.then, *plan.then_ok))]
        if batch:
            self.insert(batch)
            self.pushed += batch
        if plan.parent is not None:
            parent, member = plan.parent
            self._removals.setdefault(parent, {}).setdefault(member, failed > 0)


def purge(connection: sqlite3.Connection, limit: int, now_ms: int) -> int:
    """Deletes up to ``limit`` rows that have expired; returns how many."""
    deleted = values.purge(connection, limit, now_ms)
    return deleted + sets.purge(connection, limit - deleted, now_ms)


_DOERS: dict[type, Any] = {
    Get: Writes._get,
    GetParts: Writes._get_parts,
    Put: Writes._put,
    PutIf: Writes._put_if,
    Delete: Writes._delete,
    Add: Writes._add,
    Bump: Writes._bump,
    Grant: Writes._grant,
    LeaseTake: Writes._lease_take,
    LeaseRenew: Writes._lease_renew,
    LeaseRelease: Writes._lease_release,
    SetAdd: Writes._set_add,
    SetRemove: Writes._set_remove,
    SetLook: Writes._set_look,
    SetDrop: Writes._set_drop,
}
