"""An owner of claims: a row in the file, a byte of the lock file, a board, and a bell for others to ring."""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from pathlib import Path

from ...board import Board
from ...clock import SYSTEM_CLOCK, Clock
from ...logging import get_logger
from .errors import translate_os
from .queue_file import OtherFile
from .reaper import Reaper
from .rows import CLAIMED, FREE, READY, leases_of
from .share import ProcessShare
from .wake import Waiter

_REGISTER = "insert into owner (name, pid, slot, started_ms) values (?, ?, ?, ?)"
_IS_REGISTERED = "select 1 from owner where id = ? and pid = ? and started_ms = ?"
_GIVE_BACK = f"update message set state = {READY}, lease = {FREE} where state = {CLAIMED} and lease between ? and ?"

logger = get_logger(__name__)


class Owner:
    """Belongs to its consumer's thread, but for ``renew`` and ``ring``, which others call.

    It may lose its place: its lock was dropped, and it was taken for dead. Then it gets another one, with a new number
    and new leases, and what it held before is lost to it.
    """

    def __init__(self, share: ProcessShare, name: str, clock: Clock) -> None:
        self._share = share
        self._path = share.database.path
        self._name = name
        self._pid = os.getpid()
        self._board: Board | None = None
        self._complaints: set[Path] = set()  # of files; each is made once
        self._locks = share.open_locks()
        self._closings = self._locks.closings
        self.reaper = Reaper(share, self._locks, clock)
        try:
            self._register()
        except BaseException:
            share.close_locks(self._locks)
            raise

    # --- its place

    def _register(self, old_leases: tuple[int, int] | None = None, generation: int | None = None) -> None:
        """Takes a free slot. Owners that have died make room first, and it gives up what it had under ``old_leases``.

        Parameters:
          generation: Of the file in which it had that; in no other one these leases are its own.
        """
        slot: int | None = None
        # The machine's clock, whichever the engine has: it is compared with the time of the lock file.
        self._started_ms = SYSTEM_CLOCK.now_ms()
        try:
            with self._share.database.transaction(generation=generation) as connection:
                #: Which of the files at the path its place is in.
                self.generation = self._share.database.file.generation
                released = self.reaper.reap(connection).released
                if old_leases is not None:
                    released += self._give_up(connection)
                slot = self._lock_slot(connection)
                number = connection.execute(_REGISTER, (self._name, self._pid, slot, self._started_ms)).lastrowid
            self._waiter = self._new_waiter(slot)
        except BaseException:
            if slot is not None:
                self._locks.unlock(slot, self)
            raise
        assert number is not None
        #: Never used again, which the slot is.
        self.number, self.slot = number, slot
        #: The first and the last one.
        self.leases = leases_of(number)
        if self._board is None:
            with suppress(OSError):  # of an earlier owner of the slot
                self._board_path.unlink()
        if released:
            self._share.wake.ring(None)

    def _lock_slot(self, connection: sqlite3.Connection) -> int:
        taken = {slot for (slot,) in connection.execute("select slot from owner")}
        slot = 0
        try:
            while slot in taken or not self._locks.try_lock(slot, self):
                slot += 1
        except OSError as e:
            raise translate_os(e, self._path) from e
        return slot

    def _new_waiter(self, slot: int) -> Waiter:
        try:
            return Waiter(self._share.wake, slot)
        except OSError as e:
            raise translate_os(e, self._path) from e

    def _replace_waiter(self) -> None:
        """Somebody has closed what it waits on, or some of it."""
        waiter, self._waiter = self._waiter, self._new_waiter(self.slot)
        waiter.close()

    def _give_up(self, connection: sqlite3.Connection) -> int:
        """Gives back what it holds, and its row; how many messages that were."""
        released = connection.execute(_GIVE_BACK, self.leases).rowcount
        connection.execute("delete from owner where id = ? and pid = ?", (self.number, self._pid))
        return released

    def leave(self) -> None:
        """Gives everything back."""
        try:
            with self._share.database.transaction(generation=self.generation) as connection:
                self._give_up(connection)
        except OtherFile:
            pass  # in this one it has nothing
        finally:  # without the lock another process gives back what could not be given back here
            self._waiter.close()
            if self._board is not None:
                with suppress(OSError):  # nobody reads it: its owner is gone from the file
                    self._board.remove()
            self._locks.unlock(self.slot, self)
            self._share.close_locks(self._locks)
        self._share.wake.ring(None)

    # --- keeping it

    def renew(self) -> bool:
        """Any thread: takes its lock again, in case that it was dropped. False if ``keep`` has something to do."""
        try:
            self._locks.renew()
        except OSError as e:  # nobody else can lock it either, so they take nobody for dead
            self._complain(self._locks.path, e)
            return True
        self._complaints.discard(self._locks.path)
        self._share.heal(self._locks.closings)
        return self._locks.is_held(self.slot, self) and self._locks.closings == self._closings

    def keep(self) -> None:
        """Makes sure that it has its place, and takes another one if need be. To be called each second, and after an
        error, but outside of a transaction."""
        self.renew()
        if self._closings != self._locks.closings:
            self._closings = self._locks.closings
            self._replace_waiter()
        is_registered = self._is_registered()
        generation = self._share.database.file.generation
        if generation != self.generation:
            logger.error(
                "Worker %s goes on in the new file at %s. What it held is in the old one, or runs again.",
                self._name,
                self._path,
            )
            self._register_again(generation, has_had_place=is_registered)
        elif not is_registered or not self._locks.is_held(self.slot, self):
            logger.error(
                "Worker %s has lost its place in %s: its lock was dropped, and it was taken for dead. What it held is"
                " given to others, and it goes on under a new number.",
                self._name,
                self._path,
            )
            self._register_again(generation)
        if self._board is not None:
            self._keep_board(self._board)

    def _is_registered(self) -> bool:
        values = (self.number, self._pid, self._started_ms)
        return bool(self._share.database.run(lambda c: c.execute(_IS_REGISTERED, values).fetchone()))

    def _register_again(self, generation: int, *, has_had_place: bool = True) -> None:
        waiter = self._waiter
        self._locks.unlock(self.slot, self)
        self._register(self.leases if has_had_place else None, generation)
        waiter.close()
        self.ring()

    def _keep_board(self, board: Board) -> None:
        try:
            board.keep_at(self._board_path, mode=self._share.mode)
        except OSError as e:  # without it no crash of this process is told
            self._complain(self._board_path, e)
        else:
            self._complaints.discard(self._board_path)

    def _complain(self, path: Path, error: OSError) -> None:
        if path not in self._complaints:
            logger.warning("%s cannot be used: %s.", path, error.strerror)
        self._complaints.add(path)

    # --- what it says of itself

    @property
    def _board_path(self) -> Path:
        return self._share.board_path(self.slot)

    def make_board(self, places: int, parent_pid: int) -> Board:
        """Makes its board. What an earlier owner of its slot has left is replaced."""
        try:
            self._board = Board.create(self._board_path, places, mode=self._share.mode, parent_pid=parent_pid)
        except OSError as e:
            raise translate_os(e, self._path) from e
        return self._board

    def announce(self, due_ms: int | None) -> None:
        """Says that it is about to wait, and until when by its own knowledge."""
        self._waiter.announce(due_ms)

    def withdraw(self) -> None:
        """Takes that back."""
        self._waiter.withdraw()

    def wait(self, timeout_s: float) -> None:
        """Waits to be rung."""
        if not self._waiter.wait(timeout_s):
            self._replace_waiter()

    def ring(self) -> None:
        """Any thread, signal-safe: ends the wait, or the next one."""
        self._waiter.ring()
