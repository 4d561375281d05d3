"""The base class of rate limiters: taking part in a limit for as long as a block lasts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from ..context import interruptible
from ..errors import RateLimitExceeded
from ..ports.store import LeaseTake
from .backend import RateLimiterBackend


class Admission:
    """How an attempt to acquire a limiter went. Owned by whoever made it.

    ``retry_at_ms`` is when to ask again, if it was refused (UNIX milliseconds; None: nobody knows); ``slot`` is what
    was asked for, if that is something that one can stand in line for.
    """

    __slots__ = ("granted", "retry_at_ms", "slot")

    def __init__(self, granted: bool, retry_at_ms: int | None = None, slot: LeaseTake | None = None) -> None:
        self.granted = granted
        self.retry_at_ms = retry_at_ms
        self.slot = slot


class RateLimiter:
    """The base class of rate limiters. Any thread and process may use it; two with the same backend and key are one.

    A limiter of your own overrides ``_acquire`` and ``_release``.

    Parameters:
      backend: What keeps the state.
      key: The name of the limit.
    """

    def __init__(self, backend: RateLimiterBackend, key: str) -> None:
        self.backend = backend
        self.key = key

    def _acquire(self) -> bool:
        """Takes part in the limit; False if it is reached."""
        raise NotImplementedError

    def _release(self) -> None:
        """Gives back what ``_acquire`` took."""
        raise NotImplementedError

    def _enter(self) -> Admission:
        """``_acquire``, for those that know more than yes or no."""
        return Admission(self._acquire())

    def _leave(self, admission: Admission) -> None:
        """``_release`` of what ``_enter`` took."""
        self._release()

    @contextmanager
    def acquire(self, *, raise_on_failure: bool = True) -> Iterator[bool]:
        """A context manager that takes part in the limit while its block runs. Never waits.

        An actor with ``limit_policy="wait"`` that lets the exception pass goes back to the queue until there is room,
        and no retry is counted.

        Parameters:
          raise_on_failure: If False, the block also runs when the limit is reached; it is told by what this yields.

        Yields:
          Whether the limit was acquired.

        Raises:
          RateLimitExceeded: If the limit is reached; ``retry_at_ms`` says when to try again.
          BrokerError: If the backend does not answer.
        """
        admission = None
        try:
            with interruptible.shield():  # an interrupt must not get between a slot and its release
                admission = self._enter()
            if raise_on_failure:
                self._check(admission)
            yield admission.granted
        finally:
            if admission is not None and admission.granted:
                with interruptible.shield():
                    self._leave(admission)

    @asynccontextmanager
    async def aacquire(self, *, raise_on_failure: bool = True) -> AsyncIterator[bool]:
        """``acquire`` for coroutines: does not block the loop."""
        entering = asyncio.ensure_future(asyncio.to_thread(self._enter))
        admission = None
        try:
            admission = await asyncio.shield(entering)
            if raise_on_failure:
                self._check(admission)
            yield admission.granted
        except asyncio.CancelledError:
            admission = admission or await entering  # what was asked for has to be given back
            raise
        finally:
            if admission is not None and admission.granted:
                await asyncio.shield(asyncio.to_thread(self._leave, admission))

    def _check(self, admission: Admission) -> None:
        if not admission.granted:
            raise RateLimitExceeded(
                f"rate limit exceeded for key {self.key!r}",
                retry_at_ms=admission.retry_at_ms,
                slot=admission.slot,
                store=self.backend.store,
            )
