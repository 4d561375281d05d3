"""``broker.consume()`` on an engine: for programs that take messages without a worker."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable
from typing import Any

from ..broker import Consumer, MessageProxy
from ..clock import SYSTEM_CLOCK
from ..core.failure import message_of, traceback_of, type_name
from ..core.verdict import Verdict
from ..errors import DecodeError
from ..logging import get_logger
from ..message import Message, decode_message
from ..ports.transport import Delivery, ErrorText, Exchange, Settlement

logger = get_logger(__name__)


class ConsumedMessage(MessageProxy):
    """A message that a ``consume()`` handed out. It belongs to its consumer until that acks, nacks or requeues it."""

    def __init__(self, message: Message[Any], delivery: Delivery) -> None:
        super().__init__(message)
        self.delivery = delivery

    @property
    def redelivered(self) -> bool:
        """True if it was handed out before."""
        return self.delivery.redelivered


class EngineConsumer(Consumer):
    """Iterates over one queue of an engine. Any thread may ack, nack and requeue; one thread iterates.

    Parameters:
      transport: The engine.
      queue_name: The queue.
      prefetch: How many messages may be handed out, or fetched ahead, and not settled.
      timeout_ms: After how long an idle iteration yields None.
    """

    def __init__(self, transport: Any, queue_name: str, *, prefetch: int, timeout_ms: int) -> None:
        self._consumer = transport.consumer(f"consume:{os.getpid()}")
        self._consumer.subscribe([queue_name])
        self._prefetch = prefetch
        self._timeout_s = timeout_ms / 1000
        self._fetched: deque[ConsumedMessage] = deque()
        self._unsettled = 0
        self._settlers: deque[None] = deque()  # one for each thread that is about to settle
        # guards: the engine's consumer has one caller at a time. Held for one trip, or for a wait, which a thread that
        # is about to settle ends.
        self._turn = threading.Condition()

    def __next__(self) -> MessageProxy | None:
        """The next message; None after the timeout, in which other threads may settle what they hold.

        Raises:
          BrokerError: If the engine does not answer.
        """
        deadline = SYSTEM_CLOCK.monotonic() + self._timeout_s
        with self._turn:
            while not self._fetched and not self._fetch():
                left_s = deadline - SYSTEM_CLOCK.monotonic()
                if left_s <= 0:
                    return None
                if self._settlers or self._unsettled >= self._prefetch:
                    self._turn.wait(left_s)
                else:
                    self._consumer.wait(left_s)
            return self._fetched.popleft()

    def _fetch(self) -> bool:
        limit = self._prefetch - self._unsettled
        if limit <= 0:
            return False
        deliveries = self._trip((), limit).deliveries
        self._unsettled += len(deliveries)
        garbage = [refusal for delivery in deliveries if (refusal := self._take(delivery))]
        if garbage:
            self._trip(garbage, 0)
            self._unsettled -= len(garbage)
        return bool(self._fetched)

    def _take(self, delivery: Delivery) -> Settlement | None:
        try:
            message = decode_message(delivery.body)
        except DecodeError as e:
            logger.error("Message %s of queue %r is dead-lettered: %s", delivery.id, delivery.queue, message_of(e))
            return Settlement(delivery, Verdict.DEAD, error=ErrorText(type_name(e), message_of(e)))
        message.options.pop("eta", None)
        self._fetched.append(ConsumedMessage(message, delivery))
        return None

    def _trip(self, settle: Iterable[Settlement], limit: int) -> Exchange:
        exchange: Exchange = self._consumer.exchange(tuple(settle), limit)
        for settlement in exchange.lost:
            logger.warning("Message %s is no longer ours: it was settled or given away.", settlement.delivery.id)
        for _, error in exchange.refused:
            raise error from None
        return exchange

    def ack(self, message: Any) -> None:
        self._settle([Settlement(message.delivery, Verdict.ACK)])

    def nack(self, message: Any) -> None:
        exception = message._exception
        error = exception and ErrorText(type_name(exception), message_of(exception), traceback_of(exception))
        self._settle([Settlement(message.delivery, Verdict.DEAD, error=error)])

    def requeue(self, messages: Iterable[Any]) -> None:
        self._settle([Settlement(message.delivery, Verdict.RELEASE) for message in messages])

    def _settle(self, settle: list[Settlement]) -> None:
        self._settlers.append(None)
        self._consumer.wake()
        with self._turn:
            self._settlers.pop()
            try:
                self._trip(settle, 0)
                self._unsettled -= len(settle)
            finally:
                self._turn.notify_all()

    def close(self) -> None:
        """Gives back what is not settled. Closing again does nothing."""
        self._settlers.append(None)
        self._consumer.wake()
        with self._turn:
            self._settlers.pop()
            self._fetched.clear()
            self._consumer.close()
            self._turn.notify_all()
