"""The keys of one run of a script: each is declared once, and named by its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence

#: Makes the keys of a queue.
KeysOf = Callable[[str], Sequence[bytes]]


class KeyTable:
    """Collects the keys of a script. Places count from 1, as in Lua.

    Parameters:
      first: The keys with a fixed place.
      keys_of: Makes the keys of a queue.
    """

    __slots__ = ("_keys_of", "_places", "_queues", "keys")

    def __init__(self, first: Sequence[bytes], keys_of: KeysOf) -> None:
        #: All keys, in order.
        self.keys = list(first)
        self._keys_of = keys_of
        self._queues: dict[str, int] = {}
        self._places: dict[bytes, int] = {}

    def of(self, queue: str) -> int:
        """Where the keys of a queue begin; added if need be."""
        place = self._queues.get(queue)
        if place is None:
            place = self._queues[queue] = len(self.keys) + 1
            self.keys += self._keys_of(queue)
        return place

    def add(self, key: bytes) -> int:
        """Where any other key stands; added if need be."""
        place = self._places.get(key)
        if place is None:
            self.keys.append(key)
            place = self._places[key] = len(self.keys)
        return place
