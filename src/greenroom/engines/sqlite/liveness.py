"""Who is alive: a lock on one byte of a file, held by an owner for as long as its process lives.

The kernel releases it when the process dies, however it dies; so there is no lease to renew and none to expire by
mistake. ``fcntl`` locks and not ``flock``, because ``flock`` is inherited: a grandchild that a task forked would keep
a dead worker alive (measured).

Two properties of ``fcntl`` locks shape this module (both measured): a process sees its own locks as free, so owners
of this process are known by a registry and never probed; and closing any descriptor of the file drops all locks of
the process on it, so each lock file is opened once a process, by this registry and by no other code.
"""

from __future__ import annotations

import fcntl
import os
import struct
import sys
import threading
from pathlib import Path

_LINUX_FLOCK = "hhqqi"  # l_type, l_whence, l_start, l_len, l_pid: native alignment
_MACOS_FLOCK = "qqihh"  # l_start, l_len, l_pid, l_type, l_whence

_lock = threading.Lock()  # guards: the registry and its reference counts
_open_files: dict[tuple[int, int], LockFile] = {}
_inherited: list[LockFile] = []  # a child keeps them: it must not close what it may not own


class LockFile:
    """A file whose bytes are locked by living owners. One instance a process and file; made by ``open_lock_file``."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._mine: set[int] = set()
        self.references = 0

    def try_lock(self, slot: int) -> bool:
        """Takes the byte ``slot`` for an owner of this process; False if somebody has it."""
        with _lock:
            if slot in self._mine:
                return False
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, slot)
            except OSError:
                return False
            self._mine.add(slot)
            return True

    def unlock(self, slot: int) -> None:
        """Gives the byte ``slot`` back."""
        with _lock:
            self._mine.discard(slot)
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, slot)

    def is_alive(self, slot: int) -> bool:
        """True if a living owner, of this process or another, holds the byte ``slot``."""
        if slot in self._mine:
            return True
        if sys.platform == "darwin":
            probe = struct.pack(_MACOS_FLOCK, slot, 1, 0, fcntl.F_WRLCK, os.SEEK_SET)
            kind = struct.unpack(_MACOS_FLOCK, fcntl.fcntl(self._descriptor, fcntl.F_GETLK, probe))[3]
        else:
            probe = struct.pack(_LINUX_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, slot, 1, 0)
            kind = struct.unpack(_LINUX_FLOCK, fcntl.fcntl(self._descriptor, fcntl.F_GETLK, probe))[0]
        return bool(kind != fcntl.F_UNLCK)


def open_lock_file(path: Path, mode: int) -> LockFile:
    """This process's ``LockFile`` for ``path``; made and opened if need be. Pair it with ``close_lock_file``."""
    with _lock:
        try:
            found = os.stat(path)
        except FileNotFoundError:
            descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, mode)
            os.fchmod(descriptor, mode)
            found = os.fstat(descriptor)
        else:
            known = _open_files.get((found.st_dev, found.st_ino))
            if known is not None:
                known.references += 1
                return known
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        file = _open_files[(found.st_dev, found.st_ino)] = LockFile(descriptor)
        file.references = 1
        return file


def close_lock_file(file: LockFile) -> None:
    """Closes the file once nobody in this process uses it."""
    with _lock:
        file.references -= 1
        if file.references:
            return
        for key, known in list(_open_files.items()):
            if known is file:
                del _open_files[key]
                os.close(file._descriptor)


def _forget_inherited() -> None:
    global _lock
    _lock = threading.Lock()
    _inherited.extend(_open_files.values())
    _open_files.clear()


os.register_at_fork(after_in_child=_forget_inherited)
