"""A file that holds the process id of a running program, for service managers and scripts.

A lock serialises those who look at it or change it, so that of two programs that start together one is refused.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

_LONGEST = 32


class PidFileError(Exception):
    """Raised when the file cannot be had; the text is one line for the user."""


class PidFile:
    """Owned by the parent's main thread.

    Parameters:
      path: The file; relative to the working directory of now.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)

    def claim(self) -> None:
        """Writes this process's id into the file. One that names a process that is gone is taken over.

        Raises:
          PidFileError: If the process that the file names lives, if it holds something else than a process id, or if
            it cannot be written.
        """
        try:
            with self._locked(os.O_RDWR | os.O_CREAT) as descriptor:
                self._check(os.read(descriptor, _LONGEST))
                if os.fstat(descriptor).st_uid == os.geteuid():
                    os.fchmod(descriptor, 0o644)  # whatever the umask
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except OSError as e:
            raise PidFileError(f"the pid file {self.path!r} cannot be written: {e.strerror}") from e

    def release(self) -> None:
        """Removes the file, if it still names this process."""
        try:
            with self._locked(os.O_RDWR) as descriptor:
                if os.read(descriptor, _LONGEST).strip() == str(os.getpid()).encode():
                    os.unlink(self.path)
        except OSError:  # somebody has removed it, or put something else there
            pass

    def _check(self, content: bytes) -> None:
        text = content.strip()
        if not text:  # made by hand, or its writer never got so far
            return
        if not text.isdigit() or len(content) == _LONGEST:
            raise PidFileError(f"the pid file {self.path!r} holds no process id; remove it if it is an old one")
        pid = int(text)
        if pid != os.getpid() and _is_alive(pid):  # in a container a successor has the id of its predecessor
            raise PidFileError(f"the pid file {self.path!r} is held by a running process, PID {pid}")

    @contextmanager
    def _locked(self, flags: int) -> Iterator[int]:
        """The file, locked, and the one that lies at the path now."""
        while True:
            descriptor = os.open(self.path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if self._is_there(descriptor):
                    yield descriptor
                    return
            finally:
                os.close(descriptor)

    def _is_there(self, descriptor: int) -> bool:
        try:
            there = os.stat(self.path)
        except OSError as e:
            if e.errno == errno.ENOENT:  # its owner has removed it meanwhile
                return False
            raise
        ours = os.fstat(descriptor)
        return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def _is_alive(pid: int) -> bool:
    if not pid:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def held(path: str | None) -> Iterator[None]:
    """Holds a pid file while the block runs; does nothing without a path.

    Raises:
      PidFileError: As ``PidFile.claim``.
    """
    if path is None:
        yield
        return
    file = PidFile(path)
    file.claim()
    try:
        yield
    finally:
        file.release()
