"""What one process has open of a queue file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .database import Database
from .liveness import LockFile, close_lock_file, open_lock_file
from .wake import WakeFolder


class ProcessShare:
    """What one process has open of a queue file: the connection and the wake folder; an owner also the lock file."""

    def __init__(self, path: Path, *, durable: bool, mode: int) -> None:
        self.database = Database(path, durable=durable, mode=mode)
        self.database.run(lambda _connection: None)  # makes the files, or says why not
        wake_path = path.with_name(path.name + "-wake")
        self.wake = WakeFolder(wake_path, mode)
        self._mode = mode
        #: The owners of this process, until they are closed. Held here, because an owner that was merely dropped would
        #: keep its messages for as long as the process lives.
        self.consumers: set[Any] = set()

    def before_fork(self) -> None:
        """Brings the file to rest."""
        self.database.before_fork()

    def after_fork(self) -> None:
        """Lets the parent go on."""
        self.database.after_fork()

    def close(self) -> None:
        """Closes the consumers, which give back what they hold, and the files."""
        for consumer in list(self.consumers):
            consumer.close()
        self.database.close()
        self.wake.close()

    def open_locks(self) -> LockFile:
        """The lock file, for an owner to hold its byte of; to be given back with ``close_locks``."""
        return open_lock_file(self.wake.path / "lock", self._mode)

    def close_locks(self, locks: LockFile) -> None:
        """Gives the lock file back."""
        close_lock_file(locks)
