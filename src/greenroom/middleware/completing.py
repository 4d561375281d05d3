"""The completion of groups in a store that is not the broker's.

No engine can push there in one step with the end of the last member. Its law:

* **First the set, then the settlement.** A member is removed from the set before its message is settled. Whoever finds
  the set complete then, because it has removed the last member or because it comes again, settles its own message only
  when what waits for the set has been pushed. So that is pushed, whoever dies: if nobody else, then the message of the
  last member is delivered again.
* **One at a time.** It is pushed under a lease in the store, and then written down as pushed. Who dies in between is
  followed when its lease has ended. Only a kill after the push and before that note has it pushed once more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from msgspec import structs

from .. import failpoints
from ..core.graph import group_of, pushed_key, set_key, then_key
from ..names import new_storage_id
from ..ports.store import MAX_OPS, Delete, Get, LeaseRelease, LeaseTake, Put, SetAdd, SetLook, SetRemove, StoreOp
from ..ports.transport import MAX_TRIP, unpack

#: How long whoever pushes may take, in milliseconds. If it dies it is followed after that.
TAKEN_TTL_MS = 10_000

#: What ``pushed_key`` holds: what waited for the group was pushed; and its results have been joined.
PUSHED, JOINED = b"pushed", b"joined"


class Completion(msgspec.Struct, frozen=True, array_like=True):
    """What is to be done when a group is complete: packed envelopes, the set and the member that it is in another
    group, and how long it is to be remembered."""

    then: tuple[bytes, ...]
    parent: tuple[str, str] | None
    ttl_ms: int


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Completion).decode


class BeingPushed(Exception):
    """Somebody else is about to do it. Ask again: either it will be done, or that one has died."""


def making_set(
    broker: Any,
    group: str,
    members: Sequence[str],
    ttl_ms: int,
    then: tuple[bytes, ...] = (),
    parent: tuple[str, str] | None = None,
) -> Iterator[StoreOp]:
    """The operations that make the set of a group, in the broker's store for compositions, or add to it: then ``then``
    and ``parent`` are those with which it was made."""
    wants: dict[str, Any] = {"then": then, "parent": parent}
    if broker.composition_store is not broker.store:
        if then or parent:
            yield Put(then_key(group), _encode(Completion(then, parent, ttl_ms)), ttl_ms)
        wants = {}
    for start in range(0, max(1, len(members)), MAX_OPS):
        yield SetAdd(set_key(group), tuple(members[start : start + MAX_OPS]), ttl_ms, **wants)


def complete(broker: Any, group: str, holder: str) -> None:
    """Does what is left to be done of a complete group. Only for stores that are not the broker's.

    Parameters:
      broker: Where it is pushed to.
      group: The group.
      holder: Who does it: the same name at each try, and nobody else's.

    Raises:
      BeingPushed: Somebody else is at it.
      BrokerError: The store or the broker does not answer.
    """
    store = broker.composition_store
    key = then_key(group)
    body, pushed = store.apply([Get(key), Get(pushed_key(group))])
    if body is None:  # all of it was done
        return
    completion = _decode(body)
    if completion.then and pushed is None:
        _push(broker, group, completion, holder)
    if completion.parent is not None:
        _tell_parent(broker, group, completion.parent, holder)
    store.apply([Delete(key)])


def _push(broker: Any, group: str, completion: Completion, holder: str) -> None:
    store = broker.composition_store
    key, mark = then_key(group), pushed_key(group)
    lease, pushed = store.apply([LeaseTake(key, holder, 1, TAKEN_TTL_MS), Get(mark)])
    if pushed is not None:
        return
    if not lease.fence:
        raise BeingPushed(f"What waits for group {group} is being pushed by somebody else.")
    failpoints.hit("group.before_push")
    envelopes = [structs.replace(unpack(data), id=new_storage_id()) for data in completion.then]
    for start in range(0, len(envelopes), MAX_TRIP):
        broker.transport.push(envelopes[start : start + MAX_TRIP])
    failpoints.hit("group.after_push")
    store.apply([Put(mark, PUSHED, completion.ttl_ms), LeaseRelease(key, holder)])
    failpoints.hit("group.after_mark")


def _tell_parent(broker: Any, group: str, parent: tuple[str, str], holder: str) -> None:
    """Goes up to the group that this one is a member of. Doing so again changes nothing."""
    store = broker.composition_store
    key, member = parent
    progress = store.apply([SetLook(set_key(group))])[0]
    if progress is None:
        return
    above = store.apply([SetRemove(key, member, progress.failed > 0)])[0]
    if above is not None and above.is_complete:
        complete(broker, group_of(key), holder)
