"""How long dead letters are kept, and how many."""

from __future__ import annotations

import msgspec

#: Seven days.
DEAD_LETTER_TTL_MS = 7 * 24 * 60 * 60 * 1000


class Retention(msgspec.Struct, frozen=True):
    """How long dead letters are kept, in milliseconds, and how many, the newest; None for no end.

    It is kept by whoever consumes: where workers of one engine were told different things, the strictest wins.
    """

    ttl_ms: int | None = DEAD_LETTER_TTL_MS
    limit: int | None = None
