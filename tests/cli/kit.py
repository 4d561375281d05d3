"""A broker with messages in all states, and commands on it that run in this process."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from greenroom import Message
from greenroom.brokers import from_url
from greenroom.brokers.engine import EngineBroker
from greenroom.cli import main
from greenroom.clock import SYSTEM_CLOCK, Clock
from greenroom.core.verdict import Verdict
from greenroom.ports.admin import Counts
from greenroom.ports.transport import MAX_TRIP, ErrorText, Settlement
from greenroom.testing.clock import ManualClock
from tests.runtime.cli_kit import wait_until

REFUSED = ErrorText("ConnectionError", "refused by mail.example", "Traceback:\n  in send\nConnectionError: refused")


class Terminal(io.StringIO):
    """What a person types, or sees."""

    def isatty(self) -> bool:
        return True


@dataclass
class Said:
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str


class Desk:
    """A broker that holds no messages yet: by default a queue file in a folder of its own, which is not there yet."""

    def __init__(
        self,
        folder: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        url: str | None = None,
    ) -> None:
        self.path = folder / "queue.db"
        self.url = url or f"sqlite:///{self.path}"
        self._capsys = capsys
        self._monkeypatch = monkeypatch

    @contextmanager
    def broker(self, clock: Clock = SYSTEM_CLOCK) -> Iterator[EngineBroker]:
        """The broker."""
        broker = from_url(self.url, clock=clock)
        assert isinstance(broker, EngineBroker)
        try:
            yield broker
        finally:
            broker.close()

    def send(self, *args: Any, actor: str = "mail", queue: str = "default", **options: Any) -> Message[Any]:
        """Sends a message."""
        with self.broker() as broker:
            return broker.enqueue(Message(queue, actor, args, {}, options))

    def bury(
        self,
        *args: Any,
        count: int = 1,
        actor: str = "mail",
        queue: str = "default",
        error: ErrorText | None = REFUSED,
        hours_ago: float = 0,
        **options: Any,
    ) -> list[str]:
        """Makes dead letters; their storage ids, in the order of their deaths."""
        clock = ManualClock(SYSTEM_CLOCK.now_ms() - int(hours_ago * 3_600_000))
        with self.broker(clock) as broker:
            broker.enqueue_many(Message(queue, actor, args, {}, options) for _ in range(count))
            return kill_ready(broker, queue, error)

    def counts(self, queue: str = "default") -> Counts:
        """How many messages of a queue there are."""
        with self.broker() as broker:
            return broker.transport.counts([queue])[queue]

    def dead_ids(self) -> set[str]:
        """The storage ids of all dead letters."""
        with self.broker() as broker:
            return {letter.id for letter in broker.transport.dead(limit=10_000)}

    def run(self, *words: str, typed: str | None = None) -> Said:
        """Runs a command on the broker, at a terminal if something is ``typed``."""
        stdin = io.StringIO() if typed is None else Terminal(typed)
        self._monkeypatch.setattr("sys.stdin", stdin)
        self._capsys.readouterr()
        code = main([*words, "--url", self.url])
        return self.said(code)

    def said(self, code: int = 0) -> Said:
        """What was written since the last command began."""
        captured = self._capsys.readouterr()
        return Said(code, captured.out, captured.err)

    def json(self, *words: str) -> Any:
        """What a command tells a program."""
        said = self.run(*words, "--json")
        assert said.code == 0, said.err
        return json.loads(said.out)


def kill_ready(broker: EngineBroker, queue: str = "default", error: ErrorText | None = REFUSED) -> list[str]:
    """Lets all that is ready in a queue die; the storage ids."""
    consumer = broker.transport.consumer("test")
    consumer.subscribe([queue])
    wanted = broker.transport.counts([queue])[queue].ready
    ids: list[str] = []

    def all_are_dead() -> bool:
        got = consumer.exchange((), MAX_TRIP).deliveries
        settled = len(
            consumer.exchange([Settlement(delivery, Verdict.DEAD, error=error) for delivery in got], 0).settled
        )
        while settled < len(got):  # an engine may answer later
            consumer.wait(1.0)
            settled += len(consumer.exchange((), 0).settled)
        ids.extend(delivery.id for delivery in got)
        return len(ids) >= wanted

    wait_until(all_are_dead, "all are dead letters")  # an engine may hand out some of them, or none, at first
    consumer.close()
    return ids


def rows_of(text: str) -> list[list[str]]:
    """The cells of a plain table, those without spaces inside."""
    return [line.split() for line in text.splitlines()]
