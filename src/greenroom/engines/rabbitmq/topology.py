"""Which queues there are, how they are declared, and declaring them."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import Any

import msgspec
from pika.exceptions import ChannelClosedByBroker

from ...errors import BrokerError, BrokerTimeout
from ...names import dq_name, xq_name
from ...ports.retention import Retention
from .connection import Link
from .delays import PREFIX, SAFE_SINCE, Levels, Step
from .errors import translate

#: AMQP: the longest name, in bytes.
_LONGEST_NAME = 255
#: Quorum queues dead-letter what was given back so often; from 4.0 on 20 times if nothing is said. Crashes are counted
#: by us, so the broker has no say in it.
_DELIVERY_LIMIT = 1_000_000

Told = Callable[[BrokerError | None], object]


def dead_letter_queue(queue: str) -> str:
    """The name of the queue that keeps the dead letters of a queue."""
    return _fitting(xq_name(queue))


def delay_queue(queue: str) -> str:
    """The name of the queue in which Dramatiq keeps the delayed messages of a queue."""
    return _fitting(dq_name(queue))


def _fitting(name: str) -> str:
    if len(name) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(name[:-3].encode()).hexdigest()[:32]
    return f"{PREFIX}long.{digest}{name[-3:]}"


class Layout(msgspec.Struct, frozen=True):
    """How queues are declared.

    ``queue_type``: ``"classic"``, as Dramatiq declares them, or ``"quorum"``. ``max_priority``: 1 to 255, for classic
    queues. ``retention``: how long dead letters are kept, and how many of a queue. ``delay_type``: the type of the
    queues that keep delayed messages; None for quorum queues where the server can move messages between them without
    losing one.
    """

    queue_type: str = "classic"
    max_priority: int | None = None
    retention: Retention = Retention()
    delay_type: str | None = None

    def levels(self, version: tuple[int, ...]) -> Levels:
        """The levels of delay on a server of this version."""
        return Levels(self.delay_type or ("quorum" if version >= SAFE_SINCE else "classic"))

    def queue_steps(self, queue: str) -> list[Step]:
        """What makes a queue and those beside it."""
        own: dict[str, Any] = {
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": dead_letter_queue(queue),
        }
        dead: dict[str, Any] = {}
        if self.retention.ttl_ms is not None:
            dead["x-message-ttl"] = self.retention.ttl_ms
        if self.retention.limit is not None:
            dead["x-max-length"] = self.retention.limit
        if self.queue_type == "quorum":
            kind = {"x-queue-type": "quorum", "x-delivery-limit": _DELIVERY_LIMIT}
            return [_declare(dead_letter_queue(queue), dead | kind), _declare(queue, own | kind)]
        if self.max_priority is not None:
            own["x-max-priority"] = self.max_priority
        return [_declare(dead_letter_queue(queue), dead), _declare(delay_queue(queue), own), _declare(queue, own)]


def _declare(queue: str, arguments: dict[str, Any]) -> Step:
    return Step("queue_declare", {"queue": queue, "durable": True, "arguments": arguments})


class Declarer:
    """Declares on a channel of its own of one connection, one thing after the other, so that a refusal concerns one
    thing alone and no other channel. Owned by whoever drives the link's loop.

    Parameters:
      link: The connection.
      layout: How queues are declared.
    """

    def __init__(self, link: Link, layout: Layout) -> None:
        self._link = link
        self._layout = layout
        self._epoch = 0
        self._channel: Any = None
        self._waiting: deque[tuple[str, Told]] = deque()
        self._current: tuple[str, Told] | None = None
        #: What was declared on this connection.
        self.known: set[str] = set()

    @property
    def levels(self) -> Levels:
        """The levels of delay of this server."""
        return self._layout.levels(self._link.version)

    def missing(self, names: Iterable[str]) -> list[str]:
        """What of these was not declared on this connection."""
        self._notice_connection()
        return [name for name in names if name not in self.known]

    def forget(self, *names: str) -> None:
        """These have vanished: they are declared again when they are needed."""
        self.known.difference_update(names)

    def declare(self, names: Collection[str], on_done: Told) -> None:
        """Declares what is not known yet, and tells when it is there, or why it cannot be.

        Parameters:
          names: Queues (``default``, not ``default.XQ``), or what ``Levels`` names.
          on_done: Called once, with the first error or None.
        """
        missing = self.missing(dict.fromkeys(names))
        if not missing:
            on_done(None)
            return
        count = _Count(len(missing), on_done)
        self._waiting.extend((name, count.tell) for name in missing)
        self._next()

    def run(self, names: Collection[str], timeout_s: float) -> None:
        """The same, driving the loop until it is done.

        Raises:
          QueueMismatch: If a queue exists with other arguments.
          BrokerError: If it cannot be declared for another reason.
        """
        answers: list[BrokerError | None] = []
        self.declare(names, answers.append)
        if not self._link.run_until(lambda: answers, timeout_s):
            raise BrokerTimeout(f"RabbitMQ at {self._link.where} declared no queue within {timeout_s:g} s.")
        if answers[0] is not None:
            raise answers[0]

    def lost(self, error: BrokerError) -> None:
        """The connection is gone: nothing that was asked for comes."""
        self._channel = None
        todo = [*([self._current] if self._current else []), *self._waiting]
        self._current = None
        self._waiting.clear()
        for _, tell in todo:
            tell(error)

    def _notice_connection(self) -> None:
        if self._epoch != self._link.epoch:
            self._epoch = self._link.epoch
            self.known.clear()
            self._channel = None

    def _next(self) -> None:
        if self._current is not None or not self._waiting:
            return
        if self._channel is None:
            self._current = ("", lambda _error: None)
            self._link.connection.channel(on_open_callback=self._channel_opened)
            return
        self._current = self._waiting.popleft()
        name = self._current[0]
        if name in self.known:  # asked for twice
            self._finish(None)
            return
        steps = self._steps(name)
        for step in steps[:-1]:
            getattr(self._channel, step.method)(**step.arguments, callback=lambda _frame: None)
        last = steps[-1]
        getattr(self._channel, last.method)(**last.arguments, callback=partial(self._declared, name))

    def _steps(self, name: str) -> list[Step]:
        levels = self.levels
        if levels.owns(name):
            return [*levels.due_steps(), *levels.steps(name)] if name == levels.base else levels.steps(name)
        return [*self._layout.queue_steps(name), *levels.due_steps(), *levels.exit_steps(name)]

    def _channel_opened(self, channel: Any) -> None:
        self._channel = channel
        channel.add_on_close_callback(self._channel_closed)
        self._current = None
        self._next()

    def _channel_closed(self, channel: Any, reason: Any) -> None:
        if channel is not self._channel:
            return
        self._channel = None
        if isinstance(reason, ChannelClosedByBroker):  # else the connection ends, and `lost` tells all
            error = translate(reason, self._link.where)
            error.__cause__ = reason
            self._finish(error)

    def _declared(self, name: str, _frame: Any) -> None:
        self.known.add(name)
        self._finish(None)

    def _finish(self, error: BrokerError | None) -> None:
        current, self._current = self._current, None
        if current is not None:
            current[1](error)
        self._next()


class _Count:
    """Tells once when all of several have told."""

    def __init__(self, count: int, on_done: Told) -> None:
        self._left = count
        self._error: BrokerError | None = None
        self._on_done = on_done

    def tell(self, error: BrokerError | None) -> None:
        self._error = self._error or error
        self._left -= 1
        if not self._left:
            self._on_done(self._error)
