"""Who is alive: a lock on one byte of a file, held by an owner for as long as its process lives.

The kernel releases it when the process dies, however it dies; so there is no lease to renew and none to expire by
mistake. ``fcntl`` locks and not ``flock``, because ``flock`` is inherited: a grandchild that a task forked would keep
a dead worker alive (measured).

Two properties of ``fcntl`` locks shape this module (both measured): a process sees its own locks as free, so owners
of this process are known by a registry and never probed; and closing any descriptor of the file drops all locks of
the process on it, so each lock file is opened once a process, by this registry and by no other code.

What a task does to its process, and people do to files, can drop the locks of the living all the same: a task that
reads every file of a folder closes this one, too; another closes all descriptors; somebody tidies up and deletes the
file. The process cannot see that it has lost a lock, so ``renew`` takes all of them again, each second. It follows the
path to a new file; who finds such a file waits for the others to do so, before it takes anybody for dead.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys
import threading
from pathlib import Path

from ..clock import SYSTEM_CLOCK
from ..forksafe import in_child
from .descriptor import Descriptor, file_id
from .folders import make_folder

#: How long the living have to follow to a lock file that was made anew.
FOLLOW_MS = 2_000

_LINUX_FLOCK = "hhqqi"  # l_type, l_whence, l_start, l_len, l_pid: native alignment
_MACOS_FLOCK = "qqihh"  # l_start, l_len, l_pid, l_type, l_whence

_lock = threading.Lock()  # guards: the registry, its reference counts, and what each file knows of its bytes
_open_files: list[LockFile] = []
_inherited: list[LockFile] = []  # a child keeps them: it must not close what it may not own


class LockFile:
    """A file whose bytes are locked by living owners. One instance a process and file; made by ``open_lock_file``."""

    def __init__(self, path: Path, mode: int) -> None:
        self.path = path
        self.references = 0
        #: How often somebody else has closed its descriptor, and then perhaps all of this process.
        self.closings = 0
        self._mode = mode
        self._mine: dict[int, object] = {}  # who has a byte
        self._left: list[Descriptor] = []
        self._open()

    def _open(self) -> None:
        make_folder(self.path.parent, self._mode)
        flags = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC
        try:
            number = os.open(self.path, flags | os.O_EXCL, self._mode)
            os.fchmod(number, self._mode)
        except FileExistsError:
            number = os.open(self.path, flags, self._mode)
        self._file = Descriptor(number)
        self._born_ms = os.fstat(number).st_mtime_ns // 1_000_000  # nobody ever writes into it

    # --- for owners of this process

    def try_lock(self, slot: int, owner: object = None) -> bool:
        """Takes the byte ``slot`` for an owner of this process; False if somebody has it.

        Raises:
          OSError: It cannot be locked at all.
        """
        with _lock:
            if slot in self._mine or not self._take(slot):
                return False
            self._mine[slot] = owner
            return True

    def _take(self, slot: int) -> bool:
        try:
            fcntl.lockf(self._file.number, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, slot)
        except OSError as e:
            if e.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise
        return True

    def unlock(self, slot: int, owner: object = None) -> None:
        """Gives the byte ``slot`` back, if this owner has it."""
        with _lock:
            if self._mine.get(slot, self) is owner:
                del self._mine[slot]
                if self._file.is_open():
                    fcntl.lockf(self._file.number, fcntl.LOCK_UN, 1, slot)

    def is_held(self, slot: int, owner: object = None) -> bool:
        """True if this owner has the byte ``slot``, as far as the last ``renew`` could tell."""
        return self._mine.get(slot, self) is owner

    def renew(self) -> None:
        """Any thread: makes sure that the owners of this process have their bytes in the file that is at the path now.
        Those whose bytes somebody else has got hold them no longer.

        Raises:
          OSError: The file cannot be opened or locked.
        """
        with _lock:
            if self.references:  # else its last user has just closed it
                self._renew()

    def _renew(self) -> None:
        file = self._file
        is_open = file.is_open()
        if not (is_open and self._is_at_its_path()):
            self._open()
            if is_open:  # and stays so, with its locks: who still looks at the old file sees that we live
                self._left.append(file)
            else:
                self.closings += 1
        self._mine = {slot: owner for slot, owner in self._mine.items() if self._take(slot)}

    def _is_at_its_path(self) -> bool:
        try:
            return file_id(os.stat(self.path)) == self._file.file_id
        except FileNotFoundError:
            return False

    # --- for all who look

    def is_alive(self, slot: int) -> bool:
        """True if a living owner, of this process or another, holds the byte ``slot``; or if nobody can tell."""
        if slot in self._mine:
            return True
        try:
            return self._probe(slot) != fcntl.F_UNLCK
        except OSError:
            return True

    def _probe(self, slot: int) -> int:
        if sys.platform == "darwin":
            probe = struct.pack(_MACOS_FLOCK, slot, 1, 0, fcntl.F_WRLCK, os.SEEK_SET)
            return int(struct.unpack(_MACOS_FLOCK, fcntl.fcntl(self._file.number, fcntl.F_GETLK, probe))[3])
        probe = struct.pack(_LINUX_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, slot, 1, 0)
        return int(struct.unpack(_LINUX_FLOCK, fcntl.fcntl(self._file.number, fcntl.F_GETLK, probe))[0])

    def may_follow(self, started_ms: int) -> bool:
        """True if an owner that has registered at ``started_ms`` (UNIX milliseconds of the machine's clock), in an
        earlier file, still has time to come over to this one."""
        return started_ms < self._born_ms and 0 <= SYSTEM_CLOCK.now_ms() - self._born_ms < FOLLOW_MS

    def close(self) -> None:
        """Drops all locks of this process. For the registry."""
        for descriptor in (self._file, *self._left):
            descriptor.close()


def open_lock_file(path: Path, mode: int) -> LockFile:
    """This process's ``LockFile`` for ``path``; made and opened if need be. Pair it with ``close_lock_file``."""
    with _lock:
        file = _known(path)
        if file is None:
            file = LockFile(path, mode)
            _open_files.append(file)
        file.references += 1
        return file


def _known(path: Path) -> LockFile | None:
    """The file that is open already: found by what it is, or by its name if another file has that name by now."""
    try:
        found = file_id(os.stat(path))
    except FileNotFoundError:
        found = None
    for file in _open_files:
        if file._file.file_id == found and file._file.is_open():
            return file
    real = os.path.realpath(path)
    for file in _open_files:
        if os.path.realpath(file.path) == real:
            file._renew()
            return file
    return None


def close_lock_file(file: LockFile) -> None:
    """Closes the file once nobody in this process uses it."""
    with _lock:
        file.references -= 1
        if not file.references and file in _open_files:
            _open_files.remove(file)
            file.close()


@in_child
def _forget_inherited() -> None:
    global _lock
    _lock = threading.Lock()
    _inherited.extend(_open_files)
    _open_files.clear()
