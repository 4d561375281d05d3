"""The checker itself: a history that is as promised passes, and each kind of violation is found."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.chaos.history import UNCONFIRMED, Event, Fault, check, line_of, read_events


def life(id: str, at_s: float = 0.0, pid: int = 1) -> list[Event]:
    """A message that is sent, runs once and is settled."""
    return [
        Event("sent", id, at_s),
        Event("accepted", id, at_s + 1),
        Event("start", id, at_s + 2, pid),
        Event("end", id, at_s + 3, pid),
        Event("ack", id, at_s + 4, pid),
    ]


def without(kind: str, events: list[Event]) -> list[Event]:
    return [event for event in events if event.kind != kind]


def test_an_orderly_history_is_valid() -> None:
    """Messages that run once each, in any order of the lines, break no promise."""
    events = [event for n in range(50) for event in life(str(n), n, n % 3)]
    random.Random(1).shuffle(events)
    verdict = check(events)
    assert verdict.is_valid, verdict
    assert (verdict.accepted, verdict.started, verdict.again) == (50, 50, 0)


def test_a_dead_letter_is_an_end() -> None:
    """A message that never succeeded but lies among the dead letters is not lost."""
    assert check(life("a")[:2], dead=["a"]).is_valid


KILLED = [*life("a")[:3], Event("start", "a", 10, 2), Event("end", "a", 11, 2), Event("ack", "a", 12, 2)]
FAILED = [*life("a")[:3], Event("fail", "a", 3, 1), Event("start", "a", 10, 1), Event("end", "a", 11, 1)]


def test_starting_again_after_a_kill_is_allowed() -> None:
    """A process that was killed did not settle what it ran; that runs elsewhere."""
    verdict = check(KILLED, [Fault("kill", 1, 5)])
    assert verdict.is_valid, verdict
    assert (verdict.again, verdict.allowed) == (1, 1)


def test_starting_again_after_a_failure_is_allowed() -> None:
    """A retry is a start that follows a failure."""
    assert check(FAILED).is_valid


def test_an_overlap_after_a_lost_lease_is_allowed() -> None:
    """Who lost its lease may still run what others have started meanwhile; its late end settles nothing."""
    events = [*life("a")[:3], Event("start", "a", 10, 2), Event("end", "a", 11, 2), Event("end", "a", 12, 1)]
    assert check(events, [Fault("lost", 1, 5)]).is_valid
    assert set(check(events).violations) == {"duplicated", "overlap"}


def many(count: int, at_s: float) -> list[Event]:
    """So many messages of the same process, a second after each other."""
    return [event for n in range(count) for event in life(f"b{n}", at_s + n)]


AGAIN = [*life("a"), Event("start", "a", 100, 2), Event("end", "a", 101, 2), Event("ack", "a", 102, 2)]


@pytest.mark.parametrize(("cut_s", "after"), [(5.5, 0), (50, UNCONFIRMED - 1)])
def test_starting_again_after_a_cut_is_allowed(cut_s: float, after: int) -> None:
    """Where no settlement is confirmed, what was settled a moment before the connection ended may run again, and so may
    the last few, however long ago that was."""
    verdict = check([*AGAIN, *many(after, 6)], [Fault("cut", 1, cut_s)])
    assert verdict.is_valid, verdict
    assert (verdict.again, verdict.allowed) == (1, 1)


def test_a_cut_long_after_explains_no_second_run_in_the_same_process() -> None:
    """The second settlement is not taken for the first one."""
    again = [*life("a"), Event("start", "a", 49, 1), Event("end", "a", 51, 1), Event("ack", "a", 52, 1)]
    verdict = check([*again, *many(UNCONFIRMED, 6)], [Fault("cut", 1, 48)])
    assert verdict.violations["duplicated"] == ["a"]


def test_a_cut_explains_nothing_that_began_long_after_it() -> None:
    """The connection had ended, and was there again, before the message ran for the first time."""
    late = [event._replace(at_s=event.at_s + 50) for event in AGAIN]
    assert check(late, [Fault("cut", 1, 20)]).violations["duplicated"] == ["a"]


TWINS = [
    *life("a")[:3],
    Event("fail", "a", 3, 1),
    *(Event(kind, "a", 4 + n / 10, 2) for n, kind in enumerate(("start", "end", "ack"))),
    *(Event(kind, "a", 9 + n / 10, 3) for n, kind in enumerate(("start", "end", "ack"))),
]


def test_a_retry_whose_message_was_not_settled_is_a_second_message() -> None:
    """The retry was published, and the connection ended before the message that it replaces was settled: both run. That
    explains one run more, and no other violation."""
    verdict = check(TWINS, [Fault("cut", 1, 3.5)])
    assert verdict.is_valid, verdict
    assert (verdict.again, verdict.allowed) == (2, 2)
    assert set(check(TWINS).violations) == {"double ack", "duplicated"}
    third = [Event(kind, "a", 20, 4) for kind in ("start", "end", "ack")]
    assert set(check([*TWINS, *third], [Fault("cut", 1, 3.5)]).violations) == {"double ack", "duplicated"}


@pytest.mark.parametrize(("pid", "cut_s", "after"), [(1, 50, UNCONFIRMED), (2, 5.5, 0), (1, 100.5, 0)])
def test_a_cut_does_not_explain_everything(pid: int, cut_s: float, after: int) -> None:
    """What was settled long before, what another process has settled, and what comes before the cut, may not."""
    verdict = check([*AGAIN, *many(after, 6)], [Fault("cut", pid, cut_s)])
    assert verdict.violations["duplicated"] == ["a"]


@pytest.mark.parametrize(
    ("events", "faults", "violation"),
    [
        (life("a")[:2], [], "lost"),
        (life("a")[:3], [Fault("kill", 1, 5)], "lost"),
        (without("sent", life("a")), [], "phantom"),
        ([*life("a"), Event("refused", "a", 1)], [], "phantom"),
        (KILLED, [], "duplicated"),
        (KILLED, [Fault("kill", 1, 11)], "duplicated"),
        (KILLED, [Fault("kill", 2, 5)], "duplicated"),
        ([*KILLED, Event("ack", "a", 13, 1)], [Fault("kill", 1, 5)], "double ack"),
        ([*life("a"), Event("start", "a", 10, 2), Event("end", "a", 11, 2)], [], "double ack"),
        ([Event("sent", "a", 0, due_s=2.5), *life("a")[1:]], [], "early"),
        ([*life("a"), Event("start", "a", 2.5, 1), Event("end", "a", 2.7, 1)], [], "overlap"),
        ([*FAILED[:3], Event("start", "a", 2.5, 2), Event("end", "a", 2.7, 2), FAILED[3]], [], "overlap"),
    ],
)
def test_each_violation_is_found(events: list[Event], faults: list[Fault], violation: str) -> None:
    """One thing that went wrong among a hundred that did not."""
    orderly = [event for n in range(100) for event in life(f"ok{n}", n, 99)]
    verdict = check([*orderly, *events], faults)
    assert violation in verdict.violations, verdict
    assert not verdict.is_valid
    assert verdict.violations[violation] == ["a"]


def test_a_dead_letter_that_nobody_sent_is_a_phantom() -> None:
    """Dead letters have to come from somewhere."""
    assert check([], dead=["a"]).violations == {"phantom": ["a"]}


def test_a_history_is_read_back(tmp_path: Path) -> None:
    """Events survive the files; what the last write of a killed process has cut off is left out."""
    events = [*life("a"), Event("sent", "b", 7, due_s=9.5)]
    (tmp_path / "history-1").write_bytes(b"".join(map(line_of, events[:3])) + b"end a 3.0")
    (tmp_path / "history-2").write_bytes(b"".join(map(line_of, events[3:])))
    assert read_events(tmp_path) == events
