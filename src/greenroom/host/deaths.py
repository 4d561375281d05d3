"""How a process of this host has died, and who is charged with that.

Whoever gives back what a dead owner held reads its board (``board``): what stands there was running and is charged with
a crash; all else that it held is given back as if nothing had happened. Whoever started the process says there how it
ended; so while that one lives, and has not spoken yet, it is waited for, for a moment.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Hashable
from pathlib import Path
from typing import NamedTuple

from ..board import Board, Fate
from ..clock import Clock
from ..logging import get_logger, one_line

#: How long whoever started a process has to say how it ended, in seconds after the first look at its board.
EVIDENCE_S = 0.3
#: Seconds between two looks for that.
EVIDENCE_STEP_S = 0.02

logger = get_logger(__name__)


class Death(NamedTuple):
    """How an owner of messages died."""

    #: In one line, for the history of what it ran.
    evidence: str
    #: The marks of what it ran, and is charged with a crash if the owner holds it yet.
    charged: frozenset[int] = frozenset()
    #: True if it was ended on purpose: then nobody is charged.
    is_on_purpose: bool = False

    def tell(self, charged: int, others: int) -> None:
        """Writes into the log what became of its messages.

        Parameters:
          charged: How many were given back with a crash more.
          others: How many were given back as they were.
        """
        level = logging.INFO if self.is_on_purpose else logging.WARNING
        text = "%s. %d messages are charged with the crash, %d more are given back."
        logger.log(level, text, self.evidence, charged, others)


def worker_name(name: str, pid: int) -> str:
    """How people call an owner, in one line."""
    return one_line(f"worker {name} (PID {pid})", 300)


class Inquest:
    """Finds out how owners of this host died. Owned by its consumer's thread.

    Parameters:
      clock: How long a parent was waited for.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._first_look_s: dict[Hashable, float] = {}  # of owners whose parents are yet to say how they ended

    def death_of(self, owner: Hashable, worker: str, board_path: Path) -> Death | None:
        """How a dead owner ended; None if that is to be asked again in ``EVIDENCE_STEP_S``.

        Parameters:
          owner: What tells it from all others.
          worker: How people call it (``worker_name``).
          board_path: Where it said what it runs.
        """
        board = Board.open(board_path)
        if board is None:
            return Death(f"{worker} has died, and it had no board")
        if self._is_evidence_due(owner, board):
            return None
        is_on_purpose = board.fate is Fate.ENDED_ON_PURPOSE
        charged = frozenset() if is_on_purpose else frozenset(board.running())
        return Death(board.evidence(worker), charged, is_on_purpose)

    def _is_evidence_due(self, owner: Hashable, board: Board) -> bool:
        """True while whoever started it lives, has not said yet how it ended, and should."""
        if board.fate is Fate.UNKNOWN and any(board.cells) and _is_process(board.parent_pid):
            now_s = self._clock.monotonic()
            if now_s - self._first_look_s.setdefault(owner, now_s) < EVIDENCE_S:
                return True
        self._first_look_s.pop(owner, None)
        return False


def _is_process(pid: int) -> bool:
    """True if there is such a process. It may be another one that has got the number: then a wait is in vain, once."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True
