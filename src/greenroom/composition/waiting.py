"""Waiting for the results of compositions.

What there is to wait for is told by generators that know neither threads nor loops: they yield a ``Wanted``, are sent
its result, and return the value of a whole. So every composition is written once, and driven twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any, TypeVar

import msgspec

from ..clock import SYSTEM_CLOCK
from ..core.graph import Failure, failure_key
from ..errors import ResultFailure, ResultMissing, ResultTimeout
from ..message import Message
from ..ports.store import Get
from ..ports.watching import await_for, wait_for

#: Milliseconds that one result is waited for if nobody says how long.
DEFAULT_TIMEOUT = 10_000
#: Seconds between two looks at what is not in the broker's own store.
_LOOK_S = 0.25

V = TypeVar("V")


class Wanted(msgspec.Struct, frozen=True):
    """The result of a message. ``failures`` are the compositions whose failure ends the wait."""

    message: Message[Any]
    failures: tuple[str, ...] = ()


Steps = Generator[Wanted, Any, V]


def steps_of(node: Any, failures: tuple[str, ...]) -> Steps[Any]:
    """What there is to wait for until the value of a stage or a member is known."""
    if isinstance(node, Message):
        return (yield Wanted(node, failures))
    return (yield from node._steps(failures))


class Waiter:
    """Waits for results. Owned by whoever waits.

    Parameters:
      broker: Has the backend of results.
      block: Wait for what is not there yet.
      timeout: Milliseconds for all of it; None for ten seconds each.

    Raises:
      RuntimeError: If the broker has no backend of results.
    """

    def __init__(self, broker: Any, *, block: bool, timeout: int | None) -> None:
        self._backend = broker.get_results_backend()
        self._store = broker.composition_store
        self._block = block
        self._timeout = timeout
        self._deadline_s = None if timeout is None else SYSTEM_CLOCK.monotonic() + timeout / 1000
        #: True if one watch sees results and failures.
        self._is_one = self._store is not None and _is_one(self._store, getattr(self._backend, "store", None), broker)

    def _left_ms(self) -> int:
        if self._deadline_s is None:
            return DEFAULT_TIMEOUT
        return max(0, round((self._deadline_s - SYSTEM_CLOCK.monotonic()) * 1000))

    # --- driving

    def drive(self, steps: Steps[V]) -> V:
        """Runs steps to their value."""
        try:
            wanted = next(steps)
            while True:
                try:
                    value = self._result(wanted)
                except ResultFailure as e:
                    wanted = steps.throw(e)
                else:
                    wanted = steps.send(value)
        except StopIteration as e:
            value_of_all: V = e.value
            return value_of_all

    async def adrive(self, steps: Steps[V]) -> V:
        """``drive`` for coroutines."""
        try:
            wanted = next(steps)
            while True:
                try:
                    value = await self._aresult(wanted)
                except ResultFailure as e:
                    wanted = steps.throw(e)
                else:
                    wanted = steps.send(value)
        except StopIteration as e:
            value_of_all: V = e.value
            return value_of_all

    # --- one result

    def _result(self, wanted: Wanted) -> Any:
        look = _Look(self._backend, self._store, wanted)
        if not self._block:
            return look.now()
        if not wanted.failures or self._store is None:
            return self._backend.get_result(wanted.message, block=True, timeout=self._left_ms())
        if self._is_one:
            wait_for(self._store, look.keys(), look, self._left_ms() / 1000)
        else:
            deadline_s = SYSTEM_CLOCK.monotonic() + self._left_ms() / 1000
            while not look() and SYSTEM_CLOCK.monotonic() < deadline_s:
                SYSTEM_CLOCK.sleep(_LOOK_S)
        return look.answer()

    async def _aresult(self, wanted: Wanted) -> Any:
        look = _Look(self._backend, self._store, wanted)
        if not self._block:
            return await asyncio.to_thread(look.now)
        if not wanted.failures or self._store is None:
            return await self._backend.aget_result(wanted.message, block=True, timeout=self._left_ms())
        if self._is_one:
            await await_for(self._store, look.keys(), lambda: asyncio.to_thread(look), self._left_ms() / 1000)
        else:
            deadline_s = SYSTEM_CLOCK.monotonic() + self._left_ms() / 1000
            while not await asyncio.to_thread(look) and SYSTEM_CLOCK.monotonic() < deadline_s:  # noqa: ASYNC110  # no wake
                await asyncio.sleep(_LOOK_S)
        return look.answer()


def _is_one(store: Any, other: Any, broker: Any) -> bool:
    """True if two stores are one: the same, or both the broker's own."""
    if store is other:
        return True
    return store is broker.store and hasattr(other, "is_one_with") and bool(other.is_one_with(broker.transport))


class _Look:
    """Looks for a result, and for failures that make it vain. Owned by whoever waits."""

    def __init__(self, backend: Any, store: Any, wanted: Wanted) -> None:
        self._backend = backend
        self._store = store
        self._wanted = wanted
        self._found: list[Any] = []
        self._failure: ResultFailure | None = None
        self._missing: ResultMissing | None = None

    def keys(self) -> list[str]:
        """What to watch."""
        failures = [failure_key(composition) for composition in self._wanted.failures]
        return [self._backend.build_message_key(self._wanted.message), *failures]

    def now(self) -> Any:
        """The result; raises if there is none yet, or a failure."""
        if self._store is not None and self._wanted.failures:
            self()
            if self._missing is not None and self._failure is None:
                raise self._missing
            return self.answer()
        return self._backend.get_result(self._wanted.message)

    def __call__(self) -> bool | None:
        try:
            self._found = [self._backend.get_result(self._wanted.message)]
        except ResultFailure as e:
            self._failure = e
        except ResultMissing as e:
            self._missing = e
            self._failure = failure_of(self._store, self._wanted.failures)
        return True if self._found or self._failure is not None else None

    def answer(self) -> Any:
        """The value that was found; raises if none was, or a failure."""
        if self._found:
            return self._found[0]
        if self._failure is not None:
            raise self._failure
        raise ResultTimeout(f"There was no result of {self._wanted.message} in time.")


def failure_of(store: Any, compositions: tuple[str, ...]) -> ResultFailure | None:
    """Why one of these compositions has failed; None if none has."""
    for data in store.apply([Get(failure_key(composition)) for composition in compositions]) if compositions else ():
        if data is not None:
            failure = msgspec.json.decode(data, type=Failure)
            text = f"actor raised {failure.type}: {failure.message}"
            return ResultFailure(text, failure.type, failure.message, failure.traceback or "")
    return None
