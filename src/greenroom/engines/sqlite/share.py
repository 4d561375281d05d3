"""What one process has open of a queue file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from weakref import WeakSet

from ...errors import BrokerError
from ...forksafe import in_child
from ...host.liveness import LockFile, close_lock_file, open_lock_file
from ...logging import get_logger
from .bell import Bell
from .database import Database
from .errors import translate_os
from .inheritance import check_usable, close_inherited
from .rows import ring
from .wake import WakeFolder
from .writes import Writes

_shares: WeakSet[ProcessShare] = WeakSet()

logger = get_logger(__name__)


class ProcessShare:
    """What one process has open of a queue file: the connection and the wake folder; an owner also the lock file."""

    _opened_in = 0

    def __init__(self, path: Path, *, durable: bool, mode: int) -> None:
        check_usable(path)
        self.database = Database(path, durable=durable, mode=mode)
        self._opened_in = os.getpid()
        _shares.add(self)
        self.database.run(lambda _connection: None)  # makes the files, or says why not
        wake_path = path.with_name(path.name + "-wake")
        try:
            self.wake = WakeFolder(wake_path, mode)
            self.bell = Bell(wake_path, mode)
        except OSError as e:
            self.database.close()
            raise translate_os(e, path) from e
        #: Permissions of the files that are made.
        self.mode = mode
        #: The owners of this process, until they are closed. Held here, because an owner that was merely dropped would
        #: keep its messages for as long as the process lives.
        self.consumers: set[Any] = set()
        self._healed = 0

    def before_fork(self) -> None:
        """Brings the file to rest."""
        self.database.before_fork()

    def after_fork(self) -> None:
        """Lets the parent go on."""
        self.database.after_fork()

    def close(self) -> None:
        """Closes the consumers, which give back what they hold, and the files."""
        for consumer in list(self.consumers):
            try:
                consumer.close()
            except BrokerError as e:
                logger.warning("What a worker held is given back by the next one: %s", e)
        self.database.close()
        self.wake.close()
        self.bell.close()

    def __del__(self) -> None:
        if not self._opened_in or not self.database.is_open:
            return
        if self._opened_in == os.getpid():
            self.database.close()  # nobody closed the broker, and nobody can any more
        else:
            close_inherited([self.database])  # it became garbage in a child that had not noticed the fork

    def tell(self, writes: Writes) -> None:
        """After the commit: tells whoever waits for what these operations have done."""
        if writes.touched:
            self.bell.ring(writes.touched)
        if writes.woken:
            self.wake.ring(None)
        if writes.pushed:
            ring(self.wake, writes.pushed)

    def heal(self, closings: int) -> None:
        """Any thread: where descriptors of this process were closed by somebody else, what was open is opened anew at
        its next use. SQLite's locks are gone with its descriptors, and it does not know; it forgets them when its last
        connection is closed.

        Parameters:
          closings: How often that has happened (``LockFile.closings``).
        """
        if closings == self._healed:
            return
        self._healed = closings
        logger.error("A task has closed descriptors that were not its own. What may be closed is opened anew.")
        self.database.close()
        self.wake.close()
        self.bell.close()

    def board_path(self, slot: int) -> Path:
        """Where the owner in ``slot`` says what it runs."""
        return self.wake.path / f"{slot}.board"

    def open_locks(self) -> LockFile:
        """The lock file, for an owner to hold its byte of; to be given back with ``close_locks``."""
        try:
            locks = open_lock_file(self.wake.path / "lock", self.mode)
        except OSError as e:
            raise translate_os(e, self.database.path) from e
        if not self.consumers:
            self._healed = locks.closings
        return locks

    def close_locks(self, locks: LockFile) -> None:
        """Gives the lock file back."""
        close_lock_file(locks)


@in_child
def _let_go_of_inherited() -> None:
    """After a fork that was announced, all are closed already."""
    close_inherited([share.database for share in _shares if share.database.is_open])
    _shares.clear()
