"""Crashes of messages in a store that all hosts share.

Boards tell what ran when a process of this host died. A message that crashes workers of several hosts in turn meets
the boards of each only when it comes back there. With a ledger whoever finds a board writes down what it says, once a
board, and whoever gets such a message reads how many boards there were.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ...errors import BrokerError
from ...logging import get_logger
from ...ports.store import MAX_OPS, Progress, SetAdd, SetLook, Store

#: For how long a crash is remembered, in milliseconds: a day.
REMEMBERED_MS = 24 * 3600 * 1000

logger = get_logger(__name__)


class Ledger:
    """Owned by its consumer.

    Parameters:
      store: Where it is kept.

    Raises:
      ValueError: The store has no sets.
    """

    def __init__(self, store: Store) -> None:
        if not store.features.sets:
            raise ValueError(f"{store!r} cannot be a ledger: it has no sets.")
        self._store = store

    def write(self, board: str, marks: Collection[int]) -> bool:
        """Writes down what stood on the board of a dead process. Writing it again changes nothing.

        Parameters:
          board: What tells it from all others.
          marks: What stood there.

        Returns False if that has to be done again.
        """
        ops = [SetAdd(_key(mark), (board,), REMEMBERED_MS) for mark in marks]
        return all(self._apply(ops[start : start + MAX_OPS]) is not None for start in range(0, len(ops), MAX_OPS))

    def read(self, mark: int) -> int:
        """On how many boards of dead processes it stood; 0 also if the store does not answer."""
        found = self._apply([SetLook(_key(mark))])
        progress: Progress | None = found[0] if found else None
        return progress.total if progress is not None else 0

    def _apply(self, ops: Collection[Any]) -> list[Any] | None:
        try:
            return self._store.apply(list(ops))
        except BrokerError as e:
            logger.warning("The ledger of crashes does not answer: %s", e)
            return None


def _key(mark: int) -> str:
    return f"greenroom:crashed:{mark:x}"
