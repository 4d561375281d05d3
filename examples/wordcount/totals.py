"""The sum of what the workers have counted."""

from __future__ import annotations

from collections import Counter
from typing import Any

from greenroom.results import ResultFailure

Report = dict[str, Any]


class Totals:
    """The sum of all reports."""

    def __init__(self) -> None:
        self.words: Counter[str] = Counter()
        self.counted = 0
        self.failures: dict[str, str] = {}
        self._began_s = float("inf")
        self._ended_s = 0.0

    @property
    def messages_a_second(self) -> float:
        """From the start of the first task to the end of the last."""
        took_s = self._ended_s - self._began_s
        return (self.counted + len(self.failures)) / took_s if took_s > 0 else 0.0

    def add(self, path: str, report: Report | ResultFailure) -> None:
        """Adds what ``tasks.count`` returned for one file, or why it failed."""
        if isinstance(report, ResultFailure):
            self.failures[path] = str(report)
            return
        self._began_s = min(self._began_s, report["began_s"])
        self._ended_s = max(self._ended_s, report["ended_s"])
        if "error" in report:
            self.failures[path] = report["error"]
        else:
            self.counted += 1
            self.words.update(report["words"])
