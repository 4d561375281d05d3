"""Limits in a SQLite file, for all processes of a host."""

from __future__ import annotations

from pathlib import Path

from ...clock import SYSTEM_CLOCK, Clock
from ...engines.sqlite.store import SqliteStore
from ...engines.sqlite.transport import SqliteTransport
from ..backend import StoreBackend


class SqliteBackend(StoreBackend):
    """Keeps limits in a SQLite file. In the file of a ``SqliteBroker`` its waiting messages are woken without polling.

    Parameters:
      path: The file; a relative path is resolved once, against the working directory. By default that of a
        ``SqliteBroker`` that was not told another.
      durable: Sync to disk at every commit; False by default.
      mode: Permissions of the files that are made; 0o600 by default.
      clock: What decides when windows and slots end.
    """

    def __init__(
        self,
        path: str | Path = ".greenroom/queue.db",
        *,
        durable: bool = False,
        mode: int = 0o600,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__(SqliteStore(SqliteTransport(path, durable=durable, mode=mode, clock=clock)))
