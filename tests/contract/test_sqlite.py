"""The transport contract, run for the SQLite engine."""

from __future__ import annotations

from pathlib import Path

from greenroom.clock import Clock
from greenroom.engines.sqlite.consumer import SqliteConsumer
from greenroom.engines.sqlite.transport import SqliteTransport
from greenroom.ports.transport import Consumer, Envelope, Transport
from greenroom.testing.contract import TransportContract
from greenroom.testing.contract.kit import envelope


class TestSqliteTransport(TransportContract):
    def make(self, tmp_path: Path, clock: Clock) -> Transport:
        return SqliteTransport(tmp_path / "queue.db", clock=clock)

    def unstorable(self, transport: Transport) -> Envelope:
        """SQLite keeps text as UTF-8, which has no form for half of a surrogate pair."""
        return envelope(b"x", "\ud800")

    def crash(self, transport: Transport, consumer: Consumer) -> None:
        """The kernel frees a dead process's byte of the lock file; here we do."""
        assert isinstance(consumer, SqliteConsumer)
        consumer._owner._locks.unlock(consumer._owner.slot, consumer._owner)
