"""Places at which a test makes a process fail: it is killed there, held up, or told that something is wrong.

``GREENROOM_FAILPOINTS="ack.before=kill9@3;claim.before=sleep(50)"`` arms some. Each is a name, an action and perhaps
the number of the one visit at which it acts, counted in each process from 1; without it each visit counts. The actions:

* ``kill9``: the process is gone, as after ``kill -9``;
* ``exit``: it ends at once with code 1, without any clean-up;
* ``stop``: it stands still, as after SIGSTOP;
* ``raise``: ``BrokerError`` is raised;
* ``sleep(MS)``: it waits for so many milliseconds.

Only tests arm them. Where a message passes once a trip, the code asks ``if armed:``; where each message passes alone,
another function is chosen when the executors are built, so that nothing is asked there.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from typing import Any

from .clock import SYSTEM_CLOCK
from .errors import BrokerError
from .settings import did_you_mean, failpoints

#: All points, in the order in which a message passes them.
NAMES = (
    "enq.before_send",
    "enq.batch_mid",
    "enq.after_send_before_confirm",
    "enq.after_commit",
    "claim.before",
    "promote.mid_batch",
    "reap.mid_batch",
    "claim.after_cmd_before_register",
    "claim.after_commit_before_register",
    "prefetch.queued",
    "start.before_attempt_persist",
    "start.after_attempt_persist",
    "exec.enter",
    "exec.after_user_return",
    "ack.before",
    "result.before_store",
    "result.after_store",
    "retry.before_schedule",
    "retry.mid",
    "dlq.before",
    "dlq.after",
    "ack.after_send_before_reply",
    "ack.after_commit_before_reply",
    "group.after_member_remove",
    "group.before_push",
    "group.after_push",
    "group.after_mark",
    "shutdown.after_stop_fetch",
)

_WORDS = re.compile(r"(?P<action>kill9|exit|stop|raise|sleep\((?P<ms>\d+)\))(?:@(?P<visit>[1-9]\d*))?")


class _Point:
    """One armed point. Any thread may pass it: a count that two threads miss is of no account."""

    def __init__(self, name: str, words: str) -> None:
        found = _WORDS.fullmatch(words)
        if found is None:
            raise ValueError(f"failpoint {name}: {words!r} is no action; write kill9@3, raise, sleep(50), stop or exit")
        self._name = name
        self._action = found["action"]
        self._visit = int(found["visit"] or 0)
        self._sleep_s = int(found["ms"] or 0) / 1000
        self._visits = 0

    def visit(self) -> None:
        self._visits += 1
        if self._visit and self._visits != self._visit:
            return
        if self._action == "kill9":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self._action == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif self._action == "exit":
            os._exit(1)
        elif self._action == "raise":
            raise BrokerError(f"Failpoint {self._name} was told to fail.")
        else:
            SYSTEM_CLOCK.sleep(self._sleep_s)


#: What is armed in this process. Empty, and so false, but in tests.
armed: dict[str, _Point] = {}


def arm(text: str | None = None) -> None:
    """Arms what ``text`` says instead of what is armed. Called without it by an engine that opens its store: then the
    environment says it, and what is armed already keeps its counts.

    Raises:
      ValueError: If that cannot be read, or there is no such point.
    """
    if text is None:
        text = failpoints()
        if armed or not text:
            return
    armed.clear()
    for part in filter(None, (part.strip() for part in text.split(";"))):
        name, _, words = part.partition("=")
        if name not in NAMES:
            raise ValueError(f"there is no failpoint {name!r}{did_you_mean(name, NAMES)}")
        armed[name] = _Point(name, words)


def hit(name: str) -> None:
    """Says that this place is passed."""
    point = armed.get(name)
    if point is not None:
        point.visit()


def after(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, followed by the point; just ``function`` while the point is not armed."""
    if name not in armed:
        return function

    def with_failpoint(*args: Any) -> Any:
        result = function(*args)
        hit(name)
        return result

    return with_failpoint
