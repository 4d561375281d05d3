"""The transport on a Redis server: pushing, and what this process shares of the server."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import failpoints
from ...clock import SYSTEM_CLOCK, Clock
from ...errors import BrokerError, BrokerTimeout
from ...forksafe import PerProcess
from ...ports.retention import Retention
from ...ports.transport import Envelope, Features
from .admin import RedisAdmin
from .connection import Connection, Connector, pack
from .envelopes import BASES, check_envelope, runs_of
from .errors import NoScript, NotReplicated, Unsent, is_unknown
from .inspection import check_server
from .key_table import KeyTable
from .keys import PRIORITY_BASE, Keys
from .scripts import load, load_alone
from .share import ProcessShare, Replicas
from .trip import PART_BYTES
from .trips import time_of
from .writes import LIBRARIES, Writes

if TYPE_CHECKING:
    from .consumer import RedisConsumer

#: A body is one value of a hash, which the server keeps up to 512 MiB of.
MAX_BODY_BYTES = 256 * 1024 * 1024
#: How long an owner may say nothing before it is taken for dead, unless it is of this host.
LEASE_MS = 15_000

_PUSH_ONE = load_alone("push_one")
_PUSH = load("push", "pushing")
_PUSH_AND_WRITE = load("push", "pushing", *LIBRARIES)


class RedisTransport(RedisAdmin):
    """Keeps messages on a Redis server. Thread-safe and fork-safe; connects at its first use in a process.

    Parameters:
      client: Any ``redis.Redis``; its settings are used for connections of our own.
      namespace: What the keys begin with.
      clock: What decides about due times: the server's, or a manual one.
      max_body: The largest body in bytes.
      lease_ms: How long an owner may be silent.
      run_folder: Where processes of this host see who is alive; None for the user's own folder.
      retention: How long dead letters are kept, and how many.
      wait_replicas: How many replicas must have what is pushed before it counts as kept.
      wait_timeout_ms: How long to wait for them.
      allow_eviction: Whether workers start on a server that deletes any keys when its memory is full.
    """

    def __init__(  # noqa: PLR0913  # keywords, each by itself
        self,
        client: Any,
        *,
        namespace: str = "dramatiq",
        clock: Clock = SYSTEM_CLOCK,
        max_body: int = MAX_BODY_BYTES,
        lease_ms: int = LEASE_MS,
        run_folder: str | Path | None = None,
        retention: Retention = Retention(),  # noqa: B008  # frozen
        wait_replicas: int = 0,
        wait_timeout_ms: int = 1_000,
        allow_eviction: bool = False,
    ) -> None:
        self.clock = clock
        self.keys = Keys(namespace)
        self.features = Features(
            transactional=True,
            wakes=True,
            counts_crashes=True,
            history=True,
            pause=True,
            store=True,
            max_body=max_body,
        )
        self._client = client
        self._connector = Connector(client, patience_s=2 * wait_timeout_ms / 1000 if wait_replicas else 0.0)
        self._max_body = max_body
        self._lease_ms = lease_ms
        self._run_folder = None if run_folder is None else Path(run_folder)
        self._retention = retention
        self._replicas = Replicas(wait_replicas, wait_timeout_ms)
        self._allow_eviction = allow_eviction
        self._process: PerProcess[ProcessShare] = PerProcess(self._open)

    def _open(self) -> ProcessShare:
        failpoints.arm()
        return ProcessShare(self._connector, self.keys, self._run_folder, self._replicas)

    @property
    def share(self) -> ProcessShare:
        """What this process has open to the server; opened now if this is its first use."""
        return self._process.get()

    @property
    def where(self) -> str:
        """The server and the number of the database, without passwords."""
        return self._connector.where

    @property
    def server(self) -> tuple[object, ...]:
        """What tells the server and its database from others."""
        settings = self._client.connection_pool.connection_kwargs
        address = settings.get("path") or (settings.get("host", "localhost"), settings.get("port", 6379))
        return (address, settings.get("db") or 0)

    @property
    def place(self) -> tuple[object, ...]:
        """What tells this namespace from all others."""
        return (*self.server, self.keys.prefix)

    def declare(self, queues: Collection[str]) -> None:
        """Nothing to do: a queue is there once something is in it."""

    def push(self, batch: Sequence[Envelope]) -> None:
        """Returns once the batch is kept, all or nothing; in turns, if its bodies have more than 64 MiB together.

        A push that is made again, with the same ids, changes nothing while its messages are there.

        Raises:
          BrokerTimeout: No answer came, so it is not known whether it is kept; or too few replicas have it.
          BrokerError: It is not kept.
        """
        size = 0
        for envelope in batch:
            check_envelope(envelope, self._max_body)
            size += len(envelope.body)
        share = self._process.get()
        if failpoints.armed:
            failpoints.hit("enq.before_send")
        if len(batch) == 1 and batch[0].due_ms is None and not batch[0].writes:
            self._push_one(share, batch[0])
        elif size > PART_BYTES:
            for part in _parts_of(batch):
                self._push_many(share, part)
        elif batch:
            self._push_many(share, batch)
        if failpoints.armed:
            failpoints.hit("enq.after_commit")

    def _push_one(self, share: ProcessShare, envelope: Envelope) -> None:
        keys = self.keys
        of = keys.of(envelope.queue)
        names = (of.bodies, of.ready, of.wake, keys.seq, keys.queues)
        args = (envelope.id, envelope.body, BASES[envelope.priority + PRIORITY_BASE], envelope.queue)
        connection = share.free.take()
        connection.point = "enq.after_send_before_confirm"
        try:
            connection.send(pack((b"EVALSHA", _PUSH_ONE.digest, b"5", *names, *args)))
            connection.glance()
            connection.read()
            if share.replicas.needed:
                share.replicas.wait(connection)
        except BrokerError as e:
            self._push_again(share, connection, e, partial(_PUSH_ONE.run, connection, names, args))
        finally:
            share.free.give_back(connection)

    def _push_many(self, share: ProcessShare, batch: Sequence[Envelope]) -> None:
        table = KeyTable((self.keys.seq, self.keys.queues), self.keys.of)
        runs, args = runs_of(batch, table)
        args = [time_of(self.clock), len(batch), runs, *args]
        ops = [op for envelope in batch for op in envelope.writes]
        writes = Writes(self.keys, table.keys, self._max_body)
        if ops:
            args += writes.encode(ops)
            args.append(writes.wants())
        connection = share.free.take()
        connection.point = "enq.after_send_before_confirm"

        def push() -> object:
            if not ops:
                return _PUSH.run(connection, table.keys, args)
            return writes.run(lambda script, names, args: script.run(connection, names, args), _PUSH_AND_WRITE, args)

        try:
            push()
            share.replicas.wait(connection)
        except BrokerError as e:
            self._push_again(share, connection, e, push)
        finally:
            share.free.give_back(connection)

    def _push_again(
        self, share: ProcessShare, connection: Connection, error: BrokerError, push: Callable[[], object]
    ) -> None:
        """Pushes once more what certainly was not, or says what is known of it."""
        try:
            if not isinstance(error, (NoScript, Unsent)):
                raise error
            push()
            share.replicas.wait(connection)
        except BrokerError as e:
            if is_unknown(e) and not isinstance(e, NotReplicated):
                raise BrokerTimeout(f"It is not known whether what was sent is kept: {e}") from e
            raise

    def consumer(self, owner: str) -> RedisConsumer:
        """A new owner of claims. Registers it on the server.

        Raises:
          ConnectionFailed: If the server does not keep what it is given; see ``allow_eviction``.
          BrokerError: If it cannot be reached.
        """
        from .consumer import RedisConsumer  # needs locks on files, which not every system has that can send

        share = self._process.get()
        if not share.is_checked:
            check_server(share, allow_eviction=self._allow_eviction)
            share.is_checked = True
        return RedisConsumer(
            share,
            owner,
            clock=self.clock,
            max_body=self._max_body,
            lease_ms=self._lease_ms,
            retention=self._retention,
        )

    def close(self) -> None:
        """Closes what this process has open. The next use opens it again."""
        self._process.close(ProcessShare.close)


def _parts_of(batch: Sequence[Envelope]) -> Iterator[Sequence[Envelope]]:
    """A batch by commands, none of which is too large."""
    first, size = 0, 0
    for number, envelope in enumerate(batch):
        if size + len(envelope.body) > PART_BYTES and number > first:
            yield batch[first:number]
            first, size = number, 0
        size += len(envelope.body)
    yield batch[first:]
