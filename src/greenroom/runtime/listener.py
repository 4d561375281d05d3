"""Who is told of what the pump does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..core.run import Run
from ..ports.transport import Settlement


class PumpListener(Protocol):
    """Who is told of what the pump has done, on the pump's thread."""

    def settled(self, runs: Sequence[Run]) -> None:
        """The engine has settled these runs."""

    def lost(self, settlements: Sequence[Settlement], runs: Sequence[Run]) -> None:
        """The engine has not applied these settlements: their messages were given to somebody else. ``runs`` are those
        of them that were run."""

    def failed(self, error: Exception) -> None:
        """The pump ends, because of a permanent error of the engine's or one that nothing should raise."""
