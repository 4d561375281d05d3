"""The operations of the store as arguments of scripts, and their answers. What the scripts do is in ``store*.lua``.

Keys of the store: all begin as the namespace's do, then come two letters, a colon and the key's text.

======  ======  ========================================================================================================
``sv``  string  a value or a counter: part 0; the first byte says which
``sp``  zset    the other parts of a key, by their numbers
``sw``  list    the times of the last grants of a window that slides
``sb``  hash    the counters of windows that do not, by when they end (ms)
``sl``  zset    slots: holder -> when it ends (ms); ``sf`` hash: holder -> fence
``sq``  zset    the line before them, by place; ``sx`` set: the queues of those who stand there
``st``  hash    a set: total, left, failed, end, what its completion does, and what keys that needs
``sm``  set     its members that are missing; ``sg`` those that are gone, until it is complete
======  ======  ========================================================================================================

And one a namespace: ``ends`` zset: the text of a key that has a line -> when the first of its slots ends (ms).

**Every key of a script is declared.** But what the completion of a set pushes, and to whose queue a slot is handed,
only the server knows. So a script that may do such a thing is told what it loses and frees (``wants``), looks ahead
before it does anything, and answers which keys are missing; then the same is asked for again, with these keys. That
costs a second trip where a set is completed or a line is met for the first time, and nothing else: it is one atomic
step, and there is never anything half done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

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
from .connection import Argument
from .envelopes import base_of
from .keys import Keys
from .packing import pack
from .scripts import Script

#: Redis refuses times that do not fit beside today's; nobody means that many milliseconds.
_LONGEST_TTL_MS = 2**50
#: Of how many lines it is remembered which queues stand there.
_HINTS = 1000
#: The libraries of scripts that do operations, in order.
LIBRARIES = ("store_values", "store_slots", "store_sets", "store")
#: What a script answers first of all if keys were missing.
UNDECLARED = b"undeclared"


#: Has the server run a script with these keys and arguments.
Run = Callable[[Script, Sequence[Argument], Sequence[Argument]], Any]


class PutResult(Put, frozen=True, gc=False, tag=True):
    """Keeps a result as Dramatiq does: a list of one, under the key as it is. What ``Put`` has put there is deleted."""


class GetResult(Get, frozen=True, gc=False, tag=True):
    """Answers what ``PutResult`` or Dramatiq has put there, else what ``Put`` has."""


class Writes:
    """Operations of one script. Used once.

    Parameters:
      keys: Names the keys.
      declared: The keys of the script so far; those of the operations are added.
      max_value: The largest value in bytes.
    """

    __slots__ = ("_declared", "_keys", "_lines", "_losses", "_max_value", "_planned", "_prefix")

    def __init__(self, keys: Keys, declared: list[bytes], max_value: int | None) -> None:
        self._keys = keys
        self._prefix = keys.prefix
        self._declared = declared
        self._max_value = max_value
        self._planned: list[bytes] = []  # what plans touch, besides: not in the order of the operations
        self._losses: dict[bytes, int] = {}
        self._lines: set[bytes] = set()

    def encode(self, ops: Sequence[StoreOp]) -> list[Argument]:
        """The arguments of ``store.apply``.

        Raises:
          MessageTooLarge: A value is larger than allowed.
          ValueError: What can never be done.
        """
        args: list[Argument] = [len(ops), len(self._declared) + 1]
        for op in ops:
            self._add(op, args)
        return args

    def park(self, slot: LeaseTake, queue: str) -> list[Argument]:
        """The arguments of ``store.park``."""
        place = len(self._declared) + 1
        self._slot(slot.key)
        return [place, queue, _text(slot.holder), slot.limit, slot.ttl_ms]

    def wants(self) -> bytes:
        """What the script has to look ahead to; nothing if it has not."""
        if not self._losses and not self._lines:
            return b""
        losses = [item for loss in self._losses.items() for item in loss]
        return pack(([], losses, list(self._lines)))

    def run(self, run: Run, script: Script, args: Sequence[Argument]) -> Any:
        """The answer of a script that looks ahead: run again with more keys until none is missing."""
        self._declared += self._planned
        hints = self._keys.of_lines
        for line in self._lines:
            self._declared += hints.get(line, ())
        while True:
            answer = run(script, self._declared, args)
            missing = missing_of(answer)
            if not missing:
                return answer
            self._declared += missing
            if len(self._lines) == 1 and not self._losses:
                (line,) = self._lines
                if len(hints) >= _HINTS:
                    hints.clear()
                hints[line] = (*hints.get(line, ()), *missing)

    def _add(self, op: StoreOp, args: list[Argument]) -> None:
        adder = _ADDERS.get(type(op))
        if adder is None:
            raise ValueError(f"{op!r} is no operation of a store.")
        adder(self, op, args)

    def _name(self, kind: bytes, key: str) -> bytes:
        return b"%b%b:%b" % (self._prefix, kind, _text(key))

    def _declare(self, key: str, *kinds: bytes) -> None:
        text = _text(key)
        self._declared += [b"%b%b:%b" % (self._prefix, kind, text) for kind in kinds]

    # --- values

    def _put(self, op: Put, args: list[Argument]) -> None:
        value = op.value
        if self._max_value is not None and len(value) > self._max_value:
            check_value(value, self._max_value)
        if op.part:
            self._declare(op.key, b"sp")
            args += (b"put_part", op.part, value, _ttl(op.ttl_ms))
        else:
            self._declared.append(self._name(b"sv", op.key))
            args += (b"put", value, _ttl(op.ttl_ms))

    def _put_result(self, op: PutResult, args: list[Argument]) -> None:
        check_value(op.value, self._max_value)
        self._declared += (_text(op.key), self._name(b"sv", op.key))
        args += (b"put_result", op.value, _ttl(op.ttl_ms))

    def _put_if(self, op: PutIf, args: list[Argument]) -> None:
        check_value(op.value, self._max_value)
        self._declare(op.key, b"sv")
        expected = (b"", b"") if op.expect is None else (b"1", op.expect)
        args += (b"put_if", op.value, _ttl(op.ttl_ms), *expected)

    def _get(self, op: Get, args: list[Argument]) -> None:
        if op.part:
            self._declare(op.key, b"sp")
            args += (b"get_part", op.part)
        else:
            self._declare(op.key, b"sv")
            args.append(b"get")

    def _get_result(self, op: GetResult, args: list[Argument]) -> None:
        self._declared += (_text(op.key), self._name(b"sv", op.key))
        args.append(b"get_result")

    def _get_parts(self, op: GetParts, args: list[Argument]) -> None:
        self._declare(op.key, b"sv", b"sp")
        args += (b"get_parts", op.start, op.limit)

    def _delete(self, op: Delete, args: list[Argument]) -> None:
        if op.part is None:
            self._declare(op.key, b"sv", b"sp", b"sw", b"sb")
            args.append(b"delete")
        else:
            self._declare(op.key, b"sv", b"sp")
            args += (b"delete_part", op.part)

    # --- counters and windows

    def _add_counter(self, op: Add, args: list[Argument]) -> None:
        self._declare(op.key, b"sv")
        args += (b"add", op.value, _ttl(op.ttl_ms))

    def _bump(self, op: Bump, args: list[Argument]) -> None:
        also = {*op.also} - {op.key}
        for key in (op.key, *also):
            self._declare(key, b"sv")
        bounds = ("" if bound is None else bound for bound in (op.low, op.high))
        args += (b"bump", op.amount, *bounds, _ttl(op.ttl_ms), b"1" if op.only_existing else b"", len(also))

    def _grant(self, op: Grant, args: list[Argument]) -> None:
        self._declare(op.key, b"sw" if op.sliding else b"sb")
        args += (b"grant_sliding" if op.sliding else b"grant_fixed", op.limit, op.window_ms)

    # --- slots

    def _slot(self, key: str) -> None:
        self._declare(key, b"sl", b"sf", b"sq", b"sx")
        self._lines.add(self._declared[-1])
        self._declared += (self._keys.ends, self._keys.seq)

    def _take(self, op: LeaseTake, args: list[Argument]) -> None:
        self._slot(op.key)
        args += (b"take", _text(op.holder), op.limit, op.ttl_ms)

    def _renew(self, op: LeaseRenew, args: list[Argument]) -> None:
        self._slot(op.key)
        args += (b"renew", _text(op.holder), op.ttl_ms)

    def _release(self, op: LeaseRelease, args: list[Argument]) -> None:
        self._slot(op.key)
        args += (b"release", _text(op.holder))

    def end_slots(self, keys: Sequence[bytes]) -> list[Argument]:
        """The arguments of ``store.answer`` that end the slots of these keys that were not renewed in time."""
        args: list[Argument] = [len(keys), len(self._declared) + 1]
        for key in keys:
            self._slot(key.decode("utf-8", "surrogatepass"))
            args.append(b"end_slots")
        return args

    # --- sets

    def _set(self, key: str, losses: int) -> None:
        self._declare(key, b"st", b"sm", b"sg")
        if losses:
            name = self._declared[-3]
            self._losses[name] = self._losses.get(name, 0) + losses

    def _set_add(self, op: SetAdd, args: list[Argument]) -> None:
        check_set(op, self._max_value)
        self._set(op.key, 0)
        plan, wants = self._plan(op)
        args += (b"set_add", pack([_text(member) for member in op.members]), _ttl(op.ttl_ms), plan, wants)

    def _plan(self, op: SetAdd) -> tuple[bytes, bytes]:
        """What the completion of a set does, and what it wants; both also count for this script, which may complete
        it."""
        if not op.then and not op.then_ok and op.parent is None:
            return b"", b""
        names: list[bytes] = []
        plan = Writes(self._keys, names, self._max_value)
        then, then_ok = ([plan._envelope(unpack(data)) for data in some] for some in (op.then, op.then_ok))
        parent: list[bytes] = []
        if op.parent is not None:
            plan._set(op.parent[0], 1)
            parent = [*names[-3:], _text(op.parent[1])]
        self._planned += names
        for name, count in plan._losses.items():
            self._losses[name] = self._losses.get(name, 0) + count
        self._lines |= plan._lines
        losses = [item for loss in plan._losses.items() for item in loss]
        return pack((then, then_ok, parent)), pack((names, losses, list(plan._lines)))

    def _envelope(self, envelope: Envelope) -> list[Any]:
        """An envelope of a plan. See ``send`` in the script."""
        queue = self._keys.of(envelope.queue)
        self._declared += (queue.ready, queue.delayed, queue.bodies, queue.wake, self._keys.queues, self._keys.seq)
        names: list[bytes] = []
        carried = Writes(self._keys, names, self._max_value)
        carried._losses, carried._lines = self._losses, self._lines
        args: list[Argument] = []
        for op in envelope.writes:
            carried._add(op, args)
        self._declared += (*names, *carried._planned)
        due = "" if envelope.due_ms is None else envelope.due_ms
        base = int(base_of(envelope.priority))
        told = [arg if isinstance(arg, bytes) else str(arg) for arg in args]
        return [envelope.queue, envelope.id, envelope.body, base, due, len(envelope.writes), names, told]

    def _set_remove(self, op: SetRemove, args: list[Argument]) -> None:
        self._set(op.key, 1)
        args += (b"set_remove", _text(op.member), b"1" if op.failed else b"")

    def _set_look(self, op: SetLook, args: list[Argument]) -> None:
        self._declare(op.key, b"st")
        args.append(b"set_look")

    def _set_drop(self, op: SetDrop, args: list[Argument]) -> None:
        self._set(op.key, 0)
        args.append(b"set_drop")


def missing_of(answer: Any) -> list[bytes]:
    """The keys that a script misses, if that is what it answers; then it has done nothing."""
    return answer[1:] if isinstance(answer, list) and answer and answer[0] == UNDECLARED else []


def decode(op: StoreOp, answer: Any) -> Any:
    """What an operation answers."""
    decoder = _DECODERS.get(type(op))
    return answer if decoder is None else decoder(answer)


def _text(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _ttl(ttl_ms: int | None) -> Argument:
    return b"" if ttl_ms is None else min(ttl_ms, _LONGEST_TTL_MS)


def _value(answer: bytes | None) -> bytes | int | None:
    if answer is None:
        return None
    start = 1 if answer[0] > 90 else 17  # a capital letter: the time of its end comes first
    return int(answer[start:]) if answer[0] in b"iI" else answer[start:]


def _parts(answer: list[bytes]) -> list[tuple[int, Any]]:
    return [(int(part), _value(data)) for part, data in zip(answer[::2], answer[1::2], strict=True)]


def _progress(answer: list[int] | None) -> Progress | None:
    return None if answer is None else Progress(*answer)


def _lease(answer: list[int]) -> Lease:
    return Lease(*answer)


_DECODERS: dict[type, Callable[[Any], Any]] = {
    Get: _value,
    GetResult: _value,
    GetParts: _parts,
    PutIf: bool,
    Delete: bool,
    Add: bool,
    LeaseTake: _lease,
    LeaseRenew: bool,
    LeaseRelease: bool,
    SetAdd: _progress,
    SetRemove: _progress,
    SetLook: _progress,
    SetDrop: bool,
}

_ADDERS: dict[type, Any] = {
    Put: Writes._put,
    PutResult: Writes._put_result,
    PutIf: Writes._put_if,
    Get: Writes._get,
    GetResult: Writes._get_result,
    GetParts: Writes._get_parts,
    Delete: Writes._delete,
    Add: Writes._add_counter,
    Bump: Writes._bump,
    Grant: Writes._grant,
    LeaseTake: Writes._take,
    LeaseRenew: Writes._renew,
    LeaseRelease: Writes._release,
    SetAdd: Writes._set_add,
    SetRemove: Writes._set_remove,
    SetLook: Writes._set_look,
    SetDrop: Writes._set_drop,
}
