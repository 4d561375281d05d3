"""Looking into the messages on a Redis server and acting on them: the ``Admin`` of the Redis engine.

A look is one script, so what it tells is of one moment. What changes many messages does so a thousand at a time, so
that senders and workers take their turns in between.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from ...clock import SYSTEM_CLOCK, Clock
from ...ports.admin import STATES, Counts, DeadLetter, Peeked, State, check_step, parse_place
from ...ports.transport import MAX_TRIP, Envelope
from .connection import Argument
from .envelopes import check_envelope, runs_of
from .history import incident_of, incidents_of
from .inspection import inspect_server
from .key_table import KeyTable
from .keys import PRIORITY_BASE, SEQ_SPAN
from .reaper import info_of
from .scripts import load
from .share import ProcessShare

#: So many messages are deleted in one step.
CHUNK = 1000
#: A page ends early when its bodies have so many bytes.
PAGE_BYTES = 64 * 1024 * 1024
#: The queues of so many are counted in one step.
_QUEUES_A_STEP = 200
#: When a parked message is due: it is delayed until somebody wakes it.
_NEVER_MS = 2**53 - 1

_COUNTS = load("counts")
_PEEK = load("peek", "places")
_DEAD = load("dead", "places")
_LETTERS = load("letters")
_MOVE = load("move", "history", "pushing")
_DROP = load("drop")
_PURGE = load("purge", "places")
_PURGE_DEAD = load("purge_dead")


class RedisAdmin:
    """The ``Admin`` of a ``RedisTransport``, which brings what is declared here. Any thread may use it."""

    clock: Clock
    _max_body: int

    @property
    def share(self) -> ProcessShare:
        """What this process has open to the server; opened now if this is its first use."""
        raise NotImplementedError

    # --- looking

    def counts(self, queues: Collection[str] | None = None) -> dict[str, Counts]:
        """How many messages there are, by queue; all queues with any, and those named, if ``queues`` is None."""
        found: dict[str, Counts] = {}
        names = iter(self._all_queues() if queues is None else queues)
        while some := list(islice(names, _QUEUES_A_STEP)):
            keys = [key for of in map(self.share.keys.of, some) for key in (of.ready, of.delayed, of.bodies, of.dead)]
            for queue, (ready, delayed, kept, dead) in zip(some, self._run(_COUNTS, keys), strict=True):
                found[queue] = Counts(ready, delayed, max(0, kept - ready - delayed), dead)
        if queues is None:
            found = {queue: counts for queue, counts in found.items() if counts != Counts()}
        return found

    def peek(
        self, queue: str, *, state: State | None = None, limit: int = 20, after: str | None = None
    ) -> list[Peeked]:
        """The messages of a queue: what is claimed, then what is ready, then what is delayed. See the port."""
        starts = _starts(STATES if state is None else (state,), after)
        owners = self.share.call("HGETALL", self.share.keys.owners)
        ids, infos = owners[::2], [info_of(text) for text in owners[1::2]]
        of = self.share.keys.of(queue)
        keys = [of.ready, of.delayed, of.bodies, of.extras, of.incidents]
        keys += [self.share.keys.held(id.decode(), queue) for id in ids]
        rows = self._run(_PEEK, keys, max(0, min(limit, MAX_TRIP)), PAGE_BYTES, *starts)
        return [_peeked(queue, [f"{info.name} (PID {info.pid})" for info in infos], *row) for row in rows]

    def dead(self, queue: str | None = None, *, limit: int = 100, after: str | None = None) -> list[DeadLetter]:
        """Dead letters, newest first, without their history. See the port."""
        start = ("", "") if after is None else _parse_letter_place(after)
        queues = self._all_queues() if queue is None else [queue]
        keys = [key for name in queues for key in self.share.keys.of(name)[-4:-1]]
        rows = self._run(_DEAD, keys, max(0, min(limit, MAX_TRIP)), PAGE_BYTES, *start)
        return [_letter(queues[place], *row) for place, *row in rows]

    def dead_letters(self, ids: Collection[str]) -> list[DeadLetter]:
        """Those of these dead letters that are there, in the order of ``ids``, with their history."""
        check_step(ids)
        queues = self._all_queues()
        rows = self._run(_LETTERS, self._letter_keys(queues), *ids)
        found = {row[0].decode(): _letter(queues[place], *row) for place, *row in rows}
        return [found[id] for id in dict.fromkeys(ids) if id in found]

    def paused(self) -> set[str]:
        """The queues that are paused."""
        return {name.decode() for name in self.share.call("SMEMBERS", self.share.keys.paused)}

    def inspect(self) -> dict[str, object]:
        """What there is to know of the server.

        Raises:
          BrokerError: If it cannot be reached.
        """
        return inspect_server(self.share)

    def _all_queues(self) -> list[str]:
        return sorted(name.decode() for name in self.share.call("SMEMBERS", self.share.keys.queues))

    def _letter_keys(self, queues: Sequence[str]) -> list[bytes]:
        return [key for name in queues for key in self.share.keys.of(name)[-4:]]

    def _run(self, script: Any, keys: Sequence[bytes], *args: Argument) -> Any:
        now = "" if self.clock is SYSTEM_CLOCK else self.clock.now_ms()
        return self.share.run(script, keys, [now, *args])

    # --- acting

    def move(self, replacements: Mapping[str, Envelope]) -> int:
        """Puts dead letters back into queues, in one step. See the port."""
        check_step(replacements)
        for envelope in replacements.values():
            check_envelope(envelope, self._max_body)
        if not replacements:
            return 0
        keys = self.share.keys
        table = KeyTable((keys.seq, keys.queues), keys.of)
        queues = self._all_queues()
        for queue in queues:
            table.of(queue)
        args: list[Argument] = []
        for id, envelope in replacements.items():
            args += (id, *runs_of((envelope,), table)[1])
        moved: int = self._run(_MOVE, table.keys, len(queues), *args)
        return moved

    def drop(self, ids: Collection[str]) -> int:
        """Deletes dead letters; returns how many of them were there."""
        check_step(ids)
        if not ids:
            return 0
        dropped: int = self._run(_DROP, self._letter_keys(self._all_queues()), *ids)
        return dropped

    def purge(self, queue: str, *, dead: bool = False) -> int:
        """Deletes what is ready or delayed now, or else what is dead; returns how many."""
        if dead:
            return sum(self._purge_dead(queue))
        newest = int(self.share.call("GET", self.share.keys.seq) or 0)
        # In this order: what becomes due between the two is found among the ready.
        return sum(deleted for state in ("delayed", "ready") for deleted in self._purge(queue, state, newest))

    def _purge(self, queue: str, state: str, newest: int) -> Iterator[int]:
        """In steps, each from where the last one ended. What arrives meanwhile has higher numbers than all that was
        there at first, so there is an end to it."""
        of = self.share.keys.of(queue)
        keys = (of.ready, of.delayed, of.bodies, of.extras, of.incidents)
        place: tuple[Argument, ...] = ("", "")
        seen = CHUNK
        while seen == CHUNK:
            deleted, seen, *place = self._run(_PURGE, keys, newest, CHUNK, state, *place)
            yield deleted

    def _purge_dead(self, queue: str) -> Iterator[int]:
        last: Argument = ""
        deleted = CHUNK
        while deleted == CHUNK:
            deleted, last = self._run(_PURGE_DEAD, self.share.keys.of(queue)[-4:], last, CHUNK)
            yield deleted

    def pause(self, queues: Collection[str]) -> None:
        """Keeps everybody from claiming of these queues until ``resume``."""
        if queues:
            self.share.call("SADD", self.share.keys.paused, *queues)

    def resume(self, queues: Collection[str]) -> None:
        """Ends the pause of these queues."""
        if queues:
            self.share.call("SREM", self.share.keys.paused, *queues)
        for queue in queues:
            self.share.call("ZADD", self.share.keys.of(queue).wake, 0, "1")


def _starts(states: Sequence[State], after: str | None) -> tuple[Argument, ...]:
    """Where to go on in each state, as ``peek.lua`` takes it: 'no' for those to be left out."""
    rank, due_ms, score = (-1, 0, 0) if after is None else parse_place(after, 3)
    ranks = {STATES.index(state) for state in states}
    starts = ["" if r > rank and r in ranks else "no" for r in range(len(STATES))]
    behind = ""
    if rank in ranks:
        starts[rank] = str(due_ms if rank == STATES.index("delayed") else score)
        behind = f"{score:016d}"
    return (*starts, behind)


def _peeked(queue: str, owners: Sequence[str], rank: int, due: bytes, scored: bytes, id: bytes, *rest: Any) -> Peeked:
    body, extras, last, owner = rest
    score = int(float(scored))
    due_ms = int(float(due)) if due else None
    attempts, crashes = _numbers(extras)
    state = STATES[rank]
    return Peeked(
        queue,
        id.decode(),
        body,
        state,
        score // SEQ_SPAN - PRIORITY_BASE,
        None if due_ms == _NEVER_MS else due_ms,
        attempts + (state == "claimed"),
        crashes,
        owners[owner] if owner >= 0 else "",
        incident_of(last) if last else None,
        f"{rank}.{due_ms or 0}.{score}",
    )


def _letter(
    queue: str, id: bytes, died_ms: bytes, body: bytes, extras: bytes, history: bytes | None = None
) -> DeadLetter:
    attempt, crashes = _numbers(extras)
    death = extras.split(b":", 2)[2] if extras.count(b":") >= 2 else b""
    error = incident_of(death).error if death else None
    place = f"{died_ms.decode()}.{int.from_bytes(id, 'big')}"
    return DeadLetter(queue, id.decode(), body, error, attempt, crashes, int(died_ms), incidents_of(history), place)


def _numbers(extras: bytes) -> tuple[int, int]:
    """Attempts and crashes."""
    attempts, _, rest = extras.partition(b":")
    return int(attempts or 0), int(rest.partition(b":")[0] or 0)


def _parse_letter_place(place: str) -> tuple[Argument, Argument]:
    """Time of death and id."""
    died_ms, number = parse_place(place, 2)
    return died_ms, max(0, number).to_bytes((max(0, number).bit_length() + 7) // 8, "big")
