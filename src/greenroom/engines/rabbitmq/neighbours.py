"""Processes of this host that consume from RabbitMQ: what each of them runs, for whoever gets it after its death.

The broker hands out again what a dead process held, at once and to anybody, and says only that it was handed out
before. What of it ran stands on the dead one's board. So the boards lie in one folder, and those of the dead stay there
until nobody can need them: each time one says that a message ran there, that is a crash of it. A message that is
settled in any way but by an acknowledgement carries its crashes along from then on.

A board's name tells whose it is: the byte of the lock file that its owner holds while it lives, its process, its name.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote

from ...board import Board, Fate
from ...clock import SYSTEM_CLOCK, Clock
from ...host.deaths import EVIDENCE_S, EVIDENCE_STEP_S, Inquest, worker_name
from ...host.liveness import LockFile, close_lock_file, open_lock_file
from ...host.run_folder import make_run_folder
from ...logging import get_logger
from .ledger import Ledger

#: One for all brokers: storage ids tell messages apart, wherever they are kept.
FOLDER = "rabbitmq"
_LOCKS = "alive.lock"
_SUFFIX = ".board"
_DEAD = "dead-"
_MODE = 0o600
#: For how long, in seconds, the board of a dead process is kept: what it ran is handed out long before.
KEPT_S = 24 * 3600.0
_ELSEWHERE = "a worker on another host has died"
#: How many of them are kept.
MOST_KEPT = 1000

logger = get_logger(__name__)


class Fallen(NamedTuple):
    """A process that has died: what it ran, and how it ended."""

    marks: frozenset[int]
    evidence: str
    found_ms: int


class Place:
    """One owner's place among its neighbours: a byte of the lock file, and a board. Owned by its consumer.

    Parameters:
      name: How people call the owner.
      folder: Where they meet.
    """

    def __init__(self, name: str, folder: Path, locks: LockFile) -> None:
        self._name = quote(name, safe="")[:150]
        self._folder = folder
        self._locks = locks
        self._slot = -1
        self._board: Board | None = None

    def board(self, places: int, parent_pid: int) -> Board:
        """A new board, in place of the one that there was.

        Raises:
          OSError: The file cannot be made.
        """
        if self._board is not None:
            self._board.remove()
        if self._slot < 0:
            self._take_slot()
        self._board = Board.create(self._path(), places, mode=_MODE, parent_pid=parent_pid)
        return self._board

    def keep(self) -> None:
        """Makes sure of the byte; takes another one if this owner was taken for dead."""
        if self._board is None:
            return
        self._locks.renew()
        if not self._locks.is_held(self._slot, self):
            logger.error("This worker's lock in %s was dropped: it was taken for dead, and goes on.", self._folder)
            self._take_slot()
        self._board.keep_at(self._path(), mode=_MODE)

    def clear(self, mark: int) -> None:
        """Takes a message off the board that this owner has given back: whoever gets it has nothing to do with us."""
        if self._board is not None:
            cells = self._board.cells
            for place, cell in enumerate(cells):
                if cell == mark:
                    cells[place] = 0

    def leave(self) -> None:
        """Gives the place up; what the board says is of no use to anybody."""
        if self._board is not None:
            with suppress(OSError):
                self._board.remove()
        self.unlock()

    def unlock(self) -> None:
        """Lets go of the byte, as the kernel does when a process dies."""
        self._locks.unlock(self._slot, self)

    def _take_slot(self) -> None:
        slot = 0
        while not self._locks.try_lock(slot, self):
            slot += 1
        self._slot = slot
        for path in self._folder.glob(f"{slot}.*{_SUFFIX}"):  # of those who had it before, and have died
            with suppress(OSError):
                path.rename(path.with_name(f"{_DEAD}{SYSTEM_CLOCK.now_ms()}{path.name[path.name.index('.') :]}"))

    def _path(self) -> Path:
        return self._folder / f"{self._slot}.{os.getpid()}.{self._name}{_SUFFIX}"


class Neighbours:
    """What the dead of this host ran. Owned by its consumer.

    Parameters:
      clock: When something was found.
      ledger: What other hosts know; None if they do not tell.
    """

    def __init__(self, clock: Clock, ledger: Ledger | None = None) -> None:
        self._clock = clock
        self._ledger = ledger
        self._folder = make_run_folder(FOLDER)
        self._locks = open_lock_file(self._folder / _LOCKS, _MODE)
        self._inquest = Inquest(SYSTEM_CLOCK)  # the dead are real, whatever clock a test moves
        self._fallen: dict[str, Fallen] = {}
        self._running: set[int] = set()  # marks on the boards of those who live
        self._dying: set[int] = set()  # and of those of whom it is not known yet how they died
        self._waits_s: dict[int, float] = {}  # since when a mark is waited for
        self._look_at_s = 0.0
        self._tidy()

    def place(self, name: str) -> Place:
        """A place for this owner."""
        return Place(name, self._folder, self._locks)

    def close(self) -> None:
        """Looks no more."""
        close_lock_file(self._locks)

    def look_again(self) -> None:
        """Somebody has died: what was seen before does not count any more."""
        self._look_at_s = 0.0

    def crashes(self, mark: int) -> list[Fallen] | None:
        """The deaths of those who ran it, the earliest found first. None if that is to be asked again in
        ``EVIDENCE_STEP_S``: it stands on the board of somebody who may just be dying."""
        now_s = SYSTEM_CLOCK.monotonic()
        if now_s >= self._look_at_s:
            self._look_at_s = now_s + EVIDENCE_STEP_S
            self._look()
        if mark in self._dying:
            return None
        if mark in self._running and now_s - self._waits_s.setdefault(mark, now_s) < EVIDENCE_S:
            return None
        self._waits_s.pop(mark, None)
        here = sorted((fallen for fallen in self._fallen.values() if mark in fallen.marks), key=_found_ms)
        elsewhere = self._ledger.read(mark) - len(here) if self._ledger is not None else 0
        return [Fallen(frozenset((mark,)), _ELSEWHERE, self._clock.now_ms())] * elsewhere + here

    def tell(self) -> None:
        """Has other hosts know of those that died here."""
        if self._ledger is not None:
            self._look()

    def _look(self) -> None:
        self._running.clear()
        self._dying.clear()
        for name in os.listdir(self._folder):
            if not name.endswith(_SUFFIX) or name in self._fallen:
                continue
            path = self._folder / name
            with suppress(OSError, ValueError):
                self._look_at(path, *name.removesuffix(_SUFFIX).split(".", 2))

    def _look_at(self, path: Path, slot: str, pid: str, name: str) -> None:
        is_alive = not slot.startswith(_DEAD) and self._locks.is_alive(int(slot))
        death = None if is_alive else self._inquest.death_of(path.name, worker_name(unquote(name), int(pid)), path)
        if death is not None:
            if self._ledger is None or self._ledger.write(f"{pid}.{name}.{path.stat().st_ino}", death.charged):
                self._fallen[path.name] = Fallen(death.charged, death.evidence, self._clock.now_ms())
        elif (board := Board.open(path)) is not None:
            marks = self._running if is_alive else self._dying
            marks |= board.running()

    def _tidy(self) -> None:
        """Deletes boards of the dead on which nothing stands, old ones, and the oldest of too many."""
        now_s = SYSTEM_CLOCK.now_ms() / 1000
        kept: list[tuple[float, Path]] = []
        for path in self._folder.glob(f"*{_SUFFIX}"):
            slot = path.name.split(".", 1)[0]
            with suppress(OSError, ValueError):
                if not slot.startswith(_DEAD) and self._locks.is_alive(int(slot)):
                    continue
                written_s = path.stat().st_mtime
                if now_s - written_s > KEPT_S or _says_nothing(Board.open(path)):
                    path.unlink(missing_ok=True)
                else:
                    kept.append((written_s, path))
        for _, path in sorted(kept)[: max(0, len(kept) - MOST_KEPT)]:
            path.unlink(missing_ok=True)


def _says_nothing(board: Board | None) -> bool:
    return board is None or not board.running() or board.fate is Fate.ENDED_ON_PURPOSE


def _found_ms(fallen: Fallen) -> int:
    return fallen.found_ms
