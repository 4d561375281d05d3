"""``python -m examples.results``: workers throw darts, and this process collects what they have hit.

The results are asked for by the messages' ids alone, as another process would: of a web server, say.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

from greenroom import Broker
from greenroom.results import ResultFailure, ResultPending

THROWS = 8
DARTS = 100_000
PATIENCE_MS = 60_000


def main() -> int:
    """Runs the example in a temporary folder; 0 if pi is what it should be."""
    with tempfile.TemporaryDirectory() as name:
        os.environ["DARTS_FOLDER"] = name
        from examples.results import tasks

        ids = [tasks.throw.send(DARTS, seed).message_id for seed in range(THROWS)]
        bad_id = tasks.throw.send(-1, 0).message_id
        show_pending(tasks.broker, ids[0])
        command = ["worker", "examples.results.tasks", "-p", "2", "-t", "1", "--skip-logging"]
        worker = subprocess.Popen([sys.executable, "-m", "greenroom", *command])  # noqa: S603  # ours
        try:
            hits = [tasks.broker.get_result(i, block=True, timeout=PATIENCE_MS) for i in ids]
            show_failure(tasks.broker, bad_id)
        finally:
            worker.terminate()
            worker.wait()
        tasks.broker.close()
    pi = 4 * sum(hits) / (THROWS * DARTS)
    print(f"{sum(hits):,} of {THROWS * DARTS:,} darts have hit: pi is about {pi:.3f}")
    return 0 if round(pi, 1) == 3.1 else 1


def show_pending(broker: Broker, message_id: str) -> None:
    """Asks too early."""
    try:
        broker.get_result(message_id)
    except ResultPending as e:
        print(f"before there is a worker: {e}")


def show_failure(broker: Broker, message_id: str) -> None:
    """Asks for what went wrong."""
    try:
        broker.get_result(message_id, block=True, timeout=PATIENCE_MS)
    except ResultFailure as e:
        print(f"one of them failed: {e.orig_exc_type}: {e.orig_exc_msg}")


if __name__ == "__main__":
    sys.exit(main())
