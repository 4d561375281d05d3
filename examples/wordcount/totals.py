"""What the workers have counted so far, read from the files that they append to."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Report = dict[str, Any]


class Totals:
    """The sum of all reports. A path counts once, however often its message ran."""

    def __init__(self) -> None:
        self.words: Counter[str] = Counter()
        self.counted: set[str] = set()
        self.failures: dict[str, str] = {}
        self._began_s = float("inf")
        self._ended_s = 0.0

    @property
    def done(self) -> int:
        """Files that were counted or failed."""
        return len(self.counted) + len(self.failures)

    @property
    def messages_a_second(self) -> float:
        """From the start of the first task to the end of the last."""
        took_s = self._ended_s - self._began_s
        return self.done / took_s if took_s > 0 else 0.0

    def add(self, report: Report) -> None:
        """Adds what ``tasks.count`` said of one file."""
        path = report["path"]
        if path in self.counted or path in self.failures:
            return
        self._began_s = min(self._began_s, report["began_s"])
        self._ended_s = max(self._ended_s, report["ended_s"])
        if "error" in report:
            self.failures[path] = report["error"]
        else:
            self.counted.add(path)
            self.words.update(report["words"])


class Reports:
    """Follows the files that the workers append to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._positions: Counter[Path] = Counter()

    def read(self) -> Iterator[Report]:
        """The reports that are new since the last call."""
        for path in self.folder.glob("counts-*.jsonl"):
            with path.open("rb") as file:
                file.seek(self._positions[path])
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # still being written
                    self._positions[path] += len(line)
                    yield json.loads(line)
