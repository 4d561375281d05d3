"""The broker for tests: messages stay in memory, and what makes an actor fail comes up where the test waits."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from types import TracebackType
from typing import Any

from ..clock import SYSTEM_CLOCK, Clock, SteeredClock
from ..core.durations import human_duration
from ..core.failure import message_of, type_name
from ..core.options import delay_to_ms
from ..core.run import MessageProxy
from ..engines.memory.lookout import Lookout
from ..engines.memory.queue_view import QueueView
from ..engines.memory.store import MemoryStore
from ..engines.memory.transport import MemoryTransport
from ..errors import ActorNotFound, DecodeError, GreenroomError, InvalidMessage, QueueNotFound
from ..message import MAX_MESSAGE_BYTES, Message
from ..middleware import Middleware, Retries, SkipMessage
from ..names import dq_name, new_storage_id, q_name
from ..ports.admin import DeadLetter
from ..ports.transport import Delivery, Envelope, ErrorText
from .consumer import EngineConsumer
from .engine import EngineBroker

__all__ = ["Enqueued", "StubBroker", "StubMessage"]

#: So many exceptions, and so many sent messages, are kept: the last ones.
_MAX_FAILURES = 1_000
_MAX_ENQUEUED = 100_000

_ALL = 1 << 62


class StubMessage(MessageProxy):
    """A dead letter, with the exception that killed the message. ``error`` is the same as text, if that is known."""

    def __init__(self, message: Message[Any], error: ErrorText | None, exception: BaseException) -> None:
        super().__init__(message)
        self.error = error
        self.fail()
        self.stuff_exception(exception)


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
        #: By storage id: what a message failed with, and the traceback as it was then.
        self._failures: dict[str, tuple[BaseException, TracebackType | None]] = {}
        self._failures_lock = threading.Lock()  # guards: the oldest is dropped once, whatever threads note failures
        self._lookout = Lookout(self.transport, clock, self._failure_of)
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

    @cached_property
    def store(self) -> MemoryStore:
        """What is kept beside the messages, as long as they are."""
        return MemoryStore(self.transport)

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

    def _push_body(self, queue_name: str, body: bytes) -> Envelope:
        """Pushes bytes that somebody put into a queue by hand, whatever they are."""
        priority, due_ms = 0, None
        try:
            message = Message.decode(body)
        except DecodeError:
            pass
        else:
            actor = self.actors.get(message.actor_name)
            priority = message.options.get("priority", actor.priority if actor is not None else 0)
            due_ms = self._due_ms(message)
        envelope = Envelope(queue_name, new_storage_id(), body, priority, due_ms)
        self.transport.push((envelope,))
        return envelope

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

    async def aenqueue(self, message: Message[Any], *, delay: Any = None) -> Message[Any]:
        """``enqueue`` for coroutines: memory blocks no loop."""
        return self.enqueue(message, delay=delay)

    async def _aenqueue_chunk(self, chunk: list[Message[Any]], delay: Any) -> None:
        self._enqueue_chunk(chunk, delay)

    def envelope(self, message: Message[Any]) -> Envelope:
        queue_name = self._declared(message.queue_name)
        if queue_name != message.queue_name:
            message = message.copy(queue_name=queue_name)
        return super().envelope(message)

    def follow_up(self, message: Message[Any], *, delay: Any = None) -> Envelope:
        envelope = super().follow_up(message, delay=delay)
        self.enqueued.append(Enqueued(envelope.body, delay_to_ms(delay)))
        return envelope

    def _hand_over(self, messages: Sequence[Message[Any]], delay_ms: int | None) -> None:
        self._push(self._envelopes(messages, delay_ms))

    def _envelopes(self, messages: Sequence[Message[Any]], delay_ms: int | None) -> list[Envelope]:
        """What to push for messages that are sent, and remembers that they were."""
        envelopes = [self.envelope(message) for message in messages]
        self.enqueued.extend(Enqueued(envelope.body, delay_ms) for envelope in envelopes)
        return envelopes

    # --- failures

    def note_failure(self, message: MessageProxy, exception: BaseException) -> None:
        self._keep_failure(_delivery_of(message).id, exception)

    def note_retry(self, message: MessageProxy, envelope: Envelope, delay_ms: int) -> None:
        """Hands the exception on to the retry, and says when that is due."""
        exception, _ = self._failures.pop(_delivery_of(message).id, (None, None))
        if exception is None:
            return
        self._keep_failure(envelope.id, exception)
        self.logger.warning(
            "Attempt %d of message %s failed with %s: %s. The next one is due in %s.",
            message.options.get("retries", 0),
            message,
            type_name(exception),
            message_of(exception, 500),
            human_duration(delay_ms),
        )

    def _keep_failure(self, storage_id: str, exception: BaseException) -> None:
        with self._failures_lock:
            self._failures[storage_id] = (exception, exception.__traceback__)
            if len(self._failures) > _MAX_FAILURES:
                del self._failures[next(iter(self._failures))]

    def _failure_of(self, storage_id: str) -> BaseException | None:
        exception, traceback = self._failures.get(storage_id, (None, None))
        # Each time it is raised its traceback grows: it begins anew where the actor raised it.
        return None if exception is None else exception.with_traceback(traceback)

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
        return StubMessage(message, letter.error, self._cause(letter))

    def _cause(self, letter: DeadLetter) -> BaseException:
        """The exception that killed a message, or else one that says what is known of it."""
        known = self._failure_of(letter.id)
        if known is not None:
            return known
        if letter.error is None:
            return GreenroomError(f"A message of queue {letter.queue!r} failed, and no exception says why.")
        kind, text = letter.error.type, letter.error.message
        if kind == ActorNotFound.__name__:
            return ActorNotFound(text)
        if kind == SkipMessage.__name__:
            return SkipMessage(text)
        if kind in (DecodeError.__name__, InvalidMessage.__name__):
            return DecodeError(text, letter.body)
        return GreenroomError(f"{kind}: {text}")

    # --- waiting

    def join(self, queue_name: str, *, timeout: float | None = None, fail_fast: bool | None = None) -> None:
        """Waits until nothing of a queue is ready, delayed or running.

        Parameters:
          queue_name: The queue.
          timeout: Milliseconds of real time; None to wait as long as there is something to wait for.
          fail_fast: Whether to raise what killed the queue's first dead letter, as soon as there is one; None for the
            broker's ``fail_fast_default``.

        Raises:
          QueueNotFound: If the queue was never declared.
          QueueStalled: As soon as it is known that this cannot end in time: nothing runs, nothing is due, and the next
            attempt is due too late (with a manual clock: in the future), or no worker consumes the queue.
          QueueJoinTimeout: If it took longer than ``timeout``.
          BaseException: With ``fail_fast``, what the actor raised; ``ActorNotFound`` if no actor has the name.
        """
        until_dead = self.fail_fast_default if fail_fast is None else fail_fast
        letter = self._lookout.join(self._declared(queue_name), timeout_ms=timeout, until_dead=until_dead)
        if letter is not None:
            raise self._cause(letter)

    def wait_for_worker(self, queue_name: str, check: Callable[[], object]) -> None:
        check()
        self.join(queue_name, fail_fast=False)  # notices by itself when no worker is left

    def flush(self, queue_name: str) -> None:
        """Deletes the ready and the delayed messages of a queue, not the dead ones.

        Raises:
          QueueNotFound: If it was never declared.
        """
        super().flush(self._declared(queue_name))

    def flush_all(self) -> None:
        """Forgets all messages but those that run: of all queues, dead ones too, and what ``enqueued`` lists."""
        super().flush_all()
        for queue_name in self.get_declared_queues():
            self.transport.purge(queue_name, dead=True)
        self.enqueued.clear()
        self._failures.clear()

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 30000) -> EngineConsumer:
        """An iterator over the messages of a queue, for a test that plays the worker.

        Parameters:
          queue_name: The queue.
          prefetch: How many messages may be handed out and not settled; 1 by default.
          timeout: Milliseconds after which an idle iteration yields None; 30 000 by default.

        Raises:
          QueueNotFound: If it was never declared.
        """
        return _StubConsumer(self, self._declared(queue_name), prefetch=prefetch, timeout_ms=timeout)

    # --- what a steered clock takes along

    @property
    def runs(self) -> int:
        """How many messages have been settled so far: run, skipped or dead-lettered."""
        return self.transport.finished

    def next_due_ms(self) -> int | None:
        """The next moment after now at which a message is due, in UNIX milliseconds; None if there is none."""
        return self._lookout.next_due_ms()

    def clock_moved(self) -> None:
        """Any thread: the clock shows another time now."""
        self.transport.clock_moved()

    def run_due(self, timeout_s: float) -> None:
        """Returns once the workers have run all that is due.

        Raises:
          QueueJoinTimeout: If that took longer than ``timeout_s`` seconds of real time; the text names what runs.
        """
        self._lookout.wait_until_idle(timeout_s)


class _StubConsumer(EngineConsumer):
    """Leaves the exception of what is nacked with the broker, for ``join`` and ``dead_letters``."""

    def __init__(self, broker: StubBroker, queue_name: str, *, prefetch: int, timeout_ms: int) -> None:
        super().__init__(broker.transport, queue_name, prefetch=prefetch, timeout_ms=timeout_ms)
        self._broker = broker

    def nack(self, message: Any) -> None:
        if message._exception is not None:
            self._broker.note_failure(message, message._exception)
        super().nack(message)


def _delivery_of(message: Any) -> Delivery:
    """The claim that a message came with: a worker's run and what ``consume`` yields carry it."""
    delivery: Delivery = message.delivery
    return delivery
