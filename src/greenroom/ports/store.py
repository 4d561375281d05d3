"""The store port: what is kept beside the messages. Results, counters, slots, barriers, plans.

An engine is a ``Transport``, a ``Store`` or both. Operations are values, small frozen structs, so that one and the
same thing can be done at once (``Store.apply``), travel with a settlement (``Settlement.writes``) or with a message
that is pushed (``Envelope.writes``). Where broker and store are one engine, what travels is applied in the same atomic
step, and is dropped with a settlement whose message was no longer held; elsewhere it is applied before it.

The law of this module:

* **The engine's clock decides.** Operations carry durations (``ttl_ms``, ``window_ms``), never times. What has expired
  is never seen again, whether or not it was deleted yet. ``ttl_ms=None`` keeps until deleted.
* **A key names one thing.** Values, counters and windows share one room: ``Delete`` empties it. Sets and slots have
  their own. Keys are texts; whoever makes them keeps them apart by prefixes.
* **Saying a thing twice is saying it once**, wherever a trip may be repeated: puts, removals, taking and giving back a
  slot all answer the second time what they answered the first.
* **Refusals change nothing**: a refused ``Bump``, ``Grant`` or ``LeaseTake`` extends no TTL, or losers would keep a
  limit closed for ever.
* **Nothing is built into an operation that an engine could not do in one step of its own**: a transaction of SQL, a Lua
  script. What an engine leaves out it declares in ``StoreFeatures``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol, Self, TypeAlias

import msgspec

#: No call of ``apply`` carries more operations than this, and no ``SetAdd`` more members.
MAX_OPS = 1000


# --- values


class Put(msgspec.Struct, frozen=True, gc=False, tag=True):
    """Keeps a value, in place of what was there. Answers None. Wakes those who watch the key.

    ``part`` makes a key a numbered list: the stages of a plan, the results of a group's members. Parts may be written
    in any order and by different messages; each expires on its own.
    """

    key: str
    value: bytes
    ttl_ms: int | None = None
    part: int = 0


class PutIf(msgspec.Struct, frozen=True, gc=False, tag=True):
    """Keeps a value if ``expect`` is what is there: None for nothing. Answers whether it did. Wakes those who watch."""

    key: str
    value: bytes
    expect: bytes | None = None
    ttl_ms: int | None = None


class Get(msgspec.Struct, frozen=True, gc=False, tag=True):
    """Answers the value, as bytes; a counter as a number; None if there is nothing."""

    key: str
    part: int = 0


class GetParts(msgspec.Struct, frozen=True, gc=False, tag=True):
    """Answers ``(part, value)`` pairs in order, from ``start`` on, at most ``limit``; what was not put is left out."""

    key: str
    start: int = 0
    limit: int = MAX_OPS


class Delete(msgspec.Struct, frozen=True, gc=False, tag=True):
    """Deletes a key with all its parts, or only one ``part``. Answers whether anything was there. Wakes watchers."""

    key: str
    part: int | None = None


# --- counters and windows


class Add(msgspec.Struct, frozen=True, gc=False, tag=True):
    """Makes a counter, if there is none. Answers whether it did."""

    key: str
    value: int
    ttl_ms: int | None = None


class Bump(msgspec.Struct, frozen=True, gc=False, tag=True):
    """Adds ``amount``, which may be negative, to a counter (0 if there is none), unless the sum would leave
    ``low`` to ``high``; only a bump that was done sets the TTL anew.

    ``also`` names counters that are summed up with it before it is judged: ``incr_and_sum`` of Dramatiq's windows.
    ``only_existing`` refuses if there is no such counter: the party that comes to a barrier after its end.

    Answers the counter's new value, or None if that was refused, or if the key holds something else.
    """

    key: str
    amount: int = 1
    low: int | None = None
    high: int | None = None
    ttl_ms: int | None = None
    also: tuple[str, ...] = ()
    only_existing: bool = False


class Grant(msgspec.Struct, frozen=True, gc=False, tag=True):
    """Asks to do a thing that may be done ``limit`` times in ``window_ms``.

    ``sliding``: in no stretch of that length, wherever it begins, are more granted: the engine keeps the times of the
    last ``limit`` grants. Else in no window of those that begin at multiples of the length, at the price of one counter
    (and up to twice the limit across a boundary).

    Answers 0 if granted, else the time (UNIX ms, the engine's) at which to ask again: exactly when the first grant
    leaves the window. It promises nothing, others may be first.
    """

    key: str
    limit: int
    window_ms: int
    sliding: bool = True


# --- slots


class LeaseTake(msgspec.Struct, frozen=True, gc=False, tag=True):
    """Takes one of ``limit`` slots for ``holder``, or renews the one it has. Answers a ``Lease``.

    ``holder`` names one acquisition, so that a slot that is given back is that one's own and that a death costs the
    others nothing; a locker that is asked twice has one slot. For a message that may be parked it has to be the same in
    each of its claims: its storage id and the number of the acquisition in that run.
    """

    key: str
    holder: str
    limit: int
    ttl_ms: int


class LeaseRenew(msgspec.Struct, frozen=True, gc=False, tag=True):
    """Lets a slot last ``ttl_ms`` from now. Answers False if it was lost: whoever held it has to stop."""

    key: str
    holder: str
    ttl_ms: int


class LeaseRelease(msgspec.Struct, frozen=True, gc=False, tag=True):
    """Gives a slot back; the first in line gets it in the same step. Answers whether it was held."""

    key: str
    holder: str


class Lease(msgspec.Struct, frozen=True, gc=False):
    """The answer to ``LeaseTake``.

    ``fence`` is 0 if it was refused; else a number larger than that of every slot of this key before. ``until_ms`` is
    when the slot ends, or, refused, when the first of the others does (UNIX ms, the engine's): ``retry_at_ms``.
    """

    fence: int
    until_ms: int


# --- sets


class SetAdd(msgspec.Struct, frozen=True, gc=False, tag=True):
    """Adds members to a set, and makes it if there is none. Answers its ``Progress``, after that.

    A set is a barrier: it is complete, for good, once it has been emptied by ``SetRemove``, or if it was made without
    members. Its completion, in one step with what emptied it,

    * pushes ``then``, and ``then_ok`` if no member failed: envelopes, made bytes by ``ports.transport.pack``. Only
      where broker and store are one engine (``StoreFeatures.pushes``);
    * removes ``parent``, a (key, member) pair, from the set that this one is a member of, as failed if any of this
      one's members was; that one may be complete then, too;
    * wakes those who watch the key.

    What completion does is taken from the operation that makes the set; later ones only add. Add all members before
    the first of them can be removed. To a set that is complete nothing is added. ``ttl_ms`` is how long the set is
    kept from its making on, complete or not; a set that expires before it is complete does nothing of the above.
    """

    key: str
    members: tuple[str, ...] = ()
    ttl_ms: int | None = None
    then: tuple[bytes, ...] = ()
    then_ok: tuple[bytes, ...] = ()
    parent: tuple[str, str] | None = None


class SetRemove(msgspec.Struct, frozen=True, gc=False, tag=True):
    """Removes a member because it has come to its end, well or ``failed``. Answers the ``Progress`` after that, None if
    there is no such set.

    A member is removed once; who removes it again changes nothing and gets the same answer. So a set counts neither
    duplicates nor strangers, and completes once, whatever is delivered again. Wakes those who watch the key if the
    member failed or the set is complete, not for every member.
    """

    key: str
    member: str
    failed: bool = False


class SetLook(msgspec.Struct, frozen=True, gc=False, tag=True):
    """Answers the ``Progress`` of a set, None if there is none."""

    key: str


class SetDrop(msgspec.Struct, frozen=True, gc=False, tag=True):
    """Forgets a set with its members; nothing completes. Answers whether there was one. Wakes those who watch."""

    key: str


class Progress(msgspec.Struct, frozen=True, gc=False):
    """How far a set is: members there ever were, members left, members removed as failed."""

    total: int
    left: int
    failed: int

    @property
    def is_complete(self) -> bool:
        """True once nothing is left."""
        return self.left == 0


StoreOp: TypeAlias = (
    Put
    | PutIf
    | Get
    | GetParts
    | Delete
    | Add
    | Bump
    | Grant
    | LeaseTake
    | LeaseRenew
    | LeaseRelease
    | SetAdd
    | SetRemove
    | SetLook
    | SetDrop
)


# --- the port


class StoreFeatures(msgspec.Struct, frozen=True):
    """What a store can do: declared, never sniffed.

    ``transactional``: ``apply`` does all or nothing. ``wakes``: ``watch`` is told at once, so nobody needs to poll.
    ``parts``: keys may have parts other than 0. ``windows``, ``leases``, ``sets``: ``Grant``, slots and sets exist
    (memcached has values and counters alone). ``pushes``: a set's completion can push, and settlements of the transport
    that this store is one with carry operations. ``max_value``: the largest value in bytes.
    """

    transactional: bool = False
    wakes: bool = False
    parts: bool = True
    windows: bool = True
    leases: bool = True
    sets: bool = True
    pushes: bool = False
    max_value: int | None = None


class Watch(Protocol):
    """A watch that goes on until it is closed. A context manager."""

    def close(self) -> None:
        """Ends it. A call of ``notify`` that is under way may still finish."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


class Store(Protocol):
    """What is kept beside the messages. Thread-safe and fork-safe; made without a connection, a file or a thread."""

    @property
    def features(self) -> StoreFeatures:
        """What this engine can do."""

    def apply(self, ops: Sequence[StoreOp]) -> list[Any]:
        """Does all of it in one trip, in this order, and returns an answer for each. At most ``MAX_OPS``.

        All or nothing where the engine is ``transactional``. Each operation says what it answers.

        Raises:
          MessageTooLarge: A value is larger than ``features.max_value``; nothing was done.
          ValueError: Too much at once, or the engine has no such operation, by its features; nothing was done.
          BrokerError: It was not done, or (``BrokerTimeout``) it is not known.
        """

    def watch(self, keys: Collection[str], notify: Callable[[], None]) -> Watch:
        """Has ``notify`` called, on any thread, whenever one of these keys may have changed.

        First watch, then look, then wait: what changes after this call has returned is told, by whichever process it is
        done. ``notify`` must be quick and must not use the store. It may be called for nothing, and where
        ``features.wakes`` is False it is not called at all. ``ports.watching`` makes waits out of it.
        """

    def purge(self, limit: int = MAX_OPS) -> int:
        """Deletes up to ``limit`` expired rows; returns how many. Anybody may, at any time; workers do."""

    def is_one_with(self, transport: Any) -> bool:
        """True if this transport's settlements and envelopes can carry operations for this store."""

    def close(self) -> None:
        """Closes what this process opened for it. Using the store again opens it again."""
