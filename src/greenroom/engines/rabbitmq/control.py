"""Looking into queues and emptying them, on a connection of its own: an alarm stops those who publish, not this one."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Sequence, Sized
from contextlib import contextmanager
from functools import partial
from time import monotonic
from typing import Any, NamedTuple

from pika import BasicProperties
from pika.exceptions import AMQPError

from ...errors import BrokerError, BrokerTimeout, ConnectionClosed
from .connection import Link, Targets
from .errors import NOT_FOUND, channel_error, translate
from .topology import Declarer, Layout

#: Seconds that one answer may take.
ANSWER_S = 10.0
#: Seconds without a message after which the broker is asked whether there are more.
_LULL_S = 0.1
#: Seconds without a message after which what is left, as the broker says, is taken to be for others.
_QUIET_S = 3.0
#: For how long, and how often, in seconds, it is looked whether a queue has taken back what was only looked at.
_BACK_S = 1.0
_BACK_STEP_S = 0.002
#: How many channels are open at a time to ask for queues that may not be there.
_AT_A_TIME = 32


class Found(NamedTuple):
    """A message that was looked at."""

    tag: int
    key: str
    properties: BasicProperties
    body: bytes


class Control:
    """One connection and its loop. Any thread, one at a time.

    Parameters:
      targets: Where to.
      layout: How queues are declared.
    """

    def __init__(self, targets: Targets, layout: Layout) -> None:
        # guards: one thread at a time drives the loop, for one look or step; the third lock that is held across I/O
        self._lock = threading.RLock()
        self._link = Link(targets, "control")
        self._declarer = Declarer(self._link, layout)
        self._channel: Any = None
        self._closed_by: Any = None

    def declare(self, queues: Collection[str]) -> None:
        """Declares queues now.

        Raises:
          QueueMismatch: If one exists with other arguments.
          BrokerError: If that cannot be done.
        """
        with self._lock:
            self._connect()
            self._declarer.run(queues, ANSWER_S)

    def forget(self, queue: str) -> None:
        """A queue has vanished."""
        with self._lock:
            self._declarer.forget(queue)

    def version(self) -> tuple[int, ...]:
        """The server's version."""
        with self._lock:
            self._connect()
            return self._link.version

    def ready(self, queue: str) -> int | None:
        """How many messages are ready in a queue; None if there is no such queue."""
        with self._lock:
            answer = self._call("queue_declare", queue=queue, passive=True)
            return None if answer is None else int(answer.message_count)

    def ready_in_any(self, queues: Sequence[str]) -> dict[str, int | None]:
        """``ready`` for queues of which many may not be there. RabbitMQ closes the channel of whoever asks for a queue
        that is not: so each has a channel of its own, some at a time."""
        answers: dict[str, int | None] = {}
        with self._lock:
            self._connect()
            for start in range(0, len(queues), _AT_A_TIME):
                some = queues[start : start + _AT_A_TIME]
                for queue in some:
                    self._link.connection.channel(on_open_callback=partial(_ask, queue, answers))
                if not self._link.run_until(partial(_has, answers, start + len(some)), ANSWER_S):
                    raise BrokerTimeout(f"RabbitMQ at {self._link.where} did not answer within {ANSWER_S:g} s.")
        return answers

    def purge(self, queue: str) -> int:
        """Deletes what is ready in a queue; returns how many."""
        with self._lock:
            answer = self._call("queue_purge", queue=queue)
            return 0 if answer is None else int(answer.message_count)

    @contextmanager
    def look(self, queue: str, limit: int | None = None) -> Iterator[Look]:
        """Holds what is ready in a queue, or the first ``limit`` of it, for as long as the block lasts. Then all that
        was not taken stands where it stood; so it does if this process dies. Others do not see it meanwhile."""
        with self._lock:
            look = Look(self._link, self.ready(queue) or 0, limit)
            if look.expected:
                self._connect()
                look.open(queue)
            try:
                yield look
            except BaseException:
                look.close()
                raise
            if not look.close():
                if look.taken:
                    raise ConnectionClosed(f"RabbitMQ at {self._link.where} may not have deleted what was taken.")
            elif look.expected:
                self._wait_until_back(queue, look.ready - look.taken)

    def _wait_until_back(self, queue: str, count: int) -> None:
        """Waits until all that was not taken can be seen again, for the next look. The broker says that a channel is
        closed before its queue has taken everything back. (2 of 900 looks came in between, on a busy machine.)"""
        deadline_s = monotonic() + _BACK_S
        while (answer := self._call("queue_declare", queue=queue, passive=True)) is not None:
            if answer.message_count >= count or answer.consumer_count or monotonic() >= deadline_s:
                return  # all are back; or others may take them
            self._link.run_until(lambda: False, _BACK_STEP_S)

    def hang_up(self) -> None:
        """Closes the connection. The next use opens another."""
        with self._lock:
            self._link.hang_up()

    def close(self) -> None:
        """Closes the connection. It cannot be used any more."""
        with self._lock:
            self._link.close()

    def _call(self, method: str, **arguments: Any) -> Any:
        """The answer to a call on the standing channel; None if there is no such queue."""
        channel = self._open_channel()
        answers: list[Any] = []
        getattr(channel, method)(**arguments, callback=answers.append)
        if not self._link.run_until(lambda: answers or not channel.is_open, ANSWER_S):
            self._link.drop()
            raise BrokerTimeout(f"RabbitMQ at {self._link.where} did not answer within {ANSWER_S:g} s.")
        if answers:
            return answers[0].method
        if getattr(self._closed_by, "reply_code", 0) == NOT_FOUND:
            return None
        raise translate(self._closed_by, self._link.where) from self._closed_by

    def _connect(self) -> None:
        """Opens the connection. One that was idle is looked at first: it may have ended."""
        if self._link.is_open:
            self._link.loop.catch_up()
        self._link.connect(ANSWER_S)

    def _open_channel(self) -> Any:
        self._connect()
        if self._channel is None or not self._channel.is_open:
            self._channel = open_channel(self._link)
            self._channel.add_on_close_callback(self._channel_closed)
        return self._channel

    def _channel_closed(self, _channel: Any, reason: Any) -> None:
        self._closed_by = reason


class Look:
    """What ``Control.look`` holds. Owned by the thread that looks."""

    def __init__(self, link: Link, ready: int, limit: int | None) -> None:
        self._link = link
        self._queue = ""
        #: How many messages the queue had for anybody.
        self.ready = ready
        self.expected = ready if limit is None else min(ready, limit)
        #: How many of them were taken.
        self.taken = 0
        self._found: list[Found] = []
        self._channel: Any = None
        self._closed_by: Any = None

    def open(self, queue: str) -> None:
        """Begins to fetch."""
        self._queue = queue
        channel = self._channel = open_channel(self._link)
        channel.add_on_close_callback(self._channel_closed)
        if self.expected <= 0xFFFF:
            channel.basic_qos(prefetch_count=self.expected)
        channel.basic_consume(queue, self._arrived)

    def messages(self) -> Iterator[Found]:
        """The messages, in their order. A worker may have taken some of them; then there are fewer."""
        number = 0
        quiet_since_s = monotonic()
        while number < self.expected:
            if self._found:
                yield from self._found
                number += len(self._found)
                self._found = []
                quiet_since_s = monotonic()
            elif self._closed_by is not None:
                code, text = getattr(self._closed_by, "reply_code", 0), getattr(self._closed_by, "reply_text", "")
                raise channel_error(code, text, self._link.where)
            elif self._is_over(quiet_since_s):
                return

    def _is_over(self, quiet_since_s: float) -> bool:
        """Waits for more; True if nothing comes any more. Silence alone does not say so: the broker may be slow."""
        if self._link.run_until(self._has_news, _LULL_S):
            return False
        left = self._left()
        return not self._has_news() and (not left or monotonic() - quiet_since_s > _QUIET_S)

    def _has_news(self) -> bool:
        return bool(self._found) or self._closed_by is not None

    def _left(self) -> int:
        """How many messages nobody has fetched. What was sent to us before is here then: the queue answers the first
        question after it has sent them, and the channel the second after it has sent them on."""
        answers: list[Any] = []
        self._channel.queue_declare(self._queue, passive=True, callback=answers.append)
        self._channel.basic_qos(callback=answers.append)
        if not self._link.run_until(lambda: len(answers) == 2 or self._closed_by is not None, ANSWER_S):
            raise BrokerTimeout(f"RabbitMQ at {self._link.where} did not answer within {ANSWER_S:g} s.")
        return int(answers[0].method.message_count) if answers else 0

    def take(self, found: Found) -> None:
        """Deletes a message."""
        self.taken += 1
        try:
            self._channel.basic_ack(found.tag)
        except AMQPError as e:
            raise translate(e, self._link.where) from e

    def close(self) -> bool:
        """Gives back all that was not taken; True once the broker has said that it has it, and has deleted the rest.
        Else the connection has ended, and the broker has taken all back."""
        channel, self._channel = self._channel, None
        if channel is None:
            return True
        if not channel.is_open:
            return False
        try:
            channel.close()
            return self._link.run_until(lambda: channel.is_closed, ANSWER_S) and self._link.is_open
        except (BrokerError, AMQPError):
            return False

    def _arrived(self, _channel: Any, method: Any, properties: BasicProperties, body: bytes) -> None:
        self._found.append(Found(method.delivery_tag, method.routing_key, properties, body))

    def _channel_closed(self, _channel: Any, reason: Any) -> None:
        self._closed_by = reason


def _has(answers: Sized, number: int) -> bool:
    return len(answers) >= number


def _ask(queue: str, answers: dict[str, int | None], channel: Any) -> None:
    """Asks how many messages are ready in a queue, and closes the channel."""

    def is_there(frame: Any) -> None:
        answers[queue] = int(frame.method.message_count)
        channel.close()

    channel.add_on_close_callback(lambda _channel, _reason: answers.setdefault(queue, None))
    channel.queue_declare(queue, passive=True, callback=is_there)


def open_channel(link: Link) -> Any:
    """A new channel of an open link.

    Raises:
      BrokerError: If there was no answer, or the connection is lost.
    """
    opened: list[Any] = []
    link.connection.channel(on_open_callback=opened.append)
    if not link.run_until(lambda: opened, ANSWER_S):
        raise BrokerTimeout(f"RabbitMQ at {link.where} did not open a channel within {ANSWER_S:g} s.")
    return opened[0]
