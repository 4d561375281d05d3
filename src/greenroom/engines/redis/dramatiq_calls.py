"""What programs call of Dramatiq's ``RedisBroker`` besides its documented methods: ``broker.do_fetch`` and its like."""

from __future__ import annotations

from ...names import q_name
from .dramatiq_layout import Enqueued, Place, Step
from .shared_transport import SharedTransport


class DramatiqCalls:
    """The commands of Dramatiq's script, with its arguments and answers, on Dramatiq's layout. Each is one atomic step.

    A queue may be named with ``.DQ`` for its delayed side. What is fetched belongs to ``broker_id``, which has given a
    sign of life with it: after the heartbeat timeout without another call it is taken for dead.
    """

    #: Names this object.
    broker_id: str

    transport: SharedTransport

    def do_enqueue(self, queue_name: str, message_id: str, data: bytes) -> None:
        """Puts a message into a queue.

        Parameters:
          queue_name: The queue.
          message_id: Its storage id, which has to be its option ``redis_message_id``, too.
          data: The encoded message.
        """
        place = _place(queue_name)
        self._do(Step("push", place, messages=[Enqueued(place, message_id, data)]))

    def do_fetch(self, queue_name: str, prefetch: int) -> list[bytes]:
        """Claims up to ``prefetch`` messages of a queue, the oldest first; returns them encoded."""
        return [claim.body for claim in self.transport.theirs.fetch(self.broker_id, _place(queue_name), int(prefetch))]

    def do_ack(self, queue_name: str, message_id: str) -> None:
        """Says that a claimed message is done."""
        self._do(Step("done", _place(queue_name), message_id))

    def do_nack(self, queue_name: str, message_id: str) -> None:
        """Moves a claimed message to the dead letters of its queue."""
        self._do(Step("dead", _place(queue_name), message_id))

    def do_requeue(self, queue_name: str, *message_ids: str) -> None:
        """Gives claimed messages back."""
        self._do(*[Step("back", _place(queue_name), message_id) for message_id in message_ids])

    def do_purge(self, queue_name: str) -> None:
        """Deletes what is in a queue, and its dead letters, here and in Greenroom's own queues."""
        queue = q_name(queue_name)
        self.transport.purge(queue)
        self.transport.purge(queue, dead=True)

    def do_qsize(self, queue_name: str) -> int:
        """How many messages of a queue are waiting, delayed or claimed, here or in Greenroom's own queues."""
        queue = q_name(queue_name)
        counts = self.transport.counts([queue])[queue]
        return counts.ready + counts.delayed + counts.claimed

    def _do(self, *steps: Step) -> None:
        self.transport.layout.trip(self.broker_id, steps, beats=True)


def _place(queue_name: str) -> Place:
    return Place(q_name(queue_name), queue_name.endswith(".DQ"))
