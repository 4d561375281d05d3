"""How long dead letters are kept, and how many."""

from __future__ import annotations

import msgspec

from .connection import Argument
from .scripts import load
from .share import ProcessShare

#: Seven days.
DEAD_LETTER_TTL_MS = 7 * 24 * 60 * 60 * 1000
#: So many are deleted in one step.
CHUNK = 1000

_RETAIN = load("retain")


class Retention(msgspec.Struct, frozen=True):
    """How long dead letters are kept, in milliseconds, and how many, the newest of all queues; None for no end.

    It is kept by whoever consumes: where workers of one namespace were told different things, the strictest wins.
    """

    ttl_ms: int | None = DEAD_LETTER_TTL_MS
    limit: int | None = None

    def purge(self, share: ProcessShare, now: Argument) -> bool:
        """One step: deletes dead letters that are too old or too many; True if there may be more of them.

        Parameters:
          now: The time in milliseconds that scripts are told; empty for the server's.
        """
        if self.ttl_ms is None and self.limit is None:
            return False
        keys = [
            key
            for queue in sorted(share.call("SMEMBERS", share.keys.queues))
            for key in share.keys.of(queue.decode())[-4:]
        ]
        ttl_ms, limit = ("" if bound is None else bound for bound in (self.ttl_ms, self.limit))
        deleted: int = share.run(_RETAIN, keys, [now, ttl_ms, limit, CHUNK])
        return deleted >= CHUNK
