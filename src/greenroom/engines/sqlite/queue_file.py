"""Where a queue file lies: made with the right permissions, watched while it is in use, with room on its disk.

The law of this module:

* **By ``stat`` alone.** Nothing is opened here but a file that was not there (see ``database``: the file, its ``-wal``
  and its ``-shm`` belong to SQLite).
* **Nothing is made twice.** A file that this process has used and that is gone is not made anew: whoever deleted or
  renamed it is told about, at every use, until there is a file again. Nor is one made beside a write-ahead log that
  another one has left: that log may be all that there is of its messages.
* **A log that was deleted is saved.** Those who have it open still do, and move what is in it into the file. They open
  the file anew only when all have had the time for that.
* **No two files are mixed.** SQLite knows its log by name only. Where a file was replaced and the log of the old one
  still lies there, SQLite would write pages of the old one into the new one; so such a file is refused.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from time import monotonic

from ...errors import BrokerCorrupt, BrokerError, BrokerMoved, ConnectionFailed
from ...host.folders import folder_mode
from ...logging import get_logger
from .errors import translate_os
from .mounts import warn_of_network

#: Nobody sends when less is left on the disk: it is kept for settling what runs, which is what makes room. A
#: write-ahead log of its usual size fits in, and what a few processes write between two looks.
RESERVE_BYTES = 16 * 1024 * 1024
#: No SQLite database is smaller, unless it is empty.
_SMALLEST_BYTES = 512

#: So long a file may be missing, or be half replaced, before this counts as final: whoever restores one needs a moment.
GRACE_S = 2.0

Identity = tuple[int, int]

logger = get_logger(__name__)


class OtherFile(BrokerError):
    """Raised where a transaction was meant for a file that does not lie at the path any more: another one does."""


class QueueFile:
    """Changed by whoever holds the gate of its ``Database``; anybody may read.

    Parameters:
      path: Absolute.
      mode: Permissions of what is made.
    """

    def __init__(self, path: Path, mode: int) -> None:
        self.path = path
        self.mode = mode
        #: True if this process has made the file.
        self.created = False
        #: True if so little room is left that nobody should send.
        self.is_short = False
        #: Counts the files that were found at the path, one after the other; 0 before the first one is opened.
        self.generation = 0
        self._log_paths = (f"{path}-wal", f"{path}-shm")
        self._identity: Identity | None = None
        self._logs: frozenset[Identity] = frozenset()
        self._wrong_since_s: float | None = None
        self._lost_log_at_s: float | None = None

    def prepare(self) -> Identity:
        """Before the file is opened: makes sure that there is one, and that it may be opened. Says which one it is.

        Raises:
          ConnectionFailed: If the one that was used is gone, or only half replaced, since a moment; or if it lost its
            log a moment ago.
          BrokerMoved: If it has been so for longer.
          BrokerCorrupt: If it cannot be a queue.
          BrokerReadOnly, BrokerFull, ConnectionFailed: If it cannot be made.
        """
        if self._identity is None:
            self._make()
        found = identity_of(self.path)
        if found is None and self._identity is None:
            raise ConnectionFailed(f"The queue file {self.path} cannot be opened: it cannot be seen.")
        if found is None:
            raise self._wrong(
                "was deleted or renamed while this process used it. It is not made anew: put it back, or start the "
                "program again to begin with an empty queue"
            )
        if self._identity not in (None, found) and not self._logs.isdisjoint(self._present_logs()):
            raise self._wrong(
                "was replaced while this process used it, and the write-ahead log of the old one still lies there. "
                "Stop all processes that use it, move the files that end in -wal and -shm away, and start again"
            )
        self._wrong_since_s = None
        self._wait_for_others()
        return found

    def _wait_for_others(self) -> None:
        """After a lost log: until all have noticed, too, and have saved and closed what they had."""
        if self._lost_log_at_s is None:
            return
        if monotonic() - self._lost_log_at_s < GRACE_S:
            raise ConnectionFailed(
                f"The write-ahead log of {self.path} was deleted while this process used it. It is opened anew as soon "
                "as all who use it have noticed."
            )
        self._lost_log_at_s = None

    def _wrong(self, what: str) -> BrokerError:
        now_s = monotonic()
        if self._wrong_since_s is None:
            self._wrong_since_s = now_s
        text = f"The queue file {self.path} {what}."
        if now_s - self._wrong_since_s < GRACE_S:
            return ConnectionFailed(text)
        return BrokerMoved(text, path=str(self.path))

    def opened(self, identity: Identity) -> None:
        """After the file that ``prepare`` has named was opened."""
        if identity != self._identity:
            if self._identity is not None:
                logger.warning(
                    "The queue file %s was replaced; what is sent goes into the new one. What was sent in the last "
                    "second may be in the old one.",
                    self.path,
                )
            warn_of_network(self.path, identity[0])
            self._identity = identity
            self.generation += 1

    def closed(self) -> None:
        """After the last connection of this process was closed: SQLite may delete the log now, and make another."""
        if self.is_there:
            self._logs = frozenset()

    @property
    def is_there(self) -> bool:
        """True if the file that was opened lies at the path."""
        return identity_of(self.path) == self._identity

    def look(self, spare_bytes: Callable[[], int]) -> bool:
        """Looks at the path and at the disk, while a connection is open. False if it has to be closed: the file is not
        there any more, or another one is, or its log was deleted.

        Parameters:
          spare_bytes: Tells how much of the file itself is free for new rows.
        """
        if not self.is_there:
            return False
        logs = self._present_logs()
        if not self._logs <= logs:  # SQLite deletes them when nobody uses them any more
            logger.error("The write-ahead log of %s was deleted while it was in use.", self.path)
            self._lost_log_at_s = monotonic()
            return False
        self._logs = logs
        free_bytes = self._free_bytes()
        self.is_short = free_bytes < RESERVE_BYTES and free_bytes + spare_bytes() < RESERVE_BYTES
        return True

    def _present_logs(self) -> frozenset[Identity]:
        return frozenset(found for path in self._log_paths if (found := identity_of(path)) is not None)

    def _free_bytes(self) -> int:
        """What is left on the disk; as much as is wanted where nobody can tell."""
        try:
            disk = os.statvfs(self.path)
        except OSError:  # the next look will tell
            return RESERVE_BYTES
        blocks = disk.f_bavail if os.geteuid() else disk.f_bfree
        return blocks * disk.f_frsize if disk.f_blocks else RESERVE_BYTES

    # --- making it

    def _make(self) -> None:
        """Makes the folder and an empty file with the right permissions. SQLite gives its other files the same."""
        try:
            self._make_folder()
            self._refuse_leftovers()
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, self.mode)
        except FileExistsError:
            self._refuse_what_is_no_database()
            return
        except OSError as e:
            raise translate_os(e, self.path) from e
        # The file is new, so no connection to it can exist yet, and closing it by hand is safe.
        os.fchmod(descriptor, self.mode)
        os.close(descriptor)
        self.created = True

    def _make_folder(self) -> None:
        folder = self.path.parent
        if not folder.is_dir():
            try:
                folder.mkdir(parents=True)
            except FileExistsError as e:
                if not folder.is_dir():
                    raise NotADirectoryError(errno.ENOTDIR, "there is a file where a folder should be") from e
            folder.chmod(folder_mode(self.mode))

    def _refuse_leftovers(self) -> None:
        log = f"{self.path}-wal"
        # In this order: whoever makes a queue now makes its file first.
        if _size_of(log) > 0 and not self.path.exists():
            raise BrokerCorrupt(
                f"The queue file {self.path} is gone, but its write-ahead log {log} is there, and may hold messages. "
                "Put the file back; or, if they are not needed, delete the log.",
                path=str(self.path),
            )

    def _refuse_what_is_no_database(self) -> None:
        if self.path.is_dir():
            raise ConnectionFailed(f"The queue file {self.path} cannot be opened: it is a folder.")
        # SQLite would take a tiny file for an empty database, and write over it.
        if self.path.is_file() and 0 < _size_of(self.path) < _SMALLEST_BYTES:
            raise BrokerCorrupt(f"{self.path} is not a Greenroom queue.", path=str(self.path))


def identity_of(path: str | Path) -> Identity | None:
    """Which file lies at ``path``, by device and inode; None if there is none, or it cannot be seen."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _size_of(path: str | Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
