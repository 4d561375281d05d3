"""Where a message stands in a composition, and what its end means: pure decisions."""

from __future__ import annotations

from typing import Any

import pytest

from greenroom.core.ending import Outcome
from greenroom.core.graph import (
    End,
    Failure,
    Membership,
    Position,
    goes_on,
    joined,
    last_target,
    membership_of,
    position_of,
)


@pytest.mark.parametrize("keeps", [False, True])
def test_a_membership_travels_as_a_text(keeps: bool) -> None:
    """What is written into the option is read out of it."""
    membership = Membership("some-group", "17", keeps)
    assert membership_of({"group_member": membership.as_option()}) == membership


@pytest.mark.parametrize("value", [None, 5, "", "17", "/group", "x/group", ["17", "group"], {"group": "g"}])
def test_a_membership_that_nobody_can_read(value: Any) -> None:
    """What comes from outside and is no membership is none."""
    assert membership_of({"group_member": value}) is None


def test_a_position_travels_as_a_list() -> None:
    """What is written into the option is read out of it; what is no position is none."""
    position = Position("plan", 3, 7, End("default", "add", "an-id"), "skip")
    assert position_of({"pipe_plan": position.as_option()}) == position
    assert not position.is_last
    assert Position("plan", 7, 7, End("", "", "group")).is_last
    assert position_of({"pipe_plan": [1, 2]}) is None
    assert position_of({}) is None


def test_the_last_of_nested_targets() -> None:
    """The innermost target is the end, however deep, but not without end."""
    last = {"queue_name": "q", "actor_name": "a", "message_id": "last", "options": {}}
    nested = {"options": {"pipe_target": {"options": {"pipe_target": last}}}}
    assert last_target(nested) == End("q", "a", "last")
    assert last_target({}) is None
    endless: dict[str, Any] = {"options": {}}
    endless["options"]["pipe_target"] = endless
    assert last_target(endless) is None


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.EXPIRED, Outcome.DEAD, Outcome.SKIPPED])
def test_what_goes_on(outcome: Outcome) -> None:
    """Only the policies skip and collect go on after something else than a success."""
    assert goes_on(Outcome.DONE, "fail")
    assert not goes_on(outcome, "fail")
    assert goes_on(outcome, "skip")
    assert goes_on(outcome, "collect")


def test_joining_results() -> None:
    """Results stand in the members' order; failures by the policy; what was lost counts as a failure."""
    failure = {"failure": {"type": "ValueError", "message": "no"}}
    records = [{"result": 1}, failure, {"result": None}, None]
    assert joined(records, "fail") == ([], Failure("ValueError", "no"))
    assert joined(records, "skip") == ([1, None], None)
    values, none = joined(records, "collect")
    assert none is None
    assert values[:3] == [1, {"type": "ValueError", "message": "no"}, None]
    assert values[3]["type"] == "ResultMissing"
