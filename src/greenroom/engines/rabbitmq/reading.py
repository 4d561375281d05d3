"""From what the broker hands over to what is claimed."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec

from ...logging import get_logger, one_line
from ...ports.transport import CRASH, Delivery, ErrorText, Incident
from .neighbours import Fallen, Neighbours
from .tap import Arrived
from .unacked import Epoch
from .wire import Meta, read

#: How many incidents a history holds, and how much of each.
HISTORY_LENGTH = 25
MAX_INCIDENT = 2048
#: The quorum queue's count of deliveries that did not end well.
_DELIVERY_COUNT = "x-delivery-count"
#: Of these, so many prove nothing: what was only fetched by a process that died, or was given back, counts as well.
FORGIVEN_DELIVERIES = 20
_MARK_BITS = 2**63 - 1

logger = get_logger(__name__)


class Past(NamedTuple):
    """A message that did not come straight from its sender."""

    properties: Any
    meta: Meta
    #: Crashes that it does not carry along yet.
    incidents: tuple[Incident, ...] = ()

    @property
    def history(self) -> tuple[Incident, ...]:
        """All that befell it, the oldest first."""
        return (*self.meta.history, *self.incidents)[-HISTORY_LENGTH:]


def mark_of(id: str, crashes: int = 0) -> int:
    """The number by which a board names a message: the same in every process that gets it, until it has crashed and
    was sent again."""
    try:
        number = int(id, 16)
    except ValueError:  # of another program
        number = int.from_bytes(blake2b(id.encode(), digest_size=8).digest())
    return (number + (crashes << 48)) & _MARK_BITS or 1


def id_of(properties: Any, body: bytes) -> str:
    """The storage id; where the sender gave none, the same one whenever the message is handed out again."""
    return properties.message_id or blake2b(body, digest_size=16).hexdigest()


def plain(queue: str, epoch: Epoch, arrived: Arrived) -> Delivery:
    """A message that nothing has befallen."""
    tag, _, properties, body = arrived
    id = properties.message_id
    return Delivery(queue, id, body, (epoch, tag), 1, 0, False, mark_of(id))


def is_plain(arrived: Arrived) -> bool:
    """Whether ``plain`` will do."""
    properties = arrived.properties
    return not arrived.redelivered and properties.headers is None and properties.message_id


class Reader:
    """For all that is not plain. Owned by its consumer.

    Parameters:
      neighbours: Know what ran when a process died; None if that is not known here.
    """

    def __init__(self, neighbours: Neighbours | None) -> None:
        self._neighbours = neighbours

    def past_of(self, arrived: Arrived) -> Past | None:
        """What befell a message; None if it is not known yet: ask again in a moment."""
        id = id_of(arrived.properties, arrived.body)
        _, meta = read(arrived.properties)
        fallen = self._deaths(arrived, mark_of(id, meta.crashes))
        if fallen is None:
            return None
        incidents = tuple(
            Incident(each.found_ms, meta.attempt + number, ErrorText(CRASH, each.evidence))
            for number, each in enumerate(fallen, 1)
        )
        return Past(arrived.properties, meta, incidents)

    def _deaths(self, arrived: Arrived, mark: int) -> list[Fallen] | None:
        if not arrived.redelivered or self._neighbours is None:
            return []
        return self._neighbours.crashes(mark)

    def delivery(self, queue: str, epoch: Epoch, arrived: Arrived, past: Past) -> Delivery:
        """The message as it is claimed."""
        id = id_of(arrived.properties, arrived.body)
        new = len(past.incidents)
        earlier = _delivery_count(arrived.properties)
        if new:
            told = past.incidents[-1].error
            logger.warning("Message %s ran when a worker died: %s.", one_line(id, 64), told.message if told else "")
        crashes = past.meta.crashes + (new or max(0, earlier - FORGIVEN_DELIVERIES))
        before = past.meta.attempt + max(int(arrived.redelivered), earlier, new)
        mark = mark_of(id, past.meta.crashes)
        return Delivery(queue, id, arrived.body, (epoch, arrived.tag), before + 1, crashes, before > 0, mark)


def _delivery_count(properties: Any) -> int:
    count = (properties.headers or {}).get(_DELIVERY_COUNT, 0)
    return count if isinstance(count, int) and count > 0 else 0


def with_incident(history: tuple[Incident, ...], incident: Incident) -> tuple[Incident, ...]:
    """The history, with one incident more."""
    return (*history, incident)[-HISTORY_LENGTH:]


def short(incident: Incident) -> Incident:
    """The incident as a header has room for it: the end of its traceback, where the cause is."""
    error = incident.error
    if error is None or len(error.message) + len(error.traceback) <= MAX_INCIDENT:
        return incident
    message = error.message[: MAX_INCIDENT // 2]
    traceback = error.traceback[len(error.traceback) - (MAX_INCIDENT - len(message)) :] if error.traceback else ""
    return msgspec.structs.replace(incident, error=ErrorText(error.type, message, traceback))
