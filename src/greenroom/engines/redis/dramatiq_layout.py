"""Dramatiq's layout on a server: the names of its keys, and what is done with them, as functions over scripts.

``ns`` is the namespace and ``q`` a queue::

    ns:q                    list   storage ids, in at the end, out at the head        ns:q.msgs      hash  id -> body
    ns:q.DQ                 list   those that are delayed, in no order of time        ns:q.DQ.msgs   hash  id -> body
    ns:q.XQ                 zset   dead letters, by when they died (ms)               ns:q.XQ.msgs   hash  id -> body
    ns:__acks__.<who>.q     set    what a process has claimed of ns:q                 ns:__acks__.<who>.q.DQ
    ns:__heartbeats__       zset   process -> its last sign of life (ms)

A body stays in its hash until the message is settled. A message's storage id is also in its options, as
``redis_message_id``: Dramatiq settles by that. Delayed ones have ``eta`` there, and ``q.DQ`` as the name of the queue.

One key is ours: ``{ns}:g1:o:q``, a zset of when the messages of ``ns:q.DQ`` are due. The list itself has no order, so
whoever reads a body in it notes its time there; the message stays where Dramatiq finds it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ...message import Message, decode_message
from ...names import dq_name
from .connection import Argument, Connection
from .keys import PRIORITY_BASE, SEQ_SPAN, Keys
from .scripts import load_alone
from .share import ProcessShare

#: Of a delayed list, how many ids are looked at in one call, and about how many bytes of bodies come back.
WINDOW = 500
WINDOW_BYTES = 1 << 20
#: How many heartbeats a trip brings, the newest.
NEWEST = 100


class Place(NamedTuple):
    """One of the two lists of a queue."""

    queue: str
    delayed: bool = False


class Enqueued(NamedTuple):
    """A message as it is put into a list. ``due_ms`` matters in a delayed one only."""

    place: Place
    id: str
    body: bytes
    due_ms: int = 0


class Step(NamedTuple):
    """What a trip does: ``what`` becomes of a claim (``done``, ``dead``, ``back``), or nothing (``push``); and messages
    that are enqueued in the same moment, if the claim was there."""

    what: str
    place: Place
    id: str = ""
    messages: Sequence[Enqueued] = ()


class Claim(NamedTuple):
    """A message that a trip has claimed."""

    place: Place
    id: str
    body: bytes


class QueueState(NamedTuple):
    """How a queue was left: how long its lists are, the last id of the delayed one, the next due time known."""

    ready: int
    delayed: int
    tail: bytes
    next_due_ms: int | None


class Trip(NamedTuple):
    """What a trip has brought. ``found``: for each step whether its claim was there."""

    found: Sequence[bool]
    claims: Sequence[Claim]
    states: dict[str, QueueState]
    heartbeats: dict[str, float]
    now_ms: int


class Look(NamedTuple):
    """What a cheap look has brought: how many processes have left a heartbeat and the newest one; by queue how long its
    two lists are."""

    heartbeats: int
    newest: bytes
    lengths: dict[str, tuple[int, int]]


class DramatiqLayout:
    """What can be done with Dramatiq's keys of one namespace. Thread-safe; without state.

    Parameters:
      share: What this process has open to the server.
      namespace: Dramatiq's.
      keys: Ours.
    """

    def __init__(self, share: ProcessShare, namespace: str, keys: Keys) -> None:
        self._share = share
        self._prefix = namespace.encode() + b":"
        self._keys = keys
        self.heartbeats_key = self._prefix + b"__heartbeats__"

    # --- names

    def list_of(self, place: Place) -> bytes:
        """The list itself."""
        return self._prefix + _name(place)

    def bodies_of(self, place: Place) -> bytes:
        """The bodies of a list's messages."""
        return self._prefix + _name(place) + b".msgs"

    def claims_of(self, owner: str, place: Place) -> bytes:
        """What a process has claimed of a list."""
        return b"%s__acks__.%s.%s" % (self._prefix, owner.encode(), _name(place))

    def dead_of(self, queue: str) -> tuple[bytes, bytes]:
        """The dead letters of a queue, and their bodies."""
        name = self._prefix + queue.encode() + b".XQ"
        return name, name + b".msgs"

    def due_of(self, queue: str) -> bytes:
        """When the delayed messages of a queue are due, as far as that is known."""
        return b"%so:%s" % (self._keys.prefix, queue.encode())

    def _block(self, owner: str, queue: str) -> list[Argument]:
        ready, delayed = Place(queue), Place(queue, True)
        return [
            self.list_of(ready),
            self.bodies_of(ready),
            self.list_of(delayed),
            self.bodies_of(delayed),
            *self.dead_of(queue),
            self.claims_of(owner, ready),
            self.claims_of(owner, delayed),
            self.due_of(queue),
            self._keys.of(queue).wake,
        ]

    # --- actions

    def trip(
        self,
        owner: str,
        steps: Sequence[Step] = (),
        *,
        queues: Sequence[str] = (),
        limit: int = 0,
        beats: bool = False,
        now_ms: int | None = None,
    ) -> Trip:
        """Settles, enqueues, and claims up to ``limit`` of ``queues``, all at once.

        Parameters:
          owner: Whose claims.
          beats: Give a sign of life even if nothing is claimed.
          now_ms: For tests; by default the server's clock decides.

        Raises:
          BrokerError: It was not done, or it is not known.
        """
        named = _named(steps)
        order = [*queues, *(queue for queue in named if queue not in queues)]
        number = {queue: 2 * i for i, queue in enumerate(order)}
        keys: list[Argument] = [self.heartbeats_key]
        for queue in order:
            keys += self._block(owner, queue)
        args: list[Argument] = [owner, _text(now_ms), limit, len(queues), int(beats), len(steps)]
        for step in steps:
            args += (step.what, number[step.place.queue] + step.place.delayed, step.id, len(step.messages))
            for place, id_, body, due_ms in step.messages:
                args += (number[place.queue] + place.delayed, due_ms, id_, body)
        found, claims, states, heartbeats, now = self._share.run(load_alone("dramatiq_trip"), keys, args)
        return Trip(
            [bool(one) for one in found],
            [Claim(Place(order[p // 2], bool(p % 2)), id_.decode(), body) for p, id_, body in _by(3, claims)],
            {queue: _state_of(*state) for queue, state in zip(queues, _by(4, states), strict=True)},
            {id_.decode(): float(score) for id_, score in _by(2, heartbeats)},
            int(now),
        )

    def look_keys(self, queues: Sequence[str]) -> list[bytes]:
        """The keys of a look."""
        keys = [self.heartbeats_key]
        for queue in queues:
            keys += (self.list_of(Place(queue)), self.list_of(Place(queue, True)))
        return keys

    def learn_delayed(self, queue: str, after: int, learned: Iterable[tuple[str, int]]) -> tuple[int, int, list[Claim]]:
        """Notes due times, and looks for messages whose due time is not known.

        Parameters:
          after: How many of the last ids to leave out.
          learned: Ids with their due times.

        Returns:
          How long the list is, how many ids were looked at, and the messages.
        """
        place = Place(queue, True)
        keys: list[Argument] = [self.list_of(place), self.bodies_of(place), self.due_of(queue)]
        args: list[Argument] = [after, WINDOW, WINDOW_BYTES]
        for pair in learned:
            args += pair
        length, seen, unknown = self._share.run(load_alone("dramatiq_delayed"), keys, args)
        return length, seen, [Claim(place, id_.decode(), body) for id_, body in _by(2, unknown)]

    def take_over(self, owner: str, last_heartbeat: float, place: Place, limit: int) -> int:
        """Puts back what a dead process has claimed of a list, at most ``limit``; returns how many it was, -1 if the
        process has given a sign of life since ``last_heartbeat``."""
        queue = place.queue
        keys: list[Argument] = [
            self.heartbeats_key,
            self.list_of(place),
            self.bodies_of(place),
            self.claims_of(owner, place),
            self.due_of(queue),
            self._keys.of(queue).wake,
        ]
        args: list[Argument] = [owner, repr(last_heartbeat), limit, int(place.delayed)]
        count: int = self._share.run(load_alone("dramatiq_takeover"), keys, args)
        return count

    def adopt(self, owner: str, places: Sequence[tuple[Place, str]], our_owner: str) -> list[bool]:
        """Takes claimed messages over into our layout, as claimed by ``our_owner``; returns which of them were there.
        If ``our_owner`` was taken for dead they are put back instead.

        Parameters:
          owner: Whose claims they are.
          places: The messages.
          our_owner: Who they belong to in our layout.
        """
        keys: list[Argument] = [self._keys.leases, self._keys.seq, self._keys.queues]
        for place, _ in places:
            keys += (
                self.list_of(place),
                self.bodies_of(place),
                self.claims_of(owner, place),
                self._keys.of(place.queue).bodies,
                self._keys.held(our_owner, place.queue),
            )
        args: list[Argument] = [our_owner, PRIORITY_BASE * SEQ_SPAN]
        for place, id_ in places:
            args += (id_, place.queue)
        return [bool(one) for one in self._share.run(load_alone("dramatiq_adopt"), keys, args)]

    def claimed_by(self, owner: str, place: Place) -> list[str]:
        """What a process has claimed of a list."""
        return [id_.decode() for id_ in self._share.call(b"SMEMBERS", self.claims_of(owner, place))]

    def heartbeats(self) -> dict[str, float]:
        """All processes that have left a sign of life, with its time (ms, by their own clocks)."""
        answer = self._share.call(b"ZRANGE", self.heartbeats_key, 0, -1, b"WITHSCORES")
        return {id_.decode(): float(score) for id_, score in pairs(answer)}

    def forget(self, owner: str) -> None:
        """Takes a process that has claimed nothing out of the heartbeats."""
        self._share.call(b"ZREM", self.heartbeats_key, owner)

    def beat(self, connection: Connection, owner: str, now_ms: int) -> None:
        """A sign of life, unless the process is thought to be dead already."""
        connection.call(b"ZADD", self.heartbeats_key, b"XX", now_ms, owner)

    def now_ms(self) -> int:
        """The server's time."""
        seconds, micros = self._share.call(b"TIME")
        return int(seconds) * 1000 + int(micros) // 1000


def look_of(queues: Sequence[str], answer: Sequence[Any]) -> Look:
    """What a look has brought."""
    count, newest, lengths = answer
    return Look(count, newest, dict(zip(queues, _by(2, lengths), strict=True)))


def rewritten(body: bytes, id_: str, place: Place, due_ms: int | None) -> bytes:
    """A message's body as Dramatiq would have put it into a list under this id.

    Raises:
      DecodeError: If it is no message.
    """
    message: Message[Any] = decode_message(body)
    options = {name: value for name, value in message.options.items() if name != "eta"}
    options["redis_message_id"] = id_
    if place.delayed:
        options["eta"] = due_ms or 0
    return message._replace(queue_name=_name(place).decode(), options=options).encode()


def due_ms_of(body: bytes) -> int:
    """When a delayed message is due. What says nothing of it is due now: a worker finds out what is wrong with it."""
    try:
        eta = decode_message(body).options.get("eta")
        return int(eta) if isinstance(eta, (int, float)) else 0
    except Exception:  # noqa: BLE001  # an encoder of a user's own may raise anything
        return 0


def _name(place: Place) -> bytes:
    return (dq_name(place.queue) if place.delayed else place.queue).encode()


def _named(steps: Sequence[Step]) -> dict[str, None]:
    """The queues of some steps, each once."""
    named: dict[str, None] = {}
    for step in steps:
        named[step.place.queue] = None
        for message in step.messages:
            named[message.place.queue] = None
    return named


def _state_of(ready: int, delayed: int, tail: bytes, next_due: bytes) -> QueueState:
    return QueueState(ready, delayed, tail, int(float(next_due)) if next_due else None)


def _text(now_ms: int | None) -> Argument:
    return b"" if now_ms is None else now_ms


def _by(size: int, flat: Sequence[Any]) -> Iterable[tuple[Any, ...]]:
    return zip(*[iter(flat)] * size, strict=True)


def pairs(answer: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Members and scores, however the server's protocol has them."""
    return [tuple(pair) for pair in (answer if answer and isinstance(answer[0], (list, tuple)) else _by(2, answer))]
