from __future__ import annotations

from pathlib import Path

import pytest

from greenroom.board import MAX_PLACES, Board, Fate


def test_what_runs_is_read_by_another_process(tmp_path: Path) -> None:
    """A mark that is written in one mapping is seen in another, and is gone when the cell is cleared."""
    board = Board.create(tmp_path / "0.board", 4, mode=0o600)
    other = Board.open(tmp_path / "0.board")
    assert other is not None
    board.cells[2] = 17
    board.cells[3] = 2**62
    assert other.running() == {17, 2**62}
    board.cells[2] = 0
    assert other.running() == {2**62}


def test_the_parent_says_how_it_ended(tmp_path: Path) -> None:
    """Fate and status are written by whoever started the process, and read by whoever gives its messages back."""
    path = tmp_path / "0.board"
    board = Board.create(path, 1, mode=0o600, parent_pid=4711)
    assert (board.fate, board.status, board.parent_pid, board.beat_ms) == (Fate.UNKNOWN, 0, 4711, 0)
    parents = Board.open(path)
    assert parents is not None
    parents.write_fate(Fate.DIED, -9)
    board.beat(1_700_000_000_000)
    assert (board.fate, board.status, parents.beat_ms) == (Fate.DIED, -9, 1_700_000_000_000)


def test_a_board_made_anew_is_another_file(tmp_path: Path) -> None:
    """A successor in the same place starts with an empty board; who has mapped the old one keeps that."""
    path = tmp_path / "0.board"
    first = Board.create(path, 2, mode=0o600)
    first.cells[0] = 5
    old = Board.open(path)
    second = Board.create(path, 2, mode=0o600)
    assert old is not None
    assert old.running() == {5}
    assert second.running() == set()


def test_the_file_is_private(tmp_path: Path) -> None:
    """The file gets the permissions that were asked for, whatever the umask is."""
    Board.create(tmp_path / "0.board", 1, mode=0o600)
    assert (tmp_path / "0.board").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [b"", b"x", b"\0" * 64, b"\0" * 72, b"\xff" * 80])
def test_what_is_no_board_is_not_read(tmp_path: Path, content: bytes) -> None:
    """An empty, a short or a foreign file is no board; neither is one that does not exist."""
    (tmp_path / "0.board").write_bytes(content)
    assert Board.open(tmp_path / "0.board") is None
    assert Board.open(tmp_path / "1.board") is None


@pytest.mark.parametrize("places", [0, -1, MAX_PLACES + 1])
def test_an_impossible_size_is_refused(tmp_path: Path, places: int) -> None:
    """A board needs a place, and not absurdly many."""
    with pytest.raises(ValueError, match="places"):
        Board.create(tmp_path / "0.board", places, mode=0o600)


def test_a_fate_of_a_newer_version_is_unknown() -> None:
    """What this version does not understand is no evidence."""
    board = Board.in_memory(1)
    board._numbers[1] = 99
    assert board.fate is Fate.UNKNOWN
