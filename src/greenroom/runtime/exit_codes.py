"""How the processes of the command line end. One enum, so that nobody invents a number."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of ``greenroom worker`` and of its children."""

    #: Ended as asked, also if tasks outlasted the grace: their messages were released.
    OK = 0
    #: Killed by a signal, or forced by a second one.
    KILLED = 1
    #: A mistake in the command line, or the user's module could not be imported.
    USAGE = 2
    #: The broker could not be reached or opened at start, or worker processes failed to start again and again.
    UNREACHABLE = 3
    #: The pid file is held by another process, or cannot be used.
    PID_FILE = 4
    #: The broker's data is damaged, or of another version.
    CORRUPT = 5
    #: A mistake of ours, or a child that cannot work any more.
    INTERNAL = 70
