"""Waiting for what a store keeps: watch, look, wait, look again.

Where the engine wakes, nothing is asked while nothing changes; a look each second is the net below that. Where it does
not, looks follow each other at growing distances. Both sides of every wait are here, so that each is written once.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Collection, Iterator
from typing import TypeVar

from ..clock import SYSTEM_CLOCK, Clock
from .store import Store

T = TypeVar("T")

#: Seconds between two looks where the engine wakes.
NET_S = 1.0
#: Seconds between the first two looks where it does not, and between later ones.
FIRST_LOOK_S = 0.01
LAST_LOOK_S = 1.0


def wait_for(
    store: Store,
    keys: Collection[str],
    look: Callable[[], T | None],
    timeout_s: float | None,
    *,
    clock: Clock = SYSTEM_CLOCK,
) -> T | None:
    """Blocks until ``look`` answers something that is not None, and returns that; None after the timeout.

    Parameters:
      store: Where the keys are.
      keys: Whose changes may make ``look`` answer.
      look: Reads the store. Called on the caller's thread, at least once.
      timeout_s: Seconds; None to wait for ever.
      clock: What measures the timeout.
    """
    found = look()  # before anything is set up: what is there already costs one read
    if found is not None or timeout_s == 0:
        return found
    changed = threading.Event()
    with store.watch(keys, changed.set):
        for wait_s in _waits(store, timeout_s, clock):
            changed.clear()
            found = look()
            if found is not None or wait_s <= 0:
                return found
            changed.wait(wait_s)
    return None


async def await_for(
    store: Store,
    keys: Collection[str],
    look: Callable[[], Awaitable[T | None]],
    timeout_s: float | None,
    *,
    clock: Clock = SYSTEM_CLOCK,
) -> T | None:
    """``wait_for`` for coroutines: ``look`` is awaited, and nothing blocks the loop."""
    found = await look()
    if found is not None or timeout_s == 0:
        return found
    loop = asyncio.get_running_loop()
    changed = asyncio.Event()

    def notify() -> None:
        try:
            loop.call_soon_threadsafe(changed.set)
        except RuntimeError:  # the loop was closed: nobody waits any more
            return

    with await asyncio.to_thread(store.watch, keys, notify):
        for wait_s in _waits(store, timeout_s, clock):
            changed.clear()
            found = await look()
            if found is not None or wait_s <= 0:
                return found
            try:
                await asyncio.wait_for(changed.wait(), wait_s)
            except TimeoutError:
                continue
    return None


def _waits(store: Store, timeout_s: float | None, clock: Clock) -> Iterator[float]:
    """How long to wait after each look, in seconds; 0 after the last one."""
    deadline = None if timeout_s is None else clock.monotonic() + timeout_s
    wait_s = NET_S if store.features.wakes else FIRST_LOOK_S
    while True:
        left_s = wait_s if deadline is None else deadline - clock.monotonic()
        yield max(0.0, min(wait_s, left_s))
        if not store.features.wakes:
            wait_s = min(LAST_LOOK_S, wait_s * 1.5)
