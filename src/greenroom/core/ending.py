"""What becomes of a message, and what is kept beside it because of that: results, groups, slots.

An ending is made when the verdict on a message is known and before the engine has carried it out. Middleware says then,
by the hook ``ending``, what else is to happen; where broker and store are one engine that travels with the settlement,
so it happens if and only if the settlement does. What goes to another store is done before the message is settled.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any


class Outcome(enum.Enum):
    """What has become of a message."""

    DONE = "done"
    """The actor has returned."""
    FAILED = "failed"
    """For good: the actor raised and is not tried again, or a hook failed the message."""
    SKIPPED = "skipped"
    """A hook skipped it; it counts as done."""
    EXPIRED = "expired"
    """A hook skipped and failed it, as ``AgeLimit`` does."""
    DEAD = "dead"
    """It never ran: it cannot be read, nobody knows its actor, it has crashed too many workers, or the engine refused
    what was to become of it."""
    RETRIED = "retried"
    """The actor raised, and is tried again."""
    RELEASED = "released"
    """Given back by a policy, to be run later; nothing is counted."""

    @property
    def is_final(self) -> bool:
        """True unless the message runs again."""
        return self is not Outcome.RETRIED and self is not Outcome.RELEASED


class Job:
    """Something to be done before a message can be settled, outside of its engine. Owned by the ending's owner.

    Parameters:
      owner: Whose thread does it: a ``Store``, or whatever stands for one.
      ops: Operations for ``owner.apply``; None if it is ``action``.
      action: Called on that thread. What raises is called again.
      strict: Wait for as long as it takes; else the message is settled without it after three tries.
      then: Called with the answers to ``ops``, on the same thread. If it raises they are done again.
    """

    __slots__ = ("action", "error", "failed_at_s", "ops", "owner", "strict", "then", "tries")

    def __init__(
        self,
        owner: Any,
        ops: tuple[Any, ...] | None,
        action: Callable[[], Any] | None,
        strict: bool,
        then: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        self.owner = owner
        self.ops = ops
        self.action = action
        self.strict = strict
        self.then = then
        #: How often it has failed, since when (monotonic), and what it failed with last; None if it has not.
        self.tries = 0
        self.failed_at_s = 0.0
        self.error: BaseException | None = None


class Ending:
    """What becomes of one message. Owned by the thread that decides it, then by a store writer if there is one to go
    through, then by the pump.

    ``message`` is the message as hooks see it; for one that cannot be decoded what could be made out of it, and None
    if nothing could. ``settlement`` is what is decided; ``error`` why it failed, as text, and ``exception`` the same as
    it was raised, if it was raised here. ``result`` is what the actor returned. ``due_ms`` (UNIX ms) is when it runs
    again, if that is known, and ``retries`` how many attempts have failed. ``actor`` is the one that has run, or None.
    """

    __slots__ = (
        "actor",
        "broker",
        "due_ms",
        "error",
        "exception",
        "jobs",
        "later",
        "message",
        "outcome",
        "push",
        "result",
        "settlement",
        "writes",
    )

    def __init__(  # noqa: PLR0913, PLR0917  # made once a message, and keywords take half as long again
        self,
        broker: Any,
        message: Any,
        settlement: Any,
        outcome: Outcome,
        result: Any = None,
        error: Any = None,
        exception: BaseException | None = None,
        due_ms: int | None = None,
        actor: Any = None,
    ) -> None:
        self.broker = broker
        self.message = message
        self.settlement = settlement
        self.outcome = outcome
        self.result = result
        self.error = error
        self.exception = exception
        self.due_ms = due_ms
        self.actor = actor
        #: Operations that travel with the settlement: for the store that is one with the broker.
        self.writes: list[Any] = []
        #: Envelopes that are pushed with the settlement.
        self.push: list[Any] = []
        #: What is done before it.
        self.jobs: list[Job] = []
        #: What is done some time after it, if it was settled: nothing depends on that. See ``tidy``.
        self.later: list[Job] = []

    @property
    def delivery(self) -> Any:
        """What was claimed."""
        return self.settlement.delivery

    @property
    def retries(self) -> int:
        """How many attempts before the next one have failed."""
        retries = 0 if self.message is None else self.message.options.get("retries", 0)
        return retries if isinstance(retries, int) else 0

    def keep(self, store: Any, *ops: Any, strict: bool = False, then: Callable[[list[Any]], Any] | None = None) -> None:
        """Has ``store`` do operations: in one step with the settlement where it is one with the broker, before it where
        it is not.

        ``strict``: in the latter case the message is not settled until it is done; else it is given up, logged and
        counted after three tries. ``then`` is called with the answers, on another thread; nobody asks for them where
        they travel with the settlement.
        """
        if self._is_one_with(store):
            self.writes += ops
        else:
            self.jobs.append(Job(store, ops, None, strict, then))

    def tidy(self, store: Any, *ops: Any) -> None:
        """Has ``store`` do away with what nobody needs once the message is settled: in one step with that where it is
        one with the broker, else at some time after it."""
        if self._is_one_with(store):
            self.writes += ops
        elif ops:
            self.later.append(Job(store, ops, None, strict=True))

    def _is_one_with(self, store: Any) -> bool:
        broker = self.broker
        return store is broker.store or bool(store.is_one_with(broker.transport))

    def call(self, owner: Any, action: Callable[[], Any], *, strict: bool = False) -> None:
        """Has ``action`` called before the message is settled, on the thread that writes for ``owner``, beside which
        nothing else is called for that owner. What it raises has it called again. It may use ``keep``, ``call``,
        ``writes`` and ``push`` of this ending."""
        self.jobs.append(Job(owner, None, action, strict))
