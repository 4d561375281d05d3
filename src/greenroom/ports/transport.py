"""The transport port: how messages are kept, handed out and settled.

Everything crosses it in batches; a single send is a batch of one. An engine proves itself by the contract suite in
``greenroom.testing.contract``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Protocol

import msgspec

from ..board import Board
from ..core.verdict import Verdict
from ..errors import ConnectionClosed
from .store import LeaseTake, StoreOp

#: No trip carries more than this many settlements, or this many pushes.
MAX_TRIP = 1000


class Envelope(msgspec.Struct, frozen=True, gc=False):
    """What is pushed.

    ``id`` is a storage id, fresh at every push and unlike the message's own id never seen twice. ``priority``: lower
    is handed out sooner. ``due_ms``: not before this time (UNIX milliseconds), or None for at once. ``writes`` are
    done for the store, in one step with the push (``Features.store``): the marker of a result that is to come.
    """

    queue: str
    id: str
    body: bytes
    priority: int = 0
    due_ms: int | None = None
    writes: tuple[StoreOp, ...] = ()


_encode_envelope = msgspec.msgpack.Encoder().encode
_decode_envelope = msgspec.msgpack.Decoder(Envelope).decode


def pack(envelope: Envelope) -> bytes:
    """An envelope as bytes, for a store to keep until it is pushed (``SetAdd.then``). It is pushed once, so its id is
    fresh; its ``due_ms`` is a time, not a delay."""
    return _encode_envelope(envelope)


def unpack(data: bytes) -> Envelope:
    """The envelope that ``pack`` made into ``data``.

    Raises:
      ValueError: It is not one.
    """
    try:
        return _decode_envelope(data)
    except msgspec.DecodeError as e:
        raise ValueError(f"This is no packed envelope: {e}.") from e


class Delivery(msgspec.Struct, frozen=True, gc=False):
    """What is claimed. ``token`` is the engine's own; ``attempt`` counts claims and fences the settlement: it is never
    the number of retries. ``crashes`` counts claims that ended with the death of a worker while it ran. ``mark`` is the
    number by which the board names it: not 0, and not that of anything else that its owner holds."""

    queue: str
    id: str
    body: bytes
    token: Any
    attempt: int
    crashes: int = 0
    redelivered: bool = False
    mark: int = 0


class ErrorText(msgspec.Struct, frozen=True, gc=False):
    """A failure as text: never pickled, never imported again by name. Capped where it is made."""

    type: str
    message: str
    traceback: str = ""


class Incident(msgspec.Struct, frozen=True, gc=False):
    """Something that befell a message before: a failed attempt, or the crash of a worker that ran it (``error.type`` is
    ``CRASH``). ``at_ms`` is UNIX milliseconds."""

    at_ms: int
    attempt: int
    error: ErrorText | None = None


#: ``ErrorText.type`` of an incident that was the death of the worker.
CRASH = "WorkerCrashed"


class Settlement(msgspec.Struct, frozen=True, gc=False):
    """What becomes of a delivery.

    ``retry`` replaces it (RETRY). ``due_ms`` is when it may be claimed again (RELEASE; None: at once). ``push`` and
    then ``writes`` are applied with the verdict: all or nothing where the engine is transactional, else before it.
    ``error`` is kept with a dead letter, and in the history of what is retried or released.

    ``park`` (RELEASE, without ``due_ms``) is the slot that the message was refused. The engine asks for it once more,
    on behalf of its holder: if there is one by now the message has it and is ready. Else it stands in line, and cannot
    be claimed, until it is the first and a slot is given back or ends; then it gets the slot, which lasts ``ttl_ms``
    from there on, and is ready, in one step. When it asks for the slot with the same holder it has it already. So
    nobody is woken in vain, and newcomers do not get in before the line. Parked messages count as delayed, and a purge
    of their queue deletes them; a slot that was given to a message which never comes is free after its TTL.
    """

    delivery: Delivery
    verdict: Verdict
    retry: Envelope | None = None
    due_ms: int | None = None
    park: LeaseTake | None = None
    push: tuple[Envelope, ...] = ()
    writes: tuple[StoreOp, ...] = ()
    error: ErrorText | None = None


class Exchange(msgspec.Struct, frozen=True):
    """What one trip brought.

    ``settled`` may name settlements of an earlier trip; until then their caller holds them. ``lost``: no longer ours,
    nothing was changed. ``refused``: could never be applied, with the reason; the rest went through. ``more``: queues
    were not emptied. ``reset``: the connection was lost, and with it all that was claimed before this trip; what has
    not started is better not started.
    """

    deliveries: Sequence[Delivery] = ()
    settled: Sequence[Settlement] = ()
    lost: Sequence[Settlement] = ()
    refused: Sequence[tuple[Settlement, Exception]] = ()
    more: bool = False
    reset: bool = False


class Features(msgspec.Struct, frozen=True):
    """What an engine can do: declared, never sniffed. ``store``: there is a store that is one with it, so settlements
    and envelopes carry ``writes``, and what is released can be parked; all else refuses these settlements. ``history``:
    incidents are kept, and ``Consumer.history`` tells them. ``counts_attempts``: ``Delivery.attempt`` is exact, and
    ``redelivered`` tells of claims; else they may count messages that were fetched and not claimed, and claims that
    ended with a release may be missing. ``counts_claimed``: what is claimed, and by whom, is counted and shown; else it
    is not seen, and counts as none. ``counts_delayed``: the same for what is delayed. ``lists_queues``: ``Admin`` knows
    all queues that there are; else only those that this process has declared."""

    delay: bool = True
    priority: bool = True
    lease: bool = True
    transactional: bool = False
    wakes: bool = False
    counts_crashes: bool = False
    counts_attempts: bool = True
    history: bool = False
    counts_delayed: bool = True
    counts_claimed: bool = True
    lists_queues: bool = True
    pause: bool = False
    store: bool = False
    max_body: int | None = None


class ConsumerClosed(ConnectionClosed):
    """Raised by a consumer that was closed by whoever owns it. It answers nothing any more, however long one waits."""


class Consumer(Protocol):
    """One owner of claimed messages. Owned by the pump's thread; others may call only ``wake``, ``extend`` and
    ``reap_soon``.

    An owner that seems to have died has lost all that it held: others get it. If it lives all the same, what it settles
    of that comes back as lost, and within a second it goes on as a new owner.
    """

    def subscribe(self, queues: Collection[str]) -> None:
        """Adds queues to claim from, at any time; ends a pause of theirs."""

    def pause(self, queues: Collection[str]) -> None:
        """Stops claiming from these queues."""

    def exchange(self, settle: Sequence[Settlement], limit: int, skip: AbstractSet[str] = frozenset()) -> Exchange:
        """One trip: settles, promotes what is due, claims up to ``limit`` from the queues not in ``skip``.

        Idempotent: a trip whose answer was lost is repeated as it was. What this owner has already applied answers
        ``settled``. At most ``MAX_TRIP`` settlements and as many pushes.

        Raises:
          BrokerError: Nothing was applied, or it is not known; the same trip may be made again.
        """

    def wait(self, timeout_s: float) -> None:
        """Returns when something may be ready, at the next due time, after ``wake`` or after ``timeout_s``."""

    def wake(self) -> None:
        """Any thread, signal-safe: ends a wait, or the next one if none is going on."""

    def board(self, places: int, *, parent_pid: int = 0) -> Board:
        """Where the executors say what they run; made anew at each call.

        Whoever gives back what this owner held, after its process has died, charges what stands there with a crash: one
        more in ``Delivery.crashes``, and an incident in the history that says how the process ended. All else that it
        held is given back as if nothing had happened, and so is all of it if the board says that it was ended on
        purpose.

        Parameters:
          places: How many messages the process runs at a time.
          parent_pid: Who will say on the board how the process ended, 0 if nobody will. While it lives, whoever gives
            back waits a moment for what it says.
        """

    def history(self, delivery: Delivery) -> Sequence[Incident]:
        """What befell a delivery before, the oldest first, the last 25 of it; nothing if it is not held any more. For
        the rare message that needs a closer look."""

    def reap_soon(self) -> None:
        """Any thread: a process of this host has died. Ends a wait, and the next trip looks for what it held."""

    def is_cut_off(self) -> bool:
        """Any thread: True if what this owner holds may have been given to others by now, since the engine has not
        heard of it for too long. Nothing more of it is to be started. Whether it is lost, the next trip tells."""

    def extend(self) -> None:
        """Any thread, about once a second, whatever the others do: renews this owner's lease as a whole. Does nothing
        once it is closed."""

    def close(self) -> None:
        """Gives back what was claimed and not settled, and ends the owner."""


class Transport(Protocol):
    """Where messages are kept. Thread-safe and fork-safe."""

    @property
    def features(self) -> Features:
        """What this engine can do."""

    def declare(self, queues: Collection[str]) -> None:
        """Makes queues known; may do nothing."""

    def push(self, batch: Sequence[Envelope]) -> None:
        """Returns once the batch is durably accepted; all or nothing where the engine can.

        Raises:
          BrokerError: It was not accepted, or (``BrokerTimeout``) it is not known.
        """

    def consumer(self, owner: str) -> Consumer:
        """A new consumer; ``owner`` is a name for people, the engine adds what makes it unique."""

    def close(self) -> None:
        """Closes what this process opened. Using the transport again opens it again."""
