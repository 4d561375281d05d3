"""How the death of a process of this host is judged: by its board, and by what whoever started it says there."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

import pytest

from greenroom.board import Board, Fate
from greenroom.host.deaths import EVIDENCE_S, Death, Inquest, worker_name
from greenroom.testing.clock import ManualClock

WORKER = "worker w (PID 5)"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def inquest(clock: ManualClock) -> Inquest:
    return Inquest(clock)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "board"


def running(path: Path, *marks: int, parent_pid: int = 0) -> Board:
    board = Board.create(path, 4, mode=0o600, parent_pid=parent_pid)
    for place, mark in enumerate(marks):
        board.cells[place] = mark
    return board


def test_what_stands_on_the_board_is_charged(inquest: Inquest, path: Path) -> None:
    """What ran is charged, and the evidence says who died, and how."""
    running(path, 7, 9).write_fate(Fate.DIED, -signal.SIGSEGV)
    assert inquest.death_of(1, WORKER, path) == Death(f"{WORKER} was killed by SIGSEGV", frozenset({7, 9}))


def test_without_a_board_nobody_is_charged(inquest: Inquest, path: Path) -> None:
    """Who had no board yet was running nothing."""
    assert inquest.death_of(1, WORKER, path) == Death(f"{WORKER} has died, and it had no board")


def test_who_was_ended_on_purpose_charges_nobody(inquest: Inquest, path: Path) -> None:
    """What somebody ended on purpose is given back as it was."""
    running(path, 7).write_fate(Fate.ENDED_ON_PURPOSE, -signal.SIGKILL)
    death = inquest.death_of(1, WORKER, path)
    assert death is not None
    assert (death.charged, death.is_on_purpose) == (frozenset(), True)


def test_a_parent_is_given_a_moment(inquest: Inquest, path: Path, clock: ManualClock) -> None:
    """While whoever started it lives and has not spoken, it is asked again; but not for long, and each owner by
    itself."""
    board = running(path, 7, parent_pid=os.getpid())
    assert inquest.death_of(1, WORKER, path) is None
    clock.advance_ms(int(EVIDENCE_S * 1000) - 1)
    assert inquest.death_of(1, WORKER, path) is None
    clock.advance_ms(1)
    assert inquest.death_of(2, WORKER, path) is None
    death = inquest.death_of(1, WORKER, path)
    assert death is not None
    assert "nobody said how" in death.evidence
    board.write_fate(Fate.OUT_OF_MEMORY, -signal.SIGKILL)
    death = inquest.death_of(2, WORKER, path)
    assert death is not None
    assert "out of memory" in death.evidence


def test_nobody_is_waited_for_in_vain(inquest: Inquest, path: Path) -> None:
    """Where nothing ran there is nothing to explain."""
    running(path, parent_pid=os.getpid())
    assert inquest.death_of(1, WORKER, path) is not None


@pytest.mark.parametrize(("on_purpose", "level"), [(True, logging.INFO), (False, logging.WARNING)])
def test_what_became_of_it_is_logged(caplog: pytest.LogCaptureFixture, *, on_purpose: bool, level: int) -> None:
    """The log tells of each death, as a warning if nobody wanted it."""
    with caplog.at_level(logging.INFO):
        Death("it is gone", is_on_purpose=on_purpose).tell(1, 2)
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (
        level,
        "it is gone. 1 messages are charged with the crash, 2 more are given back.",
    )


def test_a_name_cannot_forge_a_line() -> None:
    """What people call a worker is one line, whatever it was named."""
    assert worker_name("a\nb", 5) == "worker a\\nb (PID 5)"
