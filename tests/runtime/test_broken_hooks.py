"""Hooks that raise what no hook should: neither the executor nor the message is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from greenroom import Middleware, actor
from tests.runtime.worker_kit import make_broker, working


class Quitter(Middleware):
    """Exits in one of the hooks around a message that says ``quit``."""

    def __init__(self, hook: str) -> None:
        self.hook = hook

    def _maybe_quit(self, hook: str, message: Any) -> None:
        if hook == self.hook and message.args == ("quit",):
            raise SystemExit(hook)

    def before_process_message(self, broker: Any, message: Any) -> None:
        self._maybe_quit("before_process_message", message)

    def after_process_message(self, broker: Any, message: Any, **_: Any) -> None:
        self._maybe_quit("after_process_message", message)

    def before_ack(self, broker: Any, message: Any) -> None:
        self._maybe_quit("before_ack", message)


@pytest.mark.parametrize("kind", ["thread", "loop"])
@pytest.mark.parametrize("hook", ["before_process_message", "after_process_message", "before_ack"])
def test_a_hook_that_exits(tmp_path: Path, hook: str, kind: str) -> None:
    """SystemExit out of a hook dead-letters its message with that as the reason; the next ones run."""
    broker = make_broker("memory", tmp_path, middleware=[Quitter(hook)])
    notes: list[str] = []

    def note(word: str) -> None:
        notes.append(word)

    async def anote(word: str) -> None:
        notes.append(word)

    note_actor = actor(note if kind == "thread" else anote, broker=broker, actor_name="note")
    note_actor.send("quit")
    note_actor.send("next")
    with working(broker, threads=1):
        broker.wait_until_empty()
    assert notes[-1] == "next"
    dead = broker.transport.dead("default")
    expected = [] if hook == "before_process_message" else ["SystemExit"]
    assert [letter.error.type for letter in dead if letter.error] == expected


def test_a_late_hook_that_exits(tmp_path: Path) -> None:
    """SystemExit out of a hook that runs after the message was settled is logged, and those of later messages run."""
    acked: list[str] = []

    class Late(Middleware):
        def after_ack(self, broker: Any, message: Any) -> None:
            if message.args == ("quit",):
                raise SystemExit
            acked.append(message.args[0])

    broker = make_broker("memory", tmp_path, middleware=[Late()])
    note_actor = actor(lambda word: None, broker=broker, actor_name="note")
    with working(broker) as worker:
        note_actor.send("quit")
        worker.join()
        note_actor.send("next")
        worker.join()
    assert acked == ["next"]
