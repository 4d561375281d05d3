"""Delayed messages that are not handed out, but moved into the levels of delay (``delays``).

Dramatiq's senders put what is delayed into ``default.DQ``, where its workers would fetch it and keep it in memory until
it is due. We take it over into the broker's keeping. And a delay that is longer than the levels reach comes out of them
with a rest, and goes in again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from ...errors import DecodeError
from ...message import Message
from ...names import q_name
from ...ports.transport import ErrorText
from .line import Line
from .reading import id_of
from .settling import Settler
from .tap import Arrived
from .topology import delay_queue
from .wire import Meta, Publication, priority_of, read

#: How many delayed messages of Dramatiq's are moved at a time.
MOVED_AT_A_TIME = 100
#: Beyond this a JSON number is no time.
_NO_TIME = 2.0**53


class Moves:
    """Owned by its consumer.

    Parameters:
      transport: Knows the routes and the clock.
      line: Where they come from.
      settler: Publishes each, and acknowledges it then.
    """

    def __init__(self, transport: Any, line: Line, settler: Settler) -> None:
        self._transport = transport
        self._line = line
        self._settler = settler
        # Dramatiq knows classic queues only.
        self._has_neighbours = transport.layout.queue_type == "classic"

    def serve(self, queues: Iterable[str]) -> None:
        """Takes over what has been delayed for these queues."""
        if not self._has_neighbours:
            return
        for queue in queues:
            name = delay_queue(queue)
            tap = self._line.taps.get(name)
            if tap is None or not tap.prefetch:
                self._line.serve_beside(name, MOVED_AT_A_TIME, beside=queue)
            elif tap.arrived:
                self._settler.move({message.tag: self._taken_over(queue, message) for message in tap.arrived})
                tap.arrived.clear()

    def _taken_over(self, queue: str, message: Arrived) -> Publication:
        routes, now_ms = self._transport.routes, self._transport.clock.now_ms()
        id, (_, meta) = id_of(message.properties, message.body), read(message.properties)
        try:
            found: Message[Any] = Message.decode(message.body)
        except DecodeError as e:
            error = ErrorText(type(e).__name__, str(e))
            letter = Meta(meta.attempt + 1, meta.crashes, meta.history, error, now_ms)
            dead: Publication = routes.dead(queue, id, message.body, letter)
            return dead
        body = found.copy(queue_name=q_name(found.queue_name)).encode()
        delay_ms = _eta_ms(found, now_ms) - now_ms
        priority = priority_of(message.properties)
        moved: Publication = routes.to(queue, id, body, meta, priority=priority, delay_ms=delay_ms)
        return moved

    def delay_again(self, queue: str, message: Arrived, meta: Meta) -> None:
        """Serves the rest of a delay."""
        routes = self._transport.routes
        id, priority = id_of(message.properties, message.body), priority_of(message.properties)
        rest = msgspec.structs.replace(meta, rest_ms=0)
        publication = routes.to(queue, id, message.body, rest, priority=priority, delay_ms=meta.rest_ms)
        self._settler.move({message.tag: publication})


def _eta_ms(message: Message[Any], now_ms: int) -> int:
    """When it is due: now, if it says nothing that is a time."""
    eta = message.options.get("eta")
    is_time = isinstance(eta, (int, float)) and not isinstance(eta, bool) and abs(eta) < _NO_TIME
    return int(eta) if is_time and eta is not None else now_ms
