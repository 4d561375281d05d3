"""Results in a SQLite file."""

from __future__ import annotations

from pathlib import Path

from ...encoder import Encoder
from ...engines.sqlite.store import SqliteStore
from ...engines.sqlite.transport import SqliteTransport
from ..backend import DEFAULT_NAMESPACE
from .store import StoreBackend


class SqliteBackend(StoreBackend):
    """Keeps results in a SQLite file, which any number of processes of this host share.

    If it is the file of the broker, results are written in one step with what becomes of their messages; but that is
    what ``Results()`` does without any backend.

    Parameters:
      path: The file; a relative path is resolved once, against the working directory. By default that of a
        ``SqliteBroker`` that was not told another.
      durable: Sync to disk at every commit; False by default.
      mode: Permissions of the files that are made; 0o600 by default.
      namespace: Programs that share a file and differ in this do not see each other's results.
      encoder: How values become bytes; by default the encoder that messages use now.
      use_namespace_prefix_keys: Has no meaning here: keys are texts.
    """

    def __init__(
        self,
        path: str | Path = ".greenroom/queue.db",
        *,
        durable: bool = False,
        mode: int = 0o600,
        namespace: str = DEFAULT_NAMESPACE,
        encoder: Encoder | None = None,
        use_namespace_prefix_keys: bool = False,
    ) -> None:
        super().__init__(
            SqliteStore(SqliteTransport(path, durable=durable, mode=mode)),
            namespace=namespace,
            encoder=encoder,
            use_namespace_prefix_keys=use_namespace_prefix_keys,
        )
