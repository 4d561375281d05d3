"""Feeders: threads that iterate the consumers of a broker that a user wrote."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ..backoff import full_jitter_s
from ..errors import BrokerConnectionError, ConnectionClosed, MiddlewareError
from ..logging import get_logger
from ..names import q_name

logger = get_logger("greenroom.worker", "ConsumerThread")


class Held:
    """A message that a consumer has handed out and that is not settled. Owned by the feeder that made it, then by the
    pump."""

    __slots__ = ("attempt", "body", "due_ms", "feeder", "proxy", "queue", "takes_room")

    def __init__(self, feeder: Feeder, proxy: Any, clock_now_ms: int) -> None:
        self.feeder = feeder
        self.proxy = proxy
        self.queue = q_name(feeder.queue_name)
        self.due_ms = _due_ms(proxy, clock_now_ms)
        message = getattr(proxy, "_message", proxy)
        options = {name: value for name, value in message.options.items() if name != "eta"}
        self.body: bytes = message._replace(queue_name=self.queue, options=options).encode()
        self.attempt = 0
        self.takes_room = True

    def leave_room(self) -> None:
        """It was claimed, or put aside: the feeder may bring another one."""
        if self.takes_room:
            self.takes_room = False
            self.feeder.has_room()


class Feeder(threading.Thread):
    """Iterates one consumer of the user's broker. Owns its ``consumer``, which the pump uses to settle.

    Parameters:
      transport: The ``BridgeTransport``.
      queue_name: The queue, or its delayed side.
      prefetch: How many messages the consumer may have handed out.
      arrived: Called with each message.
    """

    def __init__(self, transport: Any, queue_name: str, prefetch: int, arrived: Callable[[Held], None]) -> None:
        super().__init__(name=f"consumer-{queue_name}", daemon=True)
        self.queue_name = queue_name
        self.consumer: Any = None
        self._transport = transport
        self._prefetch = prefetch
        self._arrived = arrived
        self._stops = threading.Event()
        self._runs = threading.Event()
        # One more than the prefetch: a consumer that keeps to it is always iterated on, one that does not is held up.
        self._room = threading.Semaphore(prefetch + 1)
        self._failures = 0

    # --- called by the pump

    def pause(self) -> None:
        """Stops iterating, after the next message."""
        self._runs.clear()

    def resume(self) -> None:
        """Goes on."""
        self._runs.set()

    def has_room(self) -> None:
        """One of those that wait was claimed."""
        self._room.release()

    def connected(self) -> Any:
        """The consumer; raises ``ConnectionClosed`` while there is none."""
        consumer = self.consumer
        if consumer is None:
            raise ConnectionClosed(f"The consumer of queue {self.queue_name!r} is being connected.")
        return consumer

    def stop(self) -> None:
        """Tells the thread to end."""
        self._stops.set()
        self._runs.set()
        self._room.release()

    def has_ended(self) -> bool:
        """Waits as long as an idle consumer may take to yield."""
        self.join(self._transport.timeout_ms / 1000 + 1.0)
        if self.is_alive():
            logger.warning(
                "The consumer of queue %r does not end; its messages are left to the broker.", self.queue_name
            )
        return not self.is_alive()

    def disconnect(self) -> None:
        """Closes the consumer."""
        consumer, self.consumer = self.consumer, None
        if consumer is not None:
            try:
                consumer.close()
            except Exception:
                logger.exception("Closing the consumer of queue %r failed.", self.queue_name)

    # --- the thread

    def run(self) -> None:
        """The thread's life."""
        while not self._stops.is_set():
            try:
                self._connect()
                self._iterate()
            except BrokerConnectionError as e:
                logger.critical("The consumer of queue %r has lost its connection: %s", self.queue_name, e)
            except Exception:
                logger.critical("The consumer of queue %r has failed.", self.queue_name, exc_info=True)
            if not self._stops.is_set():
                self.disconnect()
                self._stops.wait(full_jitter_s(self._failures, cap_s=self._transport.restart_delay_s))
                self._failures += 1

    def _connect(self) -> None:
        transport = self._transport
        self.consumer = transport.broker.consume(self.queue_name, prefetch=self._prefetch, timeout=transport.timeout_ms)

    def _iterate(self) -> None:
        messages = iter(self.consumer)
        while True:
            self._runs.wait()
            self._room.acquire()
            if self._stops.is_set():
                return
            proxy = next(messages, self)
            if proxy is self:  # the consumer has ended by itself
                return
            self._failures = 0
            if proxy is None or not self._hand_over(proxy):
                self._room.release()

    def _hand_over(self, proxy: Any) -> bool:
        broker = self._transport.broker
        try:
            if "eta" in proxy.options:
                broker.emit_before("delay_message", proxy)
            held = Held(self, proxy, broker.clock.now_ms())
        except (MiddlewareError, TypeError, ValueError) as e:
            logger.error("Message %s of queue %r cannot be run: %s", proxy.message_id, self.queue_name, e)
            self.connected().nack(proxy)
            return False
        self._arrived(held)
        return True


def _due_ms(proxy: Any, now_ms: int) -> int | None:
    eta = proxy.options.get("eta")
    if eta is None:
        return None
    if isinstance(eta, bool) or not isinstance(eta, (int, float)):
        logger.warning("Invalid eta value for message %r: %.100r. It is run at once.", proxy.message_id, eta)
        return now_ms
    return int(eta)
