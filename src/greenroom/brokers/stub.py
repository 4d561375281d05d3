"""The broker for tests: messages stay in memory, and what makes an actor fail comes up where the test waits."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from ..broker import Consumer
from ..clock import SYSTEM_CLOCK, Clock, SteeredClock
from ..core.durations import human_duration
from ..core.failure import message_of, traceback_of, type_name
from ..core.run import MessageProxy
from ..core.verdict import Verdict
from ..engines.memory.lookout import Lookout
from ..engines.memory.queue_view import QueueView
from ..engines.memory.transport import MemoryTransport
from ..errors import ActorNotFound, DecodeError, GreenroomError, QueueNotFound
from ..message import MAX_MESSAGE_BYTES, Message
from ..middleware import Middleware, Retries, SkipMessage
from ..names import dq_name, new_storage_id, q_name
from ..ports.transport import DeadLetter, Delivery, Envelope, ErrorText, Settlement
from .engine import EngineBroker

__all__ = ["Enqueued", "StubBroker", "StubMessage"]

#: So many exceptions, and so many sent messages, are kept: the last ones.
_MAX_FAILURES = 1_000
_MAX_ENQUEUED = 100_000

_ALL = 1 << 62


class StubMessage(MessageProxy):
    """A message that a test holds: a dead letter with the exception that killed it, or what ``consume`` yielded.

    ``error`` is the reason of a dead letter as text, None for others.
    """

    def __init__(self, message: Message[Any], delivery: Delivery | None = None, error: ErrorText | None = None) -> None:
        super().__init__(message)
        self.delivery = delivery
        self.error = error


class Enqueued:
    """A message that was sent to a ``StubBroker``, and with which delay in milliseconds. Immutable."""

    __slots__ = ("body", "delay_ms")

    def __init__(self, body: bytes, delay_ms: int | None) -> None:
        self.body = body
        self.delay_ms = delay_ms

    @property
    def message(self) -> Message[Any]:
        """The message as a worker sees it: encoded and decoded."""
        return Message.decode(self.body)


class StubBroker(EngineBroker):
    """Keeps messages in memory, for tests. Workers of the same process run them.

    Parameters:
      middleware: Instances, in order; None for one of each of ``default_middleware``. The jitter of ``Retries`` is
        seeded, so that it is the same in every run.
      fail_fast_default: What ``join`` takes for ``fail_fast`` when it is not given; True by default.
      max_message_bytes: The largest encoded message that is accepted; 16 MiB by default.
      strict_options: If True, an unknown message option raises instead of warning.
      unknown_actor_ttl_ms: How long a message is kept trying whose actor is not known; 0 by default.
      clock: Decides what is due. With a ``greenroom.testing.ManualClock`` nothing is ever waited for.
    """

    transport: MemoryTransport

    def __init__(
        self,
        middleware: Iterable[Middleware] | None = None,
        *,
        fail_fast_default: bool = True,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        strict_options: bool = False,
        unknown_actor_ttl_ms: int = 0,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.transport = MemoryTransport(clock=clock)
        self.fail_fast_default = fail_fast_default
        #: What was sent, in order; retries are not among it.
        self.enqueued: deque[Enqueued] = deque(maxlen=_MAX_ENQUEUED)
        self._failures: dict[str, BaseException] = {}  # by storage id
        self._failures_lock = threading.Lock()  # guards: the oldest is dropped once, whatever threads note failures
        self._lookout = Lookout(self.transport, clock, self._failures.get)
        super().__init__(
            middleware,
            max_message_bytes=max_message_bytes,
            strict_options=strict_options,
            unknown_actor_ttl_ms=unknown_actor_ttl_ms,
            clock=clock,
        )
        if isinstance(clock, SteeredClock):
            clock.attach(self)

    def add_middleware(self, middleware: Middleware, **position: Any) -> None:
        if isinstance(middleware, Retries):
            middleware.random.seed(0)
        super().add_middleware(middleware, **position)

    # --- queues

    def _add_queue(self, queue_name: str) -> None:
        """``queues`` holds live views: ``queues["default"]`` of what is ready, ``queues["default.DQ"]`` of the rest."""
        self.transport.declare((queue_name,))
        for name, delayed in ((queue_name, False), (dq_name(queue_name), True)):
            push = partial(self._push_body, queue_name)
            self.queues[name] = QueueView(self.transport, queue_name, delayed=delayed, push=push)

    def get_declared_queues(self) -> set[str]:
        return set(self.queues) - self.delay_queues

    def _declared(self, queue_name: str) -> str:
        """The canonical name of a queue; raises ``QueueNotFound`` if it was never declared."""
        if queue_name not in self.queues:
            raise QueueNotFound(queue_name)
        return q_name(queue_name)

    def _push_body(self, queue_name: str, body: bytes) -> None:
        """Pushes bytes that somebody put into a queue by hand, whatever they are."""
        priority, due_ms = 0, None
        try:
            message = Message.decode(body)
        except DecodeError:
            pass
        else:
            actor = self.actors.get(message.actor_name)
            priority = message.options.get("priority", actor.priority if actor is not None else 0)
            due_ms = message.options.get("eta")
        self.transport.push((Envelope(queue_name, new_storage_id(), body, priority, due_ms),))

    # --- sending

    def enqueue(self, message: Message[Any], *, delay: Any = None) -> Message[Any]:
        """Sends a message.

        Parameters:
          message: The message.
          delay: Milliseconds or a timedelta.

        Raises:
          QueueNotFound: If its queue was never declared.
          MessageTooLarge, EncodeError, MiddlewareError: As ``EngineBroker.enqueue``.
        """
        self._declared(message.queue_name)
        return super().enqueue(message, delay=delay)

    def envelope(self, message: Message[Any]) -> Envelope:
        queue_name = self._declared(message.queue_name)
        if queue_name != message.queue_name:
            message = message.copy(queue_name=queue_name)
        return super().envelope(message)

    def _push(self, messages: Sequence[Message[Any]], delay_ms: int | None) -> None:
        envelopes = [self.envelope(message) for message in messages]
        self.enqueued.extend(Enqueued(envelope.body, delay_ms) for envelope in envelopes)
        self.transport.push(envelopes)

    # --- failures

    def note_failure(self, message: MessageProxy, exception: BaseException) -> None:
        delivery = getattr(message, "delivery", None)
        if delivery is not None:
            self._keep_failure(delivery.id, exception)

    def note_retry(self, message: MessageProxy, envelope: Envelope, delay_ms: int) -> None:
        """Hands the exception on to the retry, and says when that is due."""
        exception = self._failures.pop(getattr(message, "delivery").id, None)  # noqa: B009  # only runs are retried
        if exception is not None:
            self._keep_failure(envelope.id, exception)
        self.logger.warning(
            "Attempt %d of message %s failed with %s: %s. The next one is due in %s.",
            message.options.get("retries", 0),
            message,
            type_name(exception) if exception is not None else "an unknown exception",
            message_of(exception, 500) if exception is not None else "",
            human_duration(delay_ms),
        )

    def _keep_failure(self, storage_id: str, exception: BaseException) -> None:
        with self._failures_lock:
            self._failures[storage_id] = exception
            if len(self._failures) > _MAX_FAILURES:
                del self._failures[next(iter(self._failures))]

    @property
    def dead_letters(self) -> list[StubMessage]:
        """All dead letters, in the order of their deaths, each with its exception. A copy."""
        return [self._dead_message(letter) for letter in reversed(self.transport.dead(limit=_ALL))]

    @property
    def dead_letters_by_queue(self) -> dict[str, list[StubMessage]]:
        """The dead letters of each queue; an empty list where there are none. A copy."""
        by_queue: dict[str, list[StubMessage]] = defaultdict(list)
        for letter in reversed(self.transport.dead(limit=_ALL)):
            by_queue[letter.queue].append(self._dead_message(letter))
        return by_queue

    def _dead_message(self, letter: DeadLetter) -> StubMessage:
        try:
            message = Message.decode(letter.body)
        except DecodeError:  # it has no fields: its bytes are its argument
            message = Message(letter.queue, "?", (letter.body,), {}, {}, letter.id, letter.died_ms)
        dead = StubMessage(message, error=letter.error)
        dead.fail()
        dead.stuff_exception(self._cause(letter))
        return dead

    def _cause(self, letter: DeadLetter) -> BaseException:
        """The exception that killed a message, or else one that says what is known of it."""
        known = self._failures.get(letter.id)
        if known is not None:
            return known
        if letter.error is None:
            return GreenroomError(f"A message of queue {letter.queue!r} failed, and no exception says why.")
        kind, text = letter.error.type, letter.error.message
        if kind == ActorNotFound.__name__:
            return ActorNotFound(text)
        if kind == SkipMessage.__name__:
            return SkipMessage(text)
        if issubclass(_decode_error(kind), DecodeError):
            return DecodeError(text, letter.body)
        return GreenroomError(f"{kind}: {text}")
