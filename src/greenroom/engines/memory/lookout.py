"""Waiting for a memory engine, and knowing when waiting is in vain.

Everything is decided under the engine's lock by one look, and each wait ends with the next change of the engine, so
nothing is polled. Waiting itself takes real time, whatever clock the engine has: what runs, runs in real time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec

from ...clock import SYSTEM_CLOCK, SteeredClock
from ...core.durations import human_duration
from ...core.failure import message_of, traceback_of, type_name
from ...errors import DecodeError, QueueJoinTimeout, QueueStalled
from ...message import Message
from ...ports.admin import Counts, DeadLetter
from ...ports.transport import Envelope
from .shelf import Shelf
from .transport import MemoryTransport

#: A worker subscribes to a queue that was declared while it runs, or ends a pause, between two trips. So while any
#: worker runs, a queue counts as abandoned only after so many seconds.
SUBSCRIBE_GRACE_S = 0.5

#: How many messages an error lists.
_LISTED = 5


class _Look(msgspec.Struct, frozen=True):
    """What one look at the engine shows."""

    counts: Counts
    next_due_ms: int | None  # of this queue, the earliest
    is_served: bool  # a worker consumes this queue
    has_workers: bool
    is_busy: bool  # something runs, or is due in a queue that a worker consumes
    first_dead: DeadLetter | None

    @property
    def is_empty(self) -> bool:
        return not (self.counts.ready or self.counts.delayed or self.counts.claimed)


class _Patience:
    """How long one call of ``join`` goes on waiting. Owned by its caller."""

    def __init__(self, timeout_ms: float | None) -> None:
        self._end_s = math.inf if timeout_ms is None else SYSTEM_CLOCK.monotonic() + timeout_ms / 1000
        self._abandoned_at_s = math.inf
        self._now_s = 0.0

    def note(self, look: _Look) -> None:
        self._now_s = SYSTEM_CLOCK.monotonic()
        if look.is_served or look.is_busy:
            self._abandoned_at_s = math.inf
        elif self._abandoned_at_s == math.inf:
            self._abandoned_at_s = self._now_s + (SUBSCRIBE_GRACE_S if look.has_workers else 0.0)

    @property
    def left_s(self) -> float:
        return self._end_s - self._now_s

    @property
    def is_abandoned(self) -> bool:
        """True if nobody consumes the queue, for so long that nobody will."""
        return self._abandoned_at_s <= self._now_s

    @property
    def wait_s(self) -> float | None:
        until_s = min(self._end_s, self._abandoned_at_s)
        return None if until_s == math.inf else until_s - self._now_s


class Lookout:
    """Any thread may use it.

    Parameters:
      transport: The engine to look at.
      clock: The engine's clock.
      failure_of: The exception that the message with a storage id last failed with, if it is known.
    """

    def __init__(
        self, transport: MemoryTransport, clock: Any, failure_of: Callable[[str], BaseException | None]
    ) -> None:
        self._transport = transport
        self._clock = clock
        self._failure_of = failure_of

    def join(self, queue: str, *, timeout_ms: float | None, until_dead: bool) -> DeadLetter | None:
        """Waits until nothing of a queue is ready, delayed or running; returns None then.

        Parameters:
          queue: The queue.
          timeout_ms: Milliseconds of real time, or None.
          until_dead: Return the queue's first dead letter as soon as there is one.

        Raises:
          QueueStalled: As soon as it is known that this cannot end in time.
          QueueJoinTimeout: If it took longer.
        """
        patience = _Patience(timeout_ms)
        changed = self._transport.changed
        with changed:
            while True:
                look = self._look(queue)
                if until_dead and look.first_dead is not None:
                    return look.first_dead
                if look.is_empty:
                    return None
                patience.note(look)
                self._give_up_in_vain(queue, look, patience)
                if patience.left_s <= 0:
                    raise QueueJoinTimeout(self._timeout_text(queue, look, timeout_ms))
                changed.wait(patience.wait_s)

    def wait_until_idle(self, timeout_s: float) -> None:
        """Waits until nothing runs, and nothing is due that a worker consumes.

        Raises:
          QueueJoinTimeout: If that took longer than ``timeout_s`` seconds of real time; the text names what runs.
        """
        started_s = SYSTEM_CLOCK.monotonic()
        changed = self._transport.changed
        with changed:
            while True:
                waited_s = SYSTEM_CLOCK.monotonic() - started_s
                is_busy, is_unserved = self._is_busy(), self._has_unserved()
                if not is_busy and (not is_unserved or waited_s >= SUBSCRIBE_GRACE_S):
                    return
                if waited_s >= timeout_s:
                    raise QueueJoinTimeout(
                        f"After {human_duration(int(timeout_s * 1000))} of real time this still runs: "
                        f"{self._names_of_running()}. An actor that waits in real time cannot be hurried by a clock."
                    )
                patience_s = timeout_s if is_busy else SUBSCRIBE_GRACE_S
                changed.wait(patience_s - waited_s)

    def next_due_ms(self) -> int | None:
        """The earliest due time after now, of all queues; None if there is none."""
        with self._transport.changed:
            now_ms = self._clock.now_ms()
            slot_ms = self._transport._keep.slots.next_end_ms()
            times = [] if slot_ms is None or slot_ms <= now_ms else [slot_ms]
            heaps = [shelf.delayed for shelf in self._transport._queues.values() if shelf.delayed]
            if all(heap[0][0] > now_ms for heap in heaps):
                times += [heap[0][0] for heap in heaps]
            else:
                times += [due_ms for heap in heaps for due_ms, _, _ in heap if due_ms > now_ms]
            return min(times, default=None)

    # --- looking, under the lock

    def _look(self, queue: str) -> _Look:
        transport = self._transport
        shelf = transport._queue(queue)
        return _Look(
            counts=shelf.counts(),
            next_due_ms=self._first_due_ms(shelf),
            is_served=queue in self._served(),
            has_workers=bool(transport._consumers),
            is_busy=self._is_busy(),
            first_dead=shelf.dead[0][1] if shelf.dead else None,
        )

    def _first_due_ms(self, shelf: Shelf) -> int | None:
        """When the first message that is delayed, or parked until a slot ends, may become ready."""
        times = [shelf.delayed[0][0]] if shelf.delayed else []
        if shelf.parked and (slot_ms := self._transport._keep.slots.next_end_ms()) is not None:
            times.append(slot_ms)
        return min(times, default=None)

    def _served(self) -> set[str]:
        transport = self._transport
        served = {n for consumer in transport._consumers for n in consumer._subscribed if n not in consumer._paused}
        return served - transport._paused

    def _is_busy(self) -> bool:
        return bool(self._transport._claimed) or not self._due().isdisjoint(self._served())

    def _has_unserved(self) -> bool:
        return bool(self._transport._consumers) and not self._due() <= self._served()

    def _due(self) -> set[str]:
        """The queues in which something is ready, or will be at the next trip."""
        now_ms = self._clock.now_ms()
        return {
            name
            for name, shelf in self._transport._queues.items()
            if shelf.ready or ((due_ms := self._first_due_ms(shelf)) is not None and due_ms <= now_ms)
        }

    # --- judging, and saying why

    def _give_up_in_vain(self, queue: str, look: _Look, patience: _Patience) -> None:
        """Raises ``QueueStalled`` if waiting cannot end in time."""
        if look.is_busy:
            return
        if patience.is_abandoned and queue in self._transport._paused:
            raise self._stalled(queue, "the queue is paused. Resume it before joining it")
        if patience.is_abandoned:
            why = "a worker runs, but does not consume it" if look.has_workers else "no worker consumes it"
            raise self._stalled(queue, f"{why}. Start a worker that serves this queue before joining it")
        if not look.is_served or look.next_due_ms is None:
            return
        wait_ms = look.next_due_ms - self._clock.now_ms()
        why = f"the next attempt is due in {human_duration(wait_ms)}"
        if isinstance(self._clock, SteeredClock):
            raise self._stalled(queue, f"{why} of a clock that stands still. Tick it")
        if wait_ms > patience.left_s * 1000:
            left = human_duration(max(0, int(patience.left_s * 1000)))
            hint = "Set max_retries=0, a smaller min_backoff or a longer timeout, or tick a manual clock"
            raise self._stalled(queue, f"{why}, but the timeout is over in {left}. {hint}")

    def _stalled(self, queue: str, why: str) -> QueueStalled:
        shelf = self._transport._queue(queue)
        waiting: list[tuple[int | None, Envelope]] = [(None, kept.envelope) for _, _, kept in sorted(shelf.ready)]
        waiting += [(due_ms, kept.envelope) for due_ms, _, kept in sorted(shelf.delayed)]
        waiting += [(None, kept.envelope) for kept in shelf.parked.values()]
        now_ms = self._clock.now_ms()
        lines = [f"Joining queue {queue!r} would never end: nothing runs, and {why}.", "Waiting:"]
        causes = []
        for due_ms, envelope in waiting[:_LISTED]:
            failure = self._failure_of(envelope.id)
            lines.append("  " + _described(envelope.body, None if due_ms is None else due_ms - now_ms, failure))
            causes += [] if failure is None else [failure]
        if len(waiting) > _LISTED:
            lines.append(f"  and {len(waiting) - _LISTED} more")
        if causes:
            lines += ["The last exception:", traceback_of(causes[0]).rstrip()]
        ids = tuple(message.message_id for _, e in waiting if (message := _decoded(e.body)) is not None)
        error = QueueStalled("\n".join(lines), message_ids=ids)
        error.__cause__ = causes[0] if causes else None
        return error

    def _timeout_text(self, queue: str, look: _Look, timeout_ms: float | None) -> str:
        counts = look.counts
        text = (
            f"Queue {queue!r} was not empty after {timeout_ms} ms: {counts.ready} ready, {counts.delayed} delayed, "
            f"{counts.claimed} running."
        )
        return f"{text} Running: {self._names_of_running()}." if self._transport._claimed else text

    def _names_of_running(self) -> str:
        """What was claimed first is what runs; a worker claims a little more than it runs at a time."""
        bodies = [kept.envelope.body for kept in self._transport._claimed.values()]
        names = [_name_of(body) for body in bodies[:_LISTED]]
        return ", ".join(names) + (f" and {len(bodies) - _LISTED} more" if len(bodies) > _LISTED else "")


def _described(body: bytes, due_in_ms: int | None, failure: BaseException | None) -> str:
    message = _decoded(body)
    if message is None:
        return f"{_name_of(body)}: ready"
    planned = message.options.get("retries", 0)  # counts the one that waits, too
    done = max(0, planned - 1)
    parts = [f"{done} {'retry' if done == 1 else 'retries'} so far"]
    if due_in_ms is None or due_in_ms <= 0:
        parts.append("ready")
    else:
        parts.append(f"{f'retry {planned}' if planned else 'first attempt'} due in {human_duration(due_in_ms)}")
    if failure is not None:
        parts.append(f"last failed with {type_name(failure)}: {message_of(failure, 500)}")
    return f"{message} [{message.message_id}]: {', '.join(parts)}"


def _name_of(body: bytes) -> str:
    message = _decoded(body)
    return str(message) if message is not None else f"{len(body)} bytes that are not a message"


def _decoded(body: bytes) -> Message[Any] | None:
    try:
        return Message.decode(body)
    except DecodeError:
        return None
