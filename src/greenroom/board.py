"""The board: what a process runs right now, in a small mapped file that outlives the process.

Each place of an executor writes the mark of the message that it runs into a cell of its own, and 0 when the message is
finished: one store into mapped memory, no system call. When the process dies, whoever gives its messages back reads
the board: what stands there was running and is charged with a crash; what was only held is not.

Whoever started the process writes how it ended into the same file, so that the evidence is where the reaper looks, and
writes before it kills on purpose, so that nobody is charged. It needs no connection to the broker for that.

The file is an array of signed 64-bit numbers in the machine's byte order (it never leaves the machine)::

    0 MAGIC   1 fate   2 exit status   3 parent's pid   4 last beat, UNIX ms   5..7 reserved   8.. the cells
"""

from __future__ import annotations

import mmap
import os
from enum import IntEnum
from pathlib import Path

MAGIC = 0x0031_4452_424E_5247  # "GRNBRD1" and a zero
_HEADER = 8
_FATE, _STATUS, _PARENT, _BEAT = 1, 2, 3, 4
#: More places than this would be a mistake; a file of another kind is not mapped as a whole.
MAX_PLACES = 65_536


class Fate(IntEnum):
    """What is known of the end of a process."""

    #: It lives, or nobody has said yet how it died.
    UNKNOWN = 0
    #: It died by itself; ``Board.status`` says how.
    DIED = 1
    #: It died by the kernel's out-of-memory killer, as far as its control group can tell.
    OUT_OF_MEMORY = 2
    #: It was killed on purpose: the grace was over, the code was reloaded. Nobody is charged.
    ENDED_ON_PURPOSE = 3
    #: It was killed because it hung; what it ran is charged.
    HUNG = 4


class Board:
    """One process's board. ``cells`` belongs to the executors of that process, one cell to one thread or task; the
    header to whoever started it."""

    def __init__(self, memory: memoryview, path: Path | None = None) -> None:
        self._numbers = memory
        #: The file, for those who are to map it; None if there is none.
        self.path = path
        #: One number a place: the mark of what runs there, or 0.
        self.cells = memory[_HEADER:]

    @classmethod
    def in_memory(cls, places: int) -> Board:
        """A board that dies with its process, for engines that do, too."""
        board = cls(memoryview(bytearray(8 * (_HEADER + places))).cast("q"))
        board._numbers[0] = MAGIC
        return board

    @classmethod
    def create(cls, path: Path, places: int, *, mode: int, parent_pid: int = 0) -> Board:
        """Makes the file anew. Who has mapped a file of the same name before keeps the old one.

        Parameters:
          path: Where; a file that lies there is replaced.
          places: How many messages the process runs at a time, at most ``MAX_PLACES``.
          mode: Permissions of the file.
          parent_pid: Who will say how the process ended, or 0 if nobody will.
        """
        if not 0 < places <= MAX_PLACES:
            raise ValueError(f"A board has 1 to {MAX_PLACES} places, not {places}.")
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            os.fchmod(descriptor, mode)
            os.ftruncate(descriptor, 8 * (_HEADER + places))
            board = cls._map(descriptor, path)
        finally:
            os.close(descriptor)
        board._numbers[_PARENT] = parent_pid
        board._numbers[0] = MAGIC
        return board

    @classmethod
    def open(cls, path: Path) -> Board | None:
        """Another process's board, or None if there is none that can be read."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            size = os.fstat(descriptor).st_size
            if size % 8 or not 8 * _HEADER < size <= 8 * (_HEADER + MAX_PLACES):
                return None
            board = cls._map(descriptor, path)
        finally:
            os.close(descriptor)
        return board if board._numbers[0] == MAGIC else None

    @classmethod
    def _map(cls, descriptor: int, path: Path) -> Board:
        mapped = mmap.mmap(descriptor, os.fstat(descriptor).st_size)
        return cls(memoryview(mapped).cast("q"), path)  # the view keeps the mapping

    def running(self) -> set[int]:
        """The marks of what runs, or ran when the process died."""
        return {mark for mark in self.cells if mark}

    # --- the header: written by whoever started the process

    @property
    def fate(self) -> Fate:
        """What is known of the end of the process."""
        try:
            return Fate(self._numbers[_FATE])
        except ValueError:  # written by a newer version
            return Fate.UNKNOWN

    @property
    def status(self) -> int:
        """The exit code, or the negative number of the signal, once ``fate`` says that it has ended."""
        return int(self._numbers[_STATUS])

    @property
    def parent_pid(self) -> int:
        """Who will say how the process ended; 0 if nobody will."""
        return int(self._numbers[_PARENT])

    @property
    def beat_ms(self) -> int:
        """When the process last said that it lives, in UNIX milliseconds; 0 if it never did."""
        return int(self._numbers[_BEAT])

    def beat(self, now_ms: int) -> None:
        """The process: says that it lives."""
        self._numbers[_BEAT] = now_ms

    def write_fate(self, fate: Fate, status: int = 0) -> None:
        """The parent: says how the process ended, or is about to."""
        self._numbers[_STATUS] = status
        self._numbers[_FATE] = fate
