"""Where a message goes: to its queue, into the levels of delay, to the dead letters."""

from __future__ import annotations

import json
from collections.abc import Callable

import msgspec

from ...names import dq_name
from ...ports.transport import Envelope
from .delays import LONGEST_MS, Levels
from .topology import dead_letter_queue, delay_queue
from .wire import NO_META, Meta, Publication, properties_of


class Routes:
    """Makes publications. Any thread.

    Parameters:
      levels: Tells the levels of delay. Asked at the first delay: they depend on the server's version.
      dramatiq: Delayed messages go to where Dramatiq's workers look for them.
    """

    def __init__(self, levels: Callable[[], Levels], *, dramatiq: bool = False) -> None:
        self._levels = levels
        self._dramatiq = dramatiq

    def of(self, envelope: Envelope, now_ms: int, meta: Meta = NO_META) -> Publication:
        """An envelope: at once, or not before its due time."""
        due_ms = envelope.due_ms
        if due_ms is None or due_ms <= now_ms:
            return self.to(envelope.queue, envelope.id, envelope.body, meta, priority=envelope.priority)
        if self._dramatiq:
            return _as_dramatiq_delays(envelope, due_ms, meta)
        delay_ms = due_ms - now_ms
        return self.to(envelope.queue, envelope.id, envelope.body, meta, priority=envelope.priority, delay_ms=delay_ms)

    def to(
        self, queue: str, id: str, body: bytes, meta: Meta = NO_META, *, priority: int = 0, delay_ms: int = 0
    ) -> Publication:
        """A body, to a queue, not before ``delay_ms`` milliseconds are over."""
        if delay_ms <= 0:
            return Publication("", queue, body, properties_of(id, meta, priority), (queue,))
        rest_ms = max(0, delay_ms - LONGEST_MS)
        if rest_ms != meta.rest_ms:
            meta = msgspec.structs.replace(meta, rest_ms=rest_ms)
        passage = self._levels().passage(delay_ms)
        properties = properties_of(id, meta, priority, dict(passage.headers))
        return Publication(passage.exchange, queue, body, properties, (queue, *passage.needs))

    def dead(self, queue: str, id: str, body: bytes, meta: Meta) -> Publication:
        """A dead letter of a queue."""
        return Publication("", dead_letter_queue(queue), body, properties_of(id, meta), (queue,))


def _as_dramatiq_delays(envelope: Envelope, due_ms: int, meta: Meta) -> Publication:
    """Dramatiq's workers keep what is in ``q.DQ`` until its eta. The body names the queue that it is in."""
    body = envelope.body
    try:
        fields = json.loads(body)
        fields["queue_name"] = dq_name(envelope.queue)
        fields["options"] = {**fields["options"], "eta": due_ms}
        body = json.dumps(fields, separators=(",", ":")).encode()
    except (ValueError, TypeError, KeyError):  # another encoder's: it knows its eta itself
        pass
    properties = properties_of(envelope.id, meta, envelope.priority)
    return Publication("", delay_queue(envelope.queue), body, properties, (envelope.queue,))
