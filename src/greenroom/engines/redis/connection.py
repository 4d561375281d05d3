"""Connections to the server, each used by one thread at a time; what is sent on them is packed here, in one go.

redis-py makes them: addresses, TLS, login. Its layers for commands are left out, because they take longer than the
server does, and so are its retries: whether a thing may be done again only we know.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401  # a fork in the middle of the first connect would leave it half imported for good
import inspect
import select
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import redis
import redis.exceptions as theirs
from redis.backoff import NoBackoff
from redis.retry import Retry

from ... import failpoints
from ...clock import SYSTEM_CLOCK
from ...errors import BrokerError, BrokerReadOnly, ConnectionClosed
from .errors import Unsent, translate, translate_connect

Argument = bytes | str | int | float
Packer = Callable[[tuple[Argument, ...]], bytes]

#: What redis-py raises, and what the system does beneath it.
_THEIRS = (redis.RedisError, OSError)
#: Seconds that a command or a connect may take, unless the client says otherwise.
TIMEOUT_S = 10.0
#: Seconds for which a connection that nobody used is taken to be alive.
FRESH_S = 0.1
_READ_BYTES = 1 << 18
#: How often ``glance`` looks for an answer, before it lets the thread sleep: for some 70 µs.
_GLANCES = 200
#: How many answers are then waited for at once, if that was in vain: the server is far away, or busy.
_REST = 20
#: Not everywhere.
_poll = getattr(select, "poll", None)

#: Settings of a client that are none of a connection of ours.
_NOT_OURS = ("maint_notifications_config", "maint_notifications_pool_handler", "himport_registry", "event_dispatcher")


def _pack(args: tuple[Argument, ...]) -> bytes:
    parts = [b"*%d\r\n" % len(args)]
    for arg in args:
        data = arg if isinstance(arg, bytes) else str(arg).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


def _packer() -> Packer:
    try:
        from hiredis import pack_command
    except ImportError:
        return _pack
    return cast("Packer", pack_command)


#: A command as the protocol has it.
pack = _packer()


class Connection:
    """One connection. Used by one thread at a time; connects at its first use."""

    __slots__ = ("_raw", "_rest", "owed", "point", "used_at_s", "where")

    def __init__(self, raw: Any, where: str) -> None:
        self._raw = raw
        self._rest = 0
        #: The server, for texts.
        self.where = where
        #: When it was put aside, on the monotonic clock.
        self.used_at_s = 0.0
        #: How many answers are yet to be read.
        self.owed = 0
        #: The failpoint that is passed between a command and its answer.
        self.point = ""

    def connect(self) -> None:
        """Connects and logs in, if it has not.

        Raises:
          BrokerError: If that failed; nothing was done.
        """
        try:
            self._raw.connect()
        except BaseException as e:
            self._raw.disconnect()
            if isinstance(e, _THEIRS):
                by_tls = isinstance(self._raw, redis.SSLConnection)
                raise translate_connect(e, self.where, by_tls=by_tls) from e
            raise

    @property
    def is_open(self) -> bool:
        """Whether it is connected, as far as is known."""
        return self._raw._sock is not None

    def fileno(self) -> int:
        """The socket's descriptor, to be polled.

        Raises:
          ConnectionClosed: If it is not open.
        """
        sock = self._raw._sock
        number: int = -1 if sock is None else sock.fileno()
        if number < 0:  # another thread could not send, and has closed it
            raise ConnectionClosed(f"The connection to the Redis server at {self.where} was lost.")
        return number

    def call(self, *args: Argument) -> Any:
        """Sends a command and reads its answer.

        Raises:
          Unsent: If it was certainly not done, because the connection was lost before.
          BrokerError: If it was not done, or it is not known.
        """
        self.send(pack(args))
        return self.read()

    def send_command(self, *args: Argument) -> None:
        """Sends a command, without waiting for its answer. Raises as ``send``."""
        self.send(pack(args))

    def send(self, packed: bytes) -> None:
        """Sends what is packed already.

        Raises:
          Unsent: If not all of it could be sent, so that the server does nothing.
          BrokerError: If the server cannot be reached.
        """
        raw = self._raw
        if raw._sock is None:
            self.connect()
        self.owed += 1
        try:
            raw.send_packed_command((packed,), check_health=False)
        except _THEIRS as e:
            self.owed = 0
            raise Unsent(f"The connection to the Redis server at {self.where} was lost: {e}") from e

    def glance(self) -> None:
        """Looks for the answer for a moment, without sleeping. A server of this host answers within less time than it
        takes to put the processor to rest and to wake it (single sends to an idle server: 100 µs with, 58 without)."""
        if _poll is None:
            return
        if self._rest:
            self._rest -= 1
            return
        poll = _poll()
        poll.register(self.fileno(), select.POLLIN)
        look = poll.poll
        for _ in range(_GLANCES):
            if look(0):
                return
        self._rest = _REST

    def read(self) -> Any:
        """Reads one answer.

        Raises:
          BrokerError: What the server says, or that it says nothing.
        """
        if failpoints.armed:
            failpoints.hit(self.point)
        try:
            answer = self._raw.read_response()
            self.owed -= 1
            return answer
        except theirs.ResponseError as e:
            self.owed -= 1
            error = translate(e, self.where)
            if isinstance(error, BrokerReadOnly):
                self.close()  # the primary may be elsewhere by now: the address is looked up anew
        except BaseException as e:
            self.close()  # or the next one would read the answer that is yet to come
            if not isinstance(e, _THEIRS):
                raise
            raise translate(e, self.where) from e
        raise error

    def has_answer(self) -> bool:
        """Whether something came that was not read yet: for what the server says unasked.

        Raises:
          BrokerError: If the connection was lost.
        """
        try:
            return bool(self._raw.can_read(timeout=0))
        except _THEIRS as e:
            raise translate(e, self.where) from e

    def is_stale(self) -> bool:
        """Whether the server has closed it while it was not used: whatever it has to say then is a farewell."""
        if self._raw._sock is None or SYSTEM_CLOCK.monotonic() - self.used_at_s < FRESH_S:
            return False
        try:
            return self.has_answer()
        except BrokerError:
            return True

    def close(self) -> None:
        """Closes it. It connects again at its next use."""
        self.owed = 0
        with suppress(*_THEIRS):
            self._raw.disconnect()


class Connector:
    """Makes connections like those of a client. Thread-safe.

    Parameters:
      client: Any ``redis.Redis``; only its settings are used.
      patience_s: How long to wait for answers at least.

    Raises:
      TypeError: If it is no such client, or has a setting that redis-py does not know.
    """

    def __init__(self, client: Any, *, patience_s: float = 0.0) -> None:
        pool = getattr(client, "connection_pool", None)
        if pool is None:
            raise TypeError(f"client= takes a redis.Redis, not {type(client).__name__}.")
        self._class = pool.connection_class
        if inspect.iscoroutinefunction(self._class.connect):
            raise TypeError("client= takes a redis.Redis, not one for coroutines: actors and asend() need none.")
        kwargs = {name: value for name, value in pool.connection_kwargs.items() if name not in _NOT_OURS}
        kwargs = {name: value for name, value in kwargs.items() if not name.startswith("orig_")}
        for name in ("socket_timeout", "socket_connect_timeout"):
            if kwargs.get(name) is None:
                kwargs[name] = TIMEOUT_S
        kwargs["socket_timeout"] = max(kwargs["socket_timeout"], patience_s)
        #: Seconds that an answer is waited for.
        self.timeout_s: float = kwargs["socket_timeout"]
        kwargs.update(
            decode_responses=False,
            health_check_interval=0,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            retry_on_error=[],
            retry_on_timeout=False,
            socket_read_size=_READ_BYTES,
        )
        #: Where the server is, without passwords, and the number of the database.
        self.where = _where(kwargs)
        self._kwargs = kwargs
        # At once, or a setting that nobody knows would be found at the first use. What redis-py says of itself to the
        # server takes it a millisecond to find out.
        driver_info = getattr(self._class(**kwargs), "driver_info", None)
        if driver_info is not None:
            kwargs["driver_info"] = driver_info

    def new(self, **settings: Any) -> Connection:
        """A connection that is not open yet.

        Parameters:
          settings: Of redis-py's connection, in place of the client's.
        """
        return Connection(self._class(**{**self._kwargs, **settings}), self.where)


def _where(kwargs: dict[str, Any]) -> str:
    db = kwargs.get("db") or 0
    path = kwargs.get("path")
    if path:
        return f"unix://{path}?db={db}"
    return f"{kwargs.get('host', 'localhost')}:{kwargs.get('port', 6379)}/{db}"


class FreeConnections:
    """Connections that nobody uses at the moment. Thread-safe: whoever needs one takes it out.

    There are as many as were used at one time; each thread most often gets the one that was used last.
    """

    def __init__(self, connector: Connector) -> None:
        self._connector = connector
        self._free: deque[Connection] = deque()

    def take(self) -> Connection:
        """One for the caller alone; to be given back after use."""
        try:
            connection = self._free.pop()
        except IndexError:
            return self._connector.new()
        if connection.is_stale():
            connection.close()
        return connection

    def give_back(self, connection: Connection) -> None:
        """For others to use; closed if its user was interrupted before it has read all answers."""
        if connection.owed > 0:
            connection.close()
        connection.point = ""
        connection.used_at_s = SYSTEM_CLOCK.monotonic()
        self._free.append(connection)

    def close(self) -> None:
        """Closes those that are free."""
        while self._free:
            self._free.pop().close()
