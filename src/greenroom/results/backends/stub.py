"""Results in memory, for tests."""

from __future__ import annotations

from typing import Any, ClassVar

from ...encoder import Encoder
from ...engines.memory.store import MemoryStore
from ...engines.memory.transport import MemoryTransport
from ..backend import DEFAULT_NAMESPACE, ResultBackend
from .store import StoreBackend


class StubBackend(StoreBackend):
    """Keeps results in the memory of this process. All of its instances share them.

    With a ``StubBroker``, ``Results()`` without a backend does the same for each broker by itself, and finds results by
    the message's id, too.

    Parameters:
      namespace: What its keys begin with.
      encoder: How values become bytes; by default the encoder that messages use now.
      use_namespace_prefix_keys: If True the keys are texts that begin with the namespace, else MD5 hashes of them.
    """

    _shared: ClassVar[MemoryStore] = MemoryStore(MemoryTransport())

    def __init__(
        self,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        encoder: Encoder | None = None,
        use_namespace_prefix_keys: bool = False,
    ) -> None:
        super().__init__(
            self._shared, namespace=namespace, encoder=encoder, use_namespace_prefix_keys=use_namespace_prefix_keys
        )

    def build_message_key(self, message: Any) -> str:
        """The key of a message's result."""
        return ResultBackend.build_message_key(self, message)
