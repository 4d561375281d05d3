"""The demonstration, run as a user runs it, from a copy of its own so that runs never meet."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: Added to the copy's tasks: a file that cannot be read, whoever runs the test.
UNREADABLE = """
_count_words = count_words
def count_words(path):
    if path.endswith("unreadable.txt"):
        raise PermissionError(13, "Permission denied")
    return _count_words(path)
"""

#: Added to the copy's tasks: work that is still going on when the signal comes.
SLOW = """
import threading
def count_words(path):
    threading.Event().wait(0.5)
    return Counter()
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A repository of its own that holds the example alone."""
    repository = tmp_path / "repository"
    shutil.copytree(
        ROOT / "examples" / "wordcount",
        repository / "examples" / "wordcount",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    return repository


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "texts"
    made.mkdir()
    return made


def command(folder: Path | str) -> list[str]:
    return [sys.executable, "-m", "examples.wordcount", "--", str(folder)]


def wordcount(copy: Path, folder: Path | str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(folder), cwd=copy, capture_output=True, text=True, timeout=60, check=False)


def figure(name: str, output: str) -> int:
    """The number beside a name in the table."""
    found = re.search(rf"^{re.escape(name)} +([\d,]+)$", output, re.MULTILINE)
    assert found, output
    return int(found[1].replace(",", ""))


def add_to_tasks(copy: Path, code: str) -> None:
    with (copy / "examples" / "wordcount" / "tasks.py").open("a") as tasks:
        tasks.write(code)


def test_files_with_any_name_are_counted_and_nothing_is_left(copy: Path, folder: Path) -> None:
    """Spaces, line breaks, brackets and bytes that are no text may be in names; the run's files are gone at the end."""
    names = [b"plain.txt", b"two words.md", "déjà-vu.rst".encode(), b"line\nbreak.txt", b"[red].py", b"\xff\xfe.txt"]
    (folder / "deep" / "er").mkdir(parents=True)
    for name in [*names, b"deep/er/README"]:
        with open(os.path.join(os.fsencode(folder), name), "w", encoding="utf-8") as file:
            file.write("Alpha alpha beta 42 x\n")
    done = wordcount(copy, folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert figure("files", done.stdout) == 7
    assert figure("failures", done.stdout) == 0
    assert (figure("alpha", done.stdout), figure("beta", done.stdout)) == (14, 7)
    assert figure("all words", done.stdout) == 21
    assert not (copy / ".greenroom").exists()


def test_hidden_ignored_and_binary_files_are_left_out(copy: Path, folder: Path) -> None:
    """What git ignores, hides or knows as binary is not counted; nor are links and pipes, which could wait for ever."""
    (folder / ".hidden").mkdir()
    (folder / "ignored").mkdir()
    (folder / ".gitignore").write_text("ignored/\n")
    for name in ("yes.txt", ".hidden/no.txt", "ignored/no.txt", ".no.txt", "no.db", "no.db-wal", "no.png", "no"):
        (folder / name).write_text("word\n")
    (folder / "link.txt").symlink_to(folder / "yes.txt")
    os.mkfifo(folder / "pipe.txt")
    subprocess.run(["git", "init", "-q", str(folder)], check=True, capture_output=True)
    done = wordcount(copy, folder)
    assert done.returncode == 0, done.stderr
    assert (figure("files", done.stdout), figure("word", done.stdout)) == (1, 1)


def test_without_git_the_usual_junk_is_left_out(copy: Path, folder: Path) -> None:
    """Outside a repository, hidden folders and those of tools are skipped."""
    for name in (".venv", "node_modules", "__pycache__", "kept"):
        (folder / name).mkdir()
        (folder / name / "a.py").write_text("word\n")
    done = wordcount(copy, folder)
    assert done.returncode == 0, done.stderr
    assert figure("files", done.stdout) == 1


def test_a_file_that_cannot_be_read_counts_as_a_failure(copy: Path, folder: Path) -> None:
    """It is named with its reason, the others are counted, and the run still succeeds."""
    add_to_tasks(copy, UNREADABLE)
    for name in ("a.txt", "unreadable.txt", "b.txt"):
        (folder / name).write_text("word\n")
    done = wordcount(copy, folder)
    assert done.returncode == 0, done.stderr
    assert (figure("files", done.stdout), figure("failures", done.stdout)) == (2, 1)
    assert "unreadable.txt': Permission denied" in done.stdout


def test_an_empty_folder_is_said_to_be_empty(copy: Path, folder: Path) -> None:
    """No worker is started for nothing, and that is no error."""
    done = wordcount(copy, folder)
    assert done.returncode == 0
    assert done.stdout.startswith("wordcount: no text files under")


@pytest.mark.parametrize("name", ["missing", "file.txt", "bad\nname"])
def test_a_bad_folder_gets_one_line_and_exit_code_2(copy: Path, folder: Path, name: str) -> None:
    """A folder that is not there, or is a file, is a mistake of the caller."""
    (folder / "file.txt").write_text("word\n")
    done = wordcount(copy, folder / name)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("wordcount: cannot read the folder")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_workers_and_removes_what_was_made(
    copy: Path, folder: Path, number: signal.Signals, code: int
) -> None:
    """Ctrl-C and TERM in the middle of the work leave no process and no file behind."""
    add_to_tasks(copy, SLOW)
    for n in range(200):
        (folder / f"{n}.txt").write_text("word\n")
    with subprocess.Popen(command(folder), cwd=copy, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        run.stdout.readline()  # "counting the words of 200 files"
        run.stdout.readline()  # "counted 20 of 200 files": both sides are at work
        run.send_signal(number)
        _, errors = run.communicate(timeout=30)
    assert run.returncode == code, errors
    assert not (copy / ".greenroom").exists()
    assert "Traceback" not in errors


def test_what_a_killed_run_left_is_removed_by_the_next(copy: Path, folder: Path) -> None:
    """The folder of a run whose process is gone is nobody's."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    leftover = copy / ".greenroom" / "wordcount" / f"run-{gone.pid}"
    leftover.mkdir(parents=True)
    (leftover / "queue.db").write_bytes(b"left behind")
    (folder / "a.txt").write_text("word\n")
    assert wordcount(copy, folder).returncode == 0
    assert not (copy / ".greenroom").exists()
