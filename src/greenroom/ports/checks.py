"""What every engine refuses, in the same words."""

from __future__ import annotations

from ..core.verdict import Verdict
from ..errors import MessageTooLarge
from .store import MAX_OPS, SetAdd
from .transport import Settlement, unpack


def check_value(value: bytes, limit: int | None) -> None:
    """Raises ``MessageTooLarge`` for a value of more than ``limit`` bytes."""
    size = len(value)
    if limit is not None and size > limit:
        raise MessageTooLarge(f"A value of {size} bytes is over the limit of {limit}.", size=size, limit=limit)


def check_set(op: SetAdd, max_body: int | None) -> None:
    """Raises now for what a set's completion could not push later, and for too many members at once."""
    if len(op.members) > MAX_OPS:
        raise ValueError(f"{len(op.members)} members at once; at most {MAX_OPS} are allowed. Add them in turns.")
    for data in (*op.then, *op.then_ok):
        body = unpack(data).body
        if max_body is not None and len(body) > max_body:
            raise MessageTooLarge(
                f"A body of {len(body)} bytes is over the limit of {max_body}.", size=len(body), limit=max_body
            )


def check_park(settlement: Settlement) -> None:
    """Raises ``ValueError`` for a settlement that parks a message in a way that no engine can."""
    slot = settlement.park
    if slot is None:
        return
    if settlement.verdict is not Verdict.RELEASE or settlement.due_ms is not None:
        raise ValueError("Only what is released without a due time can be parked.")
    if slot.limit < 1:
        raise ValueError(f"A limit of {slot.limit} lets nobody in: who is parked for it would wait for ever.")
