"""Dead letters that are too old or too many, of all queues, are deleted in steps."""

from __future__ import annotations

from ...ports.retention import Retention
from .connection import Argument
from .scripts import load
from .share import ProcessShare

#: So many are deleted in one step.
CHUNK = 1000

_RETAIN = load("retain")


def retain(retention: Retention, share: ProcessShare, now: Argument) -> bool:
    """One step: deletes dead letters that are too old or too many; True if there may be more of them.

    Parameters:
      now: The time in milliseconds that scripts are told; empty for the server's.
    """
    if retention.ttl_ms is None and retention.limit is None:
        return False
    keys = [
        key for queue in sorted(share.call("SMEMBERS", share.keys.queues)) for key in share.keys.of(queue.decode())[-4:]
    ]
    ttl_ms, limit = ("" if bound is None else bound for bound in (retention.ttl_ms, retention.limit))
    deleted: int = share.run(_RETAIN, keys, [now, ttl_ms, limit, CHUNK])
    return deleted >= CHUNK
