"""A folder of servers that end with the processes that use them, however those end.

Each user holds a shared lock on the folder's file ``users``, which the system takes back when the process ends, be it
by ``kill -9``. A watchdog, a process of its own, waits for the exclusive lock: it gets it when there is no user left,
ends all servers that have a record in the folder, and ends.
"""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from .process import Process, Server, ServerFailed, spawn, wait_for

WATCHDOG = Path(__file__).with_name("watchdog.py")


class Nest:
    """This process's use of a folder of servers. Record locks are a process's: make one nest of a folder in a process.

    Parameters:
      folder: May be shared by several processes, who see to it that only one of them starts a server.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._pid = os.getpid()
        self._servers: list[Server] = []
        self._watchdog: Process | None = None
        self._lock = self._join()

    def _join(self) -> int:
        """Becomes a user. Where a watchdog has just had the last word, a new one is needed."""
        file = os.open(self.folder / "users", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.lockf(file, fcntl.LOCK_SH)  # waits while a watchdog ends servers
        with (self.folder / "watchdog").open("a+") as guard:
            fcntl.lockf(guard, fcntl.LOCK_EX)
            if not self._is_watched():
                self._watch()
        return file

    def _is_watched(self) -> bool:
        try:
            pid = int((self.folder / "watchdog.pid").read_text())
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return False
        return os.fsencode(self.folder) in words

    def _watch(self) -> None:
        (self.folder / "watchdog.pid").unlink(missing_ok=True)
        self._watchdog = spawn([sys.executable, "-S", "-E", WATCHDOG, self.folder])
        if not wait_for((self.folder / "watchdog.pid").exists, 30.0):
            raise ServerFailed(f"the watchdog of {self.folder} did not start")

    def own(self, server: Server) -> None:
        """Has a server end when this nest is closed."""
        self._servers.append(server)

    def close(self) -> None:
        """Ends this process's servers and its use of the folder; where it was the last user, all servers end."""
        if os.getpid() != self._pid:
            return  # a forked child has neither started them nor a lock
        for server in self._servers:
            server.end()
        os.close(self._lock)
        if self._watchdog is not None:
            self._watchdog.wait(0.5)  # others may be left

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
