"""Where results are kept: what every backend shares, and what one of a user's own has to bring."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from typing import Any, Final

from ..backoff import compute_backoff
from ..clock import SYSTEM_CLOCK
from ..encoder import Encoder, get_encoder
from ..errors import ResultMissing, ResultTimeout
from ..names import q_name
from .result import unwrap_result, wrap_exception, wrap_result

#: Milliseconds.
DEFAULT_TIMEOUT = 10_000
DEFAULT_NAMESPACE = "dramatiq-results"
#: The first and the longest wait between two looks, in milliseconds, where nothing tells of a new result.
_FIRST_WAIT = 100
_LONGEST_WAIT = 2_000


class _Missing:
    """The class of ``Missing``."""

    def __repr__(self) -> str:
        return "Missing"


#: What ``_get`` returns where there is no result.
Missing: Final = _Missing()


class ResultBackend:
    """Base class of result backends. One of your own brings ``_get`` and ``_store``.

    Parameters:
      namespace: What its keys begin with.
      encoder: How values become bytes; by default the encoder that messages use now.
      use_namespace_prefix_keys: If True the keys are texts that begin with the namespace, else MD5 hashes of them.
    """

    def __init__(
        self,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        encoder: Encoder | None = None,
        use_namespace_prefix_keys: bool = False,
    ) -> None:
        self.encoder = encoder or get_encoder()
        self.namespace = namespace
        self.use_namespace_prefix_keys = use_namespace_prefix_keys

    # --- for users

    def get_result(self, message: Any, *, block: bool = False, timeout: int | None = None) -> Any:
        """The result of a message.

        Parameters:
          message: The message.
          block: Wait for the result to be there.
          timeout: Milliseconds to wait at the most; 10 000 by default.

        Raises:
          ResultMissing: If ``block`` is False and there is none.
          ResultTimeout: If there was none in time.
          ResultFailure: If the actor failed.
        """
        key = self.build_message_key(message)
        for wait_s in _waits(block, timeout):
            found = self._get(key)
            if found is not Missing:
                return self.unwrap_result(found)
            if wait_s > 0:
                SYSTEM_CLOCK.sleep(wait_s)
        raise _none_found(message, block, timeout)

    async def aget_result(
        self,
        message: Any,
        *,
        block: bool = False,
        timeout: int | None = None,  # noqa: ASYNC109  # as in get_result
    ) -> Any:
        """``get_result`` for coroutines: it does not block the event loop."""
        if type(self).get_result is not ResultBackend.get_result:  # a backend with a way of its own to wait
            return await asyncio.to_thread(self.get_result, message, block=block, timeout=timeout)
        key = self.build_message_key(message)
        for wait_s in _waits(block, timeout):
            found = await asyncio.to_thread(self._get, key)
            if found is not Missing:
                return self.unwrap_result(found)
            if wait_s > 0:
                await asyncio.sleep(wait_s)
        raise _none_found(message, block, timeout)

    # --- for the middleware

    def store_result(self, message: Any, result: Any, ttl: int) -> None:
        """Keeps what an actor has returned, for ``ttl`` milliseconds."""
        self._store(self.build_message_key(message), wrap_result(result), ttl)

    def store_exception(self, message: Any, exception: BaseException, ttl: int) -> None:
        """Keeps what an actor has failed with, for ``ttl`` milliseconds."""
        self._store(self.build_message_key(message), wrap_exception(exception), ttl)

    def build_message_key(self, message: Any) -> str:
        """The key of a message's result."""
        if isinstance(message, str):
            raise RuntimeError(
                f"{type(self).__name__} does not find results by the message's id alone: its keys contain queue and "
                "actor, too. Ask with the message, or keep results in the broker's own store."
            )
        key = f"{self.namespace}:{q_name(message.queue_name)}:{message.actor_name}:{message.message_id}"
        if self.use_namespace_prefix_keys:
            return key
        return hashlib.md5(key.encode("utf-8"), usedforsecurity=False).hexdigest()

    def unwrap_result(self, res: Any) -> Any:
        """The value that was kept; raises ``ResultFailure`` if a failure was."""
        return unwrap_result(res)

    # --- for backends

    def _get(self, message_key: str) -> Any:
        """What is kept under a key, or ``Missing``."""
        raise NotImplementedError(f"{type(self).__name__!r} does not implement _get()")

    def _store(self, message_key: str, result: Any, ttl: int) -> None:
        """Keeps something under a key, for ``ttl`` milliseconds."""
        raise NotImplementedError(f"{type(self).__name__!r} does not implement _store()")

    def _encode(self, value: Any) -> bytes:
        return self.encoder.encode(value)

    def _decode(self, data: bytes) -> Any:
        return self.encoder.decode(data)


def _waits(block: bool, timeout: int | None) -> Iterator[float]:
    """How long to wait after each look, in seconds; 0 after the last one."""
    if not block:
        yield 0.0
        return
    timeout_s = (DEFAULT_TIMEOUT if timeout is None else timeout) / 1000
    deadline = SYSTEM_CLOCK.monotonic() + timeout_s
    attempts = 0
    while (left_s := deadline - SYSTEM_CLOCK.monotonic()) > 0:
        attempts, wait = compute_backoff(attempts, factor=_FIRST_WAIT, max_backoff=_LONGEST_WAIT)
        yield min(left_s, wait / 1000)
    yield 0.0


def _none_found(message: Any, block: bool, timeout: int | None) -> ResultMissing | ResultTimeout:
    if not block:
        return ResultMissing(f"There is no result of {message}.")
    return ResultTimeout(
        f"There was no result of {message} within {DEFAULT_TIMEOUT if timeout is None else timeout} ms."
    )
