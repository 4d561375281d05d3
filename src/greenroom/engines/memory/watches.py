"""Who watches which keys of a store in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Self


class MemoryWatch:
    """One watch. Made by ``Watches.add``; any thread may close it."""

    def __init__(self, watches: Watches, keys: frozenset[str], notify: Callable[[], None], lock: Any) -> None:
        self.keys = keys
        self.notify = notify
        self._watches = watches
        self._lock = lock

    def close(self) -> None:
        """Ends it; closing again does nothing."""
        with self._lock.get():
            self._watches.remove(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Watches:
    """The watches of a transport's store. Changed under the transport's lock only."""

    def __init__(self) -> None:
        self._by_key: dict[str, set[MemoryWatch]] = {}

    def add(self, keys: Iterable[str], notify: Callable[[], None], lock: Any) -> MemoryWatch:
        watch = MemoryWatch(self, frozenset(keys), notify, lock)
        for key in watch.keys:
            self._by_key.setdefault(key, set()).add(watch)
        return watch

    def remove(self, watch: MemoryWatch) -> None:
        for key in watch.keys:
            watches = self._by_key.get(key)
            if watches is not None:
                watches.discard(watch)
                if not watches:
                    del self._by_key[key]

    def of(self, keys: Iterable[str]) -> list[Callable[[], None]]:
        """Whom to call for a change of these keys, each once."""
        if not self._by_key:
            return []
        return [watch.notify for watch in {watch for key in keys for watch in self._by_key.get(key, ())}]
