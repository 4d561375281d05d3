"""When a child has worked enough and should have a successor: by its messages, and by its memory."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from ..settings import Settings

_LOOK_EVERY_S = 0.25
_MIB = 2**20


class Recycling:
    """Owned by the main thread of a child."""

    def __init__(self, settings: Settings) -> None:
        self._max_tasks = settings.max_tasks_per_child
        self._max_rss_mib = settings.max_rss_per_child_mib

    @property
    def look_every_s(self) -> float | None:
        """How often to ask ``reason``; None if never."""
        return None if self._max_tasks is None and self._max_rss_mib is None else _LOOK_EVERY_S

    def reason(self, finished: int) -> str:
        """Why it has worked enough; "" if it has not.

        Parameters:
          finished: How many messages it has run.
        """
        if self._max_tasks is not None and finished >= self._max_tasks:
            return f"it has run {finished} messages (--max-tasks-per-child {self._max_tasks})"
        if self._max_rss_mib is None or not finished:  # who has run nothing would have a successor of the same size
            return ""
        if (rss_mib := resident_bytes() / _MIB) >= self._max_rss_mib:
            return f"it holds {rss_mib:.0f} MiB of memory (--max-rss-per-child {self._max_rss_mib})"
        return ""


def resident_bytes() -> int:
    """The memory that this process holds; where there is no ``/proc``, the most that it ever held."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
