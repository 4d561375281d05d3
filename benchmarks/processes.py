"""Child processes: started with their output in a file, measured, and ended by their process ids."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from .harness import CannotRun

GRACE_S = 15.0


class Process:
    """A running child and its descendants."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], folder: Path, name: str) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        with open(self._log, "wb") as log:
            self._child = subprocess.Popen(
                command, env=dict(environment), cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def is_running(self) -> bool:
        """Whether the child itself has not ended."""
        return self._child.poll() is None

    def last_words(self) -> str:
        """The end of what it wrote, for an error."""
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return " | ".join(lines[-3:]) or "no output"

    def check(self) -> None:
        """Raises ``CannotRun`` if the child has ended."""
        if not self.is_running():
            raise CannotRun(f"{self.name} ended with {self._child.returncode}: {self.last_words()}")

    def tree(self) -> list[int]:
        """The process ids of the child and its descendants (Linux)."""
        found, todo = [], [self._child.pid]
        while todo:
            pid = todo.pop()
            found.append(pid)
            with contextlib.suppress(OSError):
                for thread in Path(f"/proc/{pid}/task").iterdir():
                    todo.extend(map(int, (thread / "children").read_text().split()))
        return found

    def cpu_s(self) -> float:
        """Processor time that the tree has used so far, in seconds (Linux)."""
        return sum(cpu_clock_s(pid) for pid in self.tree())

    def rss_bytes(self) -> int:
        """Memory of the tree: the sum of the resident sets (Linux)."""
        pages = 0
        for pid in self.tree():
            with contextlib.suppress(OSError):
                pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def stop(self) -> None:
        """TERM, then after a grace KILL for whatever is left of the tree."""
        born = {pid: start_time(pid) for pid in self.tree()[1:]} if self.is_running() else {}
        self._child.terminate()
        try:
            self._child.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        for pid, start in born.items():
            end(pid, start)

    def abort(self) -> None:
        """KILL at once: for a sender in the middle of its loop."""
        self._child.kill()
        self._child.wait()


def start_time(pid: int) -> str | None:
    """When a process was started, in ticks since boot; None if it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def end(pid: int, start: str | None) -> None:
    """Kills a descendant that outlives its parent by a second, unless the id belongs to another process by now."""
    deadline = time.monotonic() + 1.0
    while start is not None and start_time(pid) == start:
        if time.monotonic() > deadline:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
            return
        time.sleep(0.02)


def cpu_clock_s(pid: int) -> float:
    """The processor clock of another process, in nanosecond steps; 0 if it is gone.

    Linux encodes "the CPU time of process n" as the clock id ``~n << 3 | 2``, which is what ``clock_getcpuclockid``
    answers; the ticks in ``/proc`` are 10 ms, a tenth of what an idle worker may use in all.
    """
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0


@contextlib.contextmanager
def running(command: Sequence[str], environment: Mapping[str, str], folder: Path, name: str) -> Iterator[Process]:
    """A process for the length of a block."""
    process = Process(command, environment, folder, name)
    try:
        yield process
    finally:
        process.stop()
