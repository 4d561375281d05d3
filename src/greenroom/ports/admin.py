"""The admin port: looking into a broker and acting on what is there, for the command line, the dashboard, ``flush`` and
``join``.

Optional, and small: each method is one look or one bounded step, so that none of them holds up the workers. What goes
by thousands is the caller's loop, which may be interrupted between two steps and loses nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Sized
from typing import Literal, Protocol, get_args

import msgspec

from .transport import MAX_TRIP, Envelope, ErrorText, Incident

#: Where a message that is not dead may stand.
State = Literal["claimed", "ready", "delayed"]
STATES: tuple[State, ...] = get_args(State)


class Counts(msgspec.Struct, frozen=True):
    """How many messages of a queue are ready, delayed, claimed and dead."""

    ready: int = 0
    delayed: int = 0
    claimed: int = 0
    dead: int = 0


class Peeked(msgspec.Struct, frozen=True):
    """A message as it stands in its queue.

    ``attempt`` is how often it was claimed, the present claim included. ``owner`` is who has claimed it, for people.
    ``last`` is what befell it last. ``place`` is the engine's own text for where it stands: what ``after`` takes.
    """

    queue: str
    id: str
    body: bytes
    state: State
    priority: int = 0
    due_ms: int | None = None
    attempt: int = 0
    crashes: int = 0
    owner: str = ""
    last: Incident | None = None
    place: str = ""


class DeadLetter(msgspec.Struct, frozen=True):
    """A message that is not tried again, and why.

    ``died_ms`` is UNIX milliseconds. ``history`` is what befell it before its death, the oldest first; ``dead_letters``
    brings it, ``dead`` may leave it out. ``place`` is the engine's own text for where it stands: what ``after`` takes.
    """

    queue: str
    id: str
    body: bytes
    error: ErrorText | None
    attempt: int
    crashes: int
    died_ms: int
    history: Sequence[Incident] = ()
    place: str = ""


class Admin(Protocol):
    """Looking in and acting. Any thread may use it, beside workers. A method that takes ids or envelopes takes at most
    ``MAX_TRIP`` of them."""

    def counts(self, queues: Collection[str] | None = None) -> dict[str, Counts]:
        """Messages by queue; all queues that hold any, and those named, if ``queues`` is None. A queue's four numbers
        are of one moment, so that what moves from one to another is never missed."""

    def peek(
        self, queue: str, *, state: State | None = None, limit: int = 20, after: str | None = None
    ) -> list[Peeked]:
        """The messages of a queue in one state, or in all: what is claimed, then what is ready in the order of its
        turns, then what is delayed by its due times. Changes nothing.

        Parameters:
          limit: At most so many; fewer come when their bodies are large, none when there are no more.
          after: The ``place`` of the last one seen, for the next page. What stood there may be gone.

        Raises:
          ValueError: If ``after`` is no place.
        """

    def dead(self, queue: str | None = None, *, limit: int = 100, after: str | None = None) -> list[DeadLetter]:
        """Dead letters of one queue or of all, newest first. ``limit`` and ``after`` as for
        ``peek``."""

    def dead_letters(self, ids: Collection[str]) -> list[DeadLetter]:
        """Those of these dead letters that are there, in the order of ``ids``, with their history."""

    def move(self, replacements: Mapping[str, Envelope]) -> int:
        """Puts dead letters back into queues; returns how many of them were there.

        Each is replaced by its envelope, which has no crashes and takes over the history, with the death as its last
        incident; what the envelope ``writes`` is done, as by a push. One atomic step where the engine is transactional;
        else the envelope is there before its letter goes.

        Raises:
          MessageTooLarge: If an envelope is too large; nothing was moved.
        """

    def drop(self, ids: Collection[str]) -> int:
        """Deletes dead letters; returns how many of them were there."""

    def purge(self, queue: str, *, dead: bool = False) -> int:
        """Deletes what is ready or delayed now, or else what is dead; returns how many. Many small steps, not one."""

    def pause(self, queues: Collection[str]) -> None:
        """Keeps all workers, also those that start later, from claiming of these queues until ``resume``. They know
        within about a second; what they have claimed still runs. For engines with ``features.pause``."""

    def resume(self, queues: Collection[str]) -> None:
        """Ends the pause of these queues. Those who wait are woken."""

    def paused(self) -> set[str]:
        """The queues that are paused."""


def check_step(items: Sized) -> None:
    """For engines: raises ``ValueError`` for more than one step may carry."""
    if len(items) > MAX_TRIP:
        raise ValueError(f"{len(items)} dead letters in one step; at most {MAX_TRIP} are allowed.")


def parse_place(place: str, length: int) -> tuple[int, ...]:
    """For engines whose places are numbers with dots between them: the numbers.

    Raises:
      ValueError: If it is not so many numbers.
    """
    try:
        numbers = tuple(map(int, place.split(".")))
    except ValueError:
        numbers = ()
    if len(numbers) != length:
        raise ValueError(f"{place!r} is no place: take that of a message which this broker has shown.")
    return numbers
