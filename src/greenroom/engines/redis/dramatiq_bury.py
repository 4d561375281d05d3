"""Giving back what dead workers of ours had claimed of Dramatiq's layout, at once and with what they ran charged."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence

from ...errors import BrokerError
from ...host.deaths import Death
from ...logging import get_logger
from ...ports.transport import CRASH, ErrorText
from .connection import Argument
from .dramatiq_layout import DramatiqLayout, Place
from .history import entry_of
from .keys import PRIORITY_BASE, SEQ_SPAN, Keys
from .scripts import load
from .share import ProcessShare

#: What the names of our own processes begin with, where Dramatiq's are UUIDs. Nobody stays awake because of them.
OURS = "greenroom-"
#: How many messages are given back in one step.
CHUNK = 500

logger = get_logger(__name__)

_BURY = load("dramatiq_bury", "history")


def mark_of(id_: str) -> int:
    """The number by which a board names a message of Dramatiq's: below 0, where those of our layout are above."""
    digest = hashlib.blake2b(id_.encode(), digest_size=8).digest()
    return -1 - (int.from_bytes(digest, "big") >> 1)


class Undertaker:
    """Called by whoever buries an owner of ours. Thread-safe; without state.

    Parameters:
      share: What this process has open to the server.
      layout: Dramatiq's keys.
      keys: Ours.
      wire: Whether all that is written is for Dramatiq to read: then nobody is charged.
    """

    def __init__(self, share: ProcessShare, layout: DramatiqLayout, keys: Keys, *, wire: bool) -> None:
        self._share = share
        self._layout = layout
        self._keys = keys
        self._wire = wire

    def bury(self, owner: str, queues: Sequence[str], death: Death, now: Argument) -> None:
        """Gives back what an owner had claimed. What fails is done once its heartbeat has not changed for long.

        Parameters:
          owner: Its id in our layout.
          queues: What it may have claimed of.
          death: How it died, and what it ran.
          now: The time that scripts are told.
        """
        name = OURS + owner
        charged = others = 0
        try:
            for place in [Place(queue, delayed) for queue in queues for delayed in (False, True)]:
                ids = self._layout.claimed_by(name, place)
                for start in range(0, len(ids), CHUNK):
                    counts = self._give_back(name, place, ids[start : start + CHUNK], death, now)
                    charged, others = charged + counts[0], others + counts[1]
            self._layout.forget(name)
        except BrokerError as e:
            logger.warning("What %s held of Dramatiq's queues is given back later: %s", name, e)
        if charged or others:
            death.tell(charged, others)

    def _give_back(self, name: str, place: Place, ids: Collection[str], death: Death, now: Argument) -> tuple[int, int]:
        of = self._keys.of(place.queue)
        keys: list[Argument] = [
            self._layout.list_of(place),
            self._layout.bodies_of(place),
            self._layout.claims_of(name, place),
            self._layout.due_of(place.queue),
            of.wake,
            self._keys.seq,
            self._keys.queues,
            of.ready,
            of.bodies,
            of.extras,
            of.incidents,
        ]
        ran = [] if self._wire else [id_ for id_ in ids if mark_of(id_) in death.charged]
        incident = entry_of(1, ErrorText(CRASH, death.evidence))
        rest = [id_ for id_ in ids if id_ not in set(ran)]
        args: list[Argument] = [now, place.queue, PRIORITY_BASE * SEQ_SPAN, incident, len(ran), *ran, *rest]
        charged, others = self._share.run(_BURY, keys, args)
        return charged, others
