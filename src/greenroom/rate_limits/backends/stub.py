"""Limits in the memory of one process."""

from __future__ import annotations

from ...clock import SYSTEM_CLOCK, Clock
from ...engines.memory.store import MemoryStore
from ...engines.memory.transport import MemoryTransport
from ..backend import StoreBackend


class StubBackend(StoreBackend):
    """Keeps limits in memory, for tests and for programs of one process.

    Parameters:
      clock: What decides when windows and slots end.
    """

    def __init__(self, *, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__(MemoryStore(MemoryTransport(clock=clock)))
