"""Compositions as data: where a message stands in a pipeline and in a group, and what its end means for them.

All of it travels in options of the message, from attempt to attempt and from stage to stage:

* ``pipe_target``, the next stage's message with its own target inside, as Dramatiq has it: for short pipelines;
* ``pipe_plan``, a ``Position`` in a plan that the store keeps: for long ones, and for those with groups in them;
* ``group_member``, a ``Membership``: which group is to be told of the end of this member.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import msgspec

from .ending import Outcome

V = TypeVar("V")

OnError = Literal["fail", "skip", "collect"]

PIPE_TARGET = "pipe_target"
PIPE_PLAN = "pipe_plan"
GROUP_MEMBER = "group_member"
COMPLETED_GROUP = "completed_group"

#: What makes a message part of a composition.
MARKS = frozenset((PIPE_TARGET, PIPE_PLAN, GROUP_MEMBER))

#: The options of a message that is a member of a group and nothing else. No hook but ``ending`` looks at them.
MEMBER_ONLY = frozenset((GROUP_MEMBER,))

#: A pipeline of so many messages is nested, and a longer one kept in the store: the first message of a nested one
#: carries all the others.
MAX_NESTED = 20
#: So many can be nested at all: the parsers of JSON give up soon after.
MAX_NESTABLE = 400
#: No reader follows more targets than this.
MAX_FOLLOWED = 1_000


class End(msgspec.Struct, frozen=True, array_like=True):
    """The last stage of a pipeline: what its result is kept under. A group has no actor."""

    queue_name: str
    actor_name: str
    id: str

    @property
    def is_group(self) -> bool:
        """True if the last stage is a group."""
        return not self.actor_name


class Position(msgspec.Struct, frozen=True, array_like=True):
    """Where a stage stands in a planned pipeline: ``next`` is the part of the plan that holds the stage after it, and
    ``total`` how many stages there are."""

    plan: str
    next: int
    total: int
    end: End
    on_error: OnError = "fail"

    def as_option(self) -> Any:
        """A list."""
        return msgspec.to_builtins(self)

    @property
    def is_last(self) -> bool:
        """True if no stage comes after it."""
        return self.next >= self.total


class Membership(msgspec.Struct, frozen=True, gc=False):
    """Of which group a message, or the pipeline that it is a stage of, is a member. ``keeps``: its result is kept for
    the stage after the group. As an option it is a text: of large groups there are many."""

    group: str
    member: str
    keeps: bool = False

    def as_option(self) -> str:
        """``17/<group>``, or ``17/<group>/keeps``."""
        return f"{self.member}/{self.group}{'/keeps' if self.keeps else ''}"


class Failure(msgspec.Struct, frozen=True):
    """Why a stage or a member failed, and which."""

    type: str
    message: str
    traceback: str | None = None
    actor_name: str = ""
    message_id: str = ""

    def as_value(self) -> dict[str, str]:
        """What stands for a result where errors are collected."""
        return {"type": self.type, "message": self.message}


class GroupPlan(msgspec.Struct, frozen=True):
    """What a worker has to know that opens a group. ``then`` is pushed when it is complete, packed; ``opener`` is the
    message that opens it, encoded."""

    total: int
    then: tuple[bytes, ...]
    opener: bytes


class Opened(msgspec.Struct, frozen=True):
    """What the actor that opens a group returns: messages to be sent in one step with its settlement, and operations
    for the store besides. ``complete`` names the group if it has no members and its store does not see to that."""

    messages: list[Any]
    writes: list[Any]
    complete: str | None = None


class Joined(msgspec.Struct, frozen=True):
    """What the actor that joins a group returns: the results of its members, or why it failed; and ``litter``,
    operations that do away with what was kept for it."""

    values: list[Any]
    failure: Failure | None
    litter: list[Any]


# --- keys of the store


def plan_key(plan: str) -> str:
    """The stages of a pipeline; part 0 lists what is to be deleted with it."""
    return f"p:{plan}"


def set_key(group: str) -> str:
    """The set of a group's members."""
    return f"g:{group}"


def group_of(key: str) -> str:
    """The group whose set has this key."""
    return key.removeprefix("g:")


def members_key(group: str) -> str:
    """The messages of a group that is opened by a worker, from part 1 on; part 0 is its ``GroupPlan``."""
    return f"m:{group}"


def results_key(group: str) -> str:
    """The results of a group's members, for the stage after it."""
    return f"g:{group}:results"


def then_key(group: str) -> str:
    """What is to be done when a group is complete, in a store that is not the broker's; and the slot of whoever does
    it."""
    return f"t:{group}"


def pushed_key(group: str) -> str:
    """That it was done."""
    return f"d:{group}"


def failure_key(composition: str) -> str:
    """Why a composition failed, for those who wait for it."""
    return f"c:{composition}"


# --- what travels


def position_of(options: Mapping[str, Any]) -> Position | None:
    """Where a message stands; None if in no plan, or if nobody can tell."""
    return _read(options.get(PIPE_PLAN), Position)


def membership_of(options: Mapping[str, Any]) -> Membership | None:
    """The group that a message belongs to; None if to none, or if nobody can tell."""
    value = options.get(GROUP_MEMBER)
    if not isinstance(value, str):
        return None
    member, _, rest = value.partition("/")
    group, _, keeps = rest.partition("/")
    return Membership(group, member, keeps == "keeps") if group and member.isdecimal() else None


def _read(value: Any, kind: type[V]) -> V | None:
    if value is None:
        return None
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:  # it came from outside
        return None


def last_target(target: Mapping[str, Any]) -> End | None:
    """The last of nested stages; None if they are no messages."""
    for _ in range(MAX_FOLLOWED):
        options = target.get("options")
        inner = options.get(PIPE_TARGET) if isinstance(options, Mapping) else None
        if not isinstance(inner, Mapping):
            names = (target.get("queue_name"), target.get("actor_name"), target.get("message_id"))
            return _read(names, End)
        target = inner
    return None


# --- decisions


def goes_on(outcome: Outcome, on_error: OnError) -> bool:
    """Whether the next stage runs after one that has ended so."""
    return outcome is Outcome.DONE or on_error != "fail"


def joined(records: list[Any], on_error: OnError) -> tuple[list[Any], Failure | None]:
    """The results of a group by its policy, from what its members left in their order (``None`` where one left
    nothing: its record is gone, or it was never written); and the first failure, if it fails the group."""
    values: list[Any] = []
    for record in records:
        failure = _failure_in(record)
        if failure is None:
            values.append(record["result"])
        elif on_error == "fail":
            return [], failure
        elif on_error == "collect":
            values.append(failure.as_value())
    return values, None


def _failure_in(record: Any) -> Failure | None:
    if record is None:
        return Failure("ResultMissing", "nothing is left of what a member returned")
    if "result" in record:
        return None
    failure: Failure = msgspec.convert(record["failure"], Failure)
    return failure
