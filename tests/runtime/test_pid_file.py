"""The pid file: who holds it, who is refused, what is left behind."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from greenroom.runtime.pid_file import PidFile, PidFileError, held
from tests.runtime.cli_kit import Program, wait_until

ACTORS = """
@greenroom.actor
def leave(name):
    mark(name)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "greenroom.pid"


@pytest.fixture
def stranger() -> int:
    """The id of a process that has ended and was reaped."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_it_holds_the_process_id_while_the_program_runs(path: Path) -> None:
    """Readable for all, whatever the umask; and gone afterwards."""
    previous = os.umask(0o077)
    try:
        with held(str(path)):
            assert path.read_text() == f"{os.getpid()}\n"
            assert stat.S_IMODE(path.stat().st_mode) == 0o644
    finally:
        os.umask(previous)
    assert not path.exists()


def test_without_a_path_nothing_is_held() -> None:
    """The flag is optional."""
    with held(None):
        pass


@pytest.mark.parametrize("content", ["", "\n", "0\n", "999999999999\n"])
def test_what_names_no_process_is_taken_over(path: Path, content: str) -> None:
    """An empty file, and ids that no process can have."""
    path.write_text(content)
    with held(str(path)):
        assert path.read_text() == f"{os.getpid()}\n"


def test_a_stale_one_is_taken_over(path: Path, stranger: int) -> None:
    """One that a program which was killed has left."""
    path.write_text(f"{stranger}\n")
    with held(str(path)):
        assert path.read_text() == f"{os.getpid()}\n"


def test_ones_own_id_is_a_stale_one(path: Path) -> None:
    """In a container a program that is started again gets the id that it had before."""
    path.write_text(str(os.getpid()))
    with held(str(path)):
        pass
    assert not path.exists()


def test_a_live_holder_is_respected(path: Path) -> None:
    """The file of a running process is refused, and left as it is."""
    path.write_text("1\n")
    with pytest.raises(PidFileError, match=r"is held by a running process, PID 1$"):
        PidFile(str(path)).claim()
    assert path.read_text() == "1\n"


@pytest.mark.parametrize("content", [b"garbage", b"-1", b"12 34", b"\xff\x00", b"1" * 100])
def test_anything_else_is_refused(path: Path, content: bytes) -> None:
    """A file that holds something else may be somebody's, and is not overwritten."""
    path.write_bytes(content)
    with pytest.raises(PidFileError, match="holds no process id"):
        PidFile(str(path)).claim()
    assert path.read_bytes() == content


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    """A missing folder, a folder in its place: one line that says why."""
    for path in (tmp_path / "missing" / "pid", tmp_path):
        with pytest.raises(PidFileError, match="cannot be written: "):
            PidFile(str(path)).claim()


def test_only_ones_own_is_removed(path: Path) -> None:
    """A file that has become another's meanwhile stays, and one that has gone is no trouble."""
    file = PidFile(str(path))
    file.claim()
    path.write_text("1\n")
    file.release()
    assert path.read_text() == "1\n"
    path.unlink()
    file.release()


def test_of_many_that_start_together_one_wins(path: Path) -> None:
    """Ten processes that find the same stale file: one gets it, nine are told."""
    path.write_text("999999999")
    code = """
import sys
from greenroom.runtime.pid_file import PidFile, PidFileError
print("up", flush=True)
sys.stdin.readline()
try:
    PidFile(sys.argv[1]).claim()
    print("won", flush=True)
except PidFileError:
    print("lost", flush=True)
sys.stdin.readline()
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(10)
    ]
    results = []
    for step in range(3):
        lines = [process.stdout.readline() for process in processes if process.stdout] if step < 2 else []
        results.append(sorted(lines))
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
    for process in processes:
        process.communicate()
    assert results[1] == ["lost\n"] * 9 + ["won\n"]


def test_the_command_holds_one_also_over_a_reload(tmp_path: Path) -> None:
    """It is there while the program runs, names the parent, survives ``HUP``, keeps a second program out with exit code
    4, and is removed at the end."""
    program = Program(tmp_path).write(ACTORS)
    path = tmp_path / "run.pid"
    with program.start("worker", "app", "-p", "1", "--pid-file", "run.pid") as running:
        running.wait_until_ready()
        assert path.read_text() == f"{running.process.pid}\n"
        ended = program.run("worker", "app", "-p", "1", "--pid-file", "run.pid")
        assert ended.returncode == 4
        assert ended.stderr.startswith("greenroom: error: the pid file ")
        running.process.send_signal(signal.SIGHUP)
        wait_until(lambda: running.count("Worker process is ready") == 2, "a successor runs")
        assert path.read_text() == f"{running.process.pid}\n"
        running.process.terminate()
        assert running.wait() == 0
    assert not path.exists()


def test_a_start_that_fails_leaves_none(tmp_path: Path) -> None:
    """A program that cannot be imported removes its file, too."""
    program = Program(tmp_path)
    assert program.run("worker", "missing", "-p", "1", "--pid-file", "run.pid").returncode == 2
    assert not (tmp_path / "run.pid").exists()
