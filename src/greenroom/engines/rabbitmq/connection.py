"""A connection to RabbitMQ, the loop that it lives on, and where it goes."""

from __future__ import annotations

import codecs
import copy
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from time import monotonic
from typing import Any

import pika
from pika.adapters.select_connection import SelectConnection
from pika.exceptions import AMQPError

from ...errors import BrokerError, BrokerTimeout, ConnectionClosed
from ...logging import get_logger
from .errors import translate
from .loop import Loop

#: Seconds that a polite goodbye may take.
_GOODBYE_S = 1.0

logger = get_logger(__name__)

# pika asks for addresses on a thread, which loads the codec of host names. A child that is forked meanwhile would wait
# for that import for ever.
codecs.lookup("idna")

if logging.getLogger("pika").level == logging.NOTSET:
    # pika logs each broken connection several times over, with its own tracebacks; what it means is told by ours.
    logging.getLogger("pika").setLevel(logging.CRITICAL)


class Targets:
    """Where to connect to: servers in the order in which they are tried.

    Parameters:
      url: ``amqp://user:password@host:5672/vhost?heartbeat=30``, ``amqps://``; several of them with ``;`` between, or a
        list.
      parameters: Instead of it: keywords of ``pika.ConnectionParameters``, a dict for each server.
      kwargs: Instead of both: these keywords for one server.

    Raises:
      RuntimeError: If more than one of the three is given.
      ValueError: If a URL cannot be read.
    """

    def __init__(
        self,
        url: str | Iterable[str] | None = None,
        parameters: Iterable[Mapping[str, Any]] | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if url is not None and (parameters is not None or kwargs):
            raise RuntimeError("the 'url' argument cannot be used together with 'parameters' or keywords of pika")
        if parameters is not None and kwargs:
            raise RuntimeError("the 'parameters' argument cannot be used together with keywords of pika")
        #: Each as ``pika.connection.Parameters``.
        self.configs: list[Any]
        if url is not None:
            self.configs = [_from_url(each) for each in _split(url)]
        elif parameters is not None:
            self.configs = [pika.ConnectionParameters(**each) for each in parameters]
        else:
            self.configs = [pika.ConnectionParameters(**(kwargs or {}))]
        if not self.configs:
            raise ValueError("no RabbitMQ server is named")
        #: The servers, without passwords.
        self.shown = ";".join(map(_shown, self.configs))

    def named(self, name: str) -> list[Any]:
        """The same for a connection that is shown as ``name`` in the broker's lists."""
        configs = [copy.copy(config) for config in self.configs]
        for config in configs:
            own = config.client_properties or {}
            config.client_properties = {"connection_name": f"greenroom {name} (pid {os.getpid()})", **own}
        return configs

    def __repr__(self) -> str:
        return f"Targets({self.shown!r})"


def _split(url: str | Iterable[str]) -> list[str]:
    urls = url.split(";") if isinstance(url, str) else list(url)
    return [each.strip() for each in urls if each.strip()]


def _from_url(url: str) -> Any:
    if not url.lower().startswith(("amqp://", "amqps://")):
        raise ValueError(f"{redacted(url)!r} is no URL of RabbitMQ: it begins with amqp:// or amqps://.")
    try:
        return pika.URLParameters(url)
    except (ValueError, TypeError) as e:
        raise ValueError(f"{redacted(url)!r} is no URL of RabbitMQ: {redacted(str(e))}") from None


def redacted(url: str) -> str:
    """The URL without its password."""
    return re.sub(r"(//[^/@:]*):[^/]*@", r"\1:***@", url)


def _shown(config: Any) -> str:
    scheme = "amqps" if config.ssl_options else "amqp"
    user = getattr(config.credentials, "username", "")
    vhost = "" if config.virtual_host == "/" else f"/{config.virtual_host}"
    return f"{scheme}://{user}{'@' if user else ''}{config.host}:{config.port}{vhost}"


class Connection(SelectConnection):  # type: ignore[misc]  # pika is not typed
    """pika's, but for one thing: what one of our callbacks raises ends it, and pika tells nobody what that was."""

    def _on_data_available(self, data_in: bytes) -> None:
        try:
            super()._on_data_available(data_in)
        except AMQPError:
            raise
        except Exception:
            logger.critical("An error of Greenroom's own ends a connection to RabbitMQ.", exc_info=True)
            raise


class Link:
    """One connection at a time, and its loop. Owned by the thread that drives the loop.

    Parameters:
      targets: Where to.
      name: What for, as the broker lists it.
      on_open: Called with the link when a connection is open.
      on_lost: Called with the link and the reason when it could not be opened, or is not open any more.
      on_unblocked: Called when the broker takes messages again.
    """

    def __init__(
        self,
        targets: Targets,
        name: str,
        *,
        on_open: Callable[[Link], object] | None = None,
        on_lost: Callable[[Link, BrokerError], object] | None = None,
        on_unblocked: Callable[[Link], object] | None = None,
    ) -> None:
        self.targets = targets
        self.name = name
        self.loop = Loop()
        #: pika's connection while it is open, else None.
        self.connection: Any = None
        #: Counts connections. What belongs to one of them carries its number.
        self.epoch = 0
        #: Why the broker takes no messages (it is short of memory, or of disk), None if it does.
        self.blocked: str | None = None
        #: The server's version, as of the last connection.
        self.version: tuple[int, ...] = ()
        #: Why there is no connection any more.
        self.error: BrokerError | None = None
        #: Whether the last one that ended, or could not be made, had been open.
        self.was_open = False
        self._on_open = on_open
        self._on_lost = on_lost
        self._on_unblocked = on_unblocked
        self._opening: Any = None
        self._closing = False

    @property
    def is_open(self) -> bool:
        """Whether there is a connection that can be used."""
        return self.connection is not None

    @property
    def is_opening(self) -> bool:
        """Whether one is being made."""
        return self._opening is not None

    @property
    def heard(self) -> int:
        """How many bytes have come on this connection."""
        connection = self.connection
        return 0 if connection is None else int(connection.bytes_received)

    @property
    def where(self) -> str:
        """The servers, without passwords."""
        return self.targets.shown

    def open(self) -> None:
        """Begins to connect, if it is neither connected nor about to be: all servers in turn."""
        if self.is_open or self.is_opening:
            return
        self.error = None
        self.loop.eager = False
        self._opening = Connection.create_connection(
            self.targets.named(self.name), on_done=self._opened, custom_ioloop=self.loop
        )

    def connect(self, timeout_s: float) -> None:
        """Opens a connection, driving the loop.

        Raises:
          ConnectionFailed: If no server could be reached.
          BrokerTimeout: If that took too long.
        """
        self.open()
        if not self.run_until(lambda: self.is_open, timeout_s):
            raise BrokerTimeout(f"RabbitMQ at {self.where} did not answer within {timeout_s:g} s.", outcome="none")

    def run_until(self, done: Callable[[], object], timeout_s: float) -> bool:
        """Drives the loop until ``done()``; False if that took too long.

        Raises:
          BrokerError: If the connection is lost before.
        """
        deadline_s = monotonic() + timeout_s
        while not done():
            if not self.is_open and not self.is_opening:
                raise self.error or ConnectionClosed(f"The connection to RabbitMQ at {self.where} is closed.")
            left_s = deadline_s - monotonic()
            if left_s <= 0:
                return False
            self.loop.run_once(left_s)
        return True

    def close(self, patience_s: float = _GOODBYE_S) -> None:
        """Says goodbye, waiting a second at the most or as long as is said, and closes the loop. The link cannot be
        used any more."""
        self._closing = True
        if self._opening is not None:
            self._give_up_opening()
        self.hang_up(patience_s)
        self.loop.close()

    def _give_up_opening(self) -> None:
        try:
            self._opening.abort()
        except AssertionError:  # pika 1.4 cannot abort a handshake; it understands that nobody answers any more
            self.loop.cut()
        self._drive_until(lambda: self._opening is None)

    def drop(self) -> None:
        """Cuts the connection without a goodbye."""
        self.loop.cut()
        self._drive_until(lambda: self.connection is None)

    def hang_up(self, patience_s: float = _GOODBYE_S) -> None:
        """Says goodbye as ``close`` does. The link can be opened again."""
        if self.connection is not None and self.connection.is_open:
            self.connection.close()
        self._drive_until(lambda: self.connection is None, patience_s)
        if self.connection is not None:  # it does not answer
            self.drop()

    def _drive_until(self, done: Callable[[], object], patience_s: float = _GOODBYE_S) -> None:
        deadline_s = monotonic() + patience_s
        while not done() and (left_s := deadline_s - monotonic()) > 0:
            self.loop.run_once(left_s)

    def _opened(self, result: Any) -> None:
        self._opening = None
        if isinstance(result, BaseException):
            self._lost(result)
            return
        self.connection = result
        self.epoch += 1
        self.blocked = None
        self.version = _version(result.server_properties)
        self.loop.eager = True
        result.add_on_close_callback(lambda _connection, reason: self._lost(reason))
        result.add_on_connection_blocked_callback(self._was_blocked)
        result.add_on_connection_unblocked_callback(self._was_unblocked)
        if self._on_open is not None and not self._closing:
            self._on_open(self)

    def _lost(self, reason: Any) -> None:
        self.was_open = self.connection is not None
        self.connection = None
        self.blocked = None
        error = translate(reason, self.where)
        error.__cause__ = reason if error is not reason else None
        self.error = error
        if self._on_lost is not None and not self._closing:
            self._on_lost(self, error)

    def _was_blocked(self, _connection: Any, frame: Any) -> None:
        self.blocked = str(frame.method.reason) or "it is short of memory or disk"

    def _was_unblocked(self, _connection: Any, _frame: Any) -> None:
        self.blocked = None
        if self._on_unblocked is not None:
            self._on_unblocked(self)


def _version(properties: Mapping[str, Any] | None) -> tuple[int, ...]:
    text = (properties or {}).get("version", "")
    text = text.decode() if isinstance(text, bytes) else str(text)
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])
