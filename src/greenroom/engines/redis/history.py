"""What befell a message, as text on the server: ``<at_ms>:<JSON>``, one incident a line, the oldest first.

The time is the server's, put before the rest by the script that keeps it.
"""

from __future__ import annotations

import msgspec

from ...ports.transport import ErrorText, Incident


class _Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """An incident without its time."""

    attempt: int
    type: str | None = None
    message: str = ""
    traceback: str = ""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Entry).decode


def entry_of(attempt: int, error: ErrorText | None) -> bytes:
    """An incident, as scripts take it: they add the time."""
    texts = () if error is None else (error.type, error.message, error.traceback)
    return _encode(_Entry(attempt, *texts))


def incident_of(line: bytes) -> Incident:
    """One line of a history."""
    at_ms, _, entry = line.partition(b":")
    e = _decode(entry)
    return Incident(int(at_ms), e.attempt, None if e.type is None else ErrorText(e.type, e.message, e.traceback))


def incidents_of(history: bytes | None) -> list[Incident]:
    """A whole history; None for one that was never begun."""
    return [incident_of(line) for line in history.split(b"\n")] if history else []
