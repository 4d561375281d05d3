"""Counts executions across threads and processes, without a lock.

A lock taken once a message by eight threads is a convoy: it makes a drain three times slower, or not, from run to run,
and hides what is measured. So each thread writes into eight bytes of its own, in a mapped file that belongs to its
process, and the reader adds them all up. The latency of a start is appended to a file of its process in the same way.
"""

from __future__ import annotations

import itertools
import mmap
import os
import struct
import threading
import time
from pathlib import Path

#: The environment variable that names the folder for the files of a run.
FOLDER_VARIABLE = "BENCH_FOLDER"

SLOTS = 512
SLOT_BYTES = 8


class _Sheet:
    """The mapped file of this process; threads take its slots in turn."""

    def __init__(self) -> None:
        folder = Path(os.environ[FOLDER_VARIABLE])
        size = SLOTS * SLOT_BYTES
        with open(folder / f"counts-{os.getpid()}.bin", "w+b") as file:
            file.truncate(size)
            self.cells = memoryview(mmap.mmap(file.fileno(), size)).cast("q")
        self.order = itertools.count()
        self.starts = os.open(folder / f"starts-{os.getpid()}.bin", os.O_WRONLY | os.O_CREAT | os.O_APPEND)


class _Slot(threading.local):
    """The cell of the current thread. ``__init__`` runs once in each thread that touches it."""

    def __init__(self, sheet: _Sheet) -> None:
        at = next(sheet.order)
        self.cell = sheet.cells[at : at + 1]
        self.starts = sheet.starts


_slot: _Slot | None = None
_opening = threading.Lock()


def _open() -> _Slot:
    """Makes the sheet of this process; only the first hit of each thread may come here, so a lock costs nothing."""
    global _slot
    with _opening:
        if _slot is None:
            _slot = _Slot(_Sheet())
        return _slot


def _forget() -> None:
    """In a forked child: the parent's cells are the parent's."""
    global _slot, _opening
    _slot = None
    _opening = threading.Lock()


os.register_at_fork(after_in_child=_forget)


def hit() -> None:
    """Counts one execution by the current thread."""
    cell = (_slot or _open()).cell
    cell[0] += 1


def started(sent_ns: int) -> None:
    """Records how long ago ``sent_ns`` (``time.monotonic_ns``, the same clock in all processes) was, and counts.

    0 stands for a warm-up, which is only counted.
    """
    if sent_ns:
        elapsed = time.monotonic_ns() - sent_ns
        os.write((_slot or _open()).starts, struct.pack("q", elapsed))
    hit()


class Counts:
    """Reads what the processes of a run have counted so far. Owned by one thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._cells: dict[str, memoryview] = {}

    def by_process(self) -> list[int]:
        """Executions by process, for those that have started any."""
        for path in self._folder.glob("counts-*.bin"):
            if path.name not in self._cells and path.stat().st_size == SLOTS * SLOT_BYTES:
                with open(path, "rb") as file:
                    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                self._cells[path.name] = memoryview(mapped).cast("q")
        return [count for count in map(sum, self._cells.values()) if count]

    def total(self) -> int:
        """Executions in all processes."""
        return sum(self.by_process())


def start_latencies_ms(folder: Path) -> list[float]:
    """What ``started`` recorded in all processes, in milliseconds."""
    latencies: list[float] = []
    for path in sorted(folder.glob("starts-*.bin")):
        data = path.read_bytes()
        latencies.extend(ns / 1e6 for ns in struct.unpack(f"{len(data) // 8}q", data))
    return latencies
