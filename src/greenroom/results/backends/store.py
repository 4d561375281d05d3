"""Results in a store: found by the message's id alone, and nobody polls for them where the engine can wake."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...context import interruptible
from ...encoder import Encoder
from ...errors import ResultMissing, ResultPending, ResultTimeout, ResultUnknown
from ...ports.store import Get, Put, Store
from ...ports.watching import await_for, wait_for
from ..backend import DEFAULT_NAMESPACE, DEFAULT_TIMEOUT, Missing, ResultBackend
from ..result import pending_of, wrap_pending

if TYPE_CHECKING:
    from ...ports.nouns import BrokerLike


class StoreBackend(ResultBackend):
    """Keeps results in a ``Store``. ``Results()`` makes one for the broker's own.

    Parameters:
      store: The store.
      namespace: Programs that share a store and differ in this do not see each other's results.
      encoder: How values become bytes; by default the encoder that messages use now.
      use_namespace_prefix_keys: Has no meaning here: keys are texts.
    """

    def __init__(
        self,
        store: Store,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        encoder: Encoder | None = None,
        use_namespace_prefix_keys: bool = False,
    ) -> None:
        super().__init__(namespace=namespace, encoder=encoder, use_namespace_prefix_keys=use_namespace_prefix_keys)
        self.store = store
        #: True if every message that will have a result leaves a mark here when it is sent.
        self.knows_what_is_sent = False

    def bind(self, broker: BrokerLike) -> None:
        """Told whose results it keeps, before the first of them."""
        store = broker.store
        if store is not None:
            self.knows_what_is_sent = self.store is store or self.store.is_one_with(broker.transport)

    def build_message_key(self, message: Any) -> str:
        """The key of a message's result, by the message or by its id."""
        message_id = message if isinstance(message, str) else message.message_id
        return f"r:{message_id}" if self.namespace == DEFAULT_NAMESPACE else f"r:{self.namespace}:{message_id}"

    def mark(self) -> bytes:
        """What is kept of a message that was sent, is due at once, and is to have a result."""
        return self._encode(wrap_pending("enqueued"))

    def is_mark(self, value: bytes | None) -> bool:
        """True for what is kept in place of a result that is to come."""
        return value is not None and pending_of(self._decode(value)) is not None

    def put(self, message: Any, stored: Any, ttl: int | None) -> Put:
        """The operation that keeps ``stored`` as what is known of a message, for ``ttl`` milliseconds.

        Raises:
          Exception: What the encoder raises.
        """
        return Put(self.build_message_key(message), self._encode(stored), ttl)

    def get_result(self, message: Any, *, block: bool = False, timeout: int | None = None) -> Any:
        """The result of a message.

        Parameters:
          message: The message, or its id.
          block: Wait for the result to be there.
          timeout: Milliseconds to wait at the most; 10 000 by default.

        Raises:
          ResultMissing: If ``block`` is False and there is none: ``ResultPending`` if it is to come, ``ResultUnknown``
            if nothing is known of the message and it would be.
          ResultTimeout: If there was none in time.
          ResultFailure: If the actor failed.
        """
        look = _Look(self, message)
        timeout = _bounded(block, timeout)
        self._wait(look.key, look, timeout / 1000)
        return look.answer(block, timeout)

    async def aget_result(
        self,
        message: Any,
        *,
        block: bool = False,
        timeout: int | None = None,  # noqa: ASYNC109  # as in get_result
    ) -> Any:
        """``get_result`` for coroutines: it does not block the event loop."""
        look = _Look(self, message)
        timeout = _bounded(block, timeout)
        await await_for(self.store, [look.key], lambda: asyncio.to_thread(look), timeout / 1000)
        return look.answer(block, timeout)

    def _wait(self, key: str, look: Callable[[], bool | None], timeout_s: float) -> None:
        """Blocks until ``look`` has found what is kept under a key, or for so long."""
        wait_for(self.store, [key], look, timeout_s)

    def close(self) -> None:
        """Closes what this process has opened for the store."""
        self.store.close()

    def _get(self, message_key: str) -> Any:
        stored = self._read(message_key)
        return Missing if stored is Missing or pending_of(stored) is not None else stored

    def _read(self, key: str) -> Any:
        """What is kept, be it a result or the mark of one that is to come."""
        with interruptible.shield():  # an actor that is interrupted here must leave no lock taken
            data = self.store.apply([Get(key)])[0]
        return Missing if data is None else self._decode(data)

    def _store(self, message_key: str, result: Any, ttl: int) -> None:
        with interruptible.shield():
            self.store.apply([Put(message_key, self._encode(result), ttl)])


class _Look:
    """Looks for a result, and remembers what was there instead. Owned by whoever waits."""

    def __init__(self, backend: StoreBackend, message: Any) -> None:
        self.key = backend.build_message_key(message)
        self._backend = backend
        self._name = f"message {message}" if isinstance(message, str) else str(message)
        self._found: Any = Missing
        self._pending: dict[str, Any] | None = None

    def __call__(self) -> bool | None:
        found = self._backend._read(self.key)
        self._pending = pending_of(found)
        if found is Missing or self._pending is not None:
            return None
        self._found = found
        return True

    def answer(self, block: bool, timeout: int) -> Any:
        """The value that was found; raises if none was, or a failure."""
        if self._found is not Missing:
            return self._backend.unwrap_result(self._found)
        pending = None if self._pending is None else _known_fields(self._pending)
        if block:
            told = "" if pending is None else f" ({_told(pending)})"
            raise ResultTimeout(f"There was no result of {self._name} within {timeout} ms{told}.", **(pending or {}))
        if pending is not None:
            raise ResultPending(f"There is no result of {self._name} yet ({_told(pending)}).", **pending)
        if self._backend.knows_what_is_sent:
            raise ResultUnknown(
                f"Nothing is known of {self._name}: it was never sent with store_results, or its result has expired."
            )
        raise ResultMissing(f"There is no result of {self._name}.")


def _bounded(block: bool, timeout: int | None) -> int:
    if not block:
        return 0
    return DEFAULT_TIMEOUT if timeout is None else max(0, timeout)


#: The fields of ``ResultPending``, and what they are made of. Others may have written into the store.
_FIELDS: dict[str, Callable[[Any], bool]] = {
    "state": lambda value: isinstance(value, str),
    "attempts": lambda value: isinstance(value, int),
    "last_error": lambda value: isinstance(value, str),
    "next_attempt_ms": lambda value: isinstance(value, int),
}


def _known_fields(pending: dict[str, Any]) -> dict[str, Any]:
    return {name: pending[name] for name, is_fine in _FIELDS.items() if is_fine(pending.get(name))}


def _told(pending: dict[str, Any]) -> str:
    text = str(pending.get("state", "pending"))
    if pending.get("attempts"):
        text += f", {pending['attempts']} failed"
    if pending.get("last_error"):
        text += f", the last with {pending['last_error']:.200}"
    return text
