"""A child as its parent sees it: what it has reported, what was asked of it, and how it ended."""

from __future__ import annotations

import os
import signal
from multiprocessing.process import BaseProcess
from pathlib import Path

from ..board import Board, Fate, ending
from .reports import Boarded, Failure, ParentEnd
from .signals import DUMP_SIGNAL


class WorkerProcess:
    """One child, from its start to its end. Owned by the parent's main thread.

    Parameters:
      number: Its place: a successor has the same number.
      generation: How many reloads there were before it started: which code it runs.
      started_s: When, by the monotonic clock.
    """

    def __init__(self, number: int, generation: int, pipe: ParentEnd, started_s: float) -> None:
        self.number = number
        self.generation = generation
        self.pipe = pipe
        self.started_s = started_s
        #: Set as soon as it has been started.
        self.process: BaseProcess
        #: When it became ready; None while it boots.
        self.ready_s: float | None = None
        #: Why it will end, if it has said so.
        self.failure: Failure | None = None
        #: Why it wants a successor, or "".
        self.wants_successor = ""
        #: True once it was told to finish what it runs, or was killed.
        self.is_leaving = False
        #: True once it was decided to kill it.
        self.is_condemned = False
        self._killed: Fate | None = None
        self._evidence = ""
        self._board: Board | None = None
        self._beat = (0, 0.0)

    def __str__(self) -> str:
        return f"worker process {self.number} (PID {self.process.pid})"

    @property
    def is_booting(self) -> bool:
        """True until it has reported that it works."""
        return self.ready_s is None

    @property
    def runs_something(self) -> bool:
        """True while its board has a message on it, also once it has died of that. It may have begun before it could
        report that it works."""
        return self._board is not None and bool(self._board.running())

    @property
    def serves(self) -> bool:
        """True if it holds its place: it works, or will."""
        return not self.is_leaving

    @property
    def was_killed_by_us(self) -> bool:
        """True once it was killed on purpose. Asked for its stacks too early, it dies of that."""
        return self._killed is not None or self.is_condemned

    def boarded(self, report: Boarded) -> None:
        """It is about to work. Its board is mapped now: later its file may be another's."""
        self._board = Board.open(Path(report.path))

    def became_ready(self, now_s: float) -> None:
        """It works."""
        self.ready_s = now_s
        self._beat = (0, now_s)

    def silent_s(self, now_s: float) -> float:
        """For how many seconds its beat has stood still; 0 if it has none.

        Measured by our clock, from when we saw it change last: the wall clock in the board may be moved.
        """
        if self._board is None or self.is_booting:
            return 0.0
        beat, since_s = self._beat
        if self._board.beat_ms != beat:
            self._beat = (self._board.beat_ms, now_s)
            return 0.0
        return now_s - since_s

    def pardon(self, now_s: float) -> None:
        """Counts its silence from now on."""
        self._beat = (self._beat[0], now_s)

    # --- what is asked of it

    def stop(self) -> None:
        """Tells it to finish what it runs and to end; while it boots, this ends it at once."""
        self.is_leaving = True
        self.process.terminate()

    def condemn(self, evidence: str) -> None:
        """Has it print its stacks. It is to be killed soon, for this reason."""
        self.is_condemned = True
        self._evidence = evidence
        assert self.process.pid is not None
        try:
            os.kill(self.process.pid, DUMP_SIGNAL)
        except ProcessLookupError:
            pass

    def kill(self, fate: Fate) -> None:
        """Kills it on purpose. Its board says so before it dies, so that whoever reaps it knows."""
        if self._killed is None:
            self._killed = fate
            if self._board is not None:
                self._board.write_fate(fate, -signal.SIGKILL)
        self.process.kill()

    # --- its end

    def ended(self, exit_code: int, *, out_of_memory: bool) -> None:
        """Writes how it ended into its board, unless a purpose stands there already."""
        board = self._board
        if board is None:
            return
        fate = board.fate
        if fate is Fate.UNKNOWN:
            fate = Fate.OUT_OF_MEMORY if out_of_memory else Fate.DIED
        board.write_fate(fate, exit_code)

    def ended_as_asked(self, exit_code: int) -> bool:
        """Whether this exit code is the end that was asked for."""
        if not self.is_leaving and not self.was_killed_by_us:
            return False
        asked_while_booting = self.is_booting and exit_code == -signal.SIGTERM
        return exit_code == 0 or asked_while_booting or self._killed is Fate.ENDED_ON_PURPOSE

    def obituary(self, exit_code: int, *, out_of_memory: bool = False) -> str:
        """How it ended, and what is known of the reason, as a sentence without its full stop."""
        how = ending(Fate.OUT_OF_MEMORY if out_of_memory else Fate.DIED, exit_code)
        if self.was_killed_by_us:
            how = "was killed"
        return f"{self} {how}{f': {self._evidence}' if self._evidence else ''}"
