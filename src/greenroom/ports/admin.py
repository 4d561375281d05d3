"""The admin port: looking into a broker and tidying up, for the command line, ``flush`` and ``join``. Optional."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

import msgspec

from .transport import ErrorText


class Counts(msgspec.Struct, frozen=True):
    """How many messages of a queue are ready, delayed, claimed and dead."""

    ready: int = 0
    delayed: int = 0
    claimed: int = 0
    dead: int = 0


class DeadLetter(msgspec.Struct, frozen=True):
    """A message that is not tried again, and why. ``died_ms`` is UNIX milliseconds."""

    queue: str
    id: str
    body: bytes
    error: ErrorText | None
    attempt: int
    crashes: int
    died_ms: int


class Admin(Protocol):
    """Optional: looking in and tidying up, for the command line, ``flush`` and ``join``."""

    def counts(self, queues: Collection[str] | None = None) -> dict[str, Counts]:
        """Messages by queue; all queues that hold any, and those named, if ``queues`` is None."""

    def purge(self, queue: str, *, dead: bool = False) -> int:
        """Deletes what is ready or delayed, or else what is dead; returns how many."""

    def dead(self, queue: str | None = None, *, limit: int = 100) -> list[DeadLetter]:
        """Dead letters, newest first."""
