"""What becomes of a message that was claimed. A verdict is a value; an engine carries it out."""

from __future__ import annotations

import enum


class Verdict(enum.IntEnum):
    """The four ways to settle a message."""

    ACK = 0
    """Done: it is deleted."""
    DEAD = 1
    """To the dead letters, with its error."""
    RETRY = 2
    """Replaced by another envelope, which takes over its crashes and history."""
    RELEASE = 3
    """Given back as it was: neither a retry nor a crash is counted."""
