"""The store in a SQLite file: the one that the messages are in, or one of its own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from ...clock import SYSTEM_CLOCK
from ...forksafe import PerProcess
from ...ports.store import MAX_OPS, StoreFeatures, StoreOp, Watch
from .bell import Listener
from .transport import MAX_BODY_BYTES, SqliteTransport
from .writes import READS, Writes, purge

#: Seconds between two looks for what has expired, by whoever writes.
_PURGE_INTERVAL_S = 1.0


class SqliteStore:
    """A ``Store`` in the file of a transport. Thread-safe and fork-safe; opens the file at its first use in a process.

    Parameters:
      transport: Whose file and connection it uses; for a file of its own, a transport that nobody else uses.
    """

    def __init__(self, transport: SqliteTransport) -> None:
        self.transport = transport
        self._max_value: int = transport.features.max_body or MAX_BODY_BYTES
        self.features = StoreFeatures(transactional=True, wakes=True, pushes=True, max_value=self._max_value)
        self._listener: PerProcess[Listener] = PerProcess(self._listen)
        self._purge_at_s = 0.0

    def _listen(self) -> Listener:
        share = self.transport.share
        return Listener(share.wake.path, share.mode)

    def apply(self, ops: Sequence[StoreOp]) -> list[Any]:
        """One transaction, in which the clock stands still; reads alone need none, and each is of its own moment. See
        the port."""
        if len(ops) > MAX_OPS:
            raise ValueError(f"At most {MAX_OPS} operations go together, not {len(ops)}.")
        share = self.transport.share
        if all(isinstance(op, READS) for op in ops):
            return share.database.run(lambda connection: self._writes(connection).do_all(ops)) if ops else []
        with share.database.transaction() as connection:
            writes = self._writes(connection)
            answers = writes.do_all(ops)
            self._purge_now_and_then(connection)
        share.tell(writes)
        return answers

    def _writes(self, connection: Any) -> Writes:
        return Writes(connection, self.transport.clock.now_ms(), self._max_value)

    def _purge_now_and_then(self, connection: Any) -> None:
        """For files in which no worker does it. Two threads that meet here purge twice."""
        now_s = SYSTEM_CLOCK.monotonic()
        if now_s >= self._purge_at_s:
            self._purge_at_s = now_s + _PURGE_INTERVAL_S
            purge(connection, MAX_OPS, self.transport.clock.now_ms())

    def watch(self, keys: Collection[str], notify: Callable[[], None]) -> Watch:
        """Has ``notify`` called when one of these keys may have changed. See the port."""
        listener = self._listener.get()
        if not listener.is_usable:
            self._listener.close(Listener.close)
            listener = self._listener.get()
        return listener.watch(keys, notify)

    def purge(self, limit: int = MAX_OPS) -> int:
        """Deletes up to ``limit`` rows that have expired; returns how many."""
        with self.transport.share.database.transaction() as connection:
            return purge(connection, limit, self.transport.clock.now_ms())

    def is_one_with(self, transport: Any) -> bool:
        """True for a transport on the same file."""
        return isinstance(transport, SqliteTransport) and transport.path == self.transport.path

    def close(self) -> None:
        """Ends the listener and closes the transport."""
        self._listener.close(Listener.close)
        self.transport.close()
