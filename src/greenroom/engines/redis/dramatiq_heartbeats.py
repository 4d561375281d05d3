"""Which processes work with Dramatiq's layout: who lives, and who has died with messages in its hands."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from ...logging import get_logger, one_line
from .dramatiq_bury import OURS
from .dramatiq_layout import NEWEST, DramatiqLayout, Place

#: How many messages of a dead process are put back at a time, and for how many of the dead that is tried.
TAKEOVER_CHUNK = 500
DEAD_A_STEP = 5

logger = get_logger(__name__)


class _Seen(NamedTuple):
    score: float
    since_s: float


class Heartbeats:
    """What one process has observed. Owned by its pump.

    Processes write the time of their own clocks, so what counts is whether it changes: who has not changed it for
    ``timeout_s`` while we looked is dead. Only at the first sight of it its age is believed, to say who seems to live.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._seen: dict[str, _Seen] = {}
        self._fresh_until_s = -math.inf
        #: The dead whose messages have been taken over, until they give another sign of life.
        self._settled: set[str] = set()

    def observe(self, scores: Mapping[str, float], server_ms: int, now_s: float, *, complete: bool) -> None:
        """Notes what has been read.

        Parameters:
          scores: Processes and their last signs of life.
          server_ms: The server's time.
          now_s: The monotonic time.
          complete: Whether these are all that there are.
        """
        for name, score in scores.items():
            known = self._seen.get(name)
            if known is not None and known.score == score:
                continue
            self._seen[name] = _Seen(score, now_s)
            self._settled.discard(name)
            if not name.startswith(OURS) and (known is not None or server_ms - score < self._timeout_s * 1000):
                self._fresh_until_s = now_s + self._timeout_s
        if complete:
            self._seen = {name: seen for name, seen in self._seen.items() if name in scores}
            self._settled &= self._seen.keys()

    def is_fresh(self, now_s: float) -> bool:
        """Whether a process of Dramatiq's seems to live."""
        return now_s < self._fresh_until_s

    def dead(self, now_s: float, me: str) -> Iterator[tuple[str, float]]:
        """Those of whom it is not known yet that they hold nothing, with their last signs of life."""
        for name, seen in list(self._seen.items()):
            if now_s - seen.since_s >= self._timeout_s and name != me and name not in self._settled:
                yield name, seen.score

    def revive(self, name: str, now_s: float) -> None:
        """Says that a process has given a sign of life, which is not read yet."""
        self._seen[name] = self._seen[name]._replace(since_s=now_s)

    def settle(self, name: str) -> None:
        """Says that a dead process holds nothing any more."""
        self._settled.add(name)


class TakeOver:
    """Puts back what dead processes had claimed of Dramatiq's layout. Owned by the pump.

    Parameters:
      layout: Dramatiq's keys.
      me: Our own name there.
      timeout_s: After how long without a sign of life a process is dead.
    """

    def __init__(self, layout: DramatiqLayout, me: str, timeout_s: float) -> None:
        self.heartbeats = Heartbeats(timeout_s)
        self._layout = layout
        self._me = me
        self._interval_s = timeout_s / 4
        self._read_at = 0.0

    def observe(self, newest: Mapping[str, float], server_ms: int, now_s: float) -> None:
        """Notes the newest heartbeats, and now and then all of them, if there are many."""
        is_all = len(newest) < NEWEST
        if not is_all and now_s >= self._read_at:
            self._read_at = now_s + self._interval_s
            newest, is_all = self._layout.heartbeats(), True
        self.heartbeats.observe(newest, server_ms, now_s, complete=is_all)

    def is_due(self, now_s: float) -> bool:
        """Whether somebody may have died with messages in its hands."""
        return next(self.heartbeats.dead(now_s, self._me), None) is not None

    def step(self, queues: Sequence[str], now_s: float) -> bool:
        """Puts back what a few of them had claimed of these queues; returns whether there is more."""
        for name, score in islice(self.heartbeats.dead(now_s, self._me), DEAD_A_STEP):
            count = 0
            for place in [Place(queue, delayed) for queue in queues for delayed in (False, True)]:
                taken = self._layout.take_over(name, score, place, TAKEOVER_CHUNK)
                if taken < 0:
                    self.heartbeats.revive(name, now_s)
                    break
                count += taken
                if taken == TAKEOVER_CHUNK:
                    return True
            else:
                self.heartbeats.settle(name)
            if count:
                logger.warning("Process %s has died: %d messages that it held are put back.", one_line(name, 80), count)
        return self.is_due(now_s)
