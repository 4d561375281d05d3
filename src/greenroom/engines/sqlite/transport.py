"""The transport on a SQLite file: pushing, and what this process shares of the file."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from ... import failpoints
from ...clock import SYSTEM_CLOCK, Clock
from ...forksafe import PerProcess
from ...logging import get_logger
from ...ports.retention import Retention
from ...ports.store import StoreOp
from ...ports.transport import Envelope, Features
from .admin import SqliteAdmin
from .consumer import SqliteConsumer
from .inspection import inspect_file
from .rows import INSERT_ONE, check_body, insertions, ring, row_of
from .share import ProcessShare
from .writes import Writes

#: SQLite keeps nothing larger than 1 GB in a row; ours is the tighter bound.
MAX_BODY_BYTES = 512 * 1024 * 1024

logger = get_logger(__name__)


class SqliteTransport(SqliteAdmin):
    """Keeps messages in a SQLite file. Thread-safe and fork-safe; opens the file at its first use in a process.

    Parameters:
      path: The file; resolved against the working directory now.
      durable: Sync at every commit, so that what was accepted survives a power loss.
      mode: Permissions of the files that are made.
      clock: What decides about due times.
      max_body: The largest body in bytes.
      retention: How long dead letters are kept, and how many.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        durable: bool = False,
        mode: int = 0o600,
        clock: Clock = SYSTEM_CLOCK,
        max_body: int = MAX_BODY_BYTES,
        retention: Retention = Retention(),  # noqa: B008  # frozen
    ) -> None:
        self.path = Path(path).absolute()
        self.clock = clock
        self.features = Features(
            lease=False,
            transactional=True,
            wakes=True,
            counts_crashes=True,
            history=True,
            pause=True,
            store=True,
            max_body=max_body,
        )
        self._max_body = max_body
        self._retention = retention
        self._durable = durable
        self._mode = mode
        self._process: PerProcess[ProcessShare] = PerProcess(
            self._open, before_fork=ProcessShare.before_fork, after_fork=ProcessShare.after_fork
        )

    def _open(self) -> ProcessShare:
        failpoints.arm()
        share = ProcessShare(self.path, durable=self._durable, mode=self._mode)
        logger.info("Messages are kept in %s.", self.path)
        return share

    @property
    def share(self) -> ProcessShare:
        """What this process has open of the file; opened now if this is its first use."""
        return self._process.get()

    def declare(self, queues: Collection[str]) -> None:
        """Nothing to do: a queue is a value in a column."""

    def push(self, batch: Sequence[Envelope]) -> None:
        """Returns once the batch is committed, all or nothing."""
        for envelope in batch:
            check_body(envelope, self._max_body)
        share = self._process.get()
        if failpoints.armed:
            failpoints.hit("enq.before_send")
        ops = [op for envelope in batch if envelope.writes for op in envelope.writes]
        if len(batch) == 1 and not ops:
            share.database.execute(INSERT_ONE, row_of(batch[0]))
        elif batch:
            self._push_many(share, batch, ops)
        if failpoints.armed:
            failpoints.hit("enq.after_commit")
        ring(share.wake, batch)

    def _push_many(self, share: ProcessShare, batch: Sequence[Envelope], ops: Sequence[StoreOp]) -> None:
        statements = insertions(batch)
        with share.database.transaction(sending=True) as connection:
            for statement, parameters in statements:
                connection.execute(statement, parameters)
                if failpoints.armed:
                    failpoints.hit("enq.batch_mid")
            if ops:
                writes = Writes(connection, self.clock.now_ms(), self._max_body)
                writes.later(ops)
                writes.flush()
        if ops:
            share.tell(writes)

    def consumer(self, owner: str) -> SqliteConsumer:
        """A new owner of claims. Registers it in the file."""
        database = self._process.get().database
        if (
            database.file.created
            and database.run(lambda c: c.execute("select 1 from message limit 1").fetchone()) is None
        ):
            database.file.created = False
            logger.warning("The queue file %s was just made and is empty: do its senders use the same path?", self.path)
        return SqliteConsumer(
            self._process.get(), owner, clock=self.clock, max_body=self._max_body, retention=self._retention
        )

    def inspect(self) -> dict[str, object]:
        """What there is to know of the file. Makes and changes nothing.

        Raises:
          BrokerError: If it could not be used.
        """
        return inspect_file(self.path)

    def close(self) -> None:
        """Closes what this process has open. The next use opens it again."""
        self._process.close(ProcessShare.close)
