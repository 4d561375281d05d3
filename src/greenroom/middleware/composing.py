"""The end of a message that is part of a composition, in one step with its settlement.

Its law: whatever the outcome, exactly one of these is decided: the next stage is pushed, or the pipeline has ended and
the group that it is a member of is told. So a group completes whatever becomes of its members.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec

from .. import failpoints
from ..core.ending import Ending, Outcome
from ..core.failure import message_of, type_name
from ..core.graph import (
    GROUP_MEMBER,
    PIPE_TARGET,
    End,
    Failure,
    Joined,
    Opened,
    failure_key,
    goes_on,
    group_of,
    last_target,
    membership_of,
    plan_key,
    position_of,
    results_key,
    set_key,
)
from ..core.run import Run
from ..encoder import get_encoder
from ..logging import get_logger, one_line
from ..message import MAX_MESSAGE_BYTES, Message, decode_message
from ..ports.checks import check_value
from ..ports.store import MAX_OPS, Delete, Get, Put, SetRemove, StoreOp
from ..ports.transport import ErrorText
from .completing import complete

logger = get_logger(__name__)

#: How long the reason of a failure is kept for those who wait: a day, in milliseconds.
FAILURE_TTL_MS = 86_400_000
#: How long results are kept for the stage after a group, in milliseconds: as long as the group's set.
KEPT_TTL_MS = 30 * 86_400_000
#: How many deletions travel with a settlement; a plan with more below it is cleared before.
_MAX_DELETES = 500


def with_result(broker: Any, message: Message[Any], result: Any) -> Message[Any]:
    """A stage, with the result of the one before it as its last positional argument unless it does not want it."""
    actor = broker.actors.get(message.actor_name)
    ignores = actor is not None and actor.options.get("pipe_ignore", False)
    if message.options.get("pipe_ignore", ignores):
        return message
    return message.copy(args=(*message.args, result))


def departure_of(options: dict[str, Any]) -> SetRemove | None:
    """What takes a message that is done out of the set of its group, if it is a member and nothing else; None if there
    is more to it. What large groups consist of should cost little: this is ``membership_of``, written out."""
    value = options.get(GROUP_MEMBER)
    if len(options) != 1 or type(value) is not str:
        return None
    member, _, group = value.partition("/")
    if not group or "/" in group or not member.isdecimal():
        return None
    return SetRemove(set_key(group), member)


def depart(broker: Any, ending: Ending, ops: Sequence[StoreOp]) -> None:
    """Has members taken out of their sets, and what belongs to that done before; and sees to the groups that are
    complete then, where their store does not."""
    store = broker.composition_store
    ending.keep(store, *ops, strict=True, then=partial(_see_to_completion, broker, ending, ops))


def _see_to_completion(broker: Any, ending: Ending, ops: Sequence[StoreOp], answers: list[Any]) -> None:
    failpoints.hit("group.after_member_remove")
    for op, progress in zip(ops, answers, strict=True):
        if type(op) is SetRemove and progress is not None and progress.is_complete:
            _have_completed(broker, ending, group_of(op.key))


def _have_completed(broker: Any, ending: Ending, group: str) -> None:
    delivery = ending.delivery
    holder = f"{delivery.id}.{delivery.attempt}"
    ending.call(broker.composition_store, partial(complete, broker, group, holder), strict=True)


class Composing:
    """What the end of one message means. Owned by the thread that asks about endings; then, where compositions are kept
    in a store that is not the broker's, by the thread that writes for that.

    Parameters:
      broker: Has an engine of ours.
      ending: A final one.
      message: The message that carries the marks of a composition: the ending's, or one that was to be sent with it.
    """

    def __init__(self, broker: Any, ending: Ending, message: Any = None) -> None:
        self._broker = broker
        self._store = broker.composition_store
        #: What the store is to do, and what nobody needs any more then.
        self._ops: list[StoreOp] = []
        self._litter: list[StoreOp] = []
        self._ending = ending
        self._message = ending.message if message is None else message
        self._options = options = self._message.options
        self._target = options.get(PIPE_TARGET)
        self._position = position_of(options) if self._store is not None else None
        self._membership = membership_of(options) if self._store is not None else None

    def conclude(self) -> None:
        """Decides what follows: here and now, or beside the executor if the store is not the broker's own."""
        if self._store is self._broker.store or self._store is None:
            self._decide()
            self._hand_over()
        else:
            self._ending.call(self._store, self._decide_there, strict=True)

    def _decide_there(self) -> None:
        self._ops, self._litter = [], []  # it may be the second try
        self._decide()
        self._hand_over()

    def _hand_over(self) -> None:
        ending = self._ending
        if self._ops:
            depart(self._broker, ending, tuple(self._ops))
        if self._litter:
            ending.tidy(self._store, *self._litter)

    def _decide(self) -> None:
        ending = self._ending
        result = ending.result
        if ending.outcome is not Outcome.DONE:
            self._conclude_without_result()
        elif type(result) is Opened:
            self._open(result)
        elif type(result) is Joined:
            self._litter += result.litter
            if result.failure is None:
                self._go_on(result.values)
            else:
                self._failed(result.failure)
        else:
            self._go_on(result)

    def _conclude_without_result(self) -> None:
        if self._ending.outcome is not Outcome.SKIPPED:
            self._failed(self._own_failure())
        elif self._has_next() and not goes_on(Outcome.SKIPPED, self._on_error):
            self._end_badly(Failure("SkipMessage", "a stage was skipped", None, *self._names()), is_failed=False)
        else:
            self._go_on(None)

    @property
    def _on_error(self) -> Any:
        return "fail" if self._position is None else self._position.on_error

    def _has_next(self) -> bool:
        return self._target is not None or not (self._position is None or self._position.is_last)

    def _names(self) -> tuple[str, str]:
        return self._message.actor_name, self._message.message_id

    def _own_failure(self) -> Failure:
        error = self._ending.error
        if error is None:
            return Failure(self._ending.outcome.name.title(), "the message failed", None, *self._names())
        return Failure(error.type, error.message, getattr(error, "traceback", None) or None, *self._names())

    # --- the next stage

    def _go_on(self, value: Any) -> None:
        if self._target is not None:
            self._push_target(value)
        elif self._has_next():
            self._push_planned(value)
        else:
            self._end_well(value)

    def _push_target(self, value: Any) -> None:
        try:
            message: Message[Any] = Message(**self._target)
        except TypeError as e:
            self._end_badly(self._failure_of(e))
        else:
            self._push(message, value)

    def _push_planned(self, value: Any) -> None:
        """Reads the next stage out of the plan: here and now, or, if the store does not answer, until it does."""
        ending = self._ending
        if self._store is not self._broker.store:  # whoever this is may wait, and tries again
            self._push_part(value)
            return
        actor = getattr(ending.message, "actor", None)
        if actor is not None and actor.is_async:  # nothing blocks the loop
            ending.call(self._store, lambda: self._push_part_later(value), strict=True)
            return
        try:
            self._push_part(value)
        except Exception as e:  # noqa: BLE001  # the message must not be settled without its next stage
            logger.warning("The plan of a pipeline cannot be read, trying again: %s", one_line(e, 500))
            ending.call(self._store, lambda: self._push_part_later(value), strict=True)

    def _push_part_later(self, value: Any) -> None:
        self._ops, self._litter = [], []
        self._push_part(value)
        self._hand_over()

    def _push_part(self, value: Any) -> None:
        position = self._position
        assert position is not None
        body = self._store.apply([Get(plan_key(position.plan), position.next)])[0]
        if body is None:
            logger.warning("A stage of pipeline %s ran again after its end; nothing follows.", one_line(position.plan))
            return
        if self._push(decode_message(body), value):
            self._litter.append(Delete(plan_key(position.plan), position.next))

    def _push(self, message: Message[Any], value: Any) -> bool:
        if GROUP_MEMBER in self._options:
            message = message.copy(options={GROUP_MEMBER: self._options[GROUP_MEMBER]})
        try:
            message = with_result(self._broker, message, value)
            self._send(message)
        except Exception as e:  # noqa: BLE001  # a veto, or a result that no message can carry: the pipeline has failed
            logger.error("The stage after message %s cannot be sent: %s", one_line(self._names()[1], 255), one_line(e))
            self._end_badly(self._failure_of(e))
            return False
        return True

    def _send(self, message: Message[Any]) -> None:
        """Sends a message in one step with the settlement."""
        delay = message.options.get("delay")
        envelope = self._broker.follow_up(message, delay=delay)
        self._ending.push.append(envelope)
        run = self._ending.message
        if self._broker.hooks.after_enqueue and isinstance(run, Run):
            run.sent = [*run.sent, (message, delay)]

    def _failure_of(self, error: Exception) -> Failure:
        return Failure(type_name(error), message_of(error), None, *self._names())

    # --- ends

    def _failed(self, failure: Failure) -> None:
        if self._has_next() and goes_on(Outcome.FAILED, self._on_error):
            self._go_on(failure.as_value() if self._on_error == "collect" else None)
        else:
            self._end_badly(failure)

    def _end_well(self, value: Any) -> None:
        if self._position is not None:
            self._litter.append(Delete(plan_key(self._position.plan)))
        membership = self._membership
        if membership is None:
            return
        if membership.keeps:
            try:
                self._keep({"result": value})
            except Exception as e:  # noqa: BLE001  # a value that cannot be encoded
                self._leave_group(self._failure_of(e), is_failed=True)
                return
        self._ops.append(SetRemove(set_key(membership.group), membership.member))

    def _end_badly(self, failure: Failure, *, is_failed: bool = True) -> None:
        end = self._end()
        if end is not None and self._store is not None:
            self._ops.append(_put_failure(end.id, failure))
            self._fail_result(end, failure)
        if self._position is not None:
            self._forget_plan()
        if self._membership is not None:
            self._leave_group(failure, is_failed=is_failed)

    def _end(self) -> End | None:
        """The last stage, if it is another one."""
        if self._target is not None:
            return last_target(self._target) if isinstance(self._target, dict) else None
        position = self._position
        return None if position is None or (position.is_last and not position.end.is_group) else position.end

    def _fail_result(self, end: End, failure: Failure) -> None:
        """Whoever waits for the result of the last stage is told at once: it ends as if it had run and failed so."""
        if end.is_group:
            return
        options = {"store_results": True}  # whether it stores results is known only where its actor is
        last: Message[Any] = Message(end.queue_name, end.actor_name, (), {}, options, end.id, 0)
        error = ErrorText(failure.type, failure.message, failure.traceback or "")
        ending = Ending(self._broker, last, self._ending.settlement, Outcome.FAILED, error=error)
        for hook in self._broker.hooks.ending:
            hook(self._broker, ending)  # its own marks are not there, so this one does nothing
        self._ending.writes += ending.writes
        self._ending.jobs += ending.jobs

    def _forget_plan(self) -> None:
        assert self._position is not None
        key = plan_key(self._position.plan)
        try:
            below = self._store.apply([Get(key)])[0]
        except Exception as e:  # noqa: BLE001  # what is left lies there and does nothing
            logger.warning("What a failed pipeline has left cannot be cleared: %s", one_line(e, 500))
            below = None
        keys = [] if below is None else msgspec.json.decode(below, type=list[str])
        for start in range(_MAX_DELETES, len(keys), MAX_OPS):
            self._store.apply([Delete(other) for other in keys[start : start + MAX_OPS]])
        self._litter += [Delete(other) for other in (*keys[:_MAX_DELETES], key)]

    def _leave_group(self, failure: Failure, *, is_failed: bool) -> None:
        membership = self._membership
        assert membership is not None
        if membership.keeps:
            self._keep({"failure": msgspec.to_builtins(failure)} if is_failed else {"result": None})
        if is_failed:
            self._ops.append(_put_failure(membership.group, failure))
        self._ops.append(SetRemove(set_key(membership.group), membership.member, is_failed))

    def _keep(self, record: dict[str, Any]) -> None:
        membership = self._membership
        assert membership is not None
        value = get_encoder().encode(record)
        check_value(value, self._store.features.max_value or MAX_MESSAGE_BYTES)
        self._ops.append(Put(results_key(membership.group), value, KEPT_TTL_MS, int(membership.member)))

    # --- groups that are opened here

    def _open(self, opened: Opened) -> None:
        """Sends members. One that cannot be sent has failed."""
        self._ops += opened.writes
        for message in opened.messages:
            try:
                self._send(message)
            except Exception as e:  # noqa: BLE001  # a veto
                refused = Composing(self._broker, self._ending, message)
                refused._end_badly(refused._failure_of(e))
                self._ops += refused._ops
                self._litter += refused._litter
        if opened.complete is not None:
            _have_completed(self._broker, self._ending, opened.complete)


def _put_failure(composition: str, failure: Failure) -> Put:
    return Put(failure_key(composition), msgspec.json.encode(failure), FAILURE_TTL_MS)
