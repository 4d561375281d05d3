"""The transport on a SQLite file: pushing, and what this process shares of the file."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from ...clock import SYSTEM_CLOCK, Clock
from ...forksafe import PerProcess
from ...logging import get_logger
from ...ports.admin import Counts, DeadLetter
from ...ports.transport import Envelope, ErrorText, Features
from .consumer import SqliteConsumer
from .rows import INSERT_ONE, READY, check_body, insertions, ring, row_of
from .share import ProcessShare

#: SQLite keeps nothing larger than 1 GB in a row; ours is the tighter bound.
MAX_BODY_BYTES = 512 * 1024 * 1024

logger = get_logger(__name__)


class SqliteTransport:
    """Keeps messages in a SQLite file. Thread-safe and fork-safe; opens the file at its first use in a process.

    Parameters:
      path: The file; resolved against the working directory now.
      durable: Sync at every commit, so that what was accepted survives a power loss.
      mode: Permissions of the files that are made.
      clock: What decides about due times.
      max_body: The largest body in bytes.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        durable: bool = False,
        mode: int = 0o600,
        clock: Clock = SYSTEM_CLOCK,
        max_body: int = MAX_BODY_BYTES,
    ) -> None:
        self.path = Path(path).absolute()
        self.clock = clock
        self.features = Features(lease=False, transactional=True, wakes=True, max_body=max_body)
        self._max_body = max_body
        self._durable = durable
        self._mode = mode
        self._process: PerProcess[ProcessShare] = PerProcess(
            self._open, before_fork=ProcessShare.before_fork, after_fork=ProcessShare.after_fork
        )

    def _open(self) -> ProcessShare:
        share = ProcessShare(self.path, durable=self._durable, mode=self._mode)
        logger.info("Messages are kept in %s.", self.path)
        return share

    def declare(self, queues: Collection[str]) -> None:
        """Nothing to do: a queue is a value in a column."""

    def push(self, batch: Sequence[Envelope]) -> None:
        """Returns once the batch is committed, all or nothing."""
        for envelope in batch:
            check_body(envelope, self._max_body)
        share = self._process.get()
        if len(batch) == 1:
            share.database.execute(INSERT_ONE, row_of(batch[0]))
        elif batch:
            statements = insertions(batch)
            with share.database.transaction() as connection:
                for statement, parameters in statements:
                    connection.execute(statement, parameters)
        ring(share.wake, batch)

    def consumer(self, owner: str) -> SqliteConsumer:
        """A new owner of claims. Registers it in the file."""
        database = self._process.get().database
        if database.created and database.run(lambda c: c.execute("select 1 from message limit 1").fetchone()) is None:
            database.created = False
            logger.warning("The queue file %s was just made and is empty: do its senders use the same path?", self.path)
        return SqliteConsumer(self._process.get(), owner, clock=self.clock, max_body=self._max_body)

    def close(self) -> None:
        """Closes what this process has open. The next use opens it again."""
        self._process.close(ProcessShare.close)

    # --- Admin

    def counts(self, queues: Collection[str] | None = None) -> dict[str, Counts]:
        """How many messages there are, by queue; all queues with any, and those named, if ``queues`` is None."""
        database = self._process.get().database
        found: dict[str, list[int]] = {queue: [0, 0, 0, 0] for queue in queues or ()}

        def read(connection: Any) -> list[Any]:
            # The states are numbered from READY; the dead, in a table of their own, follow as one more.
            if queues is None:
                live = connection.execute("select queue, state, count(*) from message group by queue, state").fetchall()
                dead = connection.execute("select queue, 5, count(*) from dead group by queue").fetchall()
                return [*live, *dead]
            rows: list[Any] = []
            for queue in queues:
                rows += connection.execute(
                    "select queue, state, count(*) from message where queue = ? group by state", (queue,)
                ).fetchall()
                rows += connection.execute("select ?1, 5, count(*) from dead where queue = ?1", (queue,)).fetchall()
            return rows

        for queue, state, count in database.run(read):
            found.setdefault(queue, [0, 0, 0, 0])[state - READY] = count
        return {queue: Counts(*numbers) for queue, numbers in found.items()}

    def purge(self, queue: str, *, dead: bool = False) -> int:
        """Deletes what is ready or delayed, or else what is dead; returns how many."""
        statement = (
            "delete from dead where queue = ?" if dead else "delete from message where queue = ? and state in (2, 3)"
        )
        with self._process.get().database.transaction() as connection:
            return connection.execute(statement, (queue,)).rowcount

    def dead(self, queue: str | None = None, *, limit: int = 100) -> list[DeadLetter]:
        """Dead letters, newest first."""
        columns = "queue, id, cast(body as blob), error_type, error_message, error_traceback, attempt, crashes, died_ms"
        condition = "" if queue is None else "where queue = ?2 "
        rows = self._process.get().database.run(
            lambda connection: connection.execute(
                f"select {columns} from dead {condition}order by died_ms desc, seq desc limit ?1",
                (limit,) if queue is None else (limit, queue),
            ).fetchall()
        )
        return [
            DeadLetter(q, id, body, None if type_ is None else ErrorText(type_, message, trace), attempt, crashes, died)
            for q, id, body, type_, message, trace, attempt, crashes, died in rows
        ]
