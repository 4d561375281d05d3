"""The broker on a Redis or Valkey server."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import parse_qsl, urlencode
from uuid import uuid4

from msgspec import structs

from ..clock import SYSTEM_CLOCK, Clock
from ..core.suspects import DEFAULT_MAX_CRASHES
from ..message import MAX_MESSAGE_BYTES, Message
from ..middleware import Middleware
from ..names import dq_name, new_message_id, q_name
from ..ports.transport import Envelope
from .engine import EngineBroker, parse_bool, retention_of

try:
    import redis

    from ..engines.redis.client import client_of
    from ..engines.redis.dramatiq_calls import DramatiqCalls
    from ..engines.redis.shared_transport import HEARTBEAT_TIMEOUT_MS, SharedTransport
    from ..engines.redis.store import RedisStore
    from ..engines.redis.transport import LEASE_MS
except ImportError as e:
    raise ImportError("RedisBroker needs redis-py. Install it with: pip install 'greenroom[redis]'") from e

if TYPE_CHECKING:
    Client = redis.Redis

#: What a URL may say besides what redis-py takes, and how it is read.
_PARAMETERS: dict[str, Callable[[str], Any]] = {
    "namespace": str,
    "heartbeat_timeout": int,
    "dead_message_ttl": float,
    "dead_letter_ttl_ms": float,
    "dead_letter_limit": int,
    "wait_replicas": int,
    "allow_eviction": parse_bool,
    "lease_ms": int,
    "max_crashes": int,
    "strict_options": parse_bool,
    "wire": str,
}


class RedisBroker(DramatiqCalls, EngineBroker):
    """Keeps messages on a Redis or Valkey server.

    Parameters:
      url: ``redis://``, ``rediss://`` or ``unix://``; without one ``parameters`` say where the server is.
      middleware: Instances, in order; None for one of each of ``default_middleware``.
      namespace: What the keys begin with; "dramatiq" by default, as in Dramatiq, whose messages of that namespace are
        found and run.
      maintenance_chance: Accepted for Dramatiq's sake; nothing here is left to chance.
      heartbeat_timeout: After how many milliseconds without a sign of life a Dramatiq worker is taken for dead; 60 000
        by default.
      dead_message_ttl: Dramatiq's name for ``dead_letter_ttl_ms``.
      requeue_deadline, requeue_interval: Accepted for Dramatiq's sake; they do nothing.
      client: Any ``redis.Redis``, whose settings are used for connections of our own.
      max_message_bytes: The largest encoded message that is accepted; 16 MiB by default.
      strict_options: If True, an unknown message option raises instead of warning.
      max_crashes: After how many crashes of the workers that ran it a message is dead-lettered, for actors and messages
        that say nothing; 3 by default, None for never.
      dead_letter_ttl_ms: How long dead letters are kept, in milliseconds; by default what the environment variable
        ``greenroom_dead_message_ttl`` says, else seven days; ``math.inf`` for ever.
      dead_letter_limit: How many dead letters are kept, the newest of all queues together; None for no limit.
      wait_replicas: How many replicas must have a message before ``send`` returns; 0 by default.
      wait_timeout_ms: How long to wait for them; 1 000 by default.
      allow_eviction: If True, workers start on a server that deletes any keys, messages among them, when its memory is
        full (``maxmemory-policy allkeys-...``), with a warning; else they refuse.
      lease_ms: How long the messages of a host that was lost stay with it; 15 000 by default. Processes that die on a
        host that lives are noticed within about a second.
      wire: "dramatiq" to write only what Dramatiq can read, while both run on one server.
      parameters: What ``redis.Redis`` takes: ``host``, ``port``, ``db``, ``password`` and others.
    """

    def __init__(  # noqa: PLR0913  # keywords, each by itself
        self,
        *,
        url: str | None = None,
        middleware: Iterable[Middleware] | None = None,
        namespace: str = "dramatiq",
        maintenance_chance: int | None = None,
        heartbeat_timeout: int | None = None,
        dead_message_ttl: float | None = None,
        requeue_deadline: int | None = None,
        requeue_interval: int | None = None,
        client: Client | None = None,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        strict_options: bool = False,
        max_crashes: int | None = DEFAULT_MAX_CRASHES,
        dead_letter_ttl_ms: float | None = None,
        dead_letter_limit: int | None = None,
        wait_replicas: int = 0,
        wait_timeout_ms: int = 1_000,
        allow_eviction: bool = False,
        lease_ms: int = LEASE_MS,
        wire: Literal["dramatiq"] | None = None,
        clock: Clock = SYSTEM_CLOCK,
        **parameters: Any,
    ) -> None:
        client = client_of(client, url, parameters)
        if wire not in (None, "dramatiq"):
            raise ValueError(f'wire= is "dramatiq" or nothing, not {wire!r}.')
        #: A client of the same server, for programs that want one. The broker's own connections are others.
        self.client = client
        #: Names this object, as in Dramatiq.
        self.broker_id = str(uuid4())
        self.namespace = namespace
        self.wire = wire
        self.heartbeat_timeout = HEARTBEAT_TIMEOUT_MS if heartbeat_timeout is None else heartbeat_timeout
        self.transport = SharedTransport(
            client,
            namespace=namespace,
            heartbeat_timeout_ms=self.heartbeat_timeout,
            wire=wire is not None,
            clock=clock,
            lease_ms=lease_ms,
            retention=retention_of(
                dead_message_ttl if dead_letter_ttl_ms is None else dead_letter_ttl_ms, dead_letter_limit
            ),
            wait_replicas=wait_replicas,
            wait_timeout_ms=wait_timeout_ms,
            allow_eviction=allow_eviction,
        )
        super().__init__(
            middleware,
            max_message_bytes=max_message_bytes,
            strict_options=strict_options,
            max_crashes=max_crashes,
            clock=clock,
        )
        if maintenance_chance is not None or requeue_deadline is not None or requeue_interval is not None:
            self.logger.info("maintenance_chance, requeue_deadline and requeue_interval do nothing here.")

    @cached_property
    def store(self) -> RedisStore | None:
        """What is kept on the same server, in one step with messages. None with ``wire="dramatiq"``: Dramatiq could not
        read it."""
        return RedisStore(self.transport) if self.wire is None else None

    @property
    def composition_store(self) -> Any:
        """What keeps groups and long pipelines: ``store``, unless ``GroupCallbacks`` brings another one."""
        return super().composition_store if self.wire is None else None

    @property
    def _why_no_store(self) -> str:
        return 'with wire="dramatiq" RedisBroker has none, because Dramatiq could not read it'

    def declare_queue(self, queue_name: str) -> None:
        super().declare_queue(queue_name)
        self.transport.declare((queue_name,))

    def envelope(self, message: Message[Any]) -> Envelope:
        """The message as it is pushed: encoded, with its priority and due time."""
        if self.wire is None:
            return super().envelope(message)
        id_ = new_message_id()
        name = q_name(message.queue_name)
        if message.options.get("eta") is not None:
            name = dq_name(name)
        prepared = message.copy(queue_name=name, options={"redis_message_id": id_})
        return structs.replace(super().envelope(prepared), id=id_)

    @classmethod
    def from_url(cls, url: str, **kwargs: Any) -> RedisBroker:
        """``redis://user:password@host:6379/0``, ``rediss://`` for TLS, ``unix:///path/to/socket?db=0``.

        ``?namespace=``, ``?wait_replicas=`` and other keywords may follow, and those of redis-py (``socket_timeout``).

        Raises:
          ValueError: For a parameter that is not known, or has no such value.
        """
        address, _, query = url.partition("?")
        rest = []
        for name, value in parse_qsl(query, keep_blank_values=True):
            if name in _PARAMETERS:
                kwargs.setdefault(name, _PARAMETERS[name](value))
            else:
                rest.append((name, value))
        try:
            return cls(url=f"{address}?{urlencode(rest)}" if rest else address, **kwargs)
        except TypeError as e:
            if not rest:
                raise
            names = ", ".join(name for name, _ in rest)
            raise ValueError(f"One of these parameters of a Redis URL is not known: {names}.") from e

    def join(self, queue_name: str, *, interval: int = 100, timeout: int | None = None) -> None:
        """Waits until nothing of the queue is ready, delayed or running.

        Parameters:
          interval: Accepted for Dramatiq's sake.
          timeout: Milliseconds; None to wait for ever.

        Raises:
          QueueJoinTimeout: If that took longer; the text says what is left.
        """
        super().join(q_name(queue_name), timeout=timeout)

    def __repr__(self) -> str:
        return f"RedisBroker({self.transport.where!r}, namespace={self.namespace!r})"
