"""Messages that ran while a worker crashed. Each of them, a suspect, runs alone in its process: the next crash then
tells the guilty one from those that were only there. And none of them crashes workers for ever."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

#: After so many crashes a message is dead-lettered, unless somebody says otherwise.
DEFAULT_MAX_CRASHES = 3

#: The type, in its dead letter, of the error of one that has crashed its worker too often.
TOO_MANY_CRASHES = "TooManyCrashes"

#: How long a suspect waits for what else runs here, in seconds. Then it is given back, for an idle process to take.
ALONE_PATIENCE_S = 5.0
#: It is due again after a time between these, in milliseconds.
GIVEN_BACK_FOR_MS = (5_000.0, 10_000.0)
#: A suspect that was first seen here so long ago, in seconds, is waited for as long as it takes: no process is idle.
FIRM_AFTER_S = 60.0
#: Of so many suspects, the latest ones, a process remembers when it first saw them.
MAX_REMEMBERED = 1000


def max_crashes_of(options: Mapping[str, Any], actor_options: Mapping[str, Any], default: int | None) -> int | None:
    """How many crashes a message may have behind it: by its own option, else by its actor's, else ``default``; None for
    any number. What came in a message's JSON and is no such number says nothing."""
    stated = "max_crashes" in options and is_max_crashes(options["max_crashes"])
    most: int | None = options["max_crashes"] if stated else actor_options.get("max_crashes", default)
    return most


def is_max_crashes(value: Any) -> bool:
    """True for None and for whole numbers above 0."""
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0)


def given_back_for_ms(uniform: Callable[[float, float], float] = random.uniform) -> int:
    """For how many milliseconds a suspect that has waited in vain is given back."""
    return int(uniform(*GIVEN_BACK_FOR_MS))


class Suspects:
    """Those that a process holds and that have not started. Owned by the pump; times are monotonic, in seconds."""

    def __init__(self) -> None:
        #: (the run, since when it waits, when it was first seen), in the order of their turns.
        self._waiting: deque[tuple[Any, float, float]] = deque()
        #: By storage id, the first to come first. What is given back keeps its id, so it is known when it comes again.
        self._first_seen: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, run: Any, now_s: float) -> bool:
        """Puts a suspect aside. True if it is waited for as long as it takes."""
        first_s = self._first_seen.setdefault(run.delivery.id, now_s)
        if len(self._first_seen) > MAX_REMEMBERED:
            del self._first_seen[next(iter(self._first_seen))]
        self._waiting.append((run, now_s, first_s))
        return now_s - first_s >= FIRM_AFTER_S

    def take(self, others: int, stuck: int, now_s: float) -> Any:
        """The suspect that may start now, or None.

        Parameters:
          others: How many other messages this process has begun, or will.
          stuck: How many of them are in threads that were given up. They may never end, so a suspect that is waited
            for as long as it takes does not wait for these.
          now_s: The time.
        """
        if others > stuck or not self._waiting:
            return None
        if not others:
            return self._start(0)
        firm = (index for index, (_, _, first_s) in enumerate(self._waiting) if now_s - first_s >= FIRM_AFTER_S)
        index = next(firm, None)
        return None if index is None else self._start(index)

    def _start(self, index: int) -> Any:
        run, _, _ = self._waiting[index]
        del self._waiting[index]
        self._first_seen.pop(run.delivery.id, None)
        return run

    def give_up(self, now_s: float) -> list[Any]:
        """Takes out those that have waited in vain, and that another process may run sooner."""
        waiting, self._waiting = self._waiting, deque()
        given_up = []
        for run, since_s, first_s in waiting:
            if now_s - since_s >= ALONE_PATIENCE_S and now_s - first_s < FIRM_AFTER_S:
                given_up.append(run)
            else:
                self._waiting.append((run, since_s, first_s))
        return given_up

    def patience_left_s(self, now_s: float) -> float:
        """After how many seconds there may be one to give up; ``ALONE_PATIENCE_S`` at the most."""
        left_s = (since_s + ALONE_PATIENCE_S - now_s for _, since_s, _ in self._waiting)
        return min((left for left in left_s if left > 0), default=ALONE_PATIENCE_S)

    def drain(self) -> list[Any]:
        """Takes out all of them."""
        runs = [run for run, _, _ in self._waiting]
        self._waiting.clear()
        return runs
