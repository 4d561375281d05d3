"""``python -m examples.rate_limits``: letters are printed two at a time and posted five a second, by two workers.

At the end it draws what happened: how many printers were busy, and how many letters were posted in each second.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

LETTERS = 20
PATIENCE_MS = 60_000


def main() -> int:
    """Runs the example in a temporary folder; 0 if no limit was passed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["LETTERS_FOLDER"] = name
        from examples.rate_limits import tasks

        tasks.print_letter.send_many([(letter,) for letter in range(LETTERS)])
        command = ["worker", "examples.rate_limits.tasks", "-p", "2", "-t", "4", "--skip-logging"]
        worker = subprocess.Popen([sys.executable, "-m", "greenroom", *command])  # noqa: S603  # ours
        try:
            tasks.broker.join("default", timeout=PATIENCE_MS)
        finally:
            worker.terminate()
            worker.wait()
        tasks.broker.close()
        notes = [json.loads(line) for line in (folder / "notes.jsonl").read_text().splitlines()]
    return show(notes)


def show(notes: list[dict[str, Any]]) -> int:
    """Draws what happened."""
    printed = [note for note in notes if note["what"] == "printed"]
    posted = [note for note in notes if note["what"] == "posted"]
    busiest = max(sum(other["began_s"] <= note["began_s"] < other["ended_s"] for other in printed) for note in printed)
    print(f"{len(printed)} letters printed, never more than {busiest} at a time (2 printers)")
    first_s = min(note["began_s"] for note in posted)
    seconds = Counter(int(note["began_s"] - first_s) for note in posted)
    print(f"{len(posted)} letters posted, by second (5 a second):")
    for second in range(max(seconds) + 1):
        print(f"  {second:2} s  {'#' * seconds[second]}")
    return 0 if busiest <= 2 and len(posted) == LETTERS else 1


if __name__ == "__main__":
    sys.exit(main())
