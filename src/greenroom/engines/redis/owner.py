"""An owner of claims: a name on the server, a lease that is renewed there, a byte of a lock file, and a board.

Its lease is renewed by each trip, and where there are none by its ``pulse``.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from contextlib import suppress

import msgspec

from ...board import Board
from ...clock import SYSTEM_CLOCK, Clock
from ...errors import ConnectionFailed
from ...logging import get_logger
from .connection import Argument
from .pulse import Pulse, Task
from .reaper import OwnerInfo, Reaped, Reaper
from .run_place import MODE, Neighbour, RunPlace, new_id, number_of
from .scripts import load, load_alone
from .share import ProcessShare

_REGISTER = load("register")
_DATA_ID = load_alone("data_id")

logger = get_logger(__name__)
_encode = msgspec.json.Encoder().encode


class Owner:
    """Belongs to its consumer's thread, but for ``renew``, which the ticker's calls.

    It may lose its place: it was silent for too long, and was taken for dead. Then it gets another one, under a new id,
    and what it held before is lost to it.

    Parameters:
      share: What this process has open to the server.
      name: What people call it.
      clock: The time that scripts are told.
      lease_ms: How long it may be silent.
    """

    def __init__(self, share: ProcessShare, name: str, clock: Clock, lease_ms: int) -> None:
        self._share = share
        self._name = name
        self._clock = clock
        self._pid = os.getpid()
        self._queues: tuple[str, ...] = ()
        self._board: Board | None = None
        self._complaint = ""
        self._lost: Collection[str] = ()  # whose leases have ended for good
        self._place: RunPlace | None = None
        self._pulse = Pulse(share, lease_ms, lambda: self._now)
        self.lease_ms = lease_ms
        self.reaper = Reaper(share, clock, lease_ms)
        try:
            self._register()
        except BaseException:
            self._leave_place()
            raise

    # --- its place

    def _register(self) -> None:
        """Takes a new id. Owners of this host that have died make room first."""
        place = self._enter_place()
        # The machine's clock, whichever the engine has: it is compared with the time of the lock file.
        self._started_ms = SYSTEM_CLOCK.now_ms()
        self.reaper.look(place)
        id = new_id()
        try:
            place.locks.try_lock(number_of(id), self)
            place.announce(id, self._neighbour)
        except OSError as e:
            place.locks.unlock(number_of(id), self)
            raise self._unusable(e) from e
        #: Never used again.
        self.id = id
        self._put_down(is_new=True)
        self._pulse.began(id)

    def _enter_place(self) -> RunPlace:
        """The folder for the data that is on the server now."""
        data_id = self._data_id()
        place = self._place
        if place is not None and place.data_id == data_id:
            return place
        if place is not None:
            logger.error("The server at %s has lost its data, or has other data now.", self._share.connector.where)
        try:
            entered = RunPlace(data_id, self._share.run_folder)
        except OSError as e:
            raise self._unusable(e) from e
        self._leave_place()
        self._place = entered
        return entered

    def _data_id(self) -> str:
        """Tells the data on the server from all other: whoever finds none puts one there."""
        found: bytes = self._share.run(_DATA_ID, [self._share.keys.id], [new_id()])
        return found.decode()

    def _leave_place(self) -> None:
        if self._place is not None:
            self._place.close()
            self._place = None

    def _unusable(self, error: OSError) -> ConnectionFailed:
        return ConnectionFailed(
            f"The folder in which workers of this host see who is alive cannot be used: {error}. "
            "GREENROOM_RUN_FOLDER names another one."
        )

    @property
    def _neighbour(self) -> Neighbour:
        return Neighbour(self._name, self._pid, self._started_ms)

    def _put_down(self, *, is_new: bool = False) -> bool:
        """Tells the server what is to be known of it; False if it was taken for dead."""
        assert self._place is not None
        keys, word = self._share.keys, self._place.word
        info = _encode(OwnerInfo(self._name, self._pid, word, self._queues))
        is_known = self._share.run(
            _REGISTER, [keys.owners, keys.leases], [self._now, self.id, info, self.lease_ms, int(is_new)]
        )
        self._told_word = word
        return bool(is_known)

    @property
    def _now(self) -> Argument:
        return "" if self._clock is SYSTEM_CLOCK else self._clock.now_ms()

    def register_again(self) -> None:
        """After it was taken for dead: gives up what it may still hold, and goes on under a new id."""
        logger.error(
            "Worker %s was taken for dead: it has not renewed its lease in time, or the server has lost its data. What "
            "it held is given to others, and it goes on under a new name.",
            self._name,
        )
        old, place = self.id, self._place
        self.reaper.give_up(old)
        if place is not None:
            place.locks.unlock(number_of(old), self)
        self._register()
        if self._board is not None:
            self._keep_board(self._board)
        if place is not None:
            place.withdraw(old)

    def enroll(self, queues: Sequence[str]) -> None:
        """Before it claims of queues: has the server know of them, so that whoever buries it finds what it held."""
        if len(queues) > len(self._queues):  # there never are fewer
            known, self._queues = self._queues, tuple(queues)
            try:
                self._put_down()  # the trip itself tells if it was taken for dead
            except BaseException:
                self._queues = known
                raise

    def leave(self) -> None:
        """Gives everything back."""
        place = self._place
        try:
            self.reaper.give_up(self.id)
        finally:  # without the lock another process gives back what could not be given back here
            self._pulse.end()
            if place is not None:
                place.locks.unlock(number_of(self.id), self)
            self._leave_place()
        if place is not None:
            place.withdraw(self.id)

    # --- keeping it

    def seen(self, expired: Sequence[bytes]) -> None:
        """After each trip: its lease lasts anew.

        Parameters:
          expired: Whose leases have ended, each with the end.
        """
        self._pulse.renewed()
        self._lost = self.reaper.note_expired(expired)

    def look_around(self) -> Reaped:
        """Once a second: makes sure of its own place, and gives back what the dead held."""
        place = self._place
        if place is None:
            return Reaped()
        self._keep(place)
        found = self.reaper.look(place)
        if not self._lost:
            return found
        lost, self._lost = self._lost, ()
        return self.reaper.reap_expired(lost, place, found)

    def _keep(self, place: RunPlace) -> None:
        try:
            place.keep()
            place.locks.renew()
            place.announce(self.id, self._neighbour)
        except OSError as e:  # nobody else can see it either, and its lease is good
            self._complain(e)
            return
        if place.word != self._told_word:
            self._put_down()
        if self._board is not None:
            self._keep_board(self._board)

    def _keep_board(self, board: Board) -> None:
        assert self._place is not None
        try:
            board.keep_at(self._place.board_path(self.id), mode=MODE)
        except OSError as e:  # without it no crash of this process is told
            self._complain(e)

    def _complain(self, error: OSError) -> None:
        if self._complaint != str(error):
            logger.warning("What tells the neighbours that this worker lives cannot be kept: %s.", error)
        self._complaint = str(error)

    def renew(self) -> bool:
        """Any thread: takes its lock again, in case that it was dropped, and renews the lease if no trip did. False if
        it was taken for dead."""
        place, board = self._place, self._board
        if place is not None:
            with suppress(OSError):  # the next look complains
                place.locks.renew()
        self._pulse.beat(board.running() if board is not None else ())
        return self._pulse.is_good

    def in_background(self, task: Task) -> None:
        """Any thread: has the thread that renews the lease do something short."""
        self._pulse.do(task)

    # --- what it says of itself

    def is_cut_off(self) -> bool:
        """Any thread: True if the lease may have ended, as far as can be told from here."""
        return self._pulse.is_cut_off()

    def make_board(self, places: int, parent_pid: int) -> Board:
        """Makes its board, anew at each call."""
        assert self._place is not None
        try:
            path = self._place.board_path(self.id)
            self._board = Board.create(path, places, mode=MODE, parent_pid=parent_pid)
        except OSError as e:
            raise self._unusable(e) from e
        return self._board
