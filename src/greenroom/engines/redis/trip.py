"""One trip as arguments of ``exchange.lua``, and its answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ...core.verdict import Verdict
from ...errors import MessageTooLarge
from ...ports.checks import check_park
from ...ports.store import Put, StoreOp
from ...ports.transport import Delivery, Envelope, Settlement
from .connection import Argument, Connection
from .dramatiq_rider import Rider
from .envelopes import base_of, check_envelope, runs_of
from .history import entry_of
from .key_table import KeyTable
from .keys import Keys
from .scripts import Script, load
from .writes import LIBRARIES, Writes

_ACK = Verdict.ACK

#: Where the keys of the first queue begin, and how many a queue has.
FIRST, WIDTH = 7, 11

#: What says that a settlement can never be applied, however often it is tried.
IMPOSSIBLE = (MessageTooLarge, ValueError, OverflowError)

PLAIN = load("exchange", "pushing", "history")
WITH_STORE = load("exchange", "pushing", "history", *LIBRARIES)


#: No command carries more than this of what settlements push and write, unless it is of one settlement.
PART_BYTES = 64 * 1024 * 1024


def parts_of(settle: Sequence[Settlement]) -> list[Sequence[Settlement]]:
    """Settlements by commands, none of which is too large; at least one part."""
    for s in settle:
        if s.push or s.retry is not None or s.writes:
            break
    else:
        return [settle]
    parts: list[Sequence[Settlement]] = []
    first, size = 0, 0
    for number, s in enumerate(settle):
        sent = _size_of(s)
        if size + sent > PART_BYTES and number > first:
            parts.append(settle[first:number])
            first, size = number, 0
        size += sent
    parts.append(settle[first:])
    return parts


def _size_of(s: Settlement) -> int:
    """About how many bytes are sent of what is pushed and written with a settlement."""
    size = 0
    for op in s.writes:
        if isinstance(op, Put):
            size += len(op.value)
    for envelope in _sent_with(s):
        size += len(envelope.body)
    return size


def check_possible(s: Settlement, max_body: int) -> None:
    """Raises one of ``IMPOSSIBLE`` for a settlement that can never be applied."""
    check_park(s)
    if s.verdict is Verdict.RETRY and s.retry is None:
        raise ValueError("A RETRY settlement carries the envelope to be retried.")
    for envelope in _sent_with(s):
        check_envelope(envelope, max_body)


def _sent_with(s: Settlement) -> Sequence[Envelope]:
    return s.push if s.retry is None else (*s.push, s.retry)


class Trip:
    """Puts together what one trip sends. Used once."""

    def __init__(
        self, head: Sequence[Argument], queues: Sequence[str], table: KeyTable, keys: Keys, max_body: int
    ) -> None:
        self.table = table
        self.script: Script = PLAIN
        #: The settlements, in the order in which the answer counts them.
        self.order: list[Settlement] = []
        #: What can never be applied, and is not sent.
        self.refused: list[tuple[Settlement, Exception]] = []
        self._writes = Writes(keys, table.keys, max_body)
        self._max_body = max_body
        self._head = head
        self._queues = queues
        for queue in queues:
            table.of(queue)
        self._groups: list[Argument] = []
        self._writing: list[Any] = []
        self._others: list[Any] = []
        #: How many messages are pushed.
        self.pushes = 0

    def settle(self, settle: Sequence[Settlement]) -> None:
        """Adds settlements that are possible."""
        by_queue: dict[str, tuple[list[Argument], list[Settlement]]] = {}
        writing: dict[str, list[Settlement]] = {}
        others = []
        for s in settle:
            d = s.delivery
            if s.verdict is _ACK and not s.push and d.attempt == 1:
                if s.writes:
                    writing.setdefault(d.queue, []).append(s)
                    continue
                group = by_queue.get(d.queue)
                if group is None:
                    group = by_queue[d.queue] = ([], [])
                group[0].append(d.id)
                group[1].append(s)
            else:
                others.append(s)
        args = self._groups
        args.append(len(by_queue))
        for queue, (ids, group_settle) in by_queue.items():
            args += (self.table.of(queue), len(ids))
            args += ids
            self.order += group_settle
        self._writing.append(0)
        for queue, group_writing in writing.items():
            self._ack_and_write(queue, group_writing)
        self._others.append(len(others))
        for s in others:
            try:
                check_possible(s, self._max_body)
                self._settle_one(s)
            except IMPOSSIBLE as e:
                self.refused.append((s, e))
                self._others[0] -= 1
            else:
                self.order.append(s)

    def _ack_and_write(self, queue: str, settle: Sequence[Settlement]) -> None:
        """Adds first attempts of one queue that are done, and do something in the store."""
        self.script = WITH_STORE
        ids: list[Argument] = []
        stored: list[Argument] = []
        for s in settle:
            try:
                ops = self._writes.encode(s.writes)
            except IMPOSSIBLE as e:
                self.refused.append((s, e))
            else:
                ids.append(s.delivery.id)
                stored.append(len(ops))
                stored += ops
                self.order.append(s)
        if ids:
            self._writing[0] += 1
            self._writing += (self.table.of(queue), len(ids), *ids, *stored)

    def _settle_one(self, s: Settlement) -> None:
        d = s.delivery
        needs = self._needs(s)
        run_count, runs = runs_of(s.push, self.table)
        self.pushes += len(s.push)
        ops = _ops_of(s)
        stored = self._writes.encode(ops) if ops else []
        if ops or s.park is not None:
            self.script = WITH_STORE
        verb = s.verdict.name.lower() if s.park is None else "park"
        size = 7 + len(needs) + len(runs) + len(stored)
        self._others += (verb, self.table.of(d.queue), d.id, d.attempt, size, run_count, len(needs))
        self._others += needs
        self._others += runs
        self._others += stored

    def _needs(self, s: Settlement) -> list[Argument]:
        """What a verdict needs besides."""
        if s.verdict is _ACK:
            return []
        entry = entry_of(s.delivery.attempt, s.error)
        if s.verdict is Verdict.DEAD:
            return [entry]
        if s.verdict is Verdict.RETRY:
            assert s.retry is not None
            self.pushes += 1
            return [entry, *_run(s.retry, self.table)]
        if s.park is not None:
            return self._writes.park(s.park, s.delivery.queue)
        return ["" if s.due_ms is None else s.due_ms, entry if s.error is not None else b""]

    def ask_again(self, now: Argument) -> None:
        """Says from now on that it was sent before, and that it is ``now``."""
        _, owner, lease_ms, number = self._head
        self._head = (now, owner, lease_ms, -abs(int(number)))

    def run(self, connection: Connection, limit: int, rider: Rider | None = None) -> Any:
        """Has the server make the trip; its answer. ``rider``: what looks at something else on the way."""
        head = (*self._head, limit, self.pushes, len(self._queues), *self._queues)
        if self.script is PLAIN:
            args = [*head, *self._groups, *self._others]
            if rider is not None:
                return rider.run(PLAIN, connection, self.table.keys, args)
            return PLAIN.run(connection, self.table.keys, args)
        args = [*head, *self._groups, *self._writing, *self._others, self._writes.wants()]
        return self._writes.run(lambda script, keys, args: script.run(connection, keys, args), WITH_STORE, args)


def _ops_of(s: Settlement) -> Sequence[StoreOp]:
    """What the store does: for what is pushed, and then for the settlement."""
    sent = _sent_with(s)
    if not any(envelope.writes for envelope in sent):
        return s.writes
    return [*(op for envelope in sent for op in envelope.writes), *s.writes]


def _run(envelope: Envelope, table: KeyTable) -> list[Argument]:
    due = "" if envelope.due_ms is None else envelope.due_ms
    queue = envelope.queue
    return [table.of(queue), queue, base_of(envelope.priority), due, 1, envelope.id, envelope.body]


class Answer(NamedTuple):
    """What the server answered, as it came."""

    now_ms: int
    lost: list[int]
    claimed: list[Any]
    next_due_ms: int
    more: int
    paused: list[bytes]
    slot_end_ms: int
    #: Owners whose leases have ended, each with the end.
    expired: list[bytes]


def deliveries(
    claimed: Sequence[Any], queues: Sequence[str], token: object
) -> tuple[list[Delivery], Sequence[Delivery]]:
    """What was claimed, as the port has it, in order; and what of it has no body."""
    found: list[Delivery] = []
    missing: list[Delivery] = []
    for number, ids, scores, extras, parts in claimed:
        bodies = parts[0] if len(parts) == 1 else [body for part in parts for body in part]
        first = int(scores[0])
        marks = range(first, first + len(ids)) if len(scores) == 1 else map(int, scores)
        some = _of_queue(queues[number - 1], ids, marks, bodies, extras, token)
        if None in bodies:
            missing += [delivery for delivery, body in zip(some, bodies, strict=True) if body is None]
            some = [delivery for delivery, body in zip(some, bodies, strict=True) if body is not None]
        found += some
    if len(claimed) > 1:
        found.sort(key=_mark)
    return found, missing


def _of_queue(  # columns
    queue: str, ids: list[bytes], marks: Iterable[int], bodies: list[bytes], extras: Any, token: object
) -> list[Delivery]:
    if extras is None:
        return [
            Delivery(queue, id.decode(), body, token, 1, 0, False, mark)
            for id, mark, body in zip(ids, marks, bodies, strict=True)
        ]
    found = []
    for id, mark, body, extra in zip(ids, marks, bodies, extras, strict=True):
        attempts, crashes = map(int, extra.split(b":")) if extra else (0, 0)
        found.append(Delivery(queue, id.decode(), body, token, attempts + 1, crashes, attempts > 0, mark))
    return found


def _mark(delivery: Delivery) -> int:
    return delivery.mark
