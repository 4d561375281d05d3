"""Sending: one connection a process, driven by the threads that send.

No thread of ours is needed. Who sends puts a parcel into the inbox and, if nobody drives the connection, drives it: it
writes what is in the inbox, its own and that of others, and reads the answers until its own is there. Then it hands on
to the next that waits. Others meanwhile sleep until their parcel is done, or it is their turn to drive. So the confirms
of many threads are waited for together, and a process that does not send does nothing.

* A parcel is written once its queues are declared (``topology.py``). What the broker returns because the queue has
  vanished is published once more, after the queue was declared again.
* A connection that was idle is looked at before it is written to: what ended it meanwhile is noticed, and a new one is
  opened, without a word. A connection that breaks while confirms are out fails their parcels: whether they arrived is
  not known.
* While the broker takes no messages (an alarm), parcels wait in the inbox until their senders' time is over.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from time import monotonic
from typing import Any

from pika import spec
from pika.exceptions import ChannelClosedByBroker

from ... import failpoints
from ...errors import BrokerError, BrokerFull, BrokerTimeout, MessageTooLarge
from ...logging import get_logger
from .connection import Link, Targets
from .errors import NOT_FOUND, PRECONDITION_FAILED, QueueGone, channel_error, translate
from .parcel import Parcel
from .topology import Declarer, Layout
from .turns import Turns
from .wire import Publication

#: Seconds without a look at the connection after which it is looked at before it is written to.
_IDLE_S = 0.5
#: Seconds after which who wants to close looks again whether it may.
_PATIENCE_S = 60.0
#: How many messages are given to pika before what it has buffered is written.
_BURST = 64

logger = get_logger(__name__)


class Publisher:
    """Any thread may use it. What is driven is owned by the thread that drives.

    Parameters:
      targets: Where to.
      layout: How queues are declared.
      confirm: Whether to wait until the broker says that it keeps a message.
    """

    def __init__(self, targets: Targets, layout: Layout, *, confirm: bool = True) -> None:
        self._inbox: deque[Parcel] = deque()
        self._confirm = confirm
        self._link = Link(targets, "publish", on_open=self._opened, on_lost=self._lost)
        self._turns = Turns(self._link.loop.wake)
        self._declarer = Declarer(self._link, layout)
        self._channel: Any = None
        self._channel_opening = False
        self._next_tag = 1
        self._lowest_tag = 1
        self._unconfirmed: dict[int, Parcel] = {}
        self._unflushed: deque[Parcel] = deque()
        self._declaring: set[Parcel] = set()
        self._looked_at_s = 0.0

    # --- for senders

    def push(self, publications: Sequence[Publication], timeout_s: float) -> None:
        """Returns once all are accepted.

        Raises:
          BrokerTimeout: If that took too long; ``outcome`` is ``"none"`` if nothing was written.
          QueueGone: If there is no queue for one of them, and none can be made.
          BrokerError: If they were not accepted, or it is not known. ``accepted`` and ``index`` are how many of them
            are known to be, and the position of the first that is not.
        """
        parcel = Parcel(publications)
        deadline_s = monotonic() + timeout_s
        heard = self._link.heard
        self._inbox.append(parcel)
        while not parcel.done:
            if self._turns.take(parcel, deadline_s):
                try:
                    self._drive(parcel, deadline_s)
                finally:
                    self._turns.hand_on()
            if not parcel.done and monotonic() >= deadline_s:
                self._give_up(parcel, timeout_s)
                self._drop_if_silent(heard)
        if parcel.error is not None:
            raise _placed(parcel.error, parcel)

    def server_version(self, timeout_s: float) -> tuple[int, ...]:
        """The version of the server, connecting to it if that was not done yet. Raises as ``push``."""
        if not self._link.version:
            self.push((), timeout_s)
        return self._link.version

    # --- for a loop of somebody else's

    def submit(self, publications: Sequence[Publication], on_done: Callable[[], object] | None = None) -> Parcel:
        """Sends without waiting: the parcel says what has become of it. ``turn`` has to be called until then.

        Parameters:
          on_done: Called once it is done, by any thread, which must not be kept: for waking somebody.
        """
        parcel = Parcel(publications, on_done)
        self._inbox.append(parcel)
        self.turn()
        return parcel

    def turn(self) -> None:
        """One step of the connection, if no other thread drives it anyway. Waits for nothing."""
        if not self._turns.try_take():
            self._link.loop.wake()
            return
        try:
            self._step(0)
            self._admit()
        finally:
            self._turns.hand_on()

    def beat(self) -> None:
        """About once a second: keeps an idle connection alive."""
        if self._link.is_open:
            self.turn()

    def fileno(self) -> int:
        """A descriptor that can be read when ``turn`` has something to do; -1 if there is none."""
        return self._link.loop.fileno()

    @property
    def declared(self) -> frozenset[str]:
        """What was declared on this connection."""
        return frozenset(self._declarer.known)

    def disconnect(self) -> None:
        """Closes the connection when nobody uses it. The next sender opens another one."""
        self._alone(self._link.hang_up)

    def close(self) -> None:
        """Closes the connection when nobody uses it. It cannot be used any more."""
        self._alone(self._link.close)

    def _alone(self, act: Callable[[], object]) -> None:
        me = Parcel(())
        while not self._turns.take(me, monotonic() + _PATIENCE_S):
            continue
        try:
            act()
        finally:
            self._turns.hand_on()

    # --- who drives

    def _finish(self, parcel: Parcel, error: BrokerError | None = None) -> None:
        if not parcel.done:
            parcel.finish(error)
            self._turns.tell_done(parcel)

    def _drive(self, parcel: Parcel, deadline_s: float) -> None:
        self._look_if_idle()
        self._admit()
        while not parcel.done:
            left_s = deadline_s - monotonic()
            if left_s <= 0:
                return
            self._step(left_s)
            self._admit()

    def _give_up(self, parcel: Parcel, timeout_s: float) -> None:
        outcome = "none" if self._turns.cancel(parcel) else "unknown"
        if parcel.done:
            return
        why = f" It takes no messages: {self._link.blocked}." if self._link.blocked else ""
        self._finish(
            parcel,
            BrokerTimeout(
                f"RabbitMQ at {self._link.where} did not accept a message within {timeout_s:g} s.{why}", outcome=outcome
            ),
        )

    def _drop_if_silent(self, heard: int) -> None:
        """A connection on which nothing has come for so long may lead nowhere: the next sender opens another one."""
        if self._link.heard == heard and self._link.blocked is None:
            self._alone(self._link.drop)

    # --- driving

    def _step(self, timeout_s: float) -> None:
        self._link.loop.run_once(timeout_s)
        self._looked_at_s = monotonic()
        self._note_flushed()

    def _look_if_idle(self) -> None:
        if self._link.is_open and monotonic() - self._looked_at_s > _IDLE_S:
            self._link.loop.catch_up()
            self._step(0)

    def _admit(self) -> None:
        """Writes what is in the inbox, as far as it can be."""
        while self._inbox:
            if not self._is_ready():
                return
            try:
                parcel = self._inbox.popleft()
            except IndexError:
                return
            if parcel.cancelled or parcel.done:
                continue
            missing = self._declarer.missing(_needs(parcel))
            if missing:
                self._declaring.add(parcel)
                self._declarer.declare(missing, partial(self._declared, parcel))
            else:
                self._write(parcel)

    def _is_ready(self) -> bool:
        link = self._link
        if not link.is_open:
            link.open()
            return False
        if self._channel is None:
            if not self._channel_opening:
                self._channel_opening = True
                link.connection.channel(on_open_callback=self._channel_opened)
            return False
        return link.blocked is None

    def _declared(self, parcel: Parcel, error: BrokerError | None) -> None:
        self._declaring.discard(parcel)
        if error is None:
            self._inbox.appendleft(parcel)
            self._link.loop.wake()
        elif isinstance(error, QueueGone) and not parcel.retried:  # what was declared before has vanished
            self._again(parcel, parcel.todo)
        elif self._link.is_open:
            self._finish(parcel, error)
        else:
            self._inbox.append(parcel)

    def _write(self, parcel: Parcel) -> None:
        if not self._turns.claim(parcel):
            return
        if not parcel.todo:
            self._finish(parcel)
            return
        publish, mandatory = self._channel.basic_publish, self._confirm
        unconfirmed, tag = self._unconfirmed, self._next_tag
        parcel.written(tag)
        publications = parcel.publications
        for position in parcel.todo:
            exchange, key, body, properties, _ = publications[position]
            publish(exchange, key, body, properties, mandatory)
            if mandatory:
                unconfirmed[tag] = parcel
            tag += 1
            if not tag % _BURST:
                self._link.loop.flush()
        self._next_tag = tag
        self._link.loop.flush()
        if failpoints.armed:
            failpoints.hit("enq.after_send_before_confirm")
        if not mandatory:
            self._unflushed.append(parcel)
            self._note_flushed()

    def _note_flushed(self) -> None:
        if self._unflushed and not self._link.loop.is_writing:
            while self._unflushed:
                self._finish(self._unflushed.popleft())

    # --- what the broker says

    def _opened(self, link: Link) -> None:
        self._channel_opening = True
        link.connection.channel(on_open_callback=self._channel_opened)

    def _channel_opened(self, channel: Any) -> None:
        channel.add_on_close_callback(self._channel_closed)
        channel.add_on_return_callback(self._on_return)
        if self._confirm:
            channel.confirm_delivery(self._on_confirm, callback=lambda _frame: self._channel_is_ready(channel))
        else:
            self._channel_is_ready(channel)

    def _channel_is_ready(self, channel: Any) -> None:
        self._channel_opening = False
        self._channel = channel
        self._next_tag = self._lowest_tag = 1

    def _on_confirm(self, frame: Any) -> None:
        method = frame.method
        tag = method.delivery_tag
        accepted = not isinstance(method, spec.Basic.Nack)
        if method.multiple:
            for each in range(self._lowest_tag, tag + 1):
                self._answered(each, accepted)
            self._lowest_tag = tag + 1
        else:
            self._answered(tag, accepted)

    def _answered(self, tag: int, accepted: bool) -> None:
        parcel = self._unconfirmed.pop(tag, None)
        if parcel is not None and parcel.answered(tag, accepted=accepted):
            self._concluded(parcel)

    def _on_return(self, _channel: Any, method: Any, properties: Any, _body: bytes) -> None:
        for parcel in set(self._unconfirmed.values()):
            parcel.returned(properties.message_id, method.routing_key)

    def _concluded(self, parcel: Parcel) -> None:
        """All of a parcel is answered."""
        refused, homeless = parcel.refused, parcel.homeless
        if refused:
            self._finish(parcel, BrokerFull(f"RabbitMQ at {self._link.where} did not take {len(refused)} messages."))
        elif not homeless:
            self._finish(parcel)
        elif parcel.retried:
            key = parcel.publications[homeless[0]].key
            self._finish(parcel, QueueGone(f"RabbitMQ at {self._link.where} has no queue {key!r}, and it stays away."))
        else:
            self._again(parcel, homeless)

    def _again(self, parcel: Parcel, positions: Sequence[int]) -> None:
        """What they need has vanished: it is declared again, and they are written once more."""
        parcel.retried = True
        parcel.todo = positions
        self._declarer.forget(*_needs(parcel))
        self._inbox.appendleft(parcel)
        self._link.loop.wake()

    def _channel_closed(self, channel: Any, reason: Any) -> None:
        self._channel_opening = False
        if channel is self._channel:
            self._channel = None
        for parcel in self._take_unanswered():
            if isinstance(reason, ChannelClosedByBroker):
                self._refuse(parcel, reason.reply_code, reason.reply_text)
            else:  # the connection ends, and its channels first
                self._finish(parcel, translate(reason, self._link.where))

    def _refuse(self, parcel: Parcel, code: int, text: str) -> None:
        """The broker has closed the channel because of one of several parcels, and does not say which."""
        limit = re.search(r"message size \d+ is larger than configured max size (\d+)", text)
        if code == PRECONDITION_FAILED and limit is not None:
            largest = max(len(parcel.publications[position].body) for position in parcel.todo)
            if largest > int(limit[1]):
                self._finish(parcel, MessageTooLarge(_too_large(text), size=largest, limit=int(limit[1])))
                return
        elif code != NOT_FOUND:
            self._finish(parcel, channel_error(code, text, self._link.where))
            return
        if parcel.retried:
            self._finish(parcel, channel_error(code, text, self._link.where))
        else:
            self._again(parcel, list(parcel.todo))

    def _take_unanswered(self) -> list[Parcel]:
        parcels = list(dict.fromkeys([*self._unconfirmed.values(), *self._unflushed]))
        self._unconfirmed.clear()
        self._unflushed.clear()
        return parcels

    def _lost(self, link: Link, error: BrokerError) -> None:
        self._channel = None
        self._channel_opening = False
        for parcel in self._take_unanswered():
            self._finish(parcel, error)
        self._declarer.lost(error)
        if not link.was_open:  # no server could be reached: that is the answer to all who wait
            waiting, self._inbox = self._inbox, deque()
            for parcel in waiting:
                self._finish(parcel, error)


def _needs(parcel: Parcel) -> Iterable[str]:
    """What has to be declared for a parcel, each thing after those that it stands on."""
    publications = parcel.publications
    if len(publications) == 1:
        return publications[0].needs
    different = dict.fromkeys(publications[position].needs for position in parcel.todo)
    return dict.fromkeys(name for needs in different for name in needs)


def _placed(error: BrokerError, parcel: Parcel) -> BrokerError:
    failed = parcel.failed
    error.accepted = len(parcel.publications) - len(failed)  # type: ignore[attr-defined]  # documented above
    error.index = failed[0] if failed else 0  # type: ignore[attr-defined]  # documented above
    return error


def _too_large(text: str) -> str:
    return f"RabbitMQ does not take it: {text.removeprefix('PRECONDITION_FAILED - ')}."
