"""The default broker: a durable queue in one SQLite file, with no server."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from ..clock import SYSTEM_CLOCK, Clock
from ..core.suspects import DEFAULT_MAX_CRASHES
from ..engines.sqlite.store import SqliteStore
from ..engines.sqlite.transport import SqliteTransport
from ..message import MAX_MESSAGE_BYTES
from ..middleware import Middleware
from .engine import EngineBroker, parse_bool, retention_of

#: Where messages are kept when nothing else is said, relative to the working directory.
DEFAULT_PATH = ".greenroom/queue.db"

#: What a URL may say, and how it is read.
_PARAMETERS: dict[str, Callable[[str], Any]] = {
    "durable": parse_bool,
    "mode": partial(int, base=8),
    "dead_letter_ttl_ms": float,
    "dead_letter_limit": int,
}


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
      max_crashes: After how many crashes of the workers that ran it a message is dead-lettered, for actors and messages
        that say nothing; 3 by default, None for never.
      dead_letter_ttl_ms: How long dead letters are kept, in milliseconds; by default what the environment variable
        ``greenroom_dead_message_ttl`` says, else seven days; ``math.inf`` for ever.
      dead_letter_limit: How many dead letters are kept, the newest of all queues together; None for no limit.
    """

    def __init__(  # noqa: PLR0913  # keywords, each by itself
        self,
        path: str | Path = DEFAULT_PATH,
        *,
        durable: bool = False,
        mode: int = 0o600,
        middleware: Iterable[Middleware] | None = None,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        strict_options: bool = False,
        max_crashes: int | None = DEFAULT_MAX_CRASHES,
        dead_letter_ttl_ms: float | None = None,
        dead_letter_limit: int | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        retention = retention_of(dead_letter_ttl_ms, dead_letter_limit)
        self.transport = SqliteTransport(path, durable=durable, mode=mode, clock=clock, retention=retention)
        super().__init__(
            middleware,
            max_message_bytes=max_message_bytes,
            strict_options=strict_options,
            max_crashes=max_crashes,
            clock=clock,
        )

    @cached_property
    def store(self) -> SqliteStore:
        """What is kept in the same file, in one step with messages."""
        return SqliteStore(self.transport)

    @classmethod
    def from_url(cls, url: str, **kwargs: Any) -> SqliteBroker:
        """``sqlite:///relative.db``, ``sqlite:////absolute.db``, with ``?durable=true``, ``?mode=660``,
        ``?dead_letter_ttl_ms=`` and ``?dead_letter_limit=``."""
        parts = urlsplit(url)
        if parts.netloc:
            raise ValueError(f"A SQLite URL names no host: write sqlite:///{parts.netloc}{parts.path}")
        path = unquote(parts.path.removeprefix("/")) or DEFAULT_PATH
        for name, value in parse_qsl(parts.query, keep_blank_values=True):
            if name not in _PARAMETERS:
                raise ValueError(f"Unknown parameter {name!r} in a SQLite URL: known are {', '.join(_PARAMETERS)}.")
            kwargs.setdefault(name, _PARAMETERS[name](value))
        return cls(path, **kwargs)

    def exists(self) -> bool:
        """Whether the file is there: the first send or the first worker makes it."""
        try:
            return self.path.exists()
        except OSError:  # it cannot be seen from here; opening it says why
            return True

    @property
    def path(self) -> Path:
        """The absolute path of the file."""
        path: Path = self.transport.path
        return path

    def __repr__(self) -> str:
        return f"SqliteBroker({str(self.transport.path)!r})"
