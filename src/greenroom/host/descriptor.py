"""A descriptor that knows which file it opened.

A task may close the descriptors of its process (``os.closerange``). Their numbers then mean nothing, or what somebody
else has opened since: to close such a number again would close a file of a stranger's.
"""

from __future__ import annotations

import os


def file_id(found: os.stat_result) -> tuple[int, int]:
    """What tells one file from another, whatever their names."""
    return found.st_dev, found.st_ino


class Descriptor:
    """An open file. Belongs to whoever holds it.

    Parameters:
      number: What ``os.open`` has just returned.
    """

    __slots__ = ("file_id", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.file_id = file_id(os.fstat(number))

    def fileno(self) -> int:
        """Its number, for whoever waits on it."""
        return self.number

    def is_open(self) -> bool:
        """False if somebody else has closed it."""
        try:
            return file_id(os.fstat(self.number)) == self.file_id
        except OSError:
            return False

    def close(self) -> None:
        """Closes it, unless somebody else has."""
        if self.is_open():
            os.close(self.number)
