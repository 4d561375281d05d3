"""When the messages in Dramatiq's delayed lists are due. A list has no order: its bodies have to be read, once each."""

from __future__ import annotations

from collections.abc import Mapping

from .dramatiq_layout import DramatiqLayout, QueueState, due_ms_of

#: How many windows of a list are read at a time.
WINDOWS = 20
#: Seconds between two readings of a whole list. In between only its end is read, where what is new comes.
WALK_INTERVAL_S = 60.0


class _Walk:
    """Where the reading of one list stands."""

    def __init__(self) -> None:
        self.after = 0
        self.is_whole = True
        self.whole_at_s = 0.0
        self.seen = (0, b"")
        self.learned: list[tuple[str, int]] = []


class DelayedReader:
    """Reads the lists from their ends, and notes on the server what it learns. Owned by the pump."""

    def __init__(self, layout: DramatiqLayout) -> None:
        self._layout = layout
        self._walks: dict[str, _Walk] = {}
        #: The first due time that the last call of ``read`` has learned.
        self.first_due_ms: int | None = None

    def has_news(self, queue: str, length: int) -> bool:
        """Whether a list of that length is another than the one that was read."""
        walk = self._walks.get(queue)
        return length > 0 if walk is None else length != walk.seen[0]

    def read(self, states: Mapping[str, QueueState], now_s: float) -> bool:
        """Reads on where there is news; returns whether there is more to be read."""
        again = False
        self.first_due_ms = None
        for queue, state in states.items():
            if not state.delayed:
                self._walks.pop(queue, None)
                continue
            walk = self._walks.setdefault(queue, _Walk())
            if now_s >= walk.whole_at_s:
                walk.is_whole, walk.whole_at_s = True, now_s + WALK_INTERVAL_S
            elif not walk.after and walk.seen == (state.delayed, state.tail):
                continue
            walk.seen = (state.delayed, state.tail)
            again |= self._read_on(queue, walk)
        return again

    def _read_on(self, queue: str, walk: _Walk) -> bool:
        for _ in range(WINDOWS):
            length, seen, unknown = self._layout.learn_delayed(queue, walk.after, walk.learned)
            walk.learned = [(claim.id, due_ms_of(claim.body)) for claim in unknown]
            self._note([due_ms for _, due_ms in walk.learned])
            walk.after += seen
            if walk.after >= length or not (walk.is_whole or unknown):
                if walk.learned:
                    self._layout.learn_delayed(queue, length, walk.learned)
                walk.after, walk.is_whole, walk.learned = 0, False, []
                return False
        return True

    def _note(self, due: list[int]) -> None:
        known = due if self.first_due_ms is None else [*due, self.first_due_ms]
        self.first_due_ms = min(known, default=None)
