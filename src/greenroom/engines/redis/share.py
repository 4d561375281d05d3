"""What one process has open to a server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import BrokerError, BrokerTimeout
from ...host.deaths import Death
from ...logging import get_logger
from .connection import Argument, Connection, Connector, FreeConnections
from .errors import NotReplicated, is_unknown
from .keys import Keys
from .scripts import Script

logger = get_logger(__name__)


class Replicas(NamedTuple):
    """How many replicas must have what is pushed, and how long to wait for them, in milliseconds."""

    needed: int
    timeout_ms: int

    def wait(self, connection: Connection) -> None:
        """Returns once they have all that this connection has written.

        Raises:
          NotReplicated: Too few had it in time. The primary has it.
          BrokerError: It is not known.
        """
        if not self.needed:
            return
        try:
            count = connection.call("WAIT", self.needed, self.timeout_ms)
        except BrokerError as e:
            if is_unknown(e):
                raise
            # Whatever it says of this question, what was asked before has been done.
            raise BrokerTimeout(f"It is not known whether replicas have it: {e}") from e
        if count < self.needed:
            raise NotReplicated(
                f"Only {count} of {self.needed} replicas of the Redis server at {connection.where} have it after "
                f"{self.timeout_ms} ms. The server itself does."
            )


NO_REPLICAS = Replicas(0, 0)


class ProcessShare:
    """What one process has open to a server: connections, and the owners of its consumers. Thread-safe.

    Parameters:
      connector: Makes the connections.
      keys: The namespace.
      run_folder: Where processes of this host see who is alive; None for the user's own folder.
      replicas: How many replicas must have what is pushed.
    """

    def __init__(
        self, connector: Connector, keys: Keys, run_folder: Path | None = None, replicas: Replicas = NO_REPLICAS
    ) -> None:
        #: Where processes of this host see who is alive; None for the user's own folder.
        self.run_folder = run_folder
        self.connector = connector
        self.keys = keys
        self.free = FreeConnections(connector)
        self.replicas = replicas
        #: The owners of this process, until they are closed. Held here, because an owner that was merely dropped would
        #: keep its messages for as long as the process lives.
        self.consumers: set[Any] = set()
        #: Whether this process has seen that the server keeps what it is given.
        self.is_checked = False
        #: Called for each owner that was buried here, with its id, its queues, its death and the time that scripts are
        #: told: gives back what it had claimed elsewhere.
        self.also_bury: Callable[[str, Sequence[str], Death, Argument], object] | None = None

    def call(self, *args: Argument) -> Any:
        """Any thread: has the server do one command; its answer.

        Raises:
          BrokerError: If it was not done, or it is not known.
        """
        connection = self.free.take()
        try:
            return connection.call(*args)
        finally:
            self.free.give_back(connection)

    def run(self, script: Script, keys: Sequence[Argument], args: Sequence[Argument]) -> Any:
        """Any thread: has the server run a script; its answer. Raises as ``call``."""
        connection = self.free.take()
        try:
            return script.run(connection, keys, args)
        finally:
            self.free.give_back(connection)

    def wait_for_replicas(self) -> None:
        """Any thread: returns once replicas have all that was done before. Raises as ``Replicas.wait``."""
        if not self.replicas.needed:
            return
        connection = self.free.take()
        try:
            connection.call("PING")  # WAIT is about what was written before the last command of its own connection
            self.replicas.wait(connection)
        finally:
            self.free.give_back(connection)

    def close(self) -> None:
        """Closes the consumers, which give back what they hold, and the connections."""
        for consumer in list(self.consumers):
            try:
                consumer.close()
            except BrokerError as e:
                logger.warning("What a worker held is given back when its lease has ended: %s", e)
        self.free.close()
