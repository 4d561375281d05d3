"""The broker on a RabbitMQ server."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from ..clock import SYSTEM_CLOCK, Clock
from ..core.suspects import DEFAULT_MAX_CRASHES
from ..errors import QueueJoinTimeout
from ..message import MAX_MESSAGE_BYTES, Message
from ..middleware import Middleware
from ..names import q_name
from ..ports.admin import Counts
from ..ports.retention import DEAD_LETTER_TTL_MS
from ..ports.transport import Envelope
from .consumer import EngineConsumer
from .engine import EngineBroker, parse_bool, retention_of

try:
    import pika  # noqa: F401  # looked for first: the modules below say less well what is missing

    from ..engines.rabbitmq.by_hand import ByHand
    from ..engines.rabbitmq.connection import Targets
    from ..engines.rabbitmq.topology import Layout
    from ..engines.rabbitmq.transport import MAX_BODY_BYTES, RabbitmqTransport
except ImportError as e:
    raise ImportError("RabbitmqBroker needs pika. Install it with: pip install 'greenroom[rabbitmq]'") from e

#: How long dead letters are kept, in milliseconds, if nothing else is said: seven days.
DEAD_MESSAGE_TTL = DEAD_LETTER_TTL_MS

_QUEUE_TYPES = ("classic", "quorum")

#: What a URL may say besides what pika takes, and how it is read.
_PARAMETERS: dict[str, Callable[[str], Any]] = {
    "confirm_delivery": parse_bool,
    "max_priority": int,
    "queue_type": str,
    "delay_queue_type": str,
    "max_crashes": int,
    "dead_letter_ttl_ms": float,
    "dead_letter_limit": int,
    "publish_timeout_ms": int,
    "strict_options": parse_bool,
    "wire": str,
}


class RabbitmqBroker(EngineBroker):
    """Keeps messages in the queues of a RabbitMQ server, version 3.8 or later.

    A process opens at most three connections: one that sends, one that consumes, one that looks.

    Parameters:
      confirm_delivery: Whether ``send`` waits until RabbitMQ says that it keeps the message; True by default. Without
        it, what was sent shortly before the server dies is lost, and nobody learns of it.
      url: ``amqp://user:password@host:5672/vhost`` or ``amqps://``; several of them, with ``;`` between or as a list,
        are tried in turn.
      middleware: Instances, in order; None for one of each of ``default_middleware``.
      max_priority: 1 to 255: queues know priorities, and the message option ``broker_priority`` (0 to this; higher runs
        sooner) is honoured. For classic queues. It cannot be changed for a queue that exists.
      parameters: Instead of a URL: a dict of pika's ``ConnectionParameters`` for each server.
      queue_type: ``"classic"`` by default, as Dramatiq declares queues; ``"quorum"`` for queues on several nodes.
      delay_queue_type: The type of the queues that keep delayed messages; by default quorum where the server can move
        messages between such queues without losing one (3.10 or later), else classic.
      ledger: A ``Store`` that keeps count of crashes, which RabbitMQ cannot do exactly; None for none.
      max_crashes: After how many crashes of the workers that ran it a message is dead-lettered, for actors and messages
        that say nothing; 3 by default, None for never.
      dead_letter_ttl_ms: How long dead letters are kept, in milliseconds; by default what the environment variable
        ``greenroom_dead_message_ttl`` says, else seven days; ``math.inf`` for ever. It cannot be changed for a queue
        that exists.
      dead_letter_limit: How many dead letters of a queue are kept, the newest; None for no limit.
      wire: "dramatiq" to have delayed messages kept as Dramatiq's workers expect them, while both run on one server.
      publish_timeout_ms: After how many milliseconds ``send`` gives up; 10 000 by default.
      max_message_bytes: The largest encoded message that is accepted; 16 MiB by default.
      strict_options: If True, an unknown message option raises instead of warning.
      kwargs: Instead of a URL: what pika's ``ConnectionParameters`` takes (``host``, ``port``, ``credentials``,
        ``heartbeat``, ``blocked_connection_timeout`` and others).

    Raises:
      RuntimeError: If more than one of ``url``, ``parameters`` and pika's keywords is given.
      ValueError: If a URL or a number is wrong.
    """

    transport: RabbitmqTransport

    def __init__(  # noqa: PLR0913  # keywords, each by itself
        self,
        *,
        confirm_delivery: bool = True,
        url: str | Iterable[str] | None = None,
        middleware: Iterable[Middleware] | None = None,
        max_priority: int | None = None,
        parameters: Iterable[Mapping[str, Any]] | None = None,
        queue_type: Literal["classic", "quorum"] = "classic",
        delay_queue_type: Literal["classic", "quorum"] | None = None,
        ledger: Any = None,
        max_crashes: int | None = DEFAULT_MAX_CRASHES,
        dead_letter_ttl_ms: float | None = None,
        dead_letter_limit: int | None = None,
        wire: Literal["dramatiq"] | None = None,
        publish_timeout_ms: int = 10_000,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        strict_options: bool = False,
        clock: Clock = SYSTEM_CLOCK,
        **kwargs: Any,
    ) -> None:
        targets = Targets(url, parameters, kwargs)
        _check(max_priority, queue_type, delay_queue_type, wire)
        self.confirm_delivery = confirm_delivery
        self.max_priority = max_priority
        self.wire = wire
        self.transport = RabbitmqTransport(
            targets,
            layout=Layout(
                queue_type=queue_type,
                max_priority=max_priority,
                retention=retention_of(dead_letter_ttl_ms, dead_letter_limit),
                delay_type=delay_queue_type,
            ),
            confirm=confirm_delivery,
            dramatiq=wire == "dramatiq",
            publish_timeout_s=publish_timeout_ms / 1000,
            clock=clock,
            max_body=max(max_message_bytes, MAX_BODY_BYTES),
            ledger=ledger,
        )
        self._by_hand = ByHand(targets, confirm=confirm_delivery)
        super().__init__(
            middleware,
            max_message_bytes=max_message_bytes,
            strict_options=strict_options,
            max_crashes=max_crashes,
            clock=clock,
        )
        self.queues: set[str] = set()

    @classmethod
    def from_url(cls, url: str, **kwargs: Any) -> RabbitmqBroker:
        """``amqp://user:password@host:5672/vhost``, ``amqps://`` for TLS; several with ``;`` between.

        ``?confirm_delivery=``, ``?queue_type=``, ``?max_priority=`` and other keywords may follow, and those of pika
        (``heartbeat``, ``socket_timeout``).
        """
        urls = []
        for each in url.split(";"):
            parts = urlsplit(each)
            rest = []
            for name, value in parse_qsl(parts.query, keep_blank_values=True):
                if name in _PARAMETERS:
                    kwargs.setdefault(name, _PARAMETERS[name](value))
                else:
                    rest.append((name, value))
            urls.append(urlunsplit(parts._replace(query=urlencode(rest))))
        return cls(url=urls, **kwargs)

    @property
    def composition_store(self) -> Any:
        """What keeps groups and long pipelines: the store under ``GroupCallbacks`` or ``Results``. None with
        ``wire="dramatiq"``: Dramatiq could not read it."""
        return super().composition_store if self.wire is None else None

    @property
    def _why_no_store(self) -> str:
        if self.wire is None:
            return super()._why_no_store
        return 'with wire="dramatiq" RabbitmqBroker has none, because Dramatiq could not read it'

    # --- queues and messages

    def declare_queue(self, queue_name: str, *, ensure: bool = False) -> None:
        """Declares a queue for this process. RabbitMQ learns of it when it is needed first.

        Parameters:
          queue_name: The queue.
          ensure: Declare it in RabbitMQ now.

        Raises:
          ValueError: If no queue may be called so.
          QueueMismatch: With ``ensure``: if it exists with other arguments.
          BrokerError: With ``ensure``: if RabbitMQ cannot be reached, or refuses.
        """
        super().declare_queue(queue_name)
        self.transport.declare([q_name(queue_name)])
        if ensure:
            self.transport.ensure([q_name(queue_name)])

    @property
    def queues_pending(self) -> set[str]:
        """Queues that this process has not declared in RabbitMQ yet."""
        return self.queues - self.transport.publisher.declared

    def envelope(self, message: Message[Any]) -> Envelope:
        """The message as it is pushed. RabbitMQ knows no priority but ``broker_priority``."""
        envelope = super().envelope(message)
        priority = message.options.get("broker_priority")
        if priority is None:
            return envelope if not envelope.priority else _with_priority(envelope, 0)
        if not isinstance(priority, int) or isinstance(priority, bool) or not 0 <= priority <= 255:
            raise ValueError(f"broker_priority must be an integer from 0 to 255, not {priority!r}.")
        return _with_priority(envelope, -priority)

    @property
    def consumer_class(self) -> type[EngineConsumer]:
        """What ``consume`` returns an instance of."""
        return EngineConsumer

    # --- waiting

    def join(
        self, queue_name: str, min_successes: int = 10, idle_time: int = 100, *, timeout: int | None = None
    ) -> None:
        """Waits until nothing of the queue is ready, and nothing of any queue is delayed.

        RabbitMQ does not tell what is running. So the queue has to be found empty ``min_successes`` times in a row.

        Parameters:
          queue_name: The queue.
          min_successes: How many times; 10 by default.
          idle_time: Milliseconds between two looks; 100 by default.
          timeout: Milliseconds; None to wait for ever.

        Raises:
          QueueJoinTimeout: If that took longer; the text says what is left.
        """
        self._join(queue_name, timeout, min_successes, idle_time / 1000, lambda: None)

    def wait_for_worker(self, queue_name: str, check: Callable[[], object]) -> None:
        self._join(queue_name, None, 10, 0.1, check)

    def _join(
        self, queue_name: str, timeout: int | None, min_successes: int, idle_s: float, check: Callable[[], object]
    ) -> None:
        deadline_s = None if timeout is None else self.clock.monotonic() + timeout / 1000
        successes = 0
        while True:
            check()
            left = self._left(q_name(queue_name))
            successes = 0 if left.ready or left.delayed else successes + 1
            if successes >= min_successes:
                return
            if deadline_s is not None and self.clock.monotonic() >= deadline_s:
                raise QueueJoinTimeout(
                    f"Queue {queue_name!r} was not empty after {timeout} ms: {left.ready} ready, "
                    f"{left.delayed} delayed (of all queues), and there may be some that are running."
                )
            self.clock.sleep(idle_s)

    def _left(self, queue: str) -> Counts:
        counts = self.transport.counts([queue])[queue]
        delayed = counts.delayed + self.transport.delayed()
        return Counts(ready=counts.ready, delayed=delayed, dead=counts.dead)

    # --- for programs that speak to RabbitMQ themselves

    @property
    def parameters(self) -> list[Any]:
        """The servers, as pika has them."""
        return self.transport.targets.configs

    @property
    def connections(self) -> set[Any]:
        """The connections that ``connection`` has opened in this process."""
        return self._by_hand.connections

    @property
    def channels(self) -> set[Any]:
        """The channels that ``channel`` has opened in this process."""
        return self._by_hand.channels

    @property
    def state(self) -> Any:
        """What ``connection`` and ``channel`` have opened for this thread."""
        return self._by_hand.state

    @property
    def connection(self) -> Any:
        """A ``pika.BlockingConnection`` for this thread alone, for programs; the broker's own are others. Deleting it
        closes it, and the broker's sending connection, too: both are opened again when they are needed."""
        return self._by_hand.connection()

    @connection.deleter
    def connection(self) -> None:
        self._by_hand.close_connection()
        self.transport.disconnect()

    @property
    def channel(self) -> Any:
        """A channel of ``connection``. Deleting it closes it."""
        return self._by_hand.channel()

    @channel.deleter
    def channel(self) -> None:
        self._by_hand.close_channel()

    def close(self) -> None:
        self._by_hand.close()
        super().close()

    def __repr__(self) -> str:
        return f"RabbitmqBroker({self.transport.targets.shown!r})"


def _with_priority(envelope: Envelope, priority: int) -> Envelope:
    return Envelope(envelope.queue, envelope.id, envelope.body, priority, envelope.due_ms, envelope.writes)


def _check(max_priority: int | None, queue_type: str, delay_queue_type: str | None, wire: str | None) -> None:
    if max_priority is not None and not 1 <= max_priority <= 255:
        raise ValueError(f"max_priority must be from 1 to 255, not {max_priority!r}.")
    if max_priority is not None and queue_type == "quorum":
        raise ValueError("max_priority is for classic queues: quorum queues know no priorities that are declared.")
    for name, value in (("queue_type", queue_type), ("delay_queue_type", delay_queue_type or "classic")):
        if value not in _QUEUE_TYPES:
            raise ValueError(f"{name} must be 'classic' or 'quorum', not {value!r}.")
    if wire not in (None, "dramatiq"):
        raise ValueError(f"wire must be 'dramatiq' or None, not {wire!r}.")
    if wire == "dramatiq" and queue_type == "quorum":
        raise ValueError("Dramatiq does not know quorum queues: wire='dramatiq' needs queue_type='classic'.")
