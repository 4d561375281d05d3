"""What was claimed and waits for an executor: lower priority first, then first in, first out."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from typing import Any

_STOP = object()


class Buckets:
    """A bucket a priority, because a heap of a thousand costs ten comparisons a message, and nearly always there is
    one priority. One thread pushes; any may pop: a deque's operations are atomic."""

    __slots__ = ("_by_priority", "in_order")

    def __init__(self) -> None:
        self._by_priority: dict[int, deque[Any]] = {}
        #: The buckets, most urgent first; replaced as a whole.
        self.in_order: tuple[deque[Any], ...] = ()

    def push(self, runs: Sequence[Any], priority: int) -> None:
        """Adds runs of one priority, in their order."""
        bucket = self._by_priority.get(priority)
        if bucket is None:
            bucket = self._by_priority[priority] = deque()
            self.in_order = tuple(self._by_priority[p] for p in sorted(self._by_priority))
        bucket.extend(runs)

    def pop(self) -> Any:
        """The first run, or None."""
        for bucket in self.in_order:
            try:
                return bucket.popleft()
            except IndexError:
                continue
        return None

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self.in_order)


class ReadyRuns:
    """Filled by the pump, emptied by threads.

    There is a token in a ``SimpleQueue`` for every run, put after the run: whoever takes a token finds a run, if not
    in the first round over the buckets, then in the next. Everything is atomic under the GIL; there is no lock that a
    thousand short messages a second could queue up for.
    """

    __slots__ = ("_buckets", "_take", "_tokens", "empty")

    def __init__(self) -> None:
        self._tokens: SimpleQueue[Any] = SimpleQueue()
        self._buckets = Buckets()
        self._take = self._tokens.get
        #: ``empty()`` is True if no run waits.
        self.empty = self._tokens.empty

    def push(self, runs: Sequence[Any], priority: int) -> None:
        """Pump only: adds runs of one priority, in their order."""
        self._buckets.push(runs, priority)
        put = self._tokens.put
        for _ in runs:
            put(None)

    def pop(self) -> Any:
        """Any thread: waits for a run. None means that the caller is to end."""
        if self._take() is _STOP:
            return None
        while True:
            for bucket in self._buckets.in_order:  # Buckets.pop written out: a call less a message
                try:
                    return bucket.popleft()
                except IndexError:
                    continue

    def drain(self) -> list[Any]:
        """Any thread: takes all that nobody has taken a token for, also what came behind the word to end."""
        runs: list[Any] = []
        stops = 0
        while True:
            try:
                token = self._tokens.get_nowait()
            except Empty:
                break
            if token is _STOP:
                stops += 1
                continue
            while (run := self._buckets.pop()) is None:
                pass
            runs.append(run)
        for _ in range(stops):
            self.stop_one()
        return runs

    def stop_one(self) -> None:
        """Tells one thread to end, once all before it is taken."""
        self._tokens.put(_STOP)

    def __len__(self) -> int:
        return self._tokens.qsize()
