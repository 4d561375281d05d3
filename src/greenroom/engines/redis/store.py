"""The store on a Redis server: beside the messages, or in a namespace of its own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from ...clock import SYSTEM_CLOCK
from ...forksafe import PerProcess
from ...ports.store import MAX_OPS, StoreFeatures, StoreOp, Watch
from .scripts import load
from .transport import RedisTransport
from .watching import Listener
from .writes import LIBRARIES, Writes, decode

_APPLY = load("apply", *LIBRARIES)


class RedisStore:
    """A ``Store`` in the namespace of a transport. Thread-safe and fork-safe; connects at its first use in a process.

    Parameters:
      transport: Whose server, namespace and connections it uses.
    """

    def __init__(self, transport: RedisTransport) -> None:
        self.transport = transport
        self._max_value = transport.features.max_body
        self.features = StoreFeatures(transactional=True, wakes=True, pushes=True, max_value=self._max_value)
        self._listener: PerProcess[Listener] = PerProcess(self._listen)

    def _listen(self) -> Listener:
        return Listener(self.transport.share.connector, self.transport.keys)

    def apply(self, ops: Sequence[StoreOp]) -> list[Any]:
        """One script. See the port."""
        if len(ops) > MAX_OPS:
            raise ValueError(f"At most {MAX_OPS} operations go together, not {len(ops)}.")
        if not ops:
            return []
        transport = self.transport
        declared = [transport.keys.seq]
        writes = Writes(transport.keys, declared, self._max_value)
        now = "" if transport.clock is SYSTEM_CLOCK else transport.clock.now_ms()
        args = [now, *writes.encode(ops), writes.wants()]
        answers = writes.run(transport.share.run, _APPLY, args)
        return [decode(op, answer) for op, answer in zip(ops, answers, strict=True)]

    def watch(self, keys: Collection[str], notify: Callable[[], None]) -> Watch:
        """Has ``notify`` called when one of these keys may have changed. See the port."""
        listener = self._listener.get()
        if not listener.is_usable:
            self._listener.close(Listener.close)
            listener = self._listener.get()
        return listener.watch(keys, notify)

    def purge(self, limit: int = MAX_OPS) -> int:
        """Nothing to do: Redis deletes what has expired by itself."""
        return 0

    def is_one_with(self, transport: Any) -> bool:
        """True for a transport in the same namespace of the same server."""
        if not isinstance(transport, RedisTransport) or not transport.features.store:
            return False
        return transport.place == self.transport.place

    def close(self) -> None:
        """Ends the listener and closes the transport."""
        self._listener.close(Listener.close)
        self.transport.close()
