"""The consuming connection of one owner: a channel, and a tap on it for each queue.

Owned by whoever drives its loop: see ``consumer``. Nothing here waits, but for ``open`` and ``serve``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from time import monotonic
from typing import Any

from pika.exceptions import AMQPError, ChannelClosedByBroker

from ...backoff import full_jitter_s
from ...errors import BrokerError, BrokerTimeout
from ...logging import get_logger
from .errors import QueueMismatch, channel_error, translate
from .prefetch import DOWN_EVERY_S, Prefetch
from .tap import Tap, TapState
from .unacked import Epoch, Unacked

#: Seconds that connecting may take before its caller hears of it.
CONNECT_S = 5.0
#: After so many seconds without a byte the server is asked for one.
SILENT_S = 10.0
#: Seconds that it has to answer then. Heartbeats would notice after two minutes; and to have more of them would have
#: the server give up a process that cannot run for a moment.
DEAF_S = 10.0
#: Seconds that the goodbye may take: who hangs up earlier may have acknowledged in vain, and that runs again.
GOODBYE_S = 5.0
#: Seconds for which a trip waits for the first messages of a queue that it has just begun to consume.
FIRST_MESSAGES_S = 1.0
#: Seconds between two tries to declare a queue that the broker has refused.
REFUSED_FOR_S = 5.0

logger = get_logger(__name__)


class Line:
    """Keeps the connection, and begins and ends to consume.

    Parameters:
      transport: Makes connections and declares queues.
      prefetch: How many messages to ask for.
      on_lost: Called when all that was claimed is lost: the connection or the channel has ended.
    """

    def __init__(self, transport: Any, prefetch: Prefetch, on_lost: Callable[[], object]) -> None:
        self._transport = transport
        self._prefetch = prefetch
        self._on_lost = on_lost
        self._link = transport.link("consume", on_open=self._linked, on_lost=self._unlinked)
        self.loop = self._link.loop
        self._channel: Any = None
        self._declarer: Any = None
        #: The channel's, while it can be used; else None.
        self.epoch: Epoch | None = None
        self.unacked = Unacked()
        self.taps: dict[str, Tap] = {}
        #: True if a queue is not consumed any more that was: the next trip has to begin again.
        self.wants_trip = False
        self._trouble: BrokerError | None = None
        self._failures = 0
        self._tags = 0
        self._heard = -1
        self._heard_s = 0.0
        self._asked_s = math.inf

    # --- the connection

    def open(self, is_wanted: Callable[[], bool]) -> None:
        """Connects and opens a channel. Gives up when it ``is_wanted`` no more; ask ``epoch`` then.

        Raises:
          BrokerError: It could not be reached, or has thrown us out since the last call.
        """
        if self._trouble is not None:
            trouble, self._trouble = self._trouble, None
            raise trouble
        if self._link.is_open and self._channel is None:
            self._linked(self._link)
        self._link.open()
        done = self._link.run_until(lambda: self.epoch is not None or self._trouble or not is_wanted(), CONNECT_S)
        if not done:
            where = self._link.where
            raise BrokerTimeout(f"RabbitMQ at {where} did not answer within {CONNECT_S:g} s.", outcome="none")

    def look(self) -> None:
        """While it is idle, about once a second, after a step of the loop: gives up a connection that leads nowhere."""
        if self.epoch is None:
            return
        now_s = monotonic()
        if self._link.heard != self._heard:
            self._heard, self._heard_s, self._asked_s = self._link.heard, now_s, math.inf
        elif now_s - self._asked_s > DEAF_S:
            logger.warning("RabbitMQ at %s was silent for too long: the connection is given up.", self._link.where)
            self._link.drop()
        elif now_s - self._heard_s > SILENT_S and self._asked_s == math.inf:
            self._asked_s = now_s
            self._channel.basic_qos(callback=_ignore)
            self.loop.flush()

    def close(self) -> None:
        """Says goodbye: the broker takes back all that is not settled."""
        self.epoch = None
        self._channel = None
        self._link.close(GOODBYE_S)

    def arrive(self) -> None:
        """For tests: waits until the broker has done all that it was told here. No confirmation tells of that, and what
        it has read and not done yet is lost with the connection."""
        if self.epoch is not None:
            answers: list[Any] = []
            self._channel.basic_qos(callback=answers.append)
            self._link.run_until(lambda: answers or self.epoch is None, CONNECT_S)

    def drop(self) -> None:
        """For tests: cuts the connection, as the network does."""
        self._link.drop()

    def _linked(self, link: Any) -> None:
        self._transport.learn(link.version)
        self._declarer = self._transport.declarer(link)
        self._channel = link.connection.channel(on_open_callback=self._channel_opened)

    def _channel_opened(self, channel: Any) -> None:
        channel.add_on_close_callback(self._channel_closed)
        channel.add_on_cancel_callback(self._cancelled)
        self._channel = channel
        self.epoch = Epoch()
        self.unacked = Unacked()
        self.taps = {}

    def _channel_closed(self, channel: Any, reason: Any) -> None:
        if channel is not self._channel or not isinstance(reason, ChannelClosedByBroker):
            return  # the connection has ended, and tells of itself
        self._channel = None
        code, text = reason.reply_code, reason.reply_text
        logger.error("RabbitMQ has closed the consuming channel: %s %s.%s", code, text, _advice(text))
        self._trouble = channel_error(code, text, self._link.where)
        self._end()

    def _unlinked(self, _link: Any, error: BrokerError) -> None:
        if self.epoch is not None:
            logger.warning("%s What was fetched and has not started is fetched again.", error)
        self._channel = None
        self._end()

    def _end(self) -> None:
        if self.epoch is not None:
            self.epoch = None
            self.taps = {}
            self.unacked = Unacked()
            self._on_lost()

    # --- settling

    def ack(self, tags: Sequence[int]) -> None:
        """Acknowledges tags that were just taken out of ``unacked``."""
        upto, others = self.unacked.plan(tags)
        ack = self._channel.basic_ack
        if upto:
            ack(upto, multiple=True)
        for tag in others:
            ack(tag)

    def give_back(self, tag: int) -> None:
        """Puts one that was taken out of ``unacked`` back into its queue, where it stood."""
        self._channel.basic_nack(tag, requeue=True)

    def reject(self, tag: int) -> None:
        """Has the broker itself put it to the dead letters, as it is."""
        self._channel.basic_nack(tag, requeue=False)

    # --- consuming

    def serve(self, queues: Sequence[str], wanted: int, *, enough: Callable[[], bool]) -> None:
        """Consumes from ``queues`` so that ``wanted`` messages can be held. What it begins to consume just now it waits
        for: until the first messages have come, or ``enough``."""
        is_new = self._begin_where_needed(queues, wanted)
        if is_new and not self._wait_for_taps(enough):
            self._begin_where_needed(queues, wanted)  # those that were about to be opened for less
            self._wait_for_taps(enough)

    def _begin_where_needed(self, queues: Iterable[str], wanted: int) -> bool:
        """Begins to consume; True if there is something to wait for."""
        step = self._prefetch.step_for(wanted)
        now_s = monotonic()
        is_new = False
        for queue in queues:
            tap = self.taps.get(queue)
            if tap is None:
                tap = self.taps[queue] = Tap(queue, self.unacked)
            tap.peak = max(tap.peak, wanted)
            more = step - tap.prefetch - tap.left_over()
            if more > 0 and now_s >= tap.not_before_s:
                is_new = True
                if tap.state is not TapState.OPENING:
                    self._begin(tap, more)
        return is_new

    def serve_beside(self, queue: str, prefetch: int, *, beside: str) -> None:
        """Consumes from a queue that is declared together with another one, once that is."""
        if self.epoch is not None and beside in self._declarer.known:
            tap = self.taps.setdefault(queue, Tap(queue, self.unacked, is_steady=True))
            if monotonic() >= tap.not_before_s:
                tap.prefetch = prefetch
                tap.state = TapState.OPENING
                tap.beginnings += 1
                self._consume(tap, prefetch)

    def _wait_for_taps(self, enough: Callable[[], bool]) -> bool:
        """Waits until all are open that are about to be; False if that is so, and it is not ``enough``."""
        epoch = self.epoch
        deadline_s = monotonic() + FIRST_MESSAGES_S
        while self.epoch is epoch and not enough():
            left_s = deadline_s - monotonic()
            if left_s <= 0 or not self._is_opening():
                return False
            self.loop.run_once(left_s)
        return True

    def _is_opening(self) -> bool:
        return any(tap.state is TapState.OPENING for tap in self.taps.values())

    def _begin(self, tap: Tap, more: int) -> None:
        """Begins to consume, or to consume more: then a consumer is added, for to end the first would give back what is
        on its way."""
        tap.prefetch += more
        tap.state = TapState.OPENING
        tap.looked_s = monotonic()
        tap.beginnings += 1
        if tap.consumer_tags or tap.queue in self._declarer.known:
            self._consume(tap, more)
        else:
            self._declarer.declare([tap.queue], partial(self._declared, tap, tap.beginnings))

    def _declared(self, tap: Tap, beginning: int, error: BrokerError | None) -> None:
        is_its = self.taps.get(tap.queue) is tap and tap.state is TapState.OPENING and tap.beginnings == beginning
        if not is_its:  # it was stopped meanwhile, or the channel has ended
            return
        if error is None:
            self._consume(tap, tap.prefetch)
            return
        tap.close()
        tap.not_before_s = monotonic() + REFUSED_FOR_S
        level = logger.error if isinstance(error, QueueMismatch) else logger.warning
        level("Queue %s cannot be consumed: %s", tap.queue, error)

    def _consume(self, tap: Tap, prefetch: int) -> None:
        """Asks for messages, then how many are left, then for one answer more: with it the first messages are here. The
        queue answers the second question after it has sent them, and the channel the third after it has sent them on.
        """
        channel = self._channel
        self._tags += 1
        tag = f"greenroom-{self._tags}"
        tap.consumer_tags.append(tag)
        channel.basic_qos(prefetch_count=prefetch)
        channel.basic_consume(tap.queue, tap.arrive, consumer_tag=tag)
        channel.queue_declare(tap.queue, passive=True, callback=_ignore)
        channel.basic_qos(prefetch_count=prefetch, callback=partial(self._opened, tap, tap.beginnings))

    def _opened(self, tap: Tap, beginning: int, _frame: Any) -> None:
        self._failures = 0
        if tap.state is TapState.OPENING and tap.beginnings == beginning:
            tap.state = TapState.OPEN

    def _cancelled(self, frame: Any) -> None:
        """The broker has ended it: the queue was deleted, or its node is gone."""
        tag = frame.method.consumer_tag
        for tap in self.taps.values():
            if tag in tap.consumer_tags:
                logger.warning("Queue %s has vanished; it is declared again.", tap.queue)
                tap.close()
                tap.not_before_s = monotonic() + full_jitter_s(self._failures)
                self._failures += 1
                self._declarer.forget(tap.queue)
                self.wants_trip = True

    def stop(self, queue: str) -> None:
        """Consumes no more from a queue, and gives back what has not been claimed. The connection may end meanwhile."""
        tap = self.taps.get(queue)
        if tap is not None and tap.prefetch:
            self._wait_for_taps(lambda: False)  # pika sends no question before the last one is answered
            if self.taps.get(queue) is tap:  # else the connection has ended meanwhile
                self._close(tap)

    def _close(self, tap: Tap) -> None:
        try:
            for tag in tap.consumer_tags:
                self._channel.basic_cancel(tag)
        except AMQPError as e:  # it is about to end as a whole
            logger.debug("%s", translate(e, self._link.where))
        tap.close()
        self._empty(tap)

    def _empty(self, tap: Tap) -> None:
        while tap.arrived:
            tag = tap.arrived.pop().tag
            del self.unacked[tag]
            self.give_back(tag)

    def step_down(self, held: int) -> None:
        """Asks for less of the queues for which less was wanted lately, at most every two seconds.

        Parameters:
          held: How many messages are claimed and not settled.
        """
        now_s = monotonic()
        if self._is_opening():
            return  # pika sends no question before the last one is answered
        for tap in self.taps.values():
            if tap.state is TapState.OPEN and not tap.is_steady and now_s - tap.looked_s >= DOWN_EVERY_S:
                tap.looked_s = now_s
                step = self._prefetch.step_for(max(tap.peak, held))
                tap.peak = 0
                if step < tap.prefetch:
                    self._close(tap)
                    if step > (left_over := tap.left_over()):
                        self._begin(tap, step - left_over)


def _advice(text: str) -> str:
    if "delivery acknowledgement" not in text:
        return ""
    return (
        " A task ran for longer than the broker's consumer_timeout; it is started again elsewhere. Raise"
        " consumer_timeout in rabbitmq.conf above the longest task, or split the task."
    )


def _ignore(_frame: Any) -> None:
    """Its coming is all that counts."""
