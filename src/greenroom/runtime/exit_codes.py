"""How the processes of the command line end. One enum, so that nobody invents a number."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of ``greenroom worker`` and of its children."""

    OK = 0
    #: Killed by a signal, by the end of the grace, or forced by a second signal.
    KILLED = 1
    #: A mistake in the command line, or the user's module could not be imported.
    USAGE = 2
    #: The broker could not be reached or opened at start.
    UNREACHABLE = 3
    #: The broker's data is damaged, or of another version.
    CORRUPT = 5
    #: A mistake of ours.
    INTERNAL = 70
