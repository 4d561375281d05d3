"""Where the owners of this host say that they are alive: one lock file for all of them, and two files each.

* ``lock``: an owner holds the byte of its own number (``host.liveness``).
* ``<id>.owner``: who it is. So its neighbours need not ask the server who there is.
* ``<id>.board``: what it runs.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from ...host.liveness import LockFile, close_lock_file, open_lock_file
from ...host.run_folder import make_run_folder, place_of

MODE = 0o600


class Neighbour(msgspec.Struct, frozen=True):
    """An owner as its file tells of it."""

    name: str
    pid: int
    started_ms: int


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Neighbour).decode


#: Sixteen hexadecimal digits, so that an owner's number is never used again, wherever it was thought of.
_ID = re.compile(r"[0-7][0-9a-f]{15}")


def new_id() -> str:
    """An id that no owner has had."""
    return f"{secrets.randbits(63):016x}"


def is_id(text: str) -> bool:
    """True if an owner may be called so."""
    return _ID.fullmatch(text) is not None


def number_of(id: str) -> int:
    """The byte of the lock file that an owner holds."""
    return int(id, 16)


class RunPlace:
    """What an owner and its reaper see of the folder. Belongs to the owner's thread, but for ``locks.renew``.

    Parameters:
      data_id: Tells the data on the server from all other.
      base: Where the folder is made; None for the user's own.

    Raises:
      OSError: It cannot be made, or may not be used.
    """

    def __init__(self, data_id: str, base: Path | None) -> None:
        self.data_id = data_id
        self._base = base
        self._folder = make_run_folder(data_id, base)
        #: What tells this folder from all others, of other hosts as well.
        self.word = place_of(self._folder)
        self.locks: LockFile = open_lock_file(self._folder / "lock", MODE)

    def keep(self) -> None:
        """Makes sure that the folder is there, and nobody else's; ``word`` is another one if it was made anew."""
        make_run_folder(self.data_id, self._base)
        self.word = place_of(self._folder)

    def board_path(self, id: str) -> Path:
        """Where an owner says what it runs."""
        return self._folder / f"{id}.board"

    def announce(self, id: str, neighbour: Neighbour) -> None:
        """Tells the neighbours of an owner, if they were not told yet."""
        path = self._owner_path(id)
        with suppress(FileExistsError):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE)
            try:
                os.write(descriptor, _encode(neighbour))
            finally:
                os.close(descriptor)

    def withdraw(self, id: str) -> None:
        """Takes away what an owner has left."""
        for path in (self._owner_path(id), self.board_path(id)):
            with suppress(OSError):  # another one does the same; or who has tidied up
                path.unlink()

    def dead(self) -> Iterator[tuple[str, Neighbour]]:
        """The owners of this host that have died and whose files are still here."""
        try:
            names = os.listdir(self._folder)
        except OSError:  # somebody has tidied up; whoever lives makes it anew
            return
        for name in names:
            id, _, kind = name.rpartition(".")
            if kind == "owner" and is_id(id) and not self.is_alive(id):
                neighbour = self._read(id)
                if not self.locks.may_follow(neighbour.started_ms):
                    yield id, neighbour

    def is_alive(self, id: str) -> bool:
        """True if an owner lives, of this process or of another one of this host."""
        return self.locks.is_alive(number_of(id))

    def _read(self, id: str) -> Neighbour:
        path = self._owner_path(id)
        try:
            return _decode(path.read_bytes())
        except (OSError, msgspec.DecodeError):  # it died while it wrote, or is gone by now
            pass
        try:
            return Neighbour("?", 0, path.stat().st_mtime_ns // 1_000_000)
        except OSError:
            return Neighbour("?", 0, 0)

    def _owner_path(self, id: str) -> Path:
        return self._folder / f"{id}.owner"

    def close(self) -> None:
        """Closes the lock file, once all owners of this process have."""
        close_lock_file(self.locks)
