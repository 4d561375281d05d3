"""The parts of the parent, each alone: its loop, its pipes, its counter of kills for memory, when to recycle."""

from __future__ import annotations

import errno
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from greenroom.board import Board, Fate
from greenroom.clock import SYSTEM_CLOCK
from greenroom.runtime.out_of_memory import OomCounter
from greenroom.runtime.parent_loop import ParentLoop
from greenroom.runtime.recycling import Recycling, resident_bytes
from greenroom.runtime.reports import REAP, Boarded, ChildEnd, Failure, ParentEnd, Ready, Recycle, encode_report
from greenroom.runtime.signals import SignalPipe
from greenroom.runtime.supervisor import Supervisor
from greenroom.runtime.worker_process import WorkerProcess
from greenroom.settings import Settings


class Bell:
    """A source that can be rung."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()

    def fileno(self) -> int:
        return self._reader

    def close(self) -> None:
        os.close(self._reader)
        os.close(self._writer)

    def ring(self) -> None:
        os.write(self._writer, b"!")

    def answer(self) -> None:
        os.read(self._reader, 1)


@pytest.fixture
def bells() -> Iterator[list[Bell]]:
    made = [Bell(), Bell()]
    yield made
    for bell in made:
        bell.close()


# --- the loop


def test_moments_come_in_their_order() -> None:
    """What is due is called in the order of its time, what is not waits, and a wait ends at the next moment."""
    loop = ParentLoop()
    now_s = SYSTEM_CLOCK.monotonic()
    called: list[str] = []
    loop.call_at(now_s - 1, lambda: called.append("second"))
    loop.call_at(now_s - 2, lambda: called.append("first"))
    loop.call_at(now_s + 3600, lambda: called.append("never"))
    loop.wait()
    assert called == ["first", "second"]
    due_s = SYSTEM_CLOCK.monotonic() + 0.03
    loop.call_at(due_s, lambda: called.append("third"))
    loop.wait()
    assert called == ["first", "second", "third"]
    assert SYSTEM_CLOCK.monotonic() >= due_s


def test_sources_are_called_back_while_they_are_there(bells: list[Bell]) -> None:
    """Each that can be read is told of; one that another has removed in the same round is left alone."""
    first, second = bells
    loop = ParentLoop()
    called: list[str] = []

    def answer_first() -> None:
        first.answer()
        called.append("first")
        loop.remove(second)

    loop.add(first, answer_first)
    loop.add(second, lambda: called.append("second"))
    assert loop.sources == (first, second)
    first.ring()
    second.ring()
    loop.wait()
    assert called == ["first"]
    loop.remove(second)
    assert loop.sources == (first,)


# --- the pipe


@pytest.fixture
def ends() -> Iterator[tuple[ParentEnd, ChildEnd]]:
    ours, theirs = multiprocessing.get_context("fork").Pipe()
    yield ParentEnd(ours), ChildEnd(theirs)
    ours.close()
    theirs.close()


def test_reports_arrive_as_they_were(ends: tuple[ParentEnd, ChildEnd]) -> None:
    """Of each kind, several at a time, also in parts; nothing there is not the end."""
    parent, child = ends
    assert list(parent.receive()) == []
    assert not parent.has_ended
    reports = [Boarded("/x"), Ready("<b>", ("a", "b"), ("f",)), Failure(3, "no", "Traceback\n", "app"), Recycle("old")]
    for report in reports:
        child.report(report)
    line = encode_report(reports[0])
    os.write(child._connection.fileno(), line[:9])
    assert list(parent.receive()) == reports
    os.write(child._connection.fileno(), line[9:])
    assert list(parent.receive()) == [reports[0]]
    child._connection.close()
    assert list(parent.receive()) == []
    assert parent.has_ended


@pytest.mark.parametrize(
    "garbage", [b"x", b"1", b"[]", b"{}", b'{"Ready": 1}', b'{"Ready": {}}', b'{"Failure": {"x": 1}}', b"\xff", b""]
)
def test_what_is_no_report_is_left_out(ends: tuple[ParentEnd, ChildEnd], garbage: bytes) -> None:
    """User code that writes into the pipe disturbs nobody."""
    parent, child = ends
    os.write(child._connection.fileno(), garbage + b"\n")
    child.report(Recycle("old"))
    assert list(parent.receive()) == [Recycle("old")]


def test_orders_never_block_the_parent(ends: tuple[ParentEnd, ChildEnd]) -> None:
    """A child that was stopped does not listen: what it has no room for it misses, and the rest is there."""
    parent, child = ends
    for _ in range(5000):
        parent.send(REAP)
    orders = child.orders()
    assert {next(orders) for _ in range(100)} == {REAP}
    parent.close()
    assert set(orders) == {REAP}


def test_a_child_that_is_gone_can_be_given_orders(ends: tuple[ParentEnd, ChildEnd]) -> None:
    """They are lost, and so is what it has not said to its end."""
    parent, child = ends
    parent.send(REAP)
    child._connection.close()  # with the order unread: the pipe is reset
    parent.send(REAP)
    assert list(parent.receive()) == []
    assert parent.has_ended


# --- a parent that has nothing left


class Slow:
    """The clock of a process that hardly gets to run: time passes between any two of its looks."""

    now_ms, sleep = SYSTEM_CLOCK.now_ms, SYSTEM_CLOCK.sleep

    def __init__(self) -> None:
        self._now_s = 100.0

    def monotonic(self) -> float:
        self._now_s += 0.06
        return self._now_s


def test_a_parent_without_descriptors_tries_again_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """When its workers run, a parent that has no descriptor for a new one's pipe does not end: it waits, as long as it
    says."""
    signals, clock = SignalPipe(), Slow()
    settings = Settings(modules=("app",), processes=1)
    supervisor = Supervisor(settings, lambda _settings: None, signals, "Test", clock=clock)  # type: ignore[arg-type,return-value]  # no child is started
    supervisor._was_announced = True

    def fail() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(supervisor.launcher, "pipe", fail)
    supervisor._start_child(0)
    assert supervisor._respawn.not_before_s - clock._now_s == pytest.approx(0.1)
    assert "could not be started: Too many open files. The next one starts in 0.1 s." in caplog.text
    assert supervisor._failure is None
    signals.close()


# --- what the parent knows of a child


class Process:
    """Instead of a process: what was asked of it."""

    pid = 2**22 + 1  # more than Linux ever gives

    def __init__(self) -> None:
        self.asked: list[str] = []

    def terminate(self) -> None:
        self.asked.append("terminate")

    def kill(self) -> None:
        self.asked.append("kill")


@pytest.fixture
def child(ends: tuple[ParentEnd, ChildEnd]) -> WorkerProcess:
    child = WorkerProcess(3, 0, ends[0], started_s=100.0)
    child.process = Process()  # type: ignore[assignment]  # as much of one as is needed
    return child


@pytest.fixture
def board(child: WorkerProcess, tmp_path: Path) -> Board:
    board = Board.create(tmp_path / "board", 1, mode=0o600)
    child.boarded(Boarded(str(tmp_path / "board")))
    return board


def test_a_board_is_told_how_its_process_ended(child: WorkerProcess, board: Board) -> None:
    """By itself, with the code or the signal; or for want of memory."""
    child.ended(-11, out_of_memory=False)
    assert (board.fate, board.status) == (Fate.DIED, -11)
    board.write_fate(Fate.UNKNOWN)
    child.ended(-9, out_of_memory=True)
    assert (board.fate, board.status) == (Fate.OUT_OF_MEMORY, -9)


def test_a_purpose_is_written_before_the_kill_and_stays(child: WorkerProcess, board: Board) -> None:
    """Whoever reaps reads the purpose, however soon it comes; neither a second kill nor the end overwrites it."""
    seen = []
    child.process.kill = lambda: seen.append(board.fate)  # type: ignore[method-assign]  # instead of a kill
    child.kill(Fate.HUNG)
    child.kill(Fate.ENDED_ON_PURPOSE)
    child.ended(-9, out_of_memory=False)
    assert seen == [Fate.HUNG, Fate.HUNG]
    assert (board.fate, board.status) == (Fate.HUNG, -9)


def test_a_child_without_a_board_ends_like_any(child: WorkerProcess) -> None:
    """One that has none, or has not told of it yet, can be killed and be mourned."""
    child.boarded(Boarded("/nowhere/at/all"))
    child.kill(Fate.ENDED_ON_PURPOSE)
    child.ended(-9, out_of_memory=False)
    assert child.silent_s(1000.0) == 0.0
    assert child.obituary(-9) == f"worker process 3 (PID {Process.pid}) was killed"


def test_silence_is_measured_by_our_own_clock(child: WorkerProcess, board: Board) -> None:
    """What counts is for how long the beat has not changed, whatever time it names. While a child boots it need not
    beat, and after a pardon its silence begins anew."""
    assert child.silent_s(200.0) == 0.0
    child.became_ready(200.0)
    assert child.silent_s(203.0) == 3.0
    board.beat(1)
    assert child.silent_s(204.0) == 0.0
    board.beat(10**15)
    assert child.silent_s(210.0) == 0.0
    assert child.silent_s(215.0) == 5.0
    child.pardon(216.0)
    assert child.silent_s(217.0) == 1.0


@pytest.mark.parametrize(
    ("asked", "is_ready", "exit_code", "as_asked"),
    [
        ("nothing", True, 0, False),  # os._exit(0) is a crash
        ("nothing", True, -15, False),
        ("stop", True, 0, True),
        ("stop", True, 1, False),
        ("stop", True, -15, False),
        ("stop", False, -15, True),  # nothing ran yet
        ("kill", True, -9, True),
        ("hang", True, -9, False),
    ],
)
def test_what_was_asked_is_told_from_a_crash(
    child: WorkerProcess, asked: str, is_ready: bool, exit_code: int, as_asked: bool
) -> None:
    """An end that was asked for is none that anybody has to hear of."""
    if is_ready:
        child.became_ready(101.0)
    if asked == "stop":
        child.stop()
    elif asked != "nothing":
        child.kill(Fate.HUNG if asked == "hang" else Fate.ENDED_ON_PURPOSE)
    assert child.ended_as_asked(exit_code) is as_asked


# --- out of memory


@pytest.mark.parametrize(
    ("line", "file"),
    [
        ("0::/app/worker", "app/worker/memory.events"),
        ("0::/host/only", "memory.events"),
        ("4:cpu,memory:/app", "memory/app/memory.oom_control"),
        ("4:memory:/host/only", "memory/memory.oom_control"),
    ],
)
def test_a_kill_for_memory_is_noticed_once(tmp_path: Path, line: str, file: str) -> None:
    """In both versions of control groups, also where a container sees its own group at the top."""
    own = tmp_path / "own"
    own.write_text(f"7:pids:/elsewhere\n{line}\n")
    counter_file = tmp_path / "mount" / file
    counter_file.parent.mkdir(parents=True)
    counter_file.write_text("oom 3\noom_kill 4\noom_group_kill 9\n")
    counter = OomCounter(tmp_path / "mount", own)
    assert not counter.has_grown()
    counter_file.write_text("oom 3\noom_kill 5\noom_group_kill 9\n")
    assert counter.has_grown()
    assert not counter.has_grown()
    counter_file.unlink()
    assert not counter.has_grown()


@pytest.mark.parametrize("content", [None, "", "0::/nowhere\n"])
def test_without_a_counter_nobody_was_killed_for_memory(tmp_path: Path, content: str | None) -> None:
    """No control groups, none that counts: that is not known, and no error."""
    own = tmp_path / "own"
    if content is not None:
        own.write_text(content)
    assert not OomCounter(tmp_path / "mount", own).has_grown()


# --- recycling


def test_a_child_has_worked_enough_by_messages_or_by_memory() -> None:
    """The reason names the limit; without limits nobody looks."""

    def recycling(**limits: int) -> Recycling:
        return Recycling(Settings.load({"modules": ["app"], **limits}, {}))

    assert recycling().look_every_s is None
    by_tasks = recycling(max_tasks_per_child=3)
    assert by_tasks.look_every_s is not None
    assert by_tasks.reason(2) == ""
    assert by_tasks.reason(4) == "it has run 4 messages (--max-tasks-per-child 3)"
    mib = resident_bytes() // 2**20
    assert recycling(max_rss_per_child_mib=10 * mib).reason(10**9) == ""
    assert "MiB of memory (--max-rss-per-child 1)" in recycling(max_rss_per_child_mib=1).reason(1)
    assert recycling(max_rss_per_child_mib=1).reason(0) == "", "a successor would be as large, and have one, too"
