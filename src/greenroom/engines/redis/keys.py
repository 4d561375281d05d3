"""The names of everything that is kept on the server.

All keys of a namespace begin with ``{<namespace>}:g1:``. The braces put them into one slot of a cluster, and no key of
Dramatiq's begins so. What names a message inside of a key is its storage id.

Of a queue:

=====  ======  =========================================================================================================
``r``  zset    ready; the score is priority and sequence number, lower first
``d``  zset    delayed; the score is the due time (ms), the member is 16 digits of the ready score and then the id
``m``  hash    id -> body, of all that is not dead
``e``  hash    id -> ``attempts:crashes``, only where one of them is not 0; attempts are the claims that have ended
``i``  hash    id -> what befell it, one incident a line (``history.py``), the oldest first; only where something has
``w``  zset    the wake token, a member ``1``: whoever waits takes it
``h``  hash    of one owner: id -> ready score, of what it has claimed
``x``  zset    dead letters; the score is when they died (ms)
``xm`` hash    id -> body of a dead letter
``xe`` hash    id -> ``attempt:crashes:`` and then how it died, as a line of ``i``
``xi`` hash    id -> what befell it before, as in ``i``
=====  ======  =========================================================================================================

Of a namespace: ``seq`` the last sequence number, ``queues`` the set of queues, ``paused`` the set of queues that are
paused, ``owners`` a hash of owners and what is known of them (``owner.py``), ``leases`` a zset of when they are taken
for dead (ms), ``running`` a hash of owners and what they run, ``t:<owner>`` a hash with the number and the answer of an
owner's last trip, ``id`` a word that tells this data from all other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

#: A ready score is (priority + PRIORITY_BASE) * SEQ_SPAN + sequence number: 53 bits, all that a score holds exactly.
PRIORITY_BASE = 1000
SEQ_SPAN = 2**42


class QueueKeys(NamedTuple):
    """The keys of a queue, in the order in which scripts expect them."""

    ready: bytes
    delayed: bytes
    bodies: bytes
    wake: bytes
    extras: bytes
    incidents: bytes
    dead: bytes
    dead_bodies: bytes
    dead_extras: bytes
    dead_incidents: bytes


class Keys:
    """The keys of one namespace. Thread-safe.

    Parameters:
      namespace: Any text without braces.
    """

    def __init__(self, namespace: str) -> None:
        if "{" in namespace or "}" in namespace:
            raise ValueError(f"A namespace has no braces: {namespace!r}.")
        self.prefix = b"{" + namespace.encode() + b"}:g1:"
        self.seq = self.prefix + b"seq"
        self.queues = self.prefix + b"queues"
        self.paused = self.prefix + b"paused"
        self.owners = self.prefix + b"owners"
        self.leases = self.prefix + b"leases"
        self.running = self.prefix + b"running"
        self.id = self.prefix + b"id"
        self.ends = self.prefix + b"ends"
        self.watch = self.prefix + b"watch"
        #: What the scripts need of the queues whose messages stood in a line lately, by the line: nothing but a hint.
        self.of_lines: dict[bytes, Sequence[bytes]] = {}
        self._of_queues: dict[str, QueueKeys] = {}

    def of(self, queue: str) -> QueueKeys:
        """The keys of a queue."""
        try:
            return self._of_queues[queue]
        except KeyError:
            name = queue.encode()
            kinds = (b"r:", b"d:", b"m:", b"w:", b"e:", b"i:", b"x:", b"xm:", b"xe:", b"xi:")
            keys = self._of_queues[queue] = QueueKeys(*(self.prefix + kind + name for kind in kinds))
            return keys

    def held(self, owner: str, queue: str) -> bytes:
        """What ``owner`` has claimed of a queue."""
        return b"%sh:%s:%s" % (self.prefix, owner.encode(), queue.encode())

    def trip(self, owner: str) -> bytes:
        """The last trip of ``owner``."""
        return self.prefix + b"t:" + owner.encode()
