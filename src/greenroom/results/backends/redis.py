"""Results on a Redis server, where and as Dramatiq keeps them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...clock import SYSTEM_CLOCK
from ...context import interruptible
from ...encoder import Encoder
from ...ports.store import Put
from ..backend import DEFAULT_NAMESPACE, Missing, ResultBackend
from ..result import pending_of
from .store import StoreBackend

try:
    from ...engines.redis.client import client_of
    from ...engines.redis.store import RedisStore
    from ...engines.redis.transport import RedisTransport
    from ...engines.redis.writes import GetResult, PutResult
except ImportError as e:
    raise ImportError("RedisBackend needs redis-py. Install it with: pip install 'greenroom[redis]'") from e

if TYPE_CHECKING:
    from ...ports.nouns import BrokerLike

#: Seconds that one command waits for a result. Between two of them an actor that waits can be interrupted.
_SLICE_S = 1.0


class RedisBackend(StoreBackend):
    """Keeps results on a Redis server, under Dramatiq's keys and in its form: each reads what the other has written.

    On the server of a ``RedisBroker`` results are written in one step with what becomes of their messages, and it is
    known which are still to come; these marks are where no reader of Dramatiq's looks.

    Without a backend, ``Results()`` does the same for a ``RedisBroker`` under keys of Greenroom's own, by which results
    are found with the message's id alone.

    Parameters:
      namespace: What the keys begin with; "dramatiq-results" by default.
      encoder: How values become bytes; by default the encoder that messages use now.
      use_namespace_prefix_keys: If True the keys are texts that begin with the namespace, else MD5 hashes of them.
      client: Any ``redis.Redis``, whose settings are used for connections of our own.
      url: ``redis://``, ``rediss://`` or ``unix://``, in place of a client.
      parameters: What ``redis.Redis`` takes: ``host``, ``port``, ``db``, ``password`` and others.
    """

    store: RedisStore

    def __init__(
        self,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        encoder: Encoder | None = None,
        use_namespace_prefix_keys: bool = False,
        client: Any = None,
        url: str | None = None,
        **parameters: Any,
    ) -> None:
        #: A client of the same server, for programs that want one. The backend's own connections are others.
        self.client = client_of(client, url, parameters)
        super().__init__(
            RedisStore(RedisTransport(self.client)),
            namespace=namespace,
            encoder=encoder,
            use_namespace_prefix_keys=use_namespace_prefix_keys,
        )

    def bind(self, broker: BrokerLike) -> None:
        store = broker.store
        if isinstance(store, RedisStore) and store.transport.server == self.store.transport.server:
            self.store = store  # marks lie in the broker's namespace
        super().bind(broker)

    def build_message_key(self, message: Any) -> str:
        """The key of a message's result."""
        return ResultBackend.build_message_key(self, message)

    def put(self, message: Any, stored: Any, ttl: int | None) -> Put:
        put = super().put(message, stored, ttl)
        return put if pending_of(stored) is not None else PutResult(put.key, put.value, ttl)

    def _wait(self, key: str, look: Callable[[], bool | None], timeout_s: float) -> None:
        """Waits at the key itself: it does not matter which program writes the result."""
        longest_s = min(_SLICE_S, self.store.transport.share.connector.timeout_s / 2)
        deadline_s = SYSTEM_CLOCK.monotonic() + timeout_s
        while look() is None and (left_s := deadline_s - SYSTEM_CLOCK.monotonic()) > 0:
            slice_s = max(0.001, min(longest_s, left_s))  # 0 is for ever
            with interruptible.shield():
                self.store.transport.share.call(b"BRPOPLPUSH", key, key, f"{slice_s:.3f}")

    def _read(self, key: str) -> Any:
        with interruptible.shield():
            data = self.store.apply([GetResult(key)])[0]
        return Missing if data is None else self._decode(data)

    def _store(self, message_key: str, result: Any, ttl: int) -> None:
        with interruptible.shield():
            self.store.apply([PutResult(message_key, self._encode(result), ttl)])
