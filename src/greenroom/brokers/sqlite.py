"""The default broker: a durable queue in one SQLite file, with no server."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from ..clock import SYSTEM_CLOCK, Clock
from ..engines.sqlite.transport import SqliteTransport
from ..message import MAX_MESSAGE_BYTES
from ..middleware import Middleware
from .engine import EngineBroker, parse_bool

#: Where messages are kept when nothing else is said, relative to the working directory.
DEFAULT_PATH = ".greenroom/queue.db"


class SqliteBroker(EngineBroker):
    """Keeps messages in a SQLite file that any number of processes of this host share.

    What ``send`` has returned for survives ``kill -9`` of any process; with ``durable=True`` also a power loss.

    Parameters:
      path: The file; made at the first send or by the first worker, its folder too. A relative path is resolved once,
        against the working directory.
      durable: Sync to disk at every commit; False by default.
      mode: Permissions of the files that are made; 0o600 by default (0o660 to share with a group).
      middleware: Instances, in order; None for one of each of ``default_middleware``.
      max_message_bytes: The largest encoded message that is accepted; 16 MiB by default.
      strict_options: If True, an unknown message option raises instead of warning.
    """

    def __init__(
        self,
        path: str | Path = DEFAULT_PATH,
        *,
        durable: bool = False,
        mode: int = 0o600,
        middleware: Iterable[Middleware] | None = None,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        strict_options: bool = False,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.transport = SqliteTransport(path, durable=durable, mode=mode, clock=clock)
        super().__init__(middleware, max_message_bytes=max_message_bytes, strict_options=strict_options, clock=clock)

    @classmethod
    def from_url(cls, url: str, **kwargs: Any) -> SqliteBroker:
        """``sqlite:///relative.db``, ``sqlite:////absolute.db``, with ``?durable=true`` and ``?mode=660``."""
        parts = urlsplit(url)
        if parts.netloc:
            raise ValueError(f"A SQLite URL names no host: write sqlite:///{parts.netloc}{parts.path}")
        path = unquote(parts.path.removeprefix("/")) or DEFAULT_PATH
        for name, value in parse_qsl(parts.query, keep_blank_values=True):
            if name == "durable":
                kwargs.setdefault(name, parse_bool(value))
            elif name == "mode":
                kwargs.setdefault(name, int(value, 8))
            else:
                raise ValueError(f"Unknown parameter {name!r} in a SQLite URL: known are durable, mode.")
        return cls(path, **kwargs)

    @property
    def path(self) -> Path:
        """The absolute path of the file."""
        path: Path = self.transport.path
        return path

    def __repr__(self) -> str:
        return f"SqliteBroker({str(self.transport.path)!r})"
