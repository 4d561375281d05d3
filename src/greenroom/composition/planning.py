"""From a composition to what is sent: the message that starts it, and what the store has to keep before that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import msgspec

from ..core.graph import (
    GROUP_MEMBER,
    MAX_NESTABLE,
    MAX_NESTED,
    PIPE_PLAN,
    PIPE_TARGET,
    End,
    GroupPlan,
    Membership,
    OnError,
    Position,
    members_key,
    plan_key,
    set_key,
)
from ..message import Message
from ..middleware import GroupCallbacks, Pipelines
from ..middleware.completing import complete, making_set
from ..middleware.composing import KEPT_TTL_MS
from ..names import new_message_id
from ..ports.store import MAX_OPS, Put, Store, StoreOp
from ..ports.transport import pack
from .built_in import JOIN_GROUP, OPEN_GROUP

#: So many members of a group are added to its set at a time, and the last one.
_STEP = MAX_OPS - 1
#: So many operations travel with messages; more are done before them, by themselves.
_MOST_CARRIED = 100


class Composition(Protocol):
    """What a stage or a member may be besides a message."""

    on_error: OnError

    def _first(self, planner: Planner, membership: Membership | None, position: Position | None = None) -> Message[Any]:
        """The message that starts it; what else is needed is left with the planner."""

    def _leaves(self) -> Iterable[Message[Any]]:
        """Its messages."""


def check_on_error(value: str) -> OnError:
    """Returns ``value``; raises ``ValueError`` unless it is a policy."""
    if value not in ("fail", "skip", "collect"):
        raise ValueError(f'on_error must be "fail", "skip" or "collect", not {value!r}.')
    return value  # type: ignore[return-value]  # just checked


def _end_of(stage: Any) -> End:
    if isinstance(stage, Message):
        return End(stage.queue_name, stage.actor_name, stage.message_id)
    end: End = stage._end()
    return end


def _member(message: Message[Any], option: str) -> Message[Any]:
    """``message.copy`` for the many members of a large group, where its price counts. ``option`` is that of a
    ``Membership``."""
    options = {**message.options, GROUP_MEMBER: option}
    return Message(
        message.queue_name,
        message.actor_name,
        message.args,
        message.kwargs,
        options,
        message.message_id,
        message.message_timestamp,
    )


def leaves_of(node: Any) -> Iterable[Message[Any]]:
    """The messages of a composition, or of a message."""
    return (node,) if isinstance(node, Message) else node._leaves()


def nested(messages: Sequence[Message[Any]]) -> Message[Any]:
    """The first of some messages, which carries the others."""
    first = messages[-1]
    for message in reversed(messages[:-1]):
        first = message.copy(options={PIPE_TARGET: first.asdict()})
    return first


def is_nestable(stages: Sequence[Any], on_error: OnError) -> bool:
    """True for a pipeline that its first message can carry."""
    return len(stages) <= MAX_NESTED and on_error == "fail" and all(isinstance(stage, Message) for stage in stages)


class Planner:
    """What one run of a composition needs. Owned by whoever calls ``run``.

    Parameters:
      broker: Where it is to run.
      ttl_ms: How long the sets of its groups are kept.
    """

    def __init__(self, broker: Any, ttl_ms: int) -> None:
        self.broker = broker
        self.ttl_ms = ttl_ms
        self.ops: list[StoreOp] = []
        #: What is there for the sake of later stages, and goes if they never come.
        self.keys: list[str] = []
        #: Groups without members.
        self.empty: list[str] = []

    def send(self, messages: list[Message[Any]], delay_ms: int | None) -> None:
        """Sends up to a thousand messages of those that have come so far, and before that, or in one step with it, has
        the store do what is needed."""
        broker = self.broker
        if broker.composition_store is broker.store and 0 < len(self.ops) <= _MOST_CARRIED:
            ops, self.ops, self.empty = self.ops, [], []
            broker.enqueue_after(ops, messages, delay=delay_ms)
            return
        self.run()
        broker.enqueue_many(messages, delay=delay_ms)

    def run(self) -> None:
        """Has the store do what is needed before the messages are sent that have come so far."""
        broker = self.broker
        store = broker.composition_store
        ops, self.ops = self.ops, []
        empty, self.empty = self.empty, []
        apply_all(store, ops)
        if store is not broker.store:
            for group in empty:
                complete(broker, group, new_message_id())

    def first(self, node: Any, membership: Membership | None) -> Message[Any]:
        """The message that starts a member."""
        if not isinstance(node, Message):
            composition: Composition = node
            return composition._first(self, membership)
        return node if membership is None else _member(node, membership.as_option())

    # --- pipelines

    def pipeline(self, stages: Sequence[Any], on_error: OnError, membership: Membership | None) -> Message[Any]:
        """The first message of a pipeline."""
        if is_nestable(stages, on_error) or self.broker.composition_store is None:
            self._check_without_store(stages, on_error)
            first = nested(stages)
        else:
            first = self._planned(stages, on_error, membership)
        return first if membership is None else first.copy(options={GROUP_MEMBER: membership.as_option()})

    def _check_without_store(self, stages: Sequence[Any], on_error: OnError) -> None:
        if self.broker.composition_store is not None:
            return
        why = self.broker._why_no_store
        if on_error != "fail":
            raise ValueError(f"on_error={on_error!r} needs a broker with a store of its own; {why}.")
        if not all(isinstance(stage, Message) for stage in stages):
            raise ValueError(f"A group inside a pipeline needs a broker with a store of its own; {why}.")
        if len(stages) > MAX_NESTABLE:
            raise ValueError(
                f"This pipeline has {len(stages)} stages. More than {MAX_NESTABLE} need a broker with a store of its "
                f"own; {why}. Without one the first message has to carry all the others."
            )

    def _planned(self, stages: Sequence[Any], on_error: OnError, membership: Membership | None) -> Message[Any]:
        plan, total, below = new_message_id(), len(stages), len(self.keys)
        end = [_end_of(stage) for stage in stages][-1]
        messages = []
        for number, stage in enumerate(stages, 1):
            position = Position(plan, number, total, end, on_error)
            if isinstance(stage, Message):
                messages.append(stage.copy(options={PIPE_PLAN: position.as_option()}))
            else:
                messages.append(stage._first(self, membership, position))
        key = plan_key(plan)
        self.ops.append(Put(key, msgspec.json.encode(self.keys[below:])))
        self.ops += [Put(key, message.encode(), part=part) for part, message in enumerate(messages) if part]
        self.keys.append(key)
        return messages[0]

    # --- groups that a worker opens

    def group(
        self,
        group: str,
        children: Sequence[Any],
        callbacks: Sequence[Message[Any]],
        on_error: OnError,
        membership: Membership | None,
        position: Position | None,
    ) -> Message[Any]:
        """The message that opens a group."""
        broker = self.broker
        keeps = (position is not None and not position.is_last) or (membership is not None and membership.keeps)
        queue = next((leaf.queue_name for node in (*children, *callbacks) for leaf in leaves_of(node)), None)
        if queue is None:
            queue = "default" if position is None else position.end.queue_name or "default"
        options: dict[str, Any] = {}
        if position is not None:
            options[PIPE_PLAN] = position.as_option()
        if membership is not None:
            options[GROUP_MEMBER] = membership.as_option()
        now_ms = broker.clock.now_ms()
        opener: Message[Any] = Message(queue, OPEN_GROUP, (group, 0), {}, options, new_message_id(), now_ms)
        join_args = (group, on_error, keeps, keeps and not callbacks)
        join: Message[Any] = Message(queue, JOIN_GROUP, join_args, {}, options, group, now_ms)
        then = (pack(broker.envelope(join)), *self.packed(callbacks))
        key = members_key(group)
        self.ops.append(Put(key, msgspec.msgpack.encode(GroupPlan(len(children), then, opener.encode()))))
        for part, child in enumerate(children, 1):
            first = self.first(child, Membership(group, str(part), keeps))
            self.ops.append(Put(key, first.encode(), part=part))
        self.keys.append(key)
        return opener

    # --- groups that are opened here

    def open(
        self,
        group: str,
        children: Sequence[Any],
        callbacks: Sequence[Message[Any]],
        parent: tuple[str, str] | None = None,
    ) -> Iterator[Message[Any]]:
        """The first messages of a group's members, while ``ops`` grows by what makes the set of those that have come so
        far; the last one is in it from the first on, so that the set is not complete before all are. Groups come last,
        and are opened, too: an empty one is complete at once, and must be in the set then."""
        width = len(str(len(children)))  # names of one length: the order of a tree's rows is then that of the members
        inner = [n for n, child in enumerate(children) if type(child) is not Message and hasattr(child, "_open")]
        order: Sequence[int] = range(len(children))
        if inner:
            order = [*sorted(set(order).difference(inner)), *inner]

        def names(some: Sequence[int]) -> list[str]:
            return [str(n + 1).zfill(width) for n in some]

        first = [*order[:_STEP], *order[_STEP:][-1:]]
        self.ops += making_set(self.broker, group, names(first), self.ttl_ms, self.packed(callbacks), parent)
        if not children:
            self.empty.append(group)
        for start in range(0, len(order), _STEP):
            some = order[start : start + _STEP]
            parts = names(some)
            if start:
                self.ops += making_set(self.broker, group, parts, self.ttl_ms)
            for part, n in zip(parts, some, strict=True):
                child = children[n]
                if type(child) is Message:
                    yield _member(child, f"{part}/{group}")
                elif hasattr(child, "_open"):
                    yield from child._open(self, (set_key(group), part))
                else:
                    yield self.first(child, Membership(group, part))

    def packed(self, callbacks: Sequence[Message[Any]]) -> tuple[bytes, ...]:
        """Callbacks as they are kept until the group is complete."""
        return tuple(pack(self.broker.follow_up(callback)) for callback in callbacks)


def set_ttl_ms(broker: Any) -> int:
    """How long sets are kept: thirty days, unless ``GroupCallbacks`` says otherwise."""
    counter = find_counter(broker)
    return KEPT_TTL_MS if counter is None else counter.barrier_ttl


def keeps_sets(broker: Any) -> bool:
    """True if there is a store that knows when a group is complete."""
    store = broker.composition_store
    if store is None or not any(isinstance(m, Pipelines) for m in broker.middleware):
        return False
    return bool(store is not broker.store or store.features.pushes)


def find_counter(broker: Any) -> GroupCallbacks | None:
    """The broker's ``GroupCallbacks``, if it has it."""
    return next((m for m in broker.middleware if isinstance(m, GroupCallbacks)), None)


def chunks(ops: Sequence[StoreOp]) -> Iterable[Sequence[StoreOp]]:
    """Operations in as many as a store takes at a time."""
    return (ops[start : start + MAX_OPS] for start in range(0, len(ops), MAX_OPS))


def apply_all(store: Store | None, ops: Sequence[StoreOp]) -> None:
    """Has all of it done."""
    for chunk in chunks(ops):
        assert store is not None  # a planner leaves nothing for a store that there is not
        store.apply(chunk)
