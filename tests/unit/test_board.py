from __future__ import annotations

import errno
import signal
from pathlib import Path

import pytest

from greenroom.board import MAX_PLACES, Board, Fate, ending
from greenroom.testing.contract.processes import in_child


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


# --- where it lies


def test_a_board_moves_with_its_file(tmp_path: Path) -> None:
    """Who has mapped it before still sees what is written, and who looks at the new place sees it, too."""
    board = Board.create(tmp_path / "0.board", 2, mode=0o600)
    early = Board.open(tmp_path / "0.board")
    board.keep_at(tmp_path / "1.board", mode=0o600)
    board.cells[0] = 7
    late = Board.open(tmp_path / "1.board")
    assert early is not None
    assert late is not None
    assert early.running() == late.running() == {7}
    assert board.path == tmp_path / "1.board"
    assert not (tmp_path / "0.board").exists()


def test_a_board_moves_without_its_file(tmp_path: Path) -> None:
    """Another process has its place by now, and a board there: it leaves that alone and makes a file of its own. What
    was written stays, and who holds a view of the cells writes into the new file."""
    board = Board.create(tmp_path / "0.board", 3, mode=0o600, parent_pid=4711)
    cells = board.cells[1:]
    cells[0] = 7
    others = Board.create(tmp_path / "0.board", 3, mode=0o600)
    board.keep_at(tmp_path / "1.board", mode=0o640)
    cells[1] = 8
    found = Board.open(tmp_path / "1.board")
    assert found is not None
    assert (found.running(), found.parent_pid) == ({7, 8}, 4711)
    assert (tmp_path / "1.board").stat().st_mode & 0o777 == 0o640
    assert others.running() == set()
    assert (tmp_path / "0.board").exists()


def test_a_board_that_somebody_has_deleted(tmp_path: Path) -> None:
    """It is made anew where it was, with what stands on it. Where it still is nothing happens."""
    path = tmp_path / "0.board"
    board = Board.create(path, 1, mode=0o600)
    board.cells[0] = 7
    before = path.stat().st_ino
    board.keep_at(path, mode=0o600)
    assert path.stat().st_ino == before
    path.unlink()
    board.keep_at(path, mode=0o600)
    found = Board.open(path)
    assert found is not None
    assert found.running() == {7}


def test_who_has_mapped_a_board_is_told_of_its_new_file(tmp_path: Path) -> None:
    """Of a file that was made anew, that is; one that has only moved is still the one that is mapped."""
    board = Board.create(tmp_path / "0.board", 1, mode=0o600)
    told: list[Path | None] = []
    board.on_new_file = lambda board: told.append(board.path)
    board.keep_at(tmp_path / "1.board", mode=0o600)
    assert told == []
    (tmp_path / "1.board").unlink()
    board.keep_at(tmp_path / "1.board", mode=0o600)
    assert told == [tmp_path / "1.board"]


def test_a_board_that_cannot_be_mapped_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a path that is none nor a lack of memory costs those who look more than the board."""
    Board.create(tmp_path / "0.board", 1, mode=0o600)
    assert Board.open(Path("\0")) is None

    def fail(*_args: object) -> None:
        raise OSError(errno.ENOMEM, "no memory")

    monkeypatch.setattr("greenroom.board.mmap.mmap", fail)
    assert Board.open(tmp_path / "0.board") is None


def test_a_board_removes_its_own_file_only(tmp_path: Path) -> None:
    """It is removed with its process, unless the file there is another's by now; twice does no harm."""
    board = Board.create(tmp_path / "0.board", 1, mode=0o600)
    board.remove()
    board.remove()
    assert not (tmp_path / "0.board").exists()
    Board.create(tmp_path / "0.board", 1, mode=0o600)
    board.remove()
    assert (tmp_path / "0.board").exists()
    Board.in_memory(1).remove()


def test_a_child_does_not_write_on_its_parents_board(tmp_path: Path) -> None:
    """What a forked child writes, also through a view that it inherited, its parent and others do not see; and it
    leaves the file alone."""
    path = tmp_path / "0.board"
    board = Board.create(path, 2, mode=0o600)
    board.cells[0] = 7
    view = board.cells[:1]

    def meddle() -> None:
        view[0] = 0
        board.cells[1] = 8
        board.beat(1)
        board.write_fate(Fate.ENDED_ON_PURPOSE)
        board.remove()
        assert board.running() == {8}

    in_child(meddle)
    found = Board.open(path)
    assert found is not None
    assert (found.running(), found.beat_ms, found.fate) == ({7}, 0, Fate.UNKNOWN)


def test_a_board_takes_its_room_at_once(tmp_path: Path) -> None:
    """The file is written and not merely made as long: on a full disk making it fails, where a store into a hole would
    kill the process."""
    Board.create(tmp_path / "0.board", 1000, mode=0o600)
    assert (tmp_path / "0.board").stat().st_blocks * 512 >= 8 * 1000


# --- evidence


@pytest.mark.parametrize(
    ("fate", "status", "text"),
    [
        (Fate.UNKNOWN, 0, "has died, and nobody said how"),
        (Fate.UNKNOWN, -9, "has died, and nobody said how"),
        (Fate.DIED, 0, "ended with code 0"),
        (Fate.DIED, 70, "ended with code 70"),
        (Fate.DIED, -signal.SIGKILL, "was killed by SIGKILL (likely out of memory, or kill -9)"),
        (Fate.DIED, -signal.SIGSEGV, "was killed by SIGSEGV"),
        (Fate.DIED, -signal.SIGABRT, "was killed by SIGABRT"),
        (Fate.DIED, -999, "was killed by signal 999"),
        (Fate.OUT_OF_MEMORY, -9, "was killed by the kernel because it was out of memory"),
        (Fate.ENDED_ON_PURPOSE, -9, "was ended on purpose"),
        (Fate.HUNG, -9, "hung and was killed"),
    ],
)
def test_an_ending_in_words(fate: Fate, status: int, text: str) -> None:
    """Every way to die has its words."""
    assert ending(fate, status) == text


@pytest.mark.parametrize(
    ("beat_ms", "tail"),
    [
        (0, ""),
        (1_700_000_000_999, "; last seen 2023-11-14T22:13:20Z"),
        (-1, ""),
        (2**63 - 1, ""),
        (-(2**63), ""),
        (253_402_300_800_000, ""),
    ],
)
def test_the_evidence_in_one_line(beat_ms: int, tail: str) -> None:
    """Who, how, and when it was last seen, in UTC; a time that cannot be one is left out."""
    board = Board.in_memory(1)
    board.beat(beat_ms)
    board.write_fate(Fate.DIED, 3)
    assert board.evidence("worker w (PID 7)") == f"worker w (PID 7) ended with code 3{tail}"
