"""What all brokers on an engine of ours share: hooks and encoding above, a transport below."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

from msgspec import structs

from ..broker import Broker, Consumer
from ..context import interruptible
from ..core.options import OWN_MESSAGE_OPTIONS, check_priority, delay_to_ms
from ..errors import BrokerError, DecodeError, MessageTooLarge, QueueJoinTimeout
from ..message import Message, decode_message
from ..names import check_queue_name, new_storage_id, q_name
from ..ports.admin import DeadLetter
from ..ports.retention import DEAD_LETTER_TTL_MS, Retention
from ..ports.store import MAX_OPS, StoreOp
from ..ports.transport import Envelope
from ..settings import getenv_int
from .consumer import EngineConsumer
from .pusher import Pusher
from .replay import envelope_of

#: Seconds between two looks at a queue that is being joined.
_JOIN_INTERVAL_S = 0.02


class EngineBroker(Broker):
    """A broker on a ``Transport``. Subclasses turn their arguments into one."""

    #: The engine; set by the subclass. Must also answer the ``Admin`` port.
    transport: Any

    @cached_property
    def _pusher(self) -> Pusher:
        return Pusher(self.transport.push)

    def declare_queue(self, queue_name: str) -> None:
        if queue_name not in self.queues:
            check_queue_name(queue_name)
            super().declare_queue(queue_name)

    def enqueue(self, message: Message[Any], *, delay: Any = None) -> Message[Any]:
        """Sends a message; returns once the engine keeps it.

        Parameters:
          message: The message.
          delay: Milliseconds or a timedelta.

        Raises:
          MessageTooLarge: Before anything is sent.
          EncodeError: If JSON has no form for an argument.
          MiddlewareError: If a ``before_enqueue`` hook vetoed it.
          BrokerError: If the engine did not take it.
        """
        (message,), delay = self._prepared([message], delay)
        self._hand_over((message,), delay)
        if self.hooks.after_enqueue:
            self.emit_after("enqueue", message, delay)
        return message

    async def aenqueue(self, message: Message[Any], *, delay: Any = None) -> Message[Any]:
        """``enqueue`` for coroutines: does not block the loop, and what is sent at the same time goes together."""
        (message,), delay = self._prepared([message], delay)
        await self._pusher.push([self.envelope(message)])
        if self.hooks.after_enqueue:
            self.emit_after("enqueue", message, delay)
        return message

    def _enqueue_chunk(self, chunk: list[Message[Any]], delay: Any) -> None:
        messages, delay = self._prepared(chunk, delay)
        self._hand_over(messages, delay)
        self._tell_enqueued(messages, delay)

    def enqueue_after(self, ops: Sequence[StoreOp], chunk: list[Message[Any]], *, delay: Any = None) -> None:
        """Has the broker's own store do some operations, and then sends messages, at most a thousand: both in one step
        where the engine can. Raises as ``enqueue``."""
        if not self.transport.features.transactional or type(self)._hand_over is not EngineBroker._hand_over:
            self.store.apply(ops)
            self._enqueue_chunk(chunk, delay)
            return
        messages, delay = self._prepared(chunk, delay)
        first, *others = [self.envelope(message) for message in messages]
        self._push([structs.replace(first, writes=(*ops, *first.writes)), *others])
        self._tell_enqueued(messages, delay)

    async def _aenqueue_chunk(self, chunk: list[Message[Any]], delay: Any) -> None:
        messages, delay = self._prepared(chunk, delay)
        await self._pusher.push([self.envelope(message) for message in messages])
        self._tell_enqueued(messages, delay)

    def _prepared(self, messages: list[Message[Any]], delay: Any) -> tuple[list[Message[Any]], int | None]:
        """The messages with their eta, once every hook has let every one of them through."""
        hooks = self.hooks
        delay_ms = delay_to_ms(delay)
        if delay_ms is not None:
            eta = {"eta": self.clock.now_ms() + delay_ms}
            messages = [message.copy(options=eta) for message in messages]
        if hooks.before_enqueue:
            for message in messages:
                self.emit_before("enqueue", message, delay_ms)
        if delay_ms is not None and hooks.before_delay_message:
            for message in messages:
                self.emit_before("delay_message", message)
        return messages, delay_ms

    def _tell_enqueued(self, messages: list[Message[Any]], delay_ms: int | None) -> None:
        if self.hooks.after_enqueue:
            for message in messages:
                self.emit_after("enqueue", message, delay_ms)

    def _hand_over(self, messages: Sequence[Message[Any]], delay_ms: int | None) -> None:
        """Pushes what the hooks have let through; ``delay_ms`` is in the messages' eta already."""
        envelope = self.envelope
        self._push([envelope(message) for message in messages])

    def _push(self, batch: Sequence[Envelope]) -> None:
        """Hands over to the engine, shielded: an actor that is interrupted while it sends must leave no lock taken."""
        if interruptible.slot is None:
            self.transport.push(batch)
        else:
            with interruptible.shield():
                self.transport.push(batch)

    def envelope(self, message: Message[Any]) -> Envelope:
        """The message as it is pushed: encoded, with its priority and due time."""
        body = message.encode()
        if len(body) > self.max_message_bytes:
            raise MessageTooLarge(
                f"A message for actor {message.actor_name!r} has {len(body)} bytes; at most {self.max_message_bytes} "
                "are allowed (max_message_bytes). Keep large data elsewhere and send where it is.",
                size=len(body),
                limit=self.max_message_bytes,
            )
        queue = message.queue_name
        if queue not in self.queues:
            queue = q_name(queue)
            self.declare_queue(queue)
        options = message.options
        actor = self.actors.get(message.actor_name)
        priority = actor.priority if actor is not None else 0
        writes = self._writes(message) if self.hooks.envelope_writes else ()
        if not options:
            return Envelope(queue, new_storage_id(), body, priority, None, writes)
        if not OWN_MESSAGE_OPTIONS.issuperset(options):
            self.check_message_options(message)
        if "priority" in options:
            priority = check_priority(options["priority"])
        due_ms = self._due_ms(message) if "eta" in options else None
        return Envelope(queue, new_storage_id(), body, priority, due_ms, writes)

    def follow_up(self, message: Message[Any], *, delay: Any = None) -> Envelope:
        """The envelope of a message that is to be pushed in one step with a settlement, or when a group completes. The
        hooks before it have run; ``after_enqueue`` is whoever's that has it pushed.

        Raises:
          Exception: As ``enqueue``, but for what the engine would raise.
        """
        (message,), _ = self._prepared([message], delay)
        return self.envelope(message)

    def _writes(self, message: Message[Any]) -> tuple[StoreOp, ...]:
        """What middleware wants the broker's own store to do in one step with sending a message."""
        if self.store is None:
            return ()
        return tuple([op for hook in self.hooks.envelope_writes for op in hook(self, message)])

    def _due_ms(self, message: Message[Any]) -> int | None:
        eta = message.options.get("eta")
        if eta is None:
            return None
        if isinstance(eta, bool) or not isinstance(eta, (int, float)) or not math.isfinite(eta):
            self.logger.warning("Invalid eta value for message %r: %.100r. It is due now.", message.message_id, eta)
            return None
        return int(eta)

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 30000) -> Consumer:
        """An iterator over the messages of a queue, for programs that do without a worker.

        Parameters:
          queue_name: The queue; declared if need be. What is due of ``default.DQ`` comes with ``default``.
          prefetch: How many messages may be handed out and not settled; 1 by default.
          timeout: Milliseconds after which an idle iteration yields None; 30 000 by default.

        Raises:
          BrokerError: If the engine does not answer.
        """
        queue_name = q_name(queue_name)
        self.declare_queue(queue_name)
        return EngineConsumer(self.transport, queue_name, prefetch=prefetch, timeout_ms=timeout)

    def flush(self, queue_name: str) -> None:
        """Deletes the ready and the delayed messages of a queue, not the dead ones."""
        self.purge(queue_name)

    def flush_all(self) -> None:
        for queue_name in self.get_declared_queues():
            self.flush(queue_name)

    def purge(self, queue_name: str, *, dead: bool = False) -> int:
        """Deletes the ready and the delayed messages of a queue, or else the dead ones. Whoever asks for the result of
        one that had not run is told that nothing is known of it.

        Returns:
          How many messages were deleted.
        """
        keepers = [] if dead or self.store is None else [m for m in self.middleware if hasattr(m, "forget_results")]
        if keepers:
            for messages in self._waiting(queue_name):
                for m in keepers:
                    m.forget_results(self, messages)
        deleted: int = self.transport.purge(queue_name, dead=dead)
        return deleted

    def _waiting(self, queue_name: str) -> Iterator[list[Message[Any]]]:
        """The ready and the delayed messages of a queue that can be read, in pages."""
        for state in ("ready", "delayed"):
            place = None
            while page := self.transport.peek(queue_name, state=state, limit=MAX_OPS, after=place):
                place = page[-1].place
                messages = []
                for seen in page:
                    with suppress(DecodeError):
                        messages.append(decode_message(seen.body))
                yield messages

    # --- looking and acting

    def exists(self) -> bool:
        """Whether there is anything to look at yet. Asking makes nothing."""
        return True

    def get_queue_message_counts(self, queue_name: str) -> tuple[int, int, int]:
        """How many messages of a queue are ready, delayed and dead."""
        name = q_name(queue_name)
        counts = self.transport.counts([name])[name]
        return counts.ready, counts.delayed, counts.dead

    def pause_queue(self, queue_name: str) -> None:
        """Keeps all workers, in all processes, from starting messages of a queue until ``resume_queue``.

        They know within about a second; what they have fetched still runs. Sending goes on.

        Raises:
          ValueError: If no queue may be called so.
          BrokerError: If the engine cannot pause queues.
        """
        self._check_pause()
        self.transport.pause([q_name(check_queue_name(queue_name))])

    def resume_queue(self, queue_name: str) -> None:
        """Ends the pause of a queue. Raises as ``pause_queue``."""
        self._check_pause()
        self.transport.resume([q_name(check_queue_name(queue_name))])

    def _check_pause(self) -> None:
        if not self.transport.features.pause:
            raise BrokerError(f"{self!r} cannot pause queues: stop the workers, or start them without it (-Q).")

    def get_dead_letters(
        self, queue_name: str | None = None, *, limit: int = 100, after: str | None = None
    ) -> list[DeadLetter]:
        """Dead letters of a queue or of all, newest first. Each has ``id``, ``queue``, ``body``, ``error`` (``type``,
        ``message``, ``traceback``), ``attempt``, ``crashes`` and ``died_ms``.

        Parameters:
          queue_name: The queue; None for all.
          limit: At most so many. Fewer come when they are large; none when there are no more.
          after: The ``place`` of the last one seen, for the next page.
        """
        queue = None if queue_name is None else q_name(queue_name)
        letters: list[DeadLetter] = self.transport.dead(queue, limit=limit, after=after)
        return letters

    def replay(self, ids: Collection[str]) -> int:
        """Puts dead letters back into their queues, to be run as if they had just been sent; returns how many there
        were.

        A message keeps its id, arguments and options; it has all its retries again and no crashes, and its history goes
        on. All of it is one step where the engine is transactional, so call it again and again for many.

        Parameters:
          ids: Storage ids of dead letters, at most 1 000; what is not there any more is left out.

        Raises:
          ValueError: If there are too many ids.
          BrokerError: If the engine does not answer.
        """
        now_ms = self.clock.now_ms()
        letters = self.transport.dead_letters(ids)
        envelopes = {letter.id: envelope_of(letter, self.actors, now_ms, self._writes) for letter in letters}
        moved: int = self.transport.move(envelopes)
        return moved

    # --- waiting

    def join(self, queue_name: str, *, timeout: int | None = None) -> None:
        """Waits until nothing of the queue is ready, delayed or running.

        Parameters:
          timeout: Milliseconds; None to wait for ever.

        Raises:
          QueueJoinTimeout: If that took longer; the text says what is left.
        """
        self._wait_until_empty(queue_name, timeout, lambda: None)

    def wait_for_worker(self, queue_name: str, check: Callable[[], object]) -> None:
        self._wait_until_empty(queue_name, None, check)

    def _wait_until_empty(self, queue_name: str, timeout: int | None, check: Callable[[], object]) -> None:
        deadline = None if timeout is None else self.clock.monotonic() + timeout / 1000
        while True:
            check()
            counts = self.transport.counts([queue_name])[queue_name]
            if not (counts.ready or counts.delayed or counts.claimed):
                return
            if deadline is not None and self.clock.monotonic() >= deadline:
                raise QueueJoinTimeout(
                    f"Queue {queue_name!r} was not empty after {timeout} ms: {counts.ready} ready, "
                    f"{counts.delayed} delayed, {counts.claimed} running."
                )
            self.clock.sleep(_JOIN_INTERVAL_S)

    def close(self) -> None:
        store = self.__dict__.get("store")
        if store is not None:
            store.close()
        self.transport.close()


def retention_of(ttl_ms: float | None, limit: int | None) -> Retention:
    """How long dead letters are kept, and how many, by a broker's keywords and variables.

    Parameters:
      ttl_ms: ``math.inf`` for ever; None for what ``dramatiq_dead_message_ttl`` or ``greenroom_dead_message_ttl`` says,
        else seven days.

    Raises:
      ValueError: If one of them is negative.
    """
    if ttl_ms is None:
        ttl_ms = getenv_int("dramatiq_dead_message_ttl", DEAD_LETTER_TTL_MS)
    for name, value in (("dead_letter_ttl_ms", ttl_ms), ("dead_letter_limit", limit)):
        if value is not None and not value >= 0:
            raise ValueError(f"{name} must not be negative: {value!r}.")
    return Retention(None if ttl_ms in (None, math.inf) else int(ttl_ms), limit)


def parse_bool(text: str) -> bool:
    """``true``, ``yes``, ``on``, ``1`` and their opposites, as a URL's parameter has them."""
    lowered = text.lower()
    if lowered in ("true", "yes", "on", "1"):
        return True
    if lowered in ("false", "no", "off", "0"):
        return False
    raise ValueError(f"{text!r} is neither true nor false.")


Middlewares = Iterable[Any] | None
