"""``AgeLimit``: which messages are too old."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from greenroom import Message
from greenroom.core.run import Run
from greenroom.middleware import AgeLimit, SkipMessage
from greenroom.testing.clock import ManualClock


def is_skipped(limit: AgeLimit, age_ms: int, *, actor: dict[str, Any], message: dict[str, Any]) -> bool:
    """Whether a message of that age is skipped; it is failed if so, and left alone if not."""
    clock = ManualClock()
    broker: Any = SimpleNamespace(clock=clock, actors={"work": SimpleNamespace(options=actor)})
    run = Run(Message("default", "work", (), {}, message, "id", clock.now_ms()), None, broker.actors["work"])
    clock.advance_ms(age_ms)
    try:
        limit.before_process_message(broker, run)
    except SkipMessage:
        assert run.failed
        return True
    assert not run.failed
    return False


@pytest.mark.parametrize(
    ("middleware", "actor", "message", "age_ms", "skipped"),
    [
        (None, {}, {}, 10**12, False),
        (100, {}, {}, 99, False),
        (100, {}, {}, 100, True),
        (100, {"max_age": 1000}, {}, 999, False),
        (100, {"max_age": 1000}, {}, 1000, True),
        (100, {"max_age": 1000}, {"max_age": 5}, 5, True),
        (None, {"max_age": 5}, {"max_age": 1000}, 999, False),
        (None, {"max_age": 0}, {}, 0, True),
        (0, {}, {}, 0, True),
        (None, {}, {"max_age": 0}, 0, True),
        (100, {"max_age": None}, {}, 10**12, False),
    ],
)
def test_who_is_too_old(
    middleware: int | None, actor: dict[str, Any], message: dict[str, Any], age_ms: int, skipped: bool
) -> None:
    """A message expires when it is ``max_age`` old. The message's option is stronger than the actor's, and that than
    the middleware's; 0 expires all, None none."""
    assert is_skipped(AgeLimit(max_age=middleware), age_ms, actor=actor, message=message) is skipped


def test_age_counts_from_the_first_construction() -> None:
    """A copy keeps the timestamp of its original, so the time of delays and backoffs is part of the age."""
    message = Message("default", "work", (), {}, {}, "id", 1000)
    assert message.copy(options={"eta": 5000, "retries": 3}).message_timestamp == 1000
