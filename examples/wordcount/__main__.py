"""Counts the words of all text files under a folder: a group with one message a file, two worker processes, one SQLite
file. What the workers count is collected as the results of the group.

    python -m examples.wordcount [FOLDER]

The folder is this repository if none is named. Exit code 0 when all was tried, 1 when the workers failed, 2 for a bad
folder, 130 for Ctrl-C. All that the run writes is in a folder of its own under ``.greenroom/``, removed at its end.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from greenroom import group

from .files import text_files
from .screen import Show, progress, show_table
from .totals import Totals

REPOSITORY = Path(__file__).resolve().parents[2]
RUNS = REPOSITORY / ".greenroom" / "wordcount"
PROCESSES = 2
THREADS = 8
STOP_S = 15  # how long the workers may take to stop
STALL_S = 20  # without a new count for so long, something is wrong


class Failed(Exception):
    """The run cannot go on; the text says why."""


def main() -> int:
    """Runs the example; returns the exit code."""
    folder = parse_folder()
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a word may not fit the terminal's encoding
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through `finally`, like Ctrl-C
    paths = text_files(folder)
    if not paths:
        print(f"wordcount: no text files under {str(folder)!r} (hidden, ignored and binary files are skipped)")
        return 0
    try:
        with run_folder() as run:
            totals = count_all(paths, run)
    except KeyboardInterrupt:
        print("wordcount: stopped", file=sys.stderr)
        return 130
    except Failed as failure:
        print(f"wordcount: {failure}", file=sys.stderr)
        return 1
    show_table(totals)
    return 0


def parse_folder() -> Path:
    """The folder of the command line. Exits with 2 if it cannot be read."""
    parser = argparse.ArgumentParser(prog="wordcount", description="Counts the words of the text files under a folder.")
    parser.add_argument("folder", nargs="?", type=Path, default=REPOSITORY, help="default: this repository")
    folder: Path = parser.parse_args().folder
    try:
        os.scandir(folder).close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        print(f"wordcount: cannot read the folder {str(folder)!r}: {reason}", file=sys.stderr)
        raise SystemExit(2) from None
    return folder.resolve()


@contextmanager
def run_folder() -> Iterator[Path]:
    """A folder for this run alone. What runs that were killed left behind is removed, too."""
    for leftover in RUNS.glob("run-*"):
        if not is_alive(int(leftover.name.removeprefix("run-"))):
            shutil.rmtree(leftover, ignore_errors=True)
    run = RUNS / f"run-{os.getpid()}"
    run.mkdir(parents=True)
    try:
        yield run
    finally:
        shutil.rmtree(run, ignore_errors=True)
        with suppress(OSError):  # not empty: somebody else's
            RUNS.rmdir()
            RUNS.parent.rmdir()


def is_alive(pid: int) -> bool:
    """Whether a process has this id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def count_all(paths: list[str], run: Path) -> Totals:
    """Sends a message for each file, and collects what the workers count."""
    os.environ["WORDCOUNT_FOLDER"] = str(run)
    from .tasks import broker, count

    print(f"counting the words of {len(paths):,} files", flush=True)
    totals = Totals()
    with closing(broker):
        files = group([count.message(path) for path in paths], on_error="collect").run()
        with workers(run) as process, progress(len(paths)) as show:
            wait_for(files, process, run, show)
        for path, report in zip(paths, files.get_results(), strict=True):
            totals.add(path, report)
    return totals


def wait_for(files: group, process: subprocess.Popen[bytes], run: Path, show: Show) -> None:
    """Shows how many files are done until all are."""
    done = 0
    last_s = time.monotonic()
    while done < len(files):
        before, done = done, files.completed_count
        show(done)
        if done > before:
            last_s = time.monotonic()
        elif process.poll() is not None:
            raise Failed(f"the workers ended with exit code {process.returncode}:\n{last_words(run)}")
        elif time.monotonic() - last_s > STALL_S:
            raise Failed(f"nothing was counted for {STALL_S} s:\n{last_words(run)}")
        time.sleep(0.02)


@contextmanager
def workers(run: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The worker processes, stopped at the end: TERM lets them finish what they run."""
    command = [sys.executable, "-m", "greenroom", "worker", "examples.wordcount.tasks"]
    command += ["-p", str(PROCESSES), "-t", str(THREADS)]
    with (run / "worker.log").open("wb") as log:
        # In a group of its own: Ctrl-C is for this program, which then stops its workers.
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log, process_group=0)  # noqa: S603  # ours
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode != 0:
        raise Failed(f"the workers stopped with exit code {process.returncode}:\n{last_words(run)}")


def last_words(run: Path) -> str:
    """The end of the workers' log."""
    return "\n".join((run / "worker.log").read_text("utf-8", "replace").splitlines()[-20:])


if __name__ == "__main__":
    sys.exit(main())
