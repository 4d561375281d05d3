"""What tests of async actors share: a gate for coroutines, and reading what a message became."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from tests.runtime.cli_kit import wait_until


class AsyncGate:
    """Where coroutines wait until the test opens it. ``entered`` and ``left`` hold what came, in order."""

    def __init__(self) -> None:
        self.entered: list[Any] = []
        self.left: list[Any] = []
        self._lock = threading.Lock()  # guards: nobody begins to wait at a gate that is open
        self._is_open = False
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def __call__(self, value: Any = None) -> None:
        opened = asyncio.Event()
        with self._lock:
            if self._is_open:
                opened.set()
            self._waiting.append((asyncio.get_running_loop(), opened))
        self.entered.append(value)
        await opened.wait()
        self.left.append(value)

    def open(self) -> None:
        """Lets all go that wait, and all that come."""
        with self._lock:
            self._is_open = True
            for loop, opened in self._waiting:
                loop.call_soon_threadsafe(opened.set)

    def wait_for(self, *values: Any) -> None:
        """Until these have entered, in any order."""
        wait_until(lambda: set(values) <= set(self.entered), f"{values} are at the gate")
