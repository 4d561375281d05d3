"""The store in the memory of one process: the one that is one with a ``MemoryTransport``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from ...ports.store import MAX_OPS, Get, GetParts, SetLook, StoreFeatures, StoreOp, Watch
from .transport import MemoryTransport

#: What changes nothing.
_READS = (Get, GetParts, SetLook)


class MemoryStore:
    """A ``Store`` in memory. Any thread may use it; a forked child has a private copy.

    All stores of a transport are one: what is kept belongs to the transport, and takes its time from its clock.

    Parameters:
      transport: Whose store it is.
    """

    def __init__(self, transport: MemoryTransport) -> None:
        self.transport = transport
        limit = transport.features.max_body
        self.features = StoreFeatures(transactional=True, wakes=True, pushes=True, max_value=limit)

    def apply(self, ops: Sequence[StoreOp]) -> list[Any]:
        """All of it under one lock. See the port."""
        if len(ops) > MAX_OPS:
            raise ValueError(f"At most {MAX_OPS} operations go together, not {len(ops)}.")
        return self.transport.apply_ops(ops, changes=not all(isinstance(op, _READS) for op in ops))

    def watch(self, keys: Collection[str], notify: Callable[[], None]) -> Watch:
        """Has ``notify`` called when one of these keys has changed, on the thread that changed it."""
        return self.transport.watch_keys(keys, notify)  # type: ignore[no-any-return]  # a Watch

    def purge(self, limit: int = MAX_OPS) -> int:
        """Deletes up to ``limit`` parts and sets that have expired; returns how many."""
        return self.transport.purge_store(limit)

    def is_one_with(self, transport: Any) -> bool:
        """True for its transport."""
        return transport is self.transport

    def close(self) -> None:
        """Nothing to do: what is kept belongs to the transport, and stays."""
