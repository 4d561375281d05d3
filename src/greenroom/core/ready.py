"""What was claimed and waits for a thread: lower priority first, then first in, first out."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from typing import Any

_STOP = object()


class ReadyRuns:
    """Filled by the pump, emptied by threads.

    There is a token in a ``SimpleQueue`` for every run, put after the run: whoever takes a token finds a run, if not
    in the bucket that it looked at first, then in the next round. A bucket a priority, because a heap of a thousand
    costs ten comparisons a message, and nearly always there is one priority. Both are atomic under the GIL; there is
    no lock that a thousand short messages a second could queue up for.
    """

    __slots__ = ("_buckets", "_by_priority", "_tokens")

    def __init__(self) -> None:
        self._tokens: SimpleQueue[Any] = SimpleQueue()
        self._by_priority: dict[int, deque[Any]] = {}
        self._buckets: tuple[deque[Any], ...] = ()  # replaced as a whole, by the pump only

    def push(self, runs: Sequence[Any], priority: int) -> None:
        """Pump only: adds runs of one priority, in their order."""
        bucket = self._by_priority.get(priority)
        if bucket is None:
            bucket = self._by_priority[priority] = deque()
            self._buckets = tuple(self._by_priority[p] for p in sorted(self._by_priority))
        bucket.extend(runs)
        put = self._tokens.put
        for _ in runs:
            put(None)

    def pop(self) -> Any:
        """Any thread: waits for a run. None means that the caller is to end."""
        if self._tokens.get() is _STOP:
            return None
        while True:
            for bucket in self._buckets:
                try:
                    return bucket.popleft()
                except IndexError:
                    continue

    def drain(self) -> list[Any]:
        """Any thread: takes all that nobody has taken a token for."""
        runs = []
        while not self._tokens.empty():
            try:
                token = self._tokens.get_nowait()
            except Empty:  # another thread was faster
                break
            if token is _STOP:
                self._tokens.put(token)
                break
            for bucket in self._buckets:
                try:
                    runs.append(bucket.popleft())
                    break
                except IndexError:
                    continue
        return runs

    def stop_one(self) -> None:
        """Tells one thread to end, once all before it is taken."""
        self._tokens.put(_STOP)

    def empty(self) -> bool:
        return self._tokens.empty()

    def __len__(self) -> int:
        return self._tokens.qsize()
