"""Slots that were not renewed in time are handed on to those who stand in line for them."""

from __future__ import annotations

from .scripts import load
from .share import ProcessShare
from .writes import LIBRARIES, Writes

#: The keys whose slots are ended in one step.
KEYS_A_STEP = 100

_APPLY = load("apply", *LIBRARIES)


def end_slots(share: ProcessShare, now_ms: int | None) -> bool:
    """Ends slots that others stand in line for; whether there were any.

    Parameters:
      share: The server and the namespace.
      now_ms: The time; None for the server's.

    Raises:
      BrokerError: If that was not done.
    """
    names = share.keys
    time_ms = _server_time_ms(share) if now_ms is None else now_ms
    ended: list[bytes] = share.call("ZRANGEBYSCORE", names.ends, "-inf", time_ms, "LIMIT", 0, KEYS_A_STEP)
    if not ended:
        return False
    writes = Writes(names, [names.seq], None)
    args = writes.end_slots(ended)
    writes.run(share.run, _APPLY, ["" if now_ms is None else now_ms, *args, writes.wants()])
    return True


def _server_time_ms(share: ProcessShare) -> int:
    seconds, microseconds = share.call("TIME")
    return int(seconds) * 1000 + int(microseconds) // 1000
