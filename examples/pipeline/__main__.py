"""``python -m examples.pipeline``: reads a file, splits it and counts, in three stages; and one that fails at once."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

from greenroom import pipeline
from greenroom.results import ResultFailure

PATIENCE_MS = 60_000


def main() -> int:
    """Runs the example in a temporary folder; 0 if both pipelines ended as they should."""
    with tempfile.TemporaryDirectory() as name:
        os.environ["PIPELINE_FOLDER"] = name
        from examples.pipeline import tasks

        def count(path: str) -> pipeline:
            stages: pipeline = tasks.read.message(path) | tasks.words.message() | tasks.most_frequent.message(5)
            return stages

        good, bad = count(__file__).run(), count("no-such-file.txt").run()
        command = ["worker", "examples.pipeline.tasks", "-p", "1", "-t", "2", "--skip-logging"]
        worker = subprocess.Popen([sys.executable, "-m", "greenroom", *command])  # noqa: S603  # ours
        try:
            found = good.get_result(block=True, timeout=PATIENCE_MS)
            print("the most frequent words: " + ", ".join(f"{word} ({times})" for word, times in found.items()))
            error = failure_of(bad)
        finally:
            worker.terminate()
            worker.wait()
        tasks.broker.close()
    print(f"the other pipeline ended at its first stage: {error}")
    return 0 if len(found) == 5 and error == "FileNotFoundError" else 1


def failure_of(pipe: pipeline) -> str:
    """What a pipeline has failed with."""
    try:
        pipe.get_result(block=True, timeout=PATIENCE_MS)
    except ResultFailure as e:
        return e.orig_exc_type
    return "nothing"


if __name__ == "__main__":
    sys.exit(main())
