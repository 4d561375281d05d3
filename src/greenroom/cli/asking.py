"""Before and during work on many messages: a question, a line of progress, an end between two steps."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ..clock import SYSTEM_CLOCK
from .opening import CommandError

#: Seconds between two lines of progress.
_PROGRESS_INTERVAL_S = 0.1


def confirm(question: str, *, yes: bool) -> bool:
    """Asks at the terminal; True for a yes, or at once with ``yes``.

    Raises:
      CommandError: If there is no terminal to ask at. To wait for an answer that cannot come would hang a script.
    """
    if yes:
        return True
    if not sys.stdin.isatty():
        raise CommandError(f"{question} There is no terminal to ask at: say --yes if you mean it")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() in ("y", "yes"):
        return True
    print("Nothing was changed.", file=sys.stderr)
    return False


@contextmanager
def stop_between_steps() -> Iterator[Callable[[], bool]]:
    """Ctrl-C is noted instead of raised, so that work ends between two steps and its count is right. A second one ends
    it at once."""
    was_asked = False

    def note(_number: int, _frame: FrameType | None) -> None:
        nonlocal was_asked
        if was_asked:
            raise KeyboardInterrupt
        was_asked = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: was_asked
    finally:
        signal.signal(signal.SIGINT, before)


class Progress:
    """How far long work has come, on one line of the terminal; nothing where there is none. For one thread.

    Parameters:
      verb: What was done.
      total: How much there is to do; None where nobody knows.
    """

    def __init__(self, verb: str, total: int | None) -> None:
        self._verb = verb
        self._total = total
        self._is_shown = sys.stderr.isatty()
        self._next_s = SYSTEM_CLOCK.monotonic() + _PROGRESS_INTERVAL_S
        self._width = 0

    def show(self, done: int) -> None:
        """Says how much is done, now and then."""
        now_s = SYSTEM_CLOCK.monotonic()
        if self._is_shown and now_s >= self._next_s:
            self._next_s = now_s + _PROGRESS_INTERVAL_S
            line = f"{self._verb} {done}" + ("" if self._total is None else f" of {self._total}")
            self._width = len(line)
            print(f"\r{line}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Takes the line away."""
        if self._width:
            print(f"\r{' ' * self._width}\r", end="", file=sys.stderr, flush=True)
