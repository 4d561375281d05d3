"""The board: what a process runs right now, in a small mapped file that outlives the process.

Each place of an executor writes the mark of the message that it runs into a cell of its own, and 0 when the message is
finished: one store into mapped memory, no system call. When the process dies, whoever gives its messages back reads
the board: what stands there was running and is charged with a crash; what was only held is not.

Whoever started the process writes how it ended into the same file, so that the evidence is where the reaper looks, and
writes before it kills on purpose, so that nobody is charged. It needs no connection to the broker for that.

A fork inherits the mapping. So that a task's child does not write on its parent's behalf, private memory is put in its
place there.

The file is an array of signed 64-bit numbers in the machine's byte order (it never leaves the machine)::

    0 MAGIC   1 fate   2 exit status   3 parent's pid   4 last beat, UNIX ms   5..7 reserved   8.. the cells
"""

from __future__ import annotations

import mmap
import os
import signal
import weakref
from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum
from functools import cache
from pathlib import Path

from .forksafe import in_child

MAGIC = 0x0031_4452_424E_5247  # "GRNBRD1" and a zero
#: Which file a path leads to: its device and its number there.
_FileId = tuple[int, int]

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


def ending(fate: Fate, status: int) -> str:
    """How a process ended, as the rest of a sentence that begins with its name.

    Parameters:
      fate: What is known of it.
      status: The exit code, or the negative number of the signal.
    """
    if fate is Fate.DIED:
        return f"was killed by {_signal_name(-status)}" if status < 0 else f"ended with code {status}"
    return _ENDINGS[fate]


_ENDINGS = {
    Fate.UNKNOWN: "has died, and nobody said how",
    Fate.OUT_OF_MEMORY: "was killed by the kernel because it was out of memory",
    Fate.ENDED_ON_PURPOSE: "was ended on purpose",
    Fate.HUNG: "hung and was killed",
}


def _signal_name(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
    return f"{name} (likely out of memory, or kill -9)" if name == "SIGKILL" else name


class Board:
    """One process's board. ``cells`` belongs to the executors of that process, one cell to one thread or task; the
    header to whoever started it, who opens the board while the process lives: later its place may be another's."""

    def __init__(self, memory: memoryview, path: Path | None = None, file: _FileId | None = None) -> None:
        #: The file, for those who are to map it; None if there is none.
        self.path = path
        #: One number a place: the mark of what runs there, or 0.
        self.cells = memory[_HEADER:]
        #: Called with this board when it has got a new file: whoever has mapped the old one should map that.
        self.on_new_file: Callable[[Board], object] | None = None
        self._numbers = memory
        self._file = file

    @classmethod
    def in_memory(cls, places: int) -> Board:
        """A board that dies with its process, for engines that do, too."""
        return cls(_blank(places))

    @classmethod
    def create(cls, path: Path, places: int, *, mode: int, parent_pid: int = 0) -> Board:
        """Makes the file anew. Who has mapped a file of the same name before keeps the old one.

        Parameters:
          path: Where; a file that lies there is replaced.
          places: How many messages the process runs at a time, at most ``MAX_PLACES``.
          mode: Permissions of the file.
          parent_pid: Who will say how the process ended, or 0 if nobody will.

        Raises:
          OSError: The file cannot be made.
        """
        numbers = _blank(places)
        numbers[_PARENT] = parent_pid
        descriptor = _new_file(path, numbers, mode)
        try:
            board = cls(_map(descriptor), path, _file_id(os.fstat(descriptor)))
        finally:
            os.close(descriptor)
        _shared.add(board)
        _mapper()  # a child may find the lock of an import taken
        return board

    def keep_at(self, path: Path, *, mode: int) -> None:
        """Makes sure that it is found at ``path``: its process has another place by now, or somebody has tidied up. A
        file that lies there is replaced; whoever holds a view of the cells writes into the new one.

        Raises:
          OSError: The file cannot be made.
        """
        if not self._is_at_its_path():  # nor can it be: who has its old place by now has made a file there
            descriptor = _new_file(path, self._numbers, mode)
            try:
                _map_over(self._numbers, mmap.MAP_SHARED, descriptor)
                self._file = _file_id(os.fstat(descriptor))
            finally:
                os.close(descriptor)
            self.path = path
            if self.on_new_file is not None:
                self.on_new_file(self)
        elif self.path is not None and self.path != path:
            os.replace(self.path, path)
            self.path = path

    def remove(self) -> None:
        """Deletes the file, unless it is somebody else's by now."""
        if self.path is not None and self._is_at_its_path():
            self.path.unlink(missing_ok=True)

    def _is_at_its_path(self) -> bool:
        try:
            return self.path is not None and _file_id(os.stat(self.path)) == self._file
        except OSError:
            return False

    def leave(self) -> None:
        """For a forked child: what it writes from here on, the parent does not see."""
        self.path = self._file = None
        _map_over(self._numbers, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    @classmethod
    def open(cls, path: Path) -> Board | None:
        """Another process's board, or None if there is none that can be read."""
        try:
            board = cls._open(path)
        except (OSError, ValueError):  # a path that is none; a file that was cut off meanwhile; no memory to map it
            return None
        return board if board is not None and board._numbers[0] == MAGIC else None

    @classmethod
    def _open(cls, path: Path) -> Board | None:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            found = os.fstat(descriptor)
            if found.st_size % 8 or not 8 * _HEADER < found.st_size <= 8 * (_HEADER + MAX_PLACES):
                return None
            return cls(_map(descriptor), path, _file_id(found))
        finally:
            os.close(descriptor)

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

    def evidence(self, worker: str) -> str:
        """What is known of the end of the process, in one line, for the history of what it ran.

        Parameters:
          worker: How people call it.
        """
        from datetime import UTC, datetime, timedelta  # only those who tell of a crash need it

        text = f"{worker} {ending(self.fate, self.status)}"
        try:
            seen = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=self.beat_ms)
        except OverflowError:  # whoever wrote that, it is no time
            return text
        return f"{text}; last seen {seen:%Y-%m-%dT%H:%M:%SZ}" if self.beat_ms > 0 else text

    def write_fate(self, fate: Fate, status: int = 0) -> None:
        """The parent: says how the process ended, or is about to."""
        self._numbers[_STATUS] = status
        self._numbers[_FATE] = fate


def _blank(places: int) -> memoryview:
    """The numbers of a board on which nobody has written, in private memory."""
    if not 0 < places <= MAX_PLACES:
        raise ValueError(f"A board has 1 to {MAX_PLACES} places, not {places}.")
    numbers = memoryview(bytearray(8 * (_HEADER + places))).cast("q")
    numbers[0] = MAGIC
    return numbers


def _new_file(path: Path, numbers: memoryview, mode: int) -> int:
    """A descriptor of a new file with these numbers."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        os.fchmod(descriptor, mode)
        # Written, not merely made as long: where the disk is full this fails, and a store into the mapping would kill.
        os.write(descriptor, numbers)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _map(descriptor: int) -> memoryview:
    return memoryview(mmap.mmap(descriptor, os.fstat(descriptor).st_size)).cast("q")  # the view keeps the mapping


def _map_over(numbers: memoryview, flags: int, descriptor: int = -1) -> None:
    """Maps something else to the very place of ``numbers``: who holds a view of them sees that from now on."""
    from ctypes import addressof, c_char, get_errno

    address = addressof(c_char.from_buffer(numbers))
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    if _mapper()(address, numbers.nbytes, protection, flags | _MAP_FIXED, descriptor, 0) != address:
        raise OSError(get_errno(), "A board cannot be mapped anew")


_MAP_FIXED = 0x10  # on Linux, macOS and the BSDs; the module ``mmap`` has no name for it


@cache
def _mapper() -> Callable[..., int]:
    """The system's own ``mmap``: Python's has no say in where."""
    from ctypes import CDLL, c_int, c_long, c_size_t, c_void_p  # only workers need it, and it takes long to load

    function = CDLL(None, use_errno=True).mmap
    function.restype = c_void_p
    function.argtypes = (c_void_p, c_size_t, c_int, c_int, c_int, c_long)
    return function


def _file_id(found: os.stat_result) -> _FileId:
    return found.st_dev, found.st_ino


_shared: weakref.WeakSet[Board] = weakref.WeakSet()


@in_child
def _leave_boards() -> None:
    for board in list(_shared):
        with suppress(OSError):  # no memory: the others have to leave all the same
            board.leave()
    _shared.clear()
