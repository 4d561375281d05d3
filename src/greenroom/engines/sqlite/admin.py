"""Looking into a queue file and acting on it: the ``Admin`` of the SQLite engine.

A look is one statement, so what it counts is of one moment. What changes many rows does so a thousand at a time, each
in a transaction of its own, so that senders and workers take their turns in between.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

import msgspec

from ...clock import Clock
from ...forksafe import PerProcess
from ...ports.admin import STATES, Counts, DeadLetter, Peeked, State, check_step, parse_place
from ...ports.transport import Envelope, ErrorText, Incident
from .rows import (
    CLAIMED,
    DELAYED,
    HISTORY_LENGTH,
    NEVER_MS,
    READY,
    check_body,
    entry_of,
    incidents_of,
    owner_of,
    ring,
    row_of,
)
from .share import ProcessShare
from .writes import Writes

#: So many rows are deleted in one transaction.
CHUNK = 1000
#: A page ends early when its bodies have so many bytes.
PAGE_BYTES = 64 * 1024 * 1024

# Each state has an index of its own; what is ready is counted in it alone.
_COUNT = (
    f"select (select count(*) from message where state = {READY} and queue = ?),"
    f" (select count(*) from message where state = {DELAYED} and queue = ?),"
    f" (select count(*) from message where state = {CLAIMED} and queue = ?),"
    " (select count(*) from dead where queue = ?)"
)
_COUNT_ALL = (
    f"select queue, 0, count(*) from message where state = {READY} group by queue"
    f" union all select queue, 1, count(*) from message where state = {DELAYED} group by queue"
    f" union all select queue, 2, count(*) from message where state = {CLAIMED} group by queue"
    " union all select queue, 3, count(*) from dead group by queue"
)
#: For each state its number, and what its messages are ordered by, before `seq`: the claimed ones by their arrival.
_STATES: dict[State, tuple[int, str]] = {
    "claimed": (CLAIMED, "state"),
    "ready": (READY, "priority"),
    "delayed": (DELAYED, "due_ms"),
}
_PEEK: dict[State, str] = {
    state: f"select '{state}', {order}, seq, id, cast(body as blob), priority, due_ms, attempt, crashes, lease, history"
    f" from message where state = {number} and queue = ? and ({order}, seq) > (?, ?)"
    f" order by {order}, seq limit ?"
    for state, (number, order) in _STATES.items()
}
_LETTER = "queue, id, cast(body as blob), error_type, error_message, error_traceback, attempt, crashes, died_ms, seq"
_DEAD = f"select {_LETTER} from dead where (died_ms, seq) < (?, ?) order by died_ms desc, seq desc limit ?"
_DEAD_OF_QUEUE = _DEAD.replace("where", "where queue = ? and")
_LISTED = "id in (select value from json_each(?))"
_REVIVE = "insert into message (id, queue, priority, state, due_ms, body, history) values (?, ?, ?, ?, ?, ?, ?)"
_MOST = 2**63 - 1
_START = (-_MOST, -_MOST)

_encode = msgspec.json.Encoder().encode


class SqliteAdmin:
    """The ``Admin`` of a ``SqliteTransport``, which brings what is declared here. Any thread may use it."""

    clock: Clock
    _process: PerProcess[ProcessShare]
    _max_body: int

    # --- looking

    def counts(self, queues: Collection[str] | None = None) -> dict[str, Counts]:
        """How many messages there are, by queue; all queues with any, and those named, if ``queues`` is None."""
        if queues is not None:
            return {queue: Counts(*self._read(_COUNT, *[queue] * 4)[0]) for queue in queues}
        found: dict[str, list[int]] = {}
        for queue, place, count in self._read(_COUNT_ALL):
            found.setdefault(queue, [0, 0, 0, 0])[place] = count
        return {queue: Counts(*numbers) for queue, numbers in found.items()}

    def peek(
        self, queue: str, *, state: State | None = None, limit: int = 20, after: str | None = None
    ) -> list[Peeked]:
        """The messages of a queue: what is claimed, then what is ready, then what is delayed. See the port."""
        starts = _starts(STATES if state is None else (state,), after)
        limit = min(limit, _MOST)

        def read(connection: sqlite3.Connection) -> list[Peeked]:
            rows = (connection.execute(_PEEK[state], [queue, *start, limit]) for state, start in starts.items())
            page = _page(islice(chain.from_iterable(rows), limit), body=4)
            return [_peeked(connection, queue, *row) for row in page]

        return self._process.get().database.run(read)

    def dead(self, queue: str | None = None, *, limit: int = 100, after: str | None = None) -> list[DeadLetter]:
        """Dead letters, newest first, without their history. See the port."""
        start = (_MOST, _MOST) if after is None else parse_place(after, 2)
        statement = _DEAD if queue is None else _DEAD_OF_QUEUE
        values = [*(() if queue is None else (queue,)), *start, min(limit, _MOST)]
        return self._process.get().database.run(
            lambda c: [_letter(row) for row in _page(c.execute(statement, values), body=2)]
        )

    def dead_letters(self, ids: Collection[str]) -> list[DeadLetter]:
        """Those of these dead letters that are there, in the order of ``ids``, with their history."""
        rows = self._read(f"select {_LETTER}, history from dead where {_LISTED}", _listed(ids))
        found = {row[1]: _letter(row[:-1], incidents_of(row[-1])) for row in rows}
        return [found[id] for id in dict.fromkeys(ids) if id in found]

    def paused(self) -> set[str]:
        """The queues that are paused."""
        return {queue for (queue,) in self._read("select queue from paused")}

    def _read(self, statement: str, *values: Any) -> list[Any]:
        return self._process.get().database.run(lambda c: c.execute(statement, values).fetchall())

    # --- acting

    def move(self, replacements: Mapping[str, Envelope]) -> int:
        """Puts dead letters back into queues, in one transaction. See the port."""
        check_step(replacements)
        for envelope in replacements.values():
            check_body(envelope, self._max_body)
        share = self._process.get()
        with share.database.transaction() as connection:
            moved = [envelope for id, envelope in replacements.items() if _revive(connection, id, envelope)]
            writes = Writes(connection, self.clock.now_ms(), self._max_body)
            writes.later([op for envelope in moved for op in envelope.writes])
            writes.flush()
        share.tell(writes)
        ring(share.wake, moved)
        return len(moved)

    def drop(self, ids: Collection[str]) -> int:
        """Deletes dead letters; returns how many of them were there."""
        listed = _listed(ids)
        with self._process.get().database.transaction() as connection:
            return connection.execute(f"delete from dead where {_LISTED}", (listed,)).rowcount

    def purge(self, queue: str, *, dead: bool = False) -> int:
        """Deletes what is ready or delayed now, or else what is dead; returns how many."""
        table = "dead" if dead else "message"
        ((newest,),) = self._read(f"select coalesce(max(seq), 0) from {table}")
        if dead:
            return self._purge("dead", "died_ms", "queue = ?", queue, newest)
        # In this order: what becomes due between the two is found among the ready.
        return sum(
            self._purge("message", order, f"state = {number} and queue = ?", queue, newest)
            for number, order in (_STATES["delayed"], _STATES["ready"])
        )

    def _purge(self, table: str, order: str, condition: str, queue: str, newest: int) -> int:
        """In steps, each from where the last one ended. What arrives meanwhile has higher numbers than all that was
        there at first, so there is an end to it."""
        database = self._process.get().database
        step = (
            f"select {order}, seq from {table} where {condition} and ({order}, seq) > (?, ?) and +seq <= ?"
            f" order by {order}, seq limit {CHUNK}"
        )
        place = _START
        deleted = 0
        while True:
            with database.transaction() as connection:
                found = connection.execute(step, (queue, *place, newest)).fetchall()
                numbers = _encode([seq for _, seq in found]).decode()
                connection.execute(f"delete from {table} where seq in (select value from json_each(?))", (numbers,))
            deleted += len(found)
            if len(found) < CHUNK:
                return deleted
            place = found[-1]

    def pause(self, queues: Collection[str]) -> None:
        """Keeps everybody from claiming of these queues until ``resume``."""
        now_ms = self.clock.now_ms()
        self._change_pauses("insert or ignore into paused values (?, ?)", [(queue, now_ms) for queue in queues])

    def resume(self, queues: Collection[str]) -> None:
        """Ends the pause of these queues."""
        self._change_pauses("delete from paused where queue = ?", [(queue,) for queue in queues])

    def _change_pauses(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        share = self._process.get()
        with share.database.transaction() as connection:
            connection.executemany(statement, rows)
        share.wake.ring(None)


def _listed(ids: Collection[str]) -> str:
    check_step(ids)
    return _encode(list(ids)).decode()


def _starts(states: Sequence[State], after: str | None) -> dict[State, tuple[int, int]]:
    """In which states to go on, and where in each: (priority or due time, seq)."""
    if after is None:
        return dict.fromkeys(states, _START)
    rank, key, seq = parse_place(after, 3)
    ranks = {state: STATES.index(state) for state in states}
    return {state: (key, seq) if ranks[state] == rank else _START for state in states if ranks[state] >= rank}


def _page(rows: Iterable[tuple[Any, ...]], *, body: int) -> Iterator[tuple[Any, ...]]:
    """Ends early when the bodies have so many bytes that a page of them would fill the memory."""
    size = 0
    for row in rows:
        yield row
        size += len(row[body])
        if size >= PAGE_BYTES:
            return


def _peeked(connection: sqlite3.Connection, queue: str, state: State, key: int, seq: int, *columns: Any) -> Peeked:
    id, body, priority, due_ms, attempt, crashes, lease, history = columns
    owner = ""
    if state == "claimed":
        found = connection.execute("select name, pid from owner where id = ?", (owner_of(lease),)).fetchone()
        owner = "{} (PID {})".format(*found) if found else "?"
    incidents = incidents_of(history)
    last = incidents[-1] if incidents else None
    place = f"{STATES.index(state)}.{key}.{seq}"
    due_ms = None if due_ms == NEVER_MS else due_ms  # it is parked
    return Peeked(queue, id, body, state, priority, due_ms, attempt, crashes, owner, last, place)


def _letter(row: tuple[Any, ...], history: Sequence[Incident] = ()) -> DeadLetter:
    queue, id, body, *texts, attempt, crashes, died_ms, seq = row
    error = None if texts[0] is None else ErrorText(*texts)
    return DeadLetter(queue, id, body, error, attempt, crashes, died_ms, history, f"{died_ms}.{seq}")


def _revive(connection: sqlite3.Connection, id: str, envelope: Envelope) -> bool:
    """Replaces a dead letter inside a transaction; False if it is not there any more."""
    row = connection.execute(f"select {_LETTER}, history from dead where id = ?", (id,)).fetchone()
    if row is None:
        return False
    letter = _letter(row[:-1], incidents_of(row[-1]))
    death = Incident(letter.died_ms, letter.attempt, letter.error)
    history = ",".join(entry_of(incident) for incident in (*letter.history, death)[-HISTORY_LENGTH:])
    connection.execute(_REVIVE, (*row_of(envelope), f"[{history}]"))
    connection.execute("delete from dead where seq = ?", (row[-2],))
    return True
