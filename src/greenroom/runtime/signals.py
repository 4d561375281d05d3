"""The signals of the parent and of its children.

A handler does nothing: the interpreter writes the signal's number into a pipe (``signal.set_wakeup_fd``), and the one
loop of the parent reads it there.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from ..clock import Clock

#: Signals that the parent handles for all; a terminal sends them to the children, too.
TERMINAL_SIGNALS = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
#: Signals that are blocked around a fork, so that no child ever runs a handler of its parent.
HANDLED_SIGNALS = (signal.SIGTERM, signal.SIGCHLD, *TERMINAL_SIGNALS)
#: They stop gracefully, and by force if one comes while another is obeyed.
STOP_SIGNALS = frozenset((signal.SIGTERM, signal.SIGINT, signal.SIGQUIT))
#: Has a child print the stacks of its threads. One that programs hardly ever use themselves.
DUMP_SIGNAL = signal.SIGRTMAX if sys.platform == "linux" else signal.SIGUSR2

#: The same signal within this time, in seconds, is an echo: timeout(1) and others send it to us and to our group.
_ECHO_S = 0.05


def signal_name(number: int) -> str:
    """``SIGKILL``; for those without a name ``signal 42``."""
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


class StopSignals:
    """Counts the signals that ask for a stop, and no echoes. Owned by the parent's main thread."""

    def __init__(self, clock: Clock) -> None:
        self.count = 0
        self._clock = clock
        self._last: dict[int, float] = {}

    def add(self, numbers: Iterable[int]) -> list[int]:
        """Counts what is new among ``numbers``, and returns it."""
        now = self._clock.monotonic()
        fresh = []
        for number in numbers:
            if number in STOP_SIGNALS and now - self._last.get(number, -_ECHO_S) >= _ECHO_S:
                self._last[number] = now
                fresh.append(number)
        self.count += len(fresh)
        return fresh


class SignalPipe:
    """Where the numbers of signals arrive. Written by the interpreter, read by the main thread."""

    def __init__(self) -> None:
        self._reader, self.writer = os.pipe()
        os.set_blocking(self.writer, False)
        os.set_blocking(self._reader, False)

    def fileno(self) -> int:
        """The descriptor to wait for."""
        return self._reader

    def read(self) -> bytes:
        """The numbers that have arrived, one a byte."""
        try:
            return os.read(self._reader, 4096)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        """Closes both ends."""
        os.close(self._reader)
        os.close(self.writer)


@contextmanager
def signals_into_a_pipe(*, forever: bool = False) -> Iterator[SignalPipe]:
    """Meanwhile the numbers of ``HANDLED_SIGNALS`` go into the pipe; afterwards all is as it was.

    Parameters:
      forever: Afterwards they are ignored instead: the program has nothing left to be stopped.
    """
    pipe = SignalPipe()
    previous_writer = signal.set_wakeup_fd(pipe.writer, warn_on_full_buffer=False)
    previous = {number: signal.signal(number, _do_nothing) for number in HANDLED_SIGNALS}
    try:
        yield pipe
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_IGN if forever else handler)
        signal.set_wakeup_fd(previous_writer)
        pipe.close()


def _do_nothing(_number: int, _frame: FrameType | None) -> None:
    """A handler must be there for the number to be written."""
