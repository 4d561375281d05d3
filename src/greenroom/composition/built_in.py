"""Two actors that every worker knows: what opens a group in the midst of a pipeline, and what joins its results.

They come into being in the worker that first meets one of their messages. Their messages travel in the queue of the
group's first member, so whoever runs that has to know them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from ..actor import Actor
from ..core.graph import (
    Failure,
    GroupPlan,
    Joined,
    OnError,
    Opened,
    failure_key,
    joined,
    members_key,
    pushed_key,
    results_key,
    set_key,
)
from ..encoder import get_encoder
from ..message import Message, decode_message
from ..middleware.completing import JOINED, making_set
from ..middleware.composing import KEPT_TTL_MS, with_result
from ..names import q_name
from ..ports.store import MAX_OPS, Delete, Get, GetParts, Put, SetDrop, SetLook
from ..ports.transport import MAX_TRIP

OPEN_GROUP = "greenroom.open_group"
JOIN_GROUP = "greenroom.join_group"

#: What they do is to ask the store, so they are tried until it answers.
_OPTIONS = {"max_retries": None, "min_backoff": 100, "max_backoff": 30_000, "store_results": False}

#: How many members are sent in one step: as many as a trip carries, and the message for the next ones.
CHUNK = MAX_TRIP - 1


def built_in(broker: Any, message: Message[Any]) -> Any:
    """The built-in actor that a message is for, declared now; None if there is none, or the broker has no store."""
    fn = _FUNCTIONS.get(message.actor_name)
    if fn is None or broker.composition_store is None:
        return None
    if message.actor_name in broker.actors:
        return broker.actors[message.actor_name]
    options = {name: value for name, value in _OPTIONS.items() if name in broker.actor_options}
    try:
        actor: Actor[Any, Any] = Actor(
            partial(fn, broker),
            broker=broker,
            actor_name=message.actor_name,
            queue_name=q_name(message.queue_name),
            priority=0,
            options=options,
        )
    except ValueError:  # another worker of this broker was faster
        return broker.actors[message.actor_name]
    broker.returned_in_vain.add(actor)
    return actor


def open_group(broker: Any, group: str, start: int = 0, *values: Any) -> Opened:
    """Sends about a thousand members of a group, and itself for the next ones."""
    store = broker.composition_store
    key = members_key(group)
    body, parts = store.apply([Get(key), GetParts(key, start + 1, CHUNK)])
    if body is None:  # all of it was done before, by a run that was taken for dead
        return Opened([], [])
    plan = msgspec.msgpack.decode(body, type=GroupPlan)
    writes: list[Any] = []
    if start == 0:
        members = [str(number) for number in range(1, plan.total + 1)]
        early = list(making_set(broker, group, members, KEPT_TTL_MS, plan.then))
        if store is broker.store:
            writes = [early.pop()]
        for op in early:  # a set must be whole before its first member can end
            store.apply([op])
    messages: list[Message[Any]] = [decode_message(part) for _, part in parts]
    if values:
        messages = [with_result(broker, message, values[-1]) for message in messages]
    if start + CHUNK < plan.total:
        messages.append(decode_message(plan.opener).copy(args=(group, start + CHUNK, *values)))
    is_there = store is broker.store or plan.total > 0
    return Opened(messages, writes, complete=None if is_there else group)


def join_group(broker: Any, group: str, on_error: OnError, keeps: bool, drops: bool) -> Joined | Opened:
    """Gathers what the members of a complete group have returned, for the stage after it."""
    store = broker.composition_store
    progress, failed, mark = store.apply([SetLook(set_key(group)), Get(failure_key(group)), Get(pushed_key(group))])
    if mark == JOINED:  # this message was sent twice
        return Opened([], [])
    litter: list[Any] = [Delete(members_key(group)), Delete(results_key(group))]
    if drops:
        litter.append(SetDrop(set_key(group)))
    if store is not broker.store:
        litter.append(Put(pushed_key(group), JOINED, KEPT_TTL_MS))
    if progress is None:
        return Joined([], Failure("GroupExpired", f"nothing is known of group {group} any more"), litter)
    if progress.failed and on_error == "fail":
        failure = Failure("GroupFailed", f"{progress.failed} of {progress.total} members failed")
        return Joined([], failure if failed is None else msgspec.json.decode(failed, type=Failure), litter)
    if not keeps:
        return Joined([], None, litter)
    return Joined(*joined(_records(store, group, progress.total), on_error), litter)


def _records(store: Any, group: str, total: int) -> list[Any]:
    """What the members have left, in their order."""
    records: list[Any] = [None] * total
    decode = get_encoder().decode
    for start in range(1, total + 1, MAX_OPS):
        for part, value in store.apply([GetParts(results_key(group), start, MAX_OPS)])[0]:
            if part <= total:
                records[part - 1] = decode(value)
    return records


_FUNCTIONS: dict[str, Callable[..., Any]] = {OPEN_GROUP: open_group, JOIN_GROUP: join_group}
