"""``python -m examples.group``: parts of a search run beside each other, and a callback reports when all have ended."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

import greenroom

PARTS = 20
SIZE = 5_000
PATIENCE_MS = 60_000


def main() -> int:
    """Runs the example in a temporary folder; 0 if the primes are as many as they should be."""
    with tempfile.TemporaryDirectory() as name:
        os.environ["GROUP_FOLDER"] = name
        from examples.group import tasks

        members = [tasks.count_primes.message(part * SIZE, (part + 1) * SIZE) for part in range(PARTS)]
        bad = tasks.count_primes.message(-1, 0)
        search = greenroom.group([*members, bad], on_error="skip")
        done = tasks.report.message()
        search.add_completion_callback(done)
        search.run()
        command = ["worker", "examples.group.tasks", "-p", "2", "-t", "1", "--skip-logging"]
        worker = subprocess.Popen([sys.executable, "-m", "greenroom", *command])  # noqa: S603  # ours
        try:
            found = sum(search.get_results(block=True, timeout=PATIENCE_MS))
            print(f"the callback says: {done.get_result(block=True, timeout=PATIENCE_MS)}")
        finally:
            worker.terminate()
            worker.wait()
        tasks.broker.close()
    print(f"there are {found:,} primes below {PARTS * SIZE:,}")
    return 0 if found == 9_592 else 1


if __name__ == "__main__":
    sys.exit(main())
